"""Whatever process dies: who is charged, who runs again; nothing is lost, run twice, or left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import HERE, alive, processes


@pytest.mark.parametrize(
    ("function", "event", "detail"),
    [("end_process", 3, {"exit_code": 3}), ("segfault", None, {"signal": "SIGSEGV"})],
)
async def test_a_crash_is_charged_to_what_was_running(
    start, function: str, event: object, detail: dict
) -> None:
    bench = await start()

    outcome = await bench.run(function, event)

    assert outcome.kind == "crashed"
    assert outcome.error is not None
    assert outcome.error["code"] == "worker_crashed"
    assert detail.items() <= outcome.error.items()
    assert await bench.value("echo", 1) == 1


async def test_output_before_a_crash_is_kept(start) -> None:
    bench = await start()

    ended = await bench.run("end_process", 1)
    broken = await bench.run("segfault")

    assert ended.output == b"goodbye\n"
    assert b"Segmentation fault" in broken.output


async def test_neighbours_of_a_poisonous_event_are_finished_or_returned_and_never_charged(
    start, tmp_path
) -> None:
    bench = await start()
    file = tmp_path / "ran"
    for _ in range(20):
        await bench.run("append", {"file": str(file), "line": "warm"})

    before = [bench.offer("append", {"file": str(file), "line": n}) for n in range(4)]
    poison = bench.offer("append", {"file": str(file), "line": "poison", "die": True})
    after = [bench.offer("append", {"file": str(file), "line": n}) for n in range(4)]
    for token in (*before, poison, *after):
        await bench.outcome(token)

    assert {bench.outcomes[token].kind for token in before} == {"ok"}
    assert bench.outcomes[poison].kind == "crashed"
    assert {bench.outcomes[token].kind for token in after} == {"returned"}
    assert file.read_text().split()[20:] == ["0", "1", "2", "3", "poison"]


async def test_a_worker_killed_between_invocations_costs_nobody(start) -> None:
    bench = await start()
    pid = (await bench.value("who"))["pid"]

    os.kill(pid, signal.SIGKILL)

    await bench.until(lambda: not alive(pid))
    # Offered before its end was known, an attempt comes back as never begun.
    kinds = {(await bench.run("echo", 1)).kind for _ in range(3)}
    assert kinds <= {"ok", "returned"}
    assert (await bench.value("who"))["pid"] != pid


async def test_a_function_that_damages_its_stream_pays_for_it_alone(start) -> None:
    bench = await start(workers=2)

    outcome = await bench.run("close_wire")

    assert outcome.kind in ("crashed", "ok"), "it may have ended before the damage was seen"
    for number in range(10):
        assert await bench.value("echo", number) == number


async def test_killing_the_zygote_returns_what_it_held_and_the_pool_goes_on(start, tmp_path: Path) -> None:
    bench = await start(workers=2)
    held = bench.offer("hung_children", str(tmp_path / "pids"))
    other = bench.offer("slow", 60)
    await bench.until((tmp_path / "pids.complete").exists)
    await bench.executing(other)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    workers = [link.pid for link in bench.pool._links.values()]

    os.kill(bench.pool._control.pid, signal.SIGKILL)

    assert (await bench.outcome(held)).kind == "returned"
    assert (await bench.outcome(other)).kind == "returned"
    await bench.until(lambda: not any(map(alive, [*pids, *workers])))
    assert await bench.value("echo", 1) == 1
    assert bench.pool.load()["workers"] == 2


async def test_results_that_were_finished_survive_the_zygote(start, tmp_path: Path) -> None:
    bench = await start()
    for _ in range(20):
        await bench.run("append", {"file": str(tmp_path / "ran"), "line": "warm"})

    tokens = []
    while bench.pool.offer(
        attempt := bench.attempt("append", {"file": str(tmp_path / "ran"), "line": len(tokens)})
    ):
        tokens.append(attempt.token)
    await bench.until(lambda: bench.outcomes.keys() & set(tokens) != set())
    os.kill(bench.pool._control.pid, signal.SIGKILL)
    for token in tokens:
        await bench.outcome(token)

    ran = (tmp_path / "ran").read_text().split()[20:]
    finished = [n for n, token in enumerate(tokens) if bench.outcomes[token].ok]
    returned = [token for token in tokens if bench.outcomes[token].kind == "returned"]
    assert len(finished) + len(returned) == len(tokens)
    assert set(map(str, finished)) <= set(ran)
    assert len(ran) - len(finished) <= 1, "what ran was reported, but for the one that was running"


NODE = """
import asyncio, json, sys
from pathlib import Path
from headrace.runtime.clock import SystemClock
from headrace.runtime.model.attempt import Attempt
from headrace.runtime.pool.local import LocalPool
from headrace.runtime.pool.protocol import PoolEvents

async def main():
    root = Path(sys.argv[1])
    events = PoolEvents(lambda reports: None, lambda: None, lambda token, told: None)
    lock = open(root / "lock", "w")
    import fcntl
    fcntl.flock(lock, fcntl.LOCK_EX)
    pool = LocalPool(
        "pool_code:load", b"", events=events, workers=2, scratch_root=root, clock=SystemClock(),
        env={"PYTHONPATH": sys.argv[2]}, hold_fds=(lock.fileno(),),
    )
    await pool.start()
    for token, function, event in ((1, "hung_children", str(root / "pids")), (2, "loop_in_c", None)):
        assert pool.offer(Attempt(token, function, token, 1, json.dumps(event).encode(), 60.0, 1 << 30))
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_when_the_node_is_killed_everything_ends_and_the_lock_is_free_only_then(tmp_path: Path) -> None:
    import fcntl

    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path), str(HERE)], cwd=Path(__file__).parents[2]
    )
    try:
        _until(lambda: (tmp_path / "pids.complete").exists())
        family = [one.pid for one in processes() if one.pid != node.pid]
        named = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert set(named) <= set(family)
        assert len(family) == len(named) + 3
        with open(tmp_path / "lock") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            node.kill()
            fcntl.flock(
                lock, fcntl.LOCK_EX
            )  # free when the zygote is gone, which the test's time limit bounds
            left = [pid for pid in family if alive(pid)]
    finally:
        node.kill()
        node.wait()

    zygotes_own_end = 1
    assert len(left) <= zygotes_own_end
    _until(lambda: not any(map(alive, family)))


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


async def test_workers_that_cannot_begin_are_tried_again_with_growing_pauses(start, monkeypatch) -> None:
    bench = await start()
    first = (await bench.value("who"))["pid"]
    made = []
    add_worker = bench.pool._add_worker
    monkeypatch.setattr(bench.pool, "_add_worker", lambda **how: made.append(add_worker(**how)) or made[-1])

    os.kill(first, signal.SIGKILL)
    for count in range(1, 5):
        await bench.until(lambda count=count: len(made) == count and made[-1].pid is not None)
        os.kill(made[-1].pid, signal.SIGKILL)
    begun = asyncio.get_running_loop().time()
    await bench.until(lambda: len(made) == 5)

    assert asyncio.get_running_loop().time() - begun > 0.3
    assert await bench.value("echo", 1) == 1


async def test_a_zygote_that_does_not_answer_cannot_protect_a_worker_from_its_limits(
    start, monkeypatch
) -> None:
    monkeypatch.setattr("headrace.runtime.pool.watch.ESCALATE_S", 0.1)
    bench = await start(kill_grace_s=0.1)
    token = bench.offer("loop_in_c", timeout_s=0.3)
    await bench.executing(token)

    os.kill(bench.pool._control.pid, signal.SIGSTOP)

    assert (await bench.outcome(token)).kind in ("timeout", "returned")
    assert await bench.value("echo", 1) == 1


async def test_a_worker_that_is_stopped_with_work_in_its_queue_is_replaced(start, monkeypatch) -> None:
    monkeypatch.setattr("headrace.runtime.pool.watch.STALL_S", 0.2)
    bench = await start()
    pid = (await bench.value("who"))["pid"]

    os.kill(pid, signal.SIGSTOP)
    outcome = await bench.run("echo", 1)

    assert outcome.kind == "returned"
    assert await bench.value("echo", 1) == 1
