"""The wall clock is set an hour forward or back, on a running node and while it is stopped: the queue does
not notice, ids go on growing, and schedules follow the clock that people see.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.runtime.clock import SteadyClock, SystemClock
from headrace.runtime.code import request_for
from headrace.runtime.model.ids import Ids, moment_of
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.node import Node
from headrace.runtime.settings import Settings
from headrace.runtime.testing import ManualClock

HOUR_S = 3600.0
WITHIN_S = 20.0
CODE = """
from headrace import App, RetryPolicy

app = App("timed")

@app.function
def echo(n: int) -> int:
    return n

@app.function(retries=RetryPolicy(retries=2, base_s=0.01, max_s=0.02), max_age=600)
def flaky(n: int, context) -> int:
    if context.attempt == 1:
        raise RuntimeError("not at first")
    return n
"""


class WallClock(SystemClock):
    """The system's clock, `shift_s` ahead."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def now(self) -> float:
        return super().now() + self.shift_s


@asynccontextmanager
async def running(folder: Path, wall: WallClock) -> AsyncIterator[Node]:
    """A real node on this event loop, whose wall clock the test may set."""
    code = folder / "timed.py"
    code.write_text(CODE)
    settings = Settings(data=folder / "data", workers=1, node_lease_s=1)
    node = Node(settings, request_for([str(code)]), clock=wall, listen=False)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def put(node: Node, function: str, n: int, **options: Any) -> int:
    made = node.dispatcher.prepare(f"timed.{function}", msgspec.json.encode({"n": n}), **options)
    [applied] = await node.dispatcher.accept([made])
    assert applied.id is not None
    return applied.id


async def record(node: Node, id: int) -> Record:
    found = await node.services.store.get(id)
    assert found is not None
    return found


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(WITHIN_S):
        while not (found := await look()):  # noqa: ASYNC110 - the store tells of no such event
            await asyncio.sleep(0.01)
        return found


async def ends(node: Node, *ids: int) -> list[Record]:
    """The records of invocations once all have ended."""

    async def look() -> list[Record] | None:
        found = await node.services.store.ended(ids)
        return found if len(found) == len(ids) else None

    found: list[Record] = await until(look)
    return sorted(found, key=lambda one: one.invocation.id)


# ---- a running node ----


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_running_node_goes_on_as_if_nothing_had_been_set(tmp_path: Path, jump_s: float) -> None:
    wall = WallClock()
    async with running(tmp_path, wall) as node:
        soon = await put(node, "echo", 1, delay_s=0.5)
        later = await put(node, "echo", 2, delay_s=60)
        before = await put(node, "flaky", 3)
        wall.shift_s = jump_s
        after = [await put(node, "flaky", n) for n in range(4, 8)]
        found = await ends(node, soon, before, *after)

        assert [one.status for one in found] == [Status.SUCCEEDED] * 6
        assert [one.attempts for one in found] == [1, 2, 2, 2, 2, 2]
        assert (await record(node, later)).status is Status.WAITING
        assert [soon, later, before, *after] == sorted({soon, later, before, *after})
        for one in found:
            assert one.started_at is not None
            assert one.ended_at is not None
            assert abs(one.invocation.accepted_at - (wall.now() - jump_s)) < WITHIN_S
            assert one.invocation.accepted_at <= one.started_at + 0.001
            assert one.started_at <= one.ended_at + 0.001


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_the_nodes_lease_stands_over_a_jump(tmp_path: Path, jump_s: float) -> None:
    wall = WallClock()
    async with running(tmp_path, wall) as node:
        id = await put(node, "echo", 1)
        await ends(node, id)
        wall.shift_s = jump_s
        assert await node.services.store.release_expired(now=node.clock.now()) == []
        [end] = await ends(node, await put(node, "echo", 2))
        assert (end.status, end.attempts) == (Status.SUCCEEDED, 1)


# ---- a node that is stopped meanwhile ----


async def test_a_clock_set_back_while_the_node_was_stopped_leaves_ids_growing_and_delays_as_they_were(
    tmp_path: Path,
) -> None:
    wall = WallClock()
    async with running(tmp_path, wall) as node:
        ended = await put(node, "echo", 1)
        await ends(node, ended)
        delayed = await put(node, "echo", 2, delay_s=0.5)
    wall.shift_s = -HOUR_S
    async with running(tmp_path, wall) as node:
        new = await put(node, "flaky", 3)
        found = await ends(node, delayed, new)

        assert new > delayed > ended
        assert [one.status for one in found] == [Status.SUCCEEDED] * 2
        assert node.clock.now() >= moment_of(delayed)


async def test_a_clock_set_forward_while_the_node_was_stopped_is_time_that_has_passed(tmp_path: Path) -> None:
    wall = WallClock()
    async with running(tmp_path, wall) as node:
        delayed = await put(node, "echo", 1, delay_s=600)
        aged = await put(node, "flaky", 2, delay_s=0)
        await ends(node, aged)
    wall.shift_s = HOUR_S
    async with running(tmp_path, wall) as node:
        new = await put(node, "echo", 3)
        found = await ends(node, delayed, new)
        assert [one.status for one in found] == [Status.SUCCEEDED] * 2
    wall.shift_s = 0.0
    async with running(tmp_path, wall) as node:
        newest = await put(node, "echo", 4)
        [last] = await ends(node, newest)
        assert newest > new > delayed
        assert last.status is Status.SUCCEEDED


# ---- the clock itself ----


def test_a_steady_clock_begins_with_the_wall_and_then_counts() -> None:
    wall = ManualClock(1_000_000.0)
    steady = SteadyClock(wall)
    wall.jump(HOUR_S)
    assert steady.now() == 1_000_000.0
    assert steady.monotonic() == wall.monotonic()


def test_a_steady_clock_is_not_behind_what_is_known() -> None:
    steady = SteadyClock(ManualClock(1000.0))
    steady.advance_to(500.0)
    assert steady.now() == 1000.0
    steady.advance_to(5000.0)
    assert steady.now() == 5000.0


async def test_a_steady_clock_that_follows_another_never_goes_back() -> None:
    wall = ManualClock(1000.0)
    steady = SteadyClock(wall)
    steady.follow(1010.0)
    assert steady.now() == 1010.0
    steady.follow(1005.0)
    assert steady.now() == 1010.0
    await wall.advance(4.0)
    assert steady.now() == 1010.0
    await wall.advance(3.0)
    assert steady.now() == 1012.0


def test_the_moment_of_an_id_is_when_it_was_made() -> None:
    ids = Ids(lambda: 1_800_000_000.25, node=7)
    assert moment_of(ids.next()) == 1_800_000_000.25
    assert moment_of(ids.next()) == 1_800_000_000.25
