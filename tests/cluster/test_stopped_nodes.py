"""A whole node stands still for longer than its lease, its workers as well, and then goes on: what it still
brings is refused, and the books do not notice.
"""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from test_several_nodes import ends, nodes, put, runs_of

from tests.serving import Serving, wait_until


def stop_all(node: Serving) -> list[psutil.Process]:
    """Stop the node's process and all below it, as a machine that is suspended; the processes."""
    process = psutil.Process(node.pid)
    process.suspend()  # first: it must not see its workers stop
    below = process.children(recursive=True)
    for child in below:
        child.suspend()
    return [process, *below]


def record(node: Serving, id: str) -> dict[str, Any]:
    found: dict[str, Any] = node.client.call("GET", f"/v1/invocations/{id}")
    return found


def test_what_a_suspended_node_brings_after_its_lease_is_refused_and_counted_nowhere(
    postgres_url: str, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    with nodes(2, postgres_url, tmp_path, workers=1) as pair:
        [id] = put(pair[0].client, "cluster.by_turns", [{"folder": folder}])
        [first] = wait_until(lambda: runs_of(tmp_path), "the first attempt")
        stopped, other = pair if first.node == str(pair[0].pid) else (pair[1], pair[0])
        wait_until(lambda: record(other, id)["status"] == "running", "the record of a long run")
        ids = put(
            other.client, "cluster.work", [{"folder": folder, "n": n, "seconds": 0.002} for n in range(300)]
        )
        job = other.client.submit_job("cluster.total", list(range(40)))
        processes = stop_all(stopped)

        (tmp_path / "open-2").touch()
        [end] = ends(other.client, [id])
        assert (end["status"], end["result"]) == ("succeeded", [str(other.pid), 2])
        assert [done["result"] for done in ends(other.client, ids)] == [n * n for n in range(300)]
        assert job.wait(30)["result"] == sum(range(40))
        before = record(other, id)
        books = other.check_books()["functions"]

        (tmp_path / "open-1").touch()
        for process in reversed(processes):
            process.send_signal(signal.SIGCONT)
        wait_until(lambda: "goes on as a new one" in stopped.words(), "the stopped node's new life")
        late = put(stopped.client, "cluster.work", [{"folder": folder, "n": n} for n in range(300, 350)])
        assert [done["result"] for done in ends(stopped.client, late)] == [n * n for n in range(300, 350)]

        # Whether its late attempt came to its end or was stopped, nothing of it is recorded.
        runs = [run for run in runs_of(tmp_path) if run.id == id]
        assert sorted(run.attempt for run in runs) == [1, 2]
        assert record(other, id) == record(stopped, id) == before
        again = other.check_books()["functions"]
        assert again["cluster.by_turns"] == books["cluster.by_turns"]
        assert again["cluster.work"]["accepted"] == again["cluster.work"]["succeeded"] == 350
        assert again["cluster.total"]["succeeded"] == again["cluster.total"]["accepted"]
        # What lay ready in the stopped worker's hands may have run there as well, and cost nothing.
        times = Counter((run.id, run.node) for run in runs_of(tmp_path))
        assert set(times.values()) == {1}
        attempts = {one["invocation_id"]: one["attempts"] for one in other.client.invocations()}
        assert {attempts[one] for one in [*ids, *late]} == {1}
        stopped.check_books()


@pytest.mark.slow
def test_a_suspended_node_that_was_never_missed_goes_on_as_if_nothing_had_been(
    postgres_url: str, tmp_path: Path
) -> None:
    """Alone on the database, nobody has taken its claims: they are its own again, or wait again."""
    folder = str(tmp_path)
    with nodes(1, postgres_url, tmp_path, workers=1) as [node]:
        ids = put(
            node.client, "cluster.work", [{"folder": folder, "n": n, "seconds": 0.005} for n in range(200)]
        )
        wait_until(lambda: len(runs_of(tmp_path)) >= 20, "20 runs")
        processes = stop_all(node)
        wait_until(lambda: _lapsed(postgres_url), "the end of its lease")
        for process in reversed(processes):
            process.send_signal(signal.SIGCONT)
        assert [done["result"] for done in ends(node.client, ids)] == [n * n for n in range(200)]
        times = Counter(run.id for run in runs_of(tmp_path))
        assert sum(times[id] - 1 for id in ids) <= 1
        books = node.check_books()["functions"]["cluster.work"]
        assert (books["accepted"], books["succeeded"]) == (200, 200)


def _lapsed(url: str) -> bool:
    """Whether the only lease in the database has run out for half a second."""
    with psycopg.connect(url) as db:
        row = db.execute("SELECT extract(epoch FROM clock_timestamp()) - max(until_at) FROM node").fetchone()
    return row is not None and float(row[0]) > 0.5
