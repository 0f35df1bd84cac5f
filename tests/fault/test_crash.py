"""What is accepted survives: SIGKILL, SIGTERM, code that fails, and events that take the node down."""

import signal
from pathlib import Path
from typing import Any

import pytest

from headrace import Client
from headrace.runtime.model.job import ENDED
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("crash_functions.py")
BROKEN = """
from headrace import App, RetryPolicy

app = App("mended")

@app.function(retries=RetryPolicy(retries=2, base_s=0.01, max_s=0.02))
def halve(n: int) -> float:
    return n / 0
"""


def results_of(client: Client, ids: list[str], within_s: float = 30.0) -> list[dict[str, Any]]:
    """The ends of invocations, in the order of `ids`."""
    ended: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        left = [id for id in ids if id not in ended]
        for at in range(0, len(left), 1000):
            found = client.call(
                "POST", "/v1/invocations/wait", body={"ids": left[at : at + 1000], "wait_s": 1}
            )
            ended.update((one["invocation_id"], one) for one in found["ended"])
        return len(ended) == len(ids)

    wait_until(look, f"the end of {len(ids)} invocations", within_s=within_s)
    return [ended[id] for id in ids]


def invoke_many(client: Client, function: str, payloads: list[Any]) -> list[str]:
    found = client.call("POST", f"/v1/functions/{function}/invoke-many", body=payloads)
    assert found["accepted"] == len(payloads)
    ids: list[str] = found["invocation_ids"]
    return ids


def enqueue(client: Client, function: str, payload: Any, **query: str) -> str:
    found = client.call(
        "POST", f"/v1/functions/{function}/invoke", query={"mode": "async", **query}, body=payload
    )
    return str(found["invocation_id"])


def began(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "began").read_text().split()]
    except FileNotFoundError:
        return []


# ---- SIGKILL ----


def test_ten_thousand_accepted_invocations_all_run_after_the_node_is_killed_behind_the_last_202(
    tmp_path: Path,
) -> None:
    with serving(CODE, folder=tmp_path) as node:
        ids: list[str] = []
        for start in range(0, 10_000, 1000):
            ids += invoke_many(node.client, "crash.square", [{"n": n} for n in range(start, start + 1000)])
        client = node.restart()
        after = node.check_books()["functions"]["crash.square"]
        ended = results_of(client, ids)

        assert after["succeeded"] < 10_000, "the kill came too late to show anything"
        assert len(set(ids)) == 10_000
        assert [one["result"] for one in ended] == [n * n for n in range(10_000)]
        of = node.check_books()["functions"]["crash.square"]
        assert (of["accepted"], of["succeeded"], of["dead"]) == (10_000, 10_000, 0)


def test_an_idempotency_key_means_the_same_invocation_on_both_sides_of_a_kill(tmp_path: Path) -> None:
    def post(client: Client, body: bytes) -> Any:
        headers = {"Idempotency-Key": "order-17", "Content-Type": "application/json"}
        path = "/v1/functions/crash.square/invoke"
        return client.backend.request("POST", path, query={"mode": "async"}, body=body, headers=headers)

    with serving(CODE, folder=tmp_path) as node:
        first = post(node.client, b'{"n": 12}')
        client = node.restart()
        again = post(client, b'{"n": 12}')
        other = post(client, b'{"n": 13}')

        assert first.status == again.status == 202
        assert again.body == first.body
        assert other.status == 422
        assert b"idempotency_mismatch" in other.body
        [end] = results_of(client, [_id_of(first.body)])
        assert (end["status"], end["result"]) == ("succeeded", 144)
        of = node.check_books()["functions"]["crash.square"]
        assert (of["accepted"], of["deduplicated"]) == (1, 1)


def test_a_key_means_the_same_death_on_both_sides_of_a_kill_until_it_is_redriven(tmp_path: Path) -> None:
    code = tmp_path / "keyed.py"
    code.write_text(
        "from headrace import App\napp = App('keyed')\n"
        "@app.function(retries=0, idempotency_ttl='1 h')\n"
        "def pick(event):\n    if event == 'bad':\n        raise ValueError('bad')\n    return event\n"
    )

    def call(client: Client, **query: str) -> Any:
        headers = {"Idempotency-Key": "order-18", "Content-Type": "application/json"}
        path = "/v1/functions/keyed.pick/invoke"
        return client.backend.request("POST", path, query=query, body=b'"bad"', headers=headers)

    with serving(code, folder=tmp_path) as node:
        first = call(node.client)
        client = node.restart()
        again, queued = call(client), call(client, mode="async")
        id = first.headers["headrace-invocation-id"]
        assert [reply.status for reply in (first, again, queued)] == [500, 500, 202]
        assert again.body == first.body
        assert {reply.headers["headrace-invocation-id"] for reply in (again, queued)} == {id}
        assert again.headers["headrace-repeated"] == "true"

        client.redrive(id, payload="good")
        client = node.restart()
        after = call(client)
        assert (after.status, after.body, after.headers["headrace-invocation-id"]) == (200, b'"good"', id)
        of = node.check_books()["functions"]["keyed.pick"]
        assert (of["accepted"], of["succeeded"], of["deduplicated"]) == (1, 1, 3)


def _id_of(body: bytes) -> str:
    import json

    return str(json.loads(body)["invocation_id"])


def test_an_event_that_takes_the_node_down_is_dead_after_its_attempts(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        neighbours = invoke_many(node.client, "crash.square", [{"n": n} for n in range(50)])
        id = enqueue(node.client, "crash.kill_node", {"folder": str(tmp_path)})
        for _ in range(3):
            assert node.wait_ended() == -signal.SIGKILL
            node.start()
        [end] = results_of(node.client, [id])

        assert (end["status"], end["error"]["code"]) == ("dead", "node_lost")
        assert (tmp_path / "kills").read_text().split() == ["1", "2", "3"]
        assert {one["status"] for one in results_of(node.client, neighbours)} == {"succeeded"}
        assert node.check_books()["total"]["dead"] == 1
        assert node.client.invoke("crash.square", {"n": 3}) == 9
        assert node.alive


# ---- dead letters ----


def failed_thrice(node: Serving) -> str:
    id = enqueue(node.client, "mended.halve", {"n": 8})
    [end] = results_of(node.client, [id])
    assert (end["status"], end["attempts"]) == ("dead", 3)
    assert (end["error"]["code"], end["error"]["type"]) == ("function_error", "ZeroDivisionError")
    [letter] = node.client.dead_letters()
    assert letter["invocation_id"] == id
    assert letter["payload"] == {"n": 8}
    return id


def redriven(node: Serving, id: str) -> None:
    assert node.client.redrive(id)["invocation_id"] == id
    [end] = results_of(node.client, [id])
    assert (end["status"], end["result"]) == ("succeeded", 4.0)
    assert list(node.client.dead_letters()) == []
    of = node.check_books()["functions"]["mended.halve"]
    assert (of["accepted"], of["succeeded"], of["dead"]) == (1, 1, 0)


def test_a_dead_letter_succeeds_under_its_id_once_its_code_is_mended_and_the_node_restarted(
    tmp_path: Path,
) -> None:
    code = tmp_path / "mended.py"
    code.write_text(BROKEN)
    with serving(code, folder=tmp_path) as node:
        id = failed_thrice(node)
        code.write_text(BROKEN.replace("n / 0", "n / 2"))
        assert node.stop() == 0
        node.start()
        redriven(node, id)


def test_a_dead_letter_succeeds_under_its_id_once_its_code_is_mended_and_reloaded(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    code = tmp_path / "code" / "mended.py"
    code.write_text(BROKEN)
    with serving(tmp_path / "code", folder=tmp_path, dev=True) as node:
        id = failed_thrice(node)
        before = node.client.loaded()["version"]
        code.write_text(BROKEN.replace("n / 0", "n / 2"))
        wait_until(lambda: node.client.loaded()["version"] != before, "the reload")
        redriven(node, id)


# ---- SIGTERM ----


def test_sigterm_lets_what_runs_end_keeps_what_waits_and_exits_with_0(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        payloads = [{"number": n, "folder": str(tmp_path)} for n in range(20)]
        ids = invoke_many(node.client, "crash.gated", payloads)
        wait_until(lambda: len(began(tmp_path)) == 2, "two at work")
        node.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in node.words(), "the node to be told")
        (tmp_path / "open").touch()

        assert node.wait_ended() == 0
        assert node.leftover() == []
        assert len(began(tmp_path)) == 2
        client = node.start().client
        ended = results_of(client, ids)
        assert [one["result"] for one in ended] == [{"number": n, "attempt": 1} for n in range(20)]
        assert sorted(began(tmp_path)) == list(range(20))
        assert node.check_books()["total"]["succeeded"] == 20


def test_a_second_signal_ends_the_node_at_once_and_the_work_runs_again(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        id = enqueue(node.client, "crash.gated", {"number": 1, "folder": str(tmp_path)})
        wait_until(lambda: began(tmp_path) == [1], "the work to begin")
        node.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in node.words(), "the node to be told")
        node.signal(signal.SIGTERM)

        assert node.wait_ended(within_s=5) == 1
        wait_until(lambda: not node.leftover(), "no process left", within_s=5)
        (tmp_path / "open").touch()
        [end] = results_of(node.start().client, [id])
        assert (end["status"], end["result"]["number"]) == ("succeeded", 1)
        assert began(tmp_path) == [1, 1]


def reached(node: Serving, job: str, done: int) -> dict[str, Any]:
    """The job's status once so many chunks are done, or once it has ended before."""

    def look() -> dict[str, Any] | None:
        found = node.client.job(job).status()
        return found if found["done"] >= done or found["status"] in ENDED else None

    return wait_until(look, f"{done} chunks")


def test_a_job_goes_on_over_three_stops_without_spending_an_attempt(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        job = node.client.submit_job("crash.steady", list(range(200))).id
        for share in (20, 60, 100):
            found = reached(node, job, share)
            assert found["done"] >= share, found
            assert node.stop() == 0
            assert node.leftover() == []
            node.start()
        found = node.client.job(job).wait(30)

        assert found["status"] == "succeeded", found
        assert found["result"] == [2 * n for n in range(200)]
        assert found["stages"]["0"]["succeeded"] == 200
        node.check_books()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_node_ends_with_0_and_leaves_no_process(tmp_path: Path, signum: signal.Signals) -> None:
    with serving(CODE, folder=tmp_path) as node:
        node.signal(signum)
        assert node.wait_ended(within_s=5) == 0
        assert node.leftover() == []
        assert not (node.data / "node.json").exists()
