"""Overlaps, windows and pauses of a schedule, with real invocations in a real store."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from trigger_bench import Engine, SteppedClock

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.write import CancelWaiting, Fired, Put, Write
from headrace.triggers.schedule import Schedule
from headrace.triggers.schedule.trigger import ScheduleSource

HOUR = 3600.0
NAME = "app.slow/schedule/0"


class Runs(Engine):
    """An engine whose events become invocations, which run until the test ends them."""

    stuck = False
    """Whether what is to be cancelled goes on."""

    async def accept(self, events: Sequence[Mapping[str, Any]], writes: Sequence[Write]) -> list[str]:
        puts = []
        for event in events:
            self._ids += 1
            payload = json.dumps(event).encode()
            puts.append(Put(Invocation(self._ids, "app.slow", "app.slow", payload, 0.0, 0.0, 1e12)))
        for write in writes:
            if isinstance(write, Fired) and puts:
                write.subject = puts[0].invocation.id
        await super().accept((), [*writes, *puts])
        self.events.extend(dict(event) for event in events)
        self._changed.set()
        return [show_id(put.invocation.id) for put in puts]

    async def cancel(self, id: str) -> None:
        await super().cancel(id)
        number = read_id(id)
        if not self.stuck and number is not None:
            await self.end(number)

    async def end(self, id: int) -> None:
        await self.store.apply([CancelWaiting(id)], now=self.clock.now())

    async def running(self) -> list[int]:
        found = await self.store.find(status=Status.WAITING, limit=1000)
        return sorted(record.invocation.id for record in found)

    async def end_all(self) -> None:
        for id in await self.running():
            await self.end(id)

    async def fates(self) -> list[str]:
        """Each hour's cause."""
        return [
            f"{datetime.fromtimestamp(fire.due_at, UTC):%H} {fire.cause}"
            for fire in await self.store.fires(NAME)
        ]


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock(datetime(2026, 1, 1, 0, 30, tzinfo=UTC).timestamp())


@pytest.fixture
async def engine(tmp_path: Path, clock: SteppedClock) -> AsyncIterator[Runs]:
    engine = Runs(tmp_path, clock)
    await engine.store.start()
    yield engine
    await engine.store.stop()


@asynccontextmanager
async def running(
    engine: Engine, schedule: Schedule, *, look_s: float = HOUR
) -> AsyncIterator[ScheduleSource]:
    source = ScheduleSource(schedule, engine.context(NAME), look_s=look_s)
    await source.start()
    try:
        yield source
    finally:
        await source.stop()


def hourly(**given: Any) -> Schedule:
    return Schedule("0 * * * *", **given)


async def test_moments_overlap_when_that_is_allowed(engine: Runs, clock: SteppedClock) -> None:
    async with running(engine, hourly()):
        await clock.run(3 * HOUR)

    assert len(await engine.running()) == 3


async def test_moments_that_would_overlap_are_skipped(engine: Runs, clock: SteppedClock) -> None:
    async with running(engine, hourly(overlap="skip")):
        await clock.run(3 * HOUR)
        await engine.end_all()
        await clock.run(HOUR)

    assert await engine.fates() == ["01 due", "02 skipped", "03 skipped", "04 due"]
    assert [time[11:13] for time in engine.times] == ["01", "04"]


async def test_one_moment_waits_for_the_end_of_the_earlier_one(engine: Runs, clock: SteppedClock) -> None:
    async with running(engine, hourly(overlap="queue"), look_s=HOUR):
        await clock.run(1.6 * HOUR)
        await clock.wait_asleep(2)  # the schedule, and what looks after the one that waits
        await clock.run(1.5 * HOUR, sleepers=2)
        assert await engine.fates() == ["01 due", "02 queued", "03 skipped"]
        await engine.end_all()
        await clock.run(2, sleepers=1)
        await engine.wait_events(2)

    assert await engine.fates() == ["01 due", "02 due", "03 skipped"]
    assert [time[11:13] for time in engine.times] == ["01", "02"]


async def test_what_waits_is_fired_after_a_restart_and_by_another_node(
    engine: Runs, clock: SteppedClock
) -> None:
    async with running(engine, hourly(overlap="queue")):
        await clock.run(1.6 * HOUR)
    await engine.end_all()
    async with running(engine, hourly(overlap="queue")), running(engine, hourly(overlap="queue")):
        await engine.wait_events(2)
        await clock.wait_asleep(2)

    assert await engine.fates() == ["01 due", "02 due"]
    assert len(await engine.running()) == 1


async def test_what_waits_rests_while_the_schedule_is_paused(engine: Runs, clock: SteppedClock) -> None:
    async with running(engine, hourly(overlap="queue")):
        await clock.run(1.6 * HOUR)
        await engine.store.pause_schedule(NAME, paused=True, now=clock.now())
        await engine.end_all()
        await clock.run(10, sleepers=2)
        assert len(engine.events) == 1
        await engine.store.pause_schedule(NAME, paused=False, now=clock.now())
        await clock.run(2, sleepers=1)
        await engine.wait_events(2)


async def test_an_earlier_run_is_cancelled_and_the_new_one_fires_when_it_has_ended(
    engine: Runs, clock: SteppedClock
) -> None:
    async with running(engine, hourly(overlap="cancel")):
        await clock.run(3 * HOUR)

    assert await engine.fates() == ["01 due", "02 due", "03 due"]
    assert engine.cancelled == [show_id(1), show_id(2)] or len(engine.cancelled) == 2
    assert len(await engine.running()) == 1


async def test_a_moment_gives_way_when_the_earlier_run_does_not_end_in_time(
    engine: Runs, clock: SteppedClock
) -> None:
    engine.stuck = True
    minutely = Schedule("rate(20 seconds)", overlap="cancel")
    async with running(engine, minutely):
        await clock.run(70)
        engine.stuck = False
        await clock.run(20)
    causes = [fire.cause for fire in await engine.store.fires(NAME)]

    assert causes[:4] == ["due", "skipped", "due", "due"]
    assert len(await engine.running()) == 1
    await engine.wait_report("could not be ended in time")


async def test_what_is_made_up_for_overlaps_too(engine: Runs, clock: SteppedClock) -> None:
    schedule = hourly(overlap="skip", misfire="all")
    async with running(engine, schedule):
        await clock.run(HOUR)
    await engine.end_all()
    await clock.advance(3.25 * HOUR)
    async with running(engine, schedule):
        await engine.wait_events(2)
        await clock.wait_asleep(1)

    assert await engine.fates() == ["01 due", "02 missed", "03 skipped", "04 skipped"]


async def test_the_moments_of_a_pause_do_not_fire_when_a_node_starts_after_it(
    engine: Runs, clock: SteppedClock
) -> None:
    schedule = hourly(misfire="all")
    async with running(engine, schedule):
        await clock.run(HOUR)
        await engine.store.pause_schedule(NAME, paused=True, now=clock.now())
        await clock.run(3 * HOUR)
        await engine.store.pause_schedule(NAME, paused=False, now=clock.now())
    async with running(engine, schedule):
        await clock.run(HOUR)

    assert [time[11:13] for time in engine.times] == ["01", "05"]


async def test_a_pause_that_ended_while_a_node_slept_passes_its_moments(
    engine: Runs, clock: SteppedClock
) -> None:
    async with running(engine, hourly(misfire="all"), look_s=10 * HOUR):
        await clock.run(HOUR)
        await engine.store.pause_schedule(NAME, paused=True, now=clock.now())
        await engine.store.pause_schedule(NAME, paused=False, now=clock.now() + 2 * HOUR)
        await clock.wait_asleep(1)
        clock.jump(2.2 * HOUR)  # the machine was asleep, another node was told
        await clock.run(1.5 * HOUR)

    assert [time[11:13] for time in engine.times] == ["01", "04", "05"]


async def test_an_event_comes_within_its_window_and_its_time_is_the_moment(
    engine: Runs, clock: SteppedClock
) -> None:
    schedule = hourly(window="15 min", jitter=60)
    begin = clock.now() + HOUR / 2
    async with running(engine, schedule, look_s=1.0):
        for hour in range(6):
            await clock.run(begin + hour * HOUR - clock.now())
            assert len(engine.events) == hour
            await clock.run(schedule.delay(NAME, begin + hour * HOUR) + 1)
            assert len(engine.events) == hour + 1
    delays = [schedule.delay(NAME, begin + hour * HOUR) for hour in range(500)]

    assert [time[13:] for time in engine.times] == [":00:00Z"] * 6
    assert 0 <= min(delays) < 60 < 840 < max(delays) < 960


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
async def test_a_moment_whose_window_is_open_is_not_missed(
    engine: Runs, clock: SteppedClock, misfire: str
) -> None:
    schedule = hourly(window="1 h", misfire=misfire)
    async with running(engine, schedule):
        await asyncio.sleep(0)
        await clock.wait_asleep(1)
    await clock.advance(1.4 * HOUR)  # 54 minutes after the moment nobody has run
    async with running(engine, schedule):
        await clock.run(0.1 * HOUR)

    assert await engine.fates() == ["01 due"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"overlap": "replace"}, "overlap is 'replace'"),
        ({"clock_changes": "quartz"}, "clock_changes is 'quartz'"),
        ({"window": "25 h"}, "window is '25 h'"),
        ({"window": -1}, "window is -1"),
        ({"window": True}, "window is True"),
        ({"window": "soon"}, "window is 'soon'"),
    ],
)
def test_a_wrong_policy_says_what_is_allowed(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidFunction, match=complaint):
        hourly(**given)


def test_policies_travel_as_fields_and_only_what_changes_moments_is_part_of_the_definition() -> None:
    schedule = hourly(overlap="queue", window=60, clock_changes="cron")

    assert Schedule.from_fields(schedule.fields()) == schedule
    assert "overlap='queue'" in repr(schedule)
    assert hourly(overlap="queue", window=60).definition == hourly().definition
    assert schedule.definition == f"{hourly().definition}; clock changes as cron"
