"""Time and memory run out: who is ended, how, and that nothing of it stays."""

import os
import signal
from pathlib import Path

import pytest
from conftest import alive

from headrace.runtime.pool import limits

MIB = 1 << 20


async def test_a_function_over_its_time_is_ended_and_its_finally_blocks_run(start) -> None:
    bench = await start()

    outcome = await bench.run("end_well", timeout_s=0.2)

    assert outcome.kind == "timeout"
    assert outcome.error is not None
    assert outcome.error["code"] == "timeout"
    assert outcome.output == b"the finally block ran\n"
    assert 0.2 <= outcome.duration_s < 0.9
    assert await bench.value("echo", 1) == 1


async def test_an_async_function_over_its_time_is_cancelled(start) -> None:
    bench = await start()

    outcome = await bench.run("asynchronous_sleep", timeout_s=0.1)

    assert outcome.kind == "timeout"
    assert outcome.output == b"cleaned up\n"


@pytest.mark.parametrize("function", ["loop_in_c", "ignore_the_end"])
async def test_a_function_that_hears_no_signal_is_killed(start, function: str) -> None:
    bench = await start(kill_grace_s=0.1)

    outcome = await bench.run(function, timeout_s=0.1)

    assert outcome.kind == "timeout"
    assert outcome.duration_s >= 0.2
    assert await bench.value("echo", 1) == 1


async def test_a_pattern_that_backtracks_for_ever_is_ended(start) -> None:
    bench = await start(kill_grace_s=0.1)

    assert (await bench.run("backtrack", timeout_s=0.1)).kind == "timeout"


async def test_children_of_a_function_over_its_time_are_killed_wherever_they_went(
    start, tmp_path: Path
) -> None:
    bench = await start()

    outcome = await bench.run("hung_children", str(tmp_path / "pids"), timeout_s=0.5)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]

    assert outcome.kind == "timeout"
    assert (tmp_path / "pids.complete").exists()
    assert len(pids) == 4
    await bench.until(lambda: not any(map(alive, pids)))


async def test_one_workers_end_leaves_the_children_of_another_alone(start, tmp_path: Path) -> None:
    bench = await start(workers=2)

    token = bench.offer("hung_children", str(tmp_path / "pids"))
    await bench.until((tmp_path / "pids.complete").exists)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert (await bench.run("end_process", 1)).kind == "crashed"

    assert all(map(alive, pids))
    bench.pool.kill(token)
    await bench.outcome(token)
    await bench.until(lambda: not any(map(alive, pids)))


async def test_an_allocation_beyond_the_limit_is_out_of_memory_and_the_worker_lives_on(start) -> None:
    bench = await start()

    outcome = await bench.run("hog", 400 * MIB, memory_bytes=64 * MIB)

    assert outcome.kind == "out_of_memory"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["type"]) == ("out_of_memory", "MemoryError")
    assert await bench.value("hog", 100 * MIB, memory_bytes=200 * MIB) == 100 * MIB


async def test_the_memory_of_children_counts(start) -> None:
    bench = await start()

    outcome = await bench.run("hog_in_children", 80 * MIB, memory_bytes=128 * MIB)

    assert outcome.kind == "out_of_memory"
    assert outcome.error is not None
    assert outcome.error["bytes"] > outcome.error["limit"] == 128 * MIB
    assert await bench.value("echo", 1) == 1


async def test_memory_that_grows_step_by_step_is_noticed(start) -> None:
    bench = await start()

    outcome = await bench.run("hog_slowly", memory_bytes=64 * MIB)

    assert outcome.kind == "out_of_memory"
    assert await bench.value("echo", 1) == 1


async def test_endless_printing_cannot_fill_the_disk(start) -> None:
    bench = await start(kill_grace_s=0.1)

    token = bench.offer("flood_raw")
    await bench.executing(token)
    [link] = bench.pool._links.values()
    await bench.until(lambda: os.fstat(link.output).st_size > 400 * MIB)
    # What is on the disk is what was written since the last look, and the head.
    occupied = os.fstat(link.output).st_blocks * 512
    written = os.fstat(link.output).st_size
    bench.pool.kill(token)
    outcome = await bench.outcome(token)

    assert occupied < written
    assert outcome.kind == "cancelled"
    assert outcome.output_bytes >= written
    assert outcome.output.endswith(b"yyy")


async def test_a_worker_is_replaced_after_its_number_of_invocations_and_none_is_lost(start) -> None:
    bench = await start(workers=2, recycle_after=50)

    pids = {(await bench.value("who"))["pid"] for _ in range(20)}
    offered = []
    while any(alive(pid) for pid in pids):  # one worker alone may have taken all that was offered so far
        for _ in range(100):
            attempt = bench.attempt("echo")
            await bench.until(lambda attempt=attempt: bench.pool.offer(attempt))
            offered.append(attempt.token)
    await bench.until(lambda: all(token in bench.outcomes for token in offered))
    later = {(await bench.value("who"))["pid"] for _ in range(20)}

    assert {outcome.kind for outcome in bench.outcomes.values()} == {"ok"}
    assert not pids & later
    assert bench.pool.load()["workers"] == 2


async def test_a_worker_that_has_grown_is_replaced(start) -> None:
    bench = await start(recycle_growth_bytes=32 * MIB)

    first = await bench.value("keep", 64 * MIB)

    await bench.until(lambda: not alive(first))
    assert await bench.value("keep", 1) != first


async def test_killing_a_running_attempt_ends_its_process(start) -> None:
    bench = await start(kill_grace_s=20.0)

    token = bench.offer("end_well")
    await bench.executing(token)
    assert bench.pool.kill(token)

    outcome = await bench.outcome(token)
    assert outcome.kind == "cancelled"
    assert outcome.output == b"the finally block ran\n"
    assert not bench.pool.kill(token)


async def test_a_stray_sigterm_ends_neither_worker_nor_function(start) -> None:
    bench = await start()
    pid = (await bench.value("who"))["pid"]

    token = bench.offer("slow", 0.3)
    await bench.executing(token)
    os.kill(pid, signal.SIGTERM)

    assert (await bench.outcome(token)).ok
    assert (await bench.value("who"))["pid"] == pid


def test_the_kind_of_limit_is_told() -> None:
    assert limits.in_force() == "rlimit+sampling"
