"""Neighbours on one node: nobody starves, limits hold through a crash, and a backlog costs no memory."""

import threading
import time
from pathlib import Path

import pytest

from headrace.runtime.errors import HeadraceError, Throttled
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("fair_functions.py")
CHUNKS = 2_000
WAIT_MAX_S = 2.0  # a chunk is 4 ms: five hundred turns of grace for a busy machine


def accepted(node: Serving, function: str, payloads: list[object]) -> list[str]:
    found = node.client.call("POST", f"/v1/functions/{function}/invoke-many", body=payloads)
    ids: list[str] = found["invocation_ids"]
    return ids


@pytest.mark.timeout(90)
def test_a_job_of_many_chunks_starves_neither_queued_nor_synchronous_calls(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        job = node.client.submit_job("fair.chunks", list(range(CHUNKS)))
        wait_until(lambda: job.status()["done"] > 10, "the job to be under way")
        waits = []
        for n in range(15):
            began = time.monotonic()
            [id] = accepted(node, "fair.quick", [{"n": n}])
            assert node.client.invocation(id, wait_s=20)["result"] == n + 1
            waits.append(time.monotonic() - began)
            began = time.monotonic()
            assert node.client.invoke("fair.quick", {"n": n}) == n + 1
            waits.append(time.monotonic() - began)
        found = job.status()
        assert found["status"] == "running", "the job was over before anything could be seen"
        assert max(waits) < WAIT_MAX_S, waits

        many = accepted(node, "fair.quick", [{"n": n} for n in range(300)])
        for id in many:
            assert node.client.invocation(id, wait_s=20)["status"] == "succeeded"
        assert job.result(60) == CHUNKS * (CHUNKS - 1) // 2
        node.check_books()


def most_at_once(marks: Path, killed_at: float) -> tuple[int, int]:
    """The most attempts that ran at once, by their own marks, and how many ended.

    What has no end ended with its node.
    """
    steps: list[tuple[float, int]] = []
    open_at: dict[str, float] = {}
    ended = 0
    for line in marks.read_text().splitlines():
        at, pid, what = line.split()
        if what == "begin":
            if pid in open_at:
                raise AssertionError(f"process {pid} began twice at once")
            open_at[pid] = float(at)
            steps.append((float(at), 1))
        else:
            del open_at[pid]
            ended += 1
            steps.append((float(at), -1))
    for began in open_at.values():
        assert began <= killed_at
        steps.append((killed_at, -1))
    running = most = 0
    for _, change in sorted(steps):
        running += change
        most = max(most, running)
    return most, ended


@pytest.mark.timeout(90)
def test_reserved_concurrency_is_never_exceeded_by_queue_and_callers_together_nor_after_a_crash(
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    payload = {"marks": str(marks)}
    with serving(CODE, folder=tmp_path, workers=4) as node:
        ids = accepted(node, "fair.limited", [payload] * 60)
        answered: list[int] = []
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                try:
                    answered.append(node.client.invoke("fair.limited", payload))
                except Throttled:
                    continue
                except HeadraceError:
                    return  # the node was killed

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        wait_until(
            lambda: node.check_books()["functions"]["fair.limited"]["succeeded"] >= 20, "a third of them"
        )
        node.kill()
        killed_at = time.monotonic()
        wait_until(lambda: not node.leftover(), "no process of the killed node", within_s=10)
        stop.set()
        for caller in callers:
            caller.join(20)
        node.start()
        for id in ids:
            assert node.client.invocation(id, wait_s=30)["status"] == "succeeded"

        most, ended = most_at_once(marks, killed_at)
        assert most == 2
        assert answered, "no synchronous call got through"
        assert ended >= len(ids) + len(answered)
        assert node.check_books()["functions"]["fair.limited"]["succeeded"] == len(ids)


def backlog(folder: Path, size: int, mib_max: int) -> None:
    with serving(CODE, folder=folder) as node:
        node.client.pause("fair.idle")
        accepted(node, "fair.idle", [{"n": n} for n in range(5_000)])
        before = node.resident_bytes()
        for start in range(0, size, 5_000):
            accepted(node, "fair.idle", [{"n": n} for n in range(start, start + 5_000)])
        grown = (node.resident_bytes() - before) / (1 << 20)
        of = node.check_books()["functions"]["fair.idle"]

        assert of["waiting"] == of["accepted"] == size + 5_000
        assert grown < mib_max, f"{size:,} waiting invocations cost {grown:.1f} MiB"
        assert node.client.invoke("fair.quick", {"n": 1}) == 2
        node.restart()
        assert node.check_books()["functions"]["fair.idle"]["waiting"] == size + 5_000
        assert node.resident_bytes() - before < mib_max << 20


@pytest.mark.timeout(120)
def test_two_hundred_thousand_waiting_invocations_cost_the_node_little_memory(tmp_path: Path) -> None:
    backlog(tmp_path, 200_000, 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_waiting_invocations_cost_the_node_little_memory(tmp_path: Path) -> None:
    backlog(tmp_path, 1_000_000, 100)
