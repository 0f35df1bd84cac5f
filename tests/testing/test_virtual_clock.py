"""Time that passes when a test says so."""

import asyncio
import importlib
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.testing.loop import QuietLoop
from headrace.runtime.testing.virtual import PULSE, STEPS, UPKEEP
from headrace.testing import VirtualClock


class Room:
    """A loop with sleepers, driven by a clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock(1_000_000.0)
        self.loop = QuietLoop(lambda: False)
        self.woken: list[tuple[str, float]] = []
        self.due: list[float] = []
        self.clock.attach(self)

    def settle(self) -> None:
        self.loop.run_until_quiet()

    def next_due(self) -> float | None:
        return min(self.due, default=None)

    def sleeper(self, name: str, *naps: float, then: Callable[[], object] = lambda: None) -> None:
        async def sleep() -> None:
            for seconds in naps:
                await self.clock.sleep(seconds)
                self.woken.append((name, round(self.clock.monotonic(), 6)))
                then()

        self.loop.create_task(sleep(), name=name)
        self.settle()

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        self.loop.close()


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.close()


def test_sleepers_wake_each_at_its_own_moment_in_order(room: Room) -> None:
    room.sleeper("b", 5, 0.5)
    room.sleeper("a", 2)
    room.clock.advance(5)
    assert room.woken == [("a", 2), ("b", 5)]
    room.clock.advance(100)
    assert room.woken[2:] == [("b", 5.5)]
    assert room.clock.now() == 1_000_105.0


def test_who_wakes_steadily_for_nothing_is_woken_a_few_times_only(room: Room) -> None:
    room.sleeper("idle", *[1.0] * 10_000)
    room.clock.advance(1000)

    assert STEPS <= len(room.woken) <= STEPS + 3
    assert room.woken[-1][1] == 1000


def test_who_does_something_each_time_is_woken_on_time(room: Room) -> None:
    room.sleeper("busy", *[1.0] * 1000, then=room.clock.something_happened)
    room.clock.advance(1000)

    assert room.woken == [("busy", float(second)) for second in range(1, 1001)]


def test_long_pauses_are_kept_however_idle_they_are(room: Room) -> None:
    room.sleeper("slow", *[100.0] * 10)
    room.clock.advance(1000)

    assert room.woken == [("slow", 100.0 * round) for round in range(1, 11)]


def test_time_stops_where_work_is_due(room: Room) -> None:
    room.due = [1_000_123.456]
    seen = []
    settle = room.settle

    def settling() -> None:
        if room.due and room.clock.now() >= room.due[0]:
            seen.append(room.clock.now())
            room.due.clear()
        settle()

    room.settle = settling  # type: ignore[method-assign]
    room.clock.advance(10_000)

    assert seen == [1_000_123.456]


@given(st.floats(min_value=1_500_000_000, max_value=3_000_000_000), st.floats(min_value=0.001, max_value=1e9))
def test_a_moment_is_reached_exactly(begin: float, later: float) -> None:
    clock = VirtualClock(begin)
    moment = begin + later
    clock.advance_to(moment)

    assert clock.now() == moment


def test_a_jump_of_the_wall_clock_wakes_nobody(room: Room) -> None:
    room.sleeper("one", 10)
    room.clock.jump(3600)
    assert room.clock.now() == 1_003_600.0
    room.clock.jump(-7200)
    room.clock.advance(9.9)
    assert room.woken == []
    room.clock.advance(0.1)
    assert room.woken == [("one", 10.0)]


def test_moments_have_a_time_zone_and_time_goes_forward() -> None:
    clock = VirtualClock("2030-06-01T12:00:00+02:00")
    assert str(clock) == "2030-06-01T10:00:00+00:00"
    clock.advance_to(datetime(2030, 6, 2, tzinfo=UTC))
    assert str(clock) == "2030-06-02T00:00:00+00:00"
    with pytest.raises(ValueError, match="time zone"):
        clock.advance_to("2030-06-03T00:00:00")
    with pytest.raises(ValueError, match="forward"):
        clock.advance_to("2030-06-01T00:00:00Z")


def test_what_counts_as_upkeep_is_there() -> None:
    homes = {
        "Dispatcher": "headrace.runtime.queue.dispatcher",
        "Membership": "headrace.runtime.queue.membership",
        "Upkeep": "headrace.runtime.upkeep",
        "SetSource": "headrace.triggers.uploadset.source",
        "UploadSource": "headrace.triggers.upload.source",
        "Window": "headrace.runtime.queue.window",
    }
    for name in (*UPKEEP, PULSE[0]):
        owner, _, method = name.partition(".")
        found = getattr(getattr(importlib.import_module(homes[owner]), owner), method)
        assert found.__qualname__ == name
        assert inspect.iscoroutinefunction(found)
