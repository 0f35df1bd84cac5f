"""Several nodes on one PostgreSQL: no two runs at once, limits exact, a lost node's work done by others."""

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace import Client
from tests.serving import Serving, wait_until

CODE = Path(__file__).with_name("cluster_functions.py")
LEASE_S = 2.0


@contextlib.contextmanager
def nodes(count: int, url: str, folder: Path, *, workers: int = 2) -> Iterator[list[Serving]]:
    """So many nodes on one database and one folder of buckets, each with data of its own."""
    flags = ("--store", url, "--objects", str(folder / "buckets"))
    made = []
    for number in range(count):
        place = folder / f"node{number}"
        place.mkdir(parents=True)
        env = {"HEADRACE_NODE_LEASE_S": str(LEASE_S)}
        made.append(Serving(CODE, folder=place, workers=workers, flags=flags, env=env))
    try:
        for node in made:
            node.start()
        yield made
    except BaseException:
        for node in made:
            print(node.words()[-3000:])
        raise
    finally:
        for node in made:
            node.signal(signal.SIGCONT)
            node.close()


def put(client: Client, function: str, payloads: list[Any]) -> list[str]:
    found = client.call("POST", f"/v1/functions/{function}/invoke-many", body=payloads)
    ids: list[str] = found["invocation_ids"]
    return ids


def ends(client: Client, ids: list[str], within_s: float = 60.0) -> list[dict[str, Any]]:
    """The ends of invocations, wherever they ran, in the order of `ids`."""
    ended: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        left = [id for id in ids if id not in ended][:1000]
        found = client.call("POST", "/v1/invocations/wait", body={"ids": left, "wait_s": 1})
        ended.update((one["invocation_id"], one) for one in found["ended"])
        return len(ended) == len(ids)

    wait_until(look, f"the end of {len(ids)} invocations", within_s=within_s)
    return [ended[id] for id in ids]


def shown(client: Client, id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.call("GET", f"/v1/invocations/{id}")
    return found


class Run:
    """One attempt as its function saw it: moments of the machine's monotonic clock."""

    def __init__(self, id: str, attempt: int, node: str, start: float) -> None:
        self.id, self.attempt, self.node, self.start = id, attempt, node, start
        self.end: float | None = None


def runs_of(folder: Path) -> list[Run]:
    """Every run that was begun, from the notes of all workers."""
    found = []
    for log in sorted(folder.glob("log-*")):
        open_run: Run | None = None
        for line in log.read_text().splitlines():
            moment, what, id, attempt, node = line.split()
            if what == "start":
                open_run = Run(id, int(attempt), node, float(moment))
                found.append(open_run)
            else:
                assert open_run is not None
                assert open_run.id == id
                open_run.end = float(moment)
    return found


def check_never_two_at_once(runs: list[Run], killed_at: float | None = None) -> None:
    """No invocation runs twice at once; a run without an end was killed."""
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.id].append(run)
    for id, of in by_id.items():
        of.sort(key=lambda run: run.start)
        for earlier, later in pairwise(of):
            assert earlier.end is None or earlier.end <= later.start, f"{id} ran twice at once"


def most_at_once(runs: list[Run], death: float) -> int:
    """How many ran at the same time at most; a run without an end is taken to have gone on until `death`."""
    marks = sorted([(run.start, 1) for run in runs] + [(run.end or death, -1) for run in runs])
    now = most = 0
    for _, step in marks:
        now += step
        most = max(most, now)
    return most


def test_two_nodes_share_the_work_and_run_nothing_twice(postgres_url: str, tmp_path: Path) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        ids = put(one.client, "cluster.work", [{"folder": str(tmp_path), "n": n} for n in range(1000)])
        ids += put(two.client, "cluster.work", [{"folder": str(tmp_path), "n": n} for n in range(1000, 1500)])
        ended = ends(two.client, ids)
        assert [end["result"] for end in ended] == [n * n for n in range(1500)]
        runs = runs_of(tmp_path)
        assert len(runs) == len(ids)
        assert {run.node for run in runs} == {str(one.pid), str(two.pid)}
        check_never_two_at_once(runs)
        books = one.check_books()["functions"]["cluster.work"]
        assert (books["accepted"], books["succeeded"]) == (1500, 1500)
        assert two.check_books()["functions"]["cluster.work"]["succeeded"] == 1500


def test_a_long_backlog_on_one_node_is_worked_off_by_both(postgres_url: str, tmp_path: Path) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.05} for n in range(60)]
        ends(one.client, put(one.client, "cluster.work", payloads))
        by_node = [
            sum(run.node == name for run in runs_of(tmp_path)) for name in (str(one.pid), str(two.pid))
        ]
        assert min(by_node) >= 15, by_node


@pytest.mark.parametrize("count", [2, 4])
def test_a_limit_holds_over_all_nodes_even_when_one_is_killed(
    postgres_url: str, tmp_path: Path, count: int
) -> None:
    with nodes(count, postgres_url, tmp_path) as all_nodes:
        ids = put(
            all_nodes[0].client, "cluster.three", [{"folder": str(tmp_path), "n": n} for n in range(150)]
        )
        wait_until(lambda: len(runs_of(tmp_path)) >= 40, "40 runs")
        at_work = {run.node for run in runs_of(tmp_path)[-40:]}
        victim = next(node for node in all_nodes if str(node.pid) in at_work)
        name = str(victim.pid)
        victim.kill()
        left = next(node for node in all_nodes if node is not victim)
        ended = ends(left.client, ids)
        assert [end["status"] for end in ended] == ["succeeded"] * 150
        runs = runs_of(tmp_path)
        check_never_two_at_once(runs)
        death = max(run.start for run in runs if run.node == name) + 0.02
        assert most_at_once(runs, death) <= 3
        assert len({run.node for run in runs}) >= 2
        left.check_books()


def test_a_killed_node_s_work_goes_on_elsewhere_within_its_lease(postgres_url: str, tmp_path: Path) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.02} for n in range(300)]
        ids = put(two.client, "cluster.work", payloads)
        wait_until(lambda: len(runs_of(tmp_path)) >= 60, "60 runs")
        two.kill()
        ended = ends(one.client, ids, within_s=30)
        assert [end["result"] for end in ended] == [n * n for n in range(300)]
        check_never_two_at_once(runs_of(tmp_path))
        one.check_books()


def test_the_late_result_of_a_node_that_was_stopped_longer_than_its_lease_is_refused(
    postgres_url: str, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path, workers=1) as (one, two):
        [id] = put(two.client, "cluster.gated", [{"folder": str(tmp_path)}])
        [first] = wait_until(lambda: runs_of(tmp_path), "the start")
        stopped = (two, one)[first.node == str(one.pid)]
        other = one if stopped is two else two
        # A short claim is not written, and a lost one would be free: wait until this one is.
        wait_until(lambda: shown(other.client, id)["status"] == "running", "its claim in the rows")
        # Only the node stands still: its worker goes on, as on a machine whose network has gone.
        stopped.signal(signal.SIGSTOP)
        wait_until(lambda: shown(other.client, id)["status"] == "dead", "the end of the lost attempt")
        (tmp_path / "open").touch()
        stopped.signal(signal.SIGCONT)
        [end] = ends(other.client, [id])
        # It had no retries: the lost attempt was recorded as running, so it is dead, and stays dead.
        assert end["status"] == "dead"
        assert end["error"]["code"] == "node_lost"
        wait_until(lambda: "goes on as a new one" in stopped.words(), "the stopped node's new life")
        [result] = ends(
            stopped.client, put(stopped.client, "cluster.work", [{"folder": str(tmp_path), "n": 7}])
        )
        assert result["result"] == 49
        assert other.client.call("GET", f"/v1/invocations/{id}")["status"] == "dead"
        other.check_books()


def test_a_job_is_done_by_two_nodes_and_outlives_the_one_that_took_it(
    postgres_url: str, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        job = two.client.call(
            "POST", "/v1/jobs", body={"function": "cluster.total", "input": {"items": list(range(300))}}
        )
        wait_until(
            lambda: one.client.call("GET", f"/v1/jobs/{job['job_id']}").get("done", 0) >= 40, "40 chunks"
        )
        two.kill()
        found = wait_until(
            lambda: (
                (j := one.client.call("GET", f"/v1/jobs/{job['job_id']}"))["status"]
                in ("succeeded", "failed", "cancelled")
                and j
            ),
            "the job's end",
        )
        assert (found["status"], found["result"]) == ("succeeded", sum(range(300)))
        one.check_books()


def test_a_call_waits_for_a_run_on_another_node_and_a_cancel_reaches_it(
    postgres_url: str, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path, workers=1) as (one, two):
        ids = put(one.client, "cluster.gated", [{"folder": str(tmp_path)}] * 2)
        runs = wait_until(lambda: len(r := runs_of(tmp_path)) == 2 and r, "one run on each node")
        assert {run.node for run in runs} == {str(one.pid), str(two.pid)}
        far = next(run.id for run in runs if run.node == str(two.pid))
        near = next(id for id in ids if id != far)
        one.client.call("POST", f"/v1/invocations/{far}/cancel")
        [end] = ends(one.client, [far])
        assert end["status"] == "cancelled"
        (tmp_path / "open").touch()
        assert ends(two.client, [near])[0]["status"] == "succeeded"
        one.check_books()


def test_pausing_a_function_on_one_node_pauses_it_on_all(postgres_url: str, tmp_path: Path) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        one.client.call("POST", "/v1/functions/cluster.work/pause")
        wait_until(
            lambda: two.client.call("GET", "/v1/functions/cluster.work")["paused"],
            "the pause on the other node",
        )
        ids = put(two.client, "cluster.work", [{"folder": str(tmp_path), "n": n} for n in range(20)])
        # An unpaused function's call, behind them, has run: so would they have.
        ends(two.client, put(two.client, "cluster.echo", [1]))
        assert runs_of(tmp_path) == []
        two.client.call("POST", "/v1/functions/cluster.work/resume")
        assert [end["result"] for end in ends(one.client, ids)] == [n * n for n in range(20)]


def test_both_nodes_outlive_a_restart_of_the_database(
    postgres_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.01} for n in range(400)]
        ids = put(one.client, "cluster.work", payloads)
        wait_until(lambda: len(runs_of(tmp_path)) >= 50, "50 runs")
        postgres_server.restart()
        ended = ends(two.client, ids)
        assert [end["result"] for end in ended] == [n * n for n in range(400)]
        check_never_two_at_once(runs_of(tmp_path))
        one.check_books()
        assert os.path.exists(two.data)


def test_a_node_whose_database_is_gone_is_not_ready_until_it_is_back(
    postgres_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    with nodes(1, postgres_url, tmp_path) as (one,):

        def status() -> int:
            found: int = one.client.backend.request("GET", "/readyz").status
            return found

        assert status() == 200
        postgres_server.stop()
        try:
            wait_until(lambda: status() == 503 or None, "a node that is not ready")
        finally:
            postgres_server.start()
        wait_until(lambda: status() == 200 or None, "a node that is ready again")
        assert one.client.invoke("cluster.work", {"folder": str(tmp_path), "n": 3, "seconds": 0.01}) == 9


def test_a_cancel_counts_what_it_ended_once_however_many_nodes_there_are(
    postgres_url: str, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        one.client.pause("cluster.work")
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.01} for n in range(6_000)]
        put(one.client, "cluster.work", payloads)

        def unclaimed() -> bool:
            return one.client.stats()["total"]["waiting"] == 6_000

        wait_until(unclaimed, "a backlog")
        found = two.client.cancel(function="cluster.work")
        assert found["stopping"] == 0
        assert found["cancelled"] == 6_000
        one.check_books()
        assert one.client.stats()["total"]["cancelled"] == 6_000
