"""What has not begun can be asked back, and a worker begins nothing behind an attempt that asked to wait."""

import asyncio
from pathlib import Path
from typing import Any


def line(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"file": str(folder / "ran"), "line": name, **more}


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


async def warm(bench: Any, folder: Path) -> None:
    """Have the function known to be quick, so that many are sent to a worker ahead."""
    for _ in range(500):
        await bench.run("append_or_wait", line(folder, "warm"))
        if bench.pool._placement.estimate("append_or_wait") < 0.0005:
            break
    (folder / "ran").write_text("")


async def test_nothing_behind_an_attempt_that_asked_to_wait_begins(start, tmp_path: Path) -> None:
    bench = await start()
    await warm(bench, tmp_path)

    asking = bench.offer("append_or_wait", line(tmp_path, "asks", later=5.0, key="k"))
    behind = [bench.offer("append_or_wait", line(tmp_path, "behind")) for _ in range(8)]
    outcome = await bench.outcome(asking)
    for token in behind:
        assert (await bench.outcome(token)).kind == "returned"

    assert (outcome.kind, outcome.error["code"]) == ("retry_after", "retry_after")
    assert (outcome.error["seconds"], outcome.error["key"]) == (5.0, "k")
    assert ran(tmp_path) == ["asks"]
    await bench.run("append_or_wait", line(tmp_path, "after"))
    assert ran(tmp_path) == ["asks", "after"]


async def test_what_has_not_begun_is_given_back_and_what_runs_goes_on(start, tmp_path: Path) -> None:
    bench = await start()
    await warm(bench, tmp_path)
    busy = bench.offer("append_or_wait", line(tmp_path, "busy", seconds=0.3))
    behind = [bench.offer("append_or_wait", line(tmp_path, "behind")) for _ in range(5)]
    await bench.executing(busy)

    bench.pool.recall([*behind[:2], busy])
    bench.pool.recall([987654])

    for token in behind:
        assert (await bench.outcome(token)).kind == "returned"
    assert (await bench.outcome(busy)).ok
    assert ran(tmp_path) == ["busy"]


async def test_a_worker_that_is_open_again_after_skipping_is_told_of(start, tmp_path: Path) -> None:
    bench = await start()
    await warm(bench, tmp_path)
    room = asyncio.Event()
    bench.pool._events.room = room.set
    for _ in range(20):
        busy = bench.offer("append_or_wait", line(tmp_path, "busy", seconds=0.05))
        behind = bench.offer("append_or_wait", line(tmp_path, "behind"))
        await bench.executing(busy)
        bench.pool.recall([behind])
        attempt = bench.attempt("append_or_wait", line(tmp_path, "next"))
        async with asyncio.timeout(20):
            while not bench.pool.offer(attempt):  # nobody asks but when the pool says that it is worth it
                await room.wait()
                room.clear()
        assert (await bench.outcome(attempt.token)).ok
        for _ in range(5):
            await bench.run("append_or_wait", line(tmp_path, "quick"))
