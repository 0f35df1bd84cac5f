"""Limits in real processes: RetryAfter over a kill, one key at a time, a rate, and memory that grows."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from headrace import Client
from tests.serving import Serving, run_command, serving, wait_until

CODE = Path(__file__).with_name("limited_functions.py")
MIB = 1 << 20


def put_many(client: Client, function: str, payloads: list[Any], **query: str) -> list[str]:
    path = f"/v1/functions/limited.{function}/invoke-many"
    ids: list[str] = client.call("POST", path, body=payloads, query=query)["invocation_ids"]
    return ids


def succeeded(client: Client, function: str, count: int) -> None:
    def look() -> bool:
        return bool(client.stats()["functions"][f"limited.{function}"]["succeeded"] >= count)

    wait_until(look, f"{count} successes of {function}", within_s=60)


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def begun_in(log: Path, since: float, until: float) -> int:
    return sum(1 for at, what, *_ in lines(log) if what == "began" and since < float(at) < until)


@pytest.mark.parametrize("kill", [False, True])
def test_nothing_of_a_closed_function_begins_until_its_moment_over_a_kill_too(
    tmp_path: Path, kill: bool
) -> None:
    log, seconds = tmp_path / "log", 4.0 if kill else 2.0
    with serving(CODE, folder=tmp_path, workers=2) as node:
        client = node.client
        put_many(client, "closing", [{"log": str(log), "n": n} for n in range(500)])
        succeeded(client, "closing", 500)  # by now they are known to be quick, and sent to workers in heaps
        events: list[dict[str, Any]] = [{"log": str(log), "n": n} for n in range(2000)]
        events[300]["close_s"] = seconds
        put_many(client, "closing", events)
        [closure] = wait_until(client.closures, "the closure")
        assert closure["name"] == "function:limited.closing"
        if kill:
            client = node.restart()
            assert [one["name"] for one in client.closures()] == [closure["name"]]
        succeeded(client, "closing", 2500)
        until = closure["until_at"]
        raised_at = float(Path(f"{log}.closed").read_text())
        # What the other worker began before the node heard of it is before the closure.
        assert begun_in(log, until - seconds + 0.02, until) == 0
        assert until - raised_at <= seconds + 1.0
        assert begun_in(log, until, until + 60) >= 1
        assert client.closures() == []
        of = node.check_books()["functions"]["limited.closing"]
        assert (of["accepted"], of["succeeded"], of["dead"]) == (2500, 2500, 0)


def test_a_worker_begins_nothing_behind_the_one_that_closed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(CODE, folder=tmp_path, workers=1) as node:
        client = node.client
        put_many(client, "closing", [{"log": str(log), "n": n} for n in range(500)])
        succeeded(client, "closing", 500)
        events: list[dict[str, Any]] = [{"log": str(log), "n": n} for n in range(1000)]
        events[300]["close_s"] = 1.0
        put_many(client, "closing", events)
        [closure] = wait_until(client.closures, "the closure")
        succeeded(client, "closing", 1500)
        raised_at = float(Path(f"{log}.closed").read_text())
    assert begun_in(log, raised_at, closure["until_at"]) == 0


def test_a_closure_is_shown_and_opened_from_the_command_line(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(node: Serving, *words: str) -> str:
        env = {"HEADRACE_DATA": str(node.data)}
        done = run_command(*words, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with serving(CODE, folder=tmp_path, workers=1) as node:
        id = run(node, "invoke", "limited.closing", "--async", "--key", "acme", "--payload",
                 f'{{"log": "{log}", "n": 1, "close_s": 500}}').strip()  # fmt: skip
        wait_until(node.client.closures, "the closure")
        assert "key:acme" in run(node, "closures", "list")
        assert node.client.invocation(id)["key"] == "acme"
        assert run(node, "closures", "open", "key:acme") == "key:acme is open.\n"
        assert run(node, "closures", "list") == "Nothing is closed.\n"
        assert "paused" in run(node, "functions", "pause", "limited.paced")
        assert node.client.function("limited.paced")["paused"] is True
        assert "active" in run(node, "functions", "resume", "limited.paced")
        assert run_command("functions", "pause", env={"HEADRACE_DATA": str(node.data)}).returncode == 2


def test_never_two_of_one_key_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(CODE, folder=tmp_path, workers=3) as node:
        events = [{"log": str(log), "key": f"k{n % 4}", "n": n} for n in range(240)]
        put_many(node.client, "keyed", events)
        succeeded(node.client, "keyed", 240)
    running: set[str] = set()
    together = 0
    for _, what, key, _ in lines(log):
        if what == "began":
            assert key not in running
            running.add(key)
        else:
            running.remove(key)
        together = max(together, len(running))
    assert together >= 2  # other keys did run beside it
    order = [int(n) for _, what, key, n in lines(log) if what == "began" and key == "k1"]
    assert order == sorted(order)


def test_a_rate_is_kept_by_real_workers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(CODE, folder=tmp_path, workers=2) as node:
        put_many(node.client, "paced", [{"log": str(log), "n": n} for n in range(85)])
        succeeded(node.client, "paced", 85)
    at = [float(line[0]) for line in lines(log)]
    late_s = 0.25  # what the node begins, a busy machine's worker may run later, and so nearer to the next
    for first, last in itertools.combinations(range(len(at)), 2):
        assert last - first + 1 <= 5 + 40 * (at[last] - at[first] + late_s)
    assert at[-1] - at[0] >= 80 / 40 - late_s


def test_an_attempt_that_ran_out_of_memory_is_made_again_with_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(CODE, folder=tmp_path, workers=1) as node:
        [fits, never] = put_many(
            node.client,
            "hungry",
            [{"log": str(log), "bytes": 150 * MIB}, {"log": str(log), "bytes": 1000 * MIB}],
        )
        good = node.client.invocation(fits, wait_s=30)
        bad = node.client.invocation(never, wait_s=30)
    assert (good["status"], good["attempts"], good["memory_bytes"]) == ("succeeded", 1, 192 * MIB)
    assert good["result"] == 150 * MIB
    assert (bad["status"], bad["attempts"], bad["memory_bytes"]) == ("dead", 1, 400 * MIB)
    assert bad["error"]["code"] == "out_of_memory"
    assert len(lines(log)) == 3 + 5
