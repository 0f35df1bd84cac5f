"""Schedules: every moment fires once, over downtime, clock changes and several nodes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trigger_bench import Engine, SteppedClock

from headrace.runtime.errors import Duplicate, InvalidFunction, StorageFull, Throttled
from headrace.runtime.model.event import ScheduleEvent
from headrace.triggers.schedule import InvalidSchedule, Schedule
from headrace.triggers.schedule.trigger import GRACE_S, MISFIRES_MAX, ScheduleSource, missed

DAY_S = 86_400.0
NAME = "app.nightly/schedule/0"


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock(moment("2026-01-01T00:00:00"))


@pytest.fixture
async def engine(tmp_path: Path, clock: SteppedClock) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path, clock)
    await engine.store.start()
    yield engine
    await engine.store.stop()


@asynccontextmanager
async def running(
    engine: Engine, schedule: Schedule, *, look_s: float = 30.0
) -> AsyncIterator[ScheduleSource]:
    source = ScheduleSource(schedule, engine.context(NAME), look_s=look_s)
    await source.start()
    try:
        yield source
    finally:
        await source.stop()


async def test_a_day_of_a_rate_fires_each_period_once(engine: Engine, clock: SteppedClock) -> None:
    async with running(engine, Schedule("rate(15 minutes)")):
        await clock.run(DAY_S)

    assert len(engine.events) == 96
    assert engine.times[:2] == ["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]


async def test_a_year_of_nights_fires_each_once_by_the_wall_clock(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("cron(0 3 * * ? *)", timezone="Europe/Berlin"), look_s=DAY_S):
        await clock.run(365 * DAY_S)

    assert len(engine.events) == 365
    hours = {time[11:] for time in engine.times}
    assert hours == {"02:00:00Z", "01:00:00Z"}
    assert len(set(engine.times)) == 365


async def test_a_time_that_a_clock_change_skips_rests_and_one_it_repeats_fires_once(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("30 2 * * *", timezone="Europe/Berlin"), look_s=DAY_S):
        await clock.run(365 * DAY_S)
    days = [time[:10] for time in engine.times]

    assert "2026-03-29" not in days
    assert days.count("2026-10-25") == 1
    assert len(days) == 364


async def test_the_event_is_eventbridges_with_the_moment_and_the_input(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("rate(1 hour)", input={"report": [1, 2]})):
        await clock.run(3600)
    event = ScheduleEvent(engine.events[0])

    assert event.due == datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert event.schedule == NAME
    assert event["detail"] == {"report": [1, 2]}
    assert event["detail-type"] == "Scheduled Event"


async def test_moments_of_a_rate_are_whole_seconds(engine: Engine, clock: SteppedClock) -> None:
    clock.jump(0.75)
    async with running(engine, Schedule("rate(10 seconds)")):
        await clock.run(20)

    assert engine.times == ["2026-01-01T00:00:10Z", "2026-01-01T00:00:20Z"]


@pytest.mark.parametrize(
    ("misfire", "hours"),
    [("skip", []), ("once", ["10"]), ("all", ["08", "09", "10"])],
)
async def test_moments_of_a_downtime_follow_the_misfire_policy(
    engine: Engine, clock: SteppedClock, misfire: str, hours: list[str]
) -> None:
    schedule = Schedule("0 * * * *", misfire=misfire, max_misfires=3)
    async with running(engine, schedule, look_s=3600):
        await clock.run(5 * 3600)
    await clock.advance(5.5 * 3600)  # nothing runs until 10:30
    engine.events.clear()
    async with running(engine, schedule, look_s=3600):
        await clock.run(3600)

    assert engine.times == [f"2026-01-01T{hour}:00:00Z" for hour in [*hours, "11"]]
    if misfire != "all" or hours:
        await engine.wait_report("passed unheeded")


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
async def test_a_moment_during_a_short_restart_fires(
    engine: Engine, clock: SteppedClock, misfire: str
) -> None:
    schedule = Schedule("0 * * * *", misfire=misfire)
    async with running(engine, schedule):
        await clock.run(3590)
    await clock.advance(20)
    async with running(engine, schedule):
        await clock.run(30)

    assert engine.times == ["2026-01-01T01:00:00Z"]


async def test_a_stop_and_start_at_once_fires_nothing_twice(engine: Engine, clock: SteppedClock) -> None:
    schedule = Schedule("rate(1 minute)")
    for _ in range(5):
        async with running(engine, schedule):
            await clock.run(90)

    assert engine.times == [f"2026-01-01T00:{minute:02}:00Z" for minute in range(1, 8)]


async def test_a_clock_that_jumps_ahead_an_hour_is_noticed_within_half_a_minute(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("0 * * * *")):
        await clock.run(600)
        clock.jump(3600)
        await clock.run(31)

    assert engine.times == ["2026-01-01T01:00:00Z"]


async def test_a_clock_that_jumps_back_an_hour_repeats_nothing(engine: Engine, clock: SteppedClock) -> None:
    async with running(engine, Schedule("*/20 * * * *")):
        await clock.run(3700)
        clock.jump(-3600)
        await clock.run(3600 + 1200)

    assert [time[11:16] for time in engine.times] == ["00:20", "00:40", "01:00", "01:20"]


async def test_a_clock_that_was_far_in_the_future_does_not_silence_the_schedule(
    engine: Engine, clock: SteppedClock
) -> None:
    schedule = Schedule("0 * * * *")
    clock.jump(400 * DAY_S)
    async with running(engine, schedule):
        await clock.run(3600)
    clock.jump(-399 * DAY_S)
    async with running(engine, schedule):
        await clock.run(3600)

    assert len(engine.events) == 2
    await engine.wait_report("in the future")


async def test_two_nodes_on_one_store_fire_each_moment_once(engine: Engine, clock: SteppedClock) -> None:
    schedule = Schedule("rate(1 minute)")
    async with running(engine, schedule), running(engine, schedule):
        await clock.run(3600, sleepers=2)

    assert engine.times == [f"2026-01-01T{n // 60:02}:{n % 60:02}:00Z" for n in range(1, 61)]
    assert len([error for error in engine.refused if isinstance(error, Duplicate)]) == 60


async def test_only_the_newest_definition_fires(engine: Engine, clock: SteppedClock) -> None:
    old, new = Schedule("rate(1 minute)"), Schedule("rate(7 minutes)")
    async with running(engine, old):
        await clock.run(150)
        async with running(engine, new):
            await clock.run(3600, sleepers=2)
    times = [moment(time[:-1]) - moment("2026-01-01T00:00:00") for time in engine.times]

    assert times == [60, 120, *(150 + 420 * n for n in range(1, 9))]


async def test_a_paused_schedule_rests_and_goes_on_without_making_up(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("rate(1 minute)", misfire="all")):
        await clock.run(60)
        await engine.store.pause_schedule(NAME, paused=True, now=clock.now())
        await clock.run(300)
        await engine.store.pause_schedule(NAME, paused=False, now=clock.now())
        await clock.run(60)

    assert engine.times == ["2026-01-01T00:01:00Z", "2026-01-01T00:07:00Z"]


@pytest.mark.parametrize("refusal", [Throttled("the queue"), StorageFull("/data")])
async def test_a_moment_that_is_refused_is_tried_again(
    engine: Engine, clock: SteppedClock, refusal: Throttled | StorageFull
) -> None:
    engine.refuse.extend([refusal] * 4)
    async with running(engine, Schedule("rate(1 hour)")):
        await clock.run(3700)

    assert engine.times == ["2026-01-01T01:00:00Z"]
    assert len(engine.refused) == 4
    assert len(engine.reports) == 1


async def test_a_moment_that_is_refused_until_the_next_gives_way_to_it(
    engine: Engine, clock: SteppedClock
) -> None:
    async with running(engine, Schedule("rate(1 minute)")):
        await clock.run(59)
        engine.refuse.extend([Throttled("the queue")] * 1_000)
        await clock.run(61 + 30)
        engine.refuse.clear()
        await clock.run(60)

    assert engine.times == ["2026-01-01T00:02:00Z", "2026-01-01T00:03:00Z"]


async def test_jitter_delays_the_event_but_not_its_time(engine: Engine, clock: SteppedClock) -> None:
    accepted_at: list[float] = []
    async with running(engine, Schedule("0 * * * *", jitter=600)):
        for _ in range(12 * 60):
            before = len(engine.events)
            await clock.run(60)
            accepted_at += [clock.now() % 3600] * (len(engine.events) - before)

    assert [time[11:] for time in engine.times] == [f"{hour:02}:00:00Z" for hour in range(1, 12)]
    assert all(at <= 660 for at in accepted_at)
    assert len(set(accepted_at)) > 3


async def test_a_jitter_longer_than_the_period_loses_nothing(engine: Engine, clock: SteppedClock) -> None:
    async with running(engine, Schedule("*/5 * * * *", jitter=3600)):
        await clock.run(2 * 3600)

    assert len(engine.events) >= 12
    assert engine.times == sorted(set(engine.times))


async def test_start_and_end_bound_the_moments(engine: Engine, clock: SteppedClock) -> None:
    schedule = Schedule(
        "rate(10 minutes)", timezone="Europe/Berlin", start="2026-01-01T02:05:00", end="2026-01-01T02:25:00"
    )
    async with running(engine, schedule) as source:
        await clock.run(3900 + 600)
        await clock.advance(600)
        await engine.wait_events(3)
        await source.stop()

    assert [time[11:16] for time in engine.times] == ["01:05", "01:15", "01:25"]


async def test_an_at_fires_once_even_if_nobody_ran_then(engine: Engine, clock: SteppedClock) -> None:
    schedule = Schedule("at(2026-01-01T05:00:00)")
    async with running(engine, schedule):
        await clock.wait_asleep(1)
    await clock.advance(7 * 3600)
    for _ in range(2):
        async with running(engine, schedule):
            await engine.wait_events(1)

    assert engine.times == ["2026-01-01T05:00:00Z"]


async def test_a_store_that_fails_is_tried_again(engine: Engine, clock: SteppedClock) -> None:
    await engine.store.stop()
    async with running(engine, Schedule("rate(1 minute)")):
        await engine.wait_report("cannot go on")
        await engine.store.start()
        await clock.run(120)

    assert len(engine.events) >= 1


async def test_stopping_is_harmless_before_the_start_and_twice(engine: Engine) -> None:
    source = Schedule("rate(1 minute)").source(engine.context(NAME))
    await source.stop()
    await source.start()
    await source.stop()
    await source.stop()


periods = st.integers(1, 100)


@given(
    periods,
    st.integers(0, 500),
    st.integers(0, 1_000),
    st.sampled_from(["skip", "once", "all"]),
    st.integers(1, 9),
)
def test_the_misfire_policies_keep_the_newest(
    period: int, after: int, length: int, misfire: str, max_misfires: int
) -> None:
    schedule = Schedule("rate(1 second)" if period == 1 else f"rate({period} seconds)")
    until = after + length
    passed = [float(at) for at in range(0, until + 1, period) if at > after]
    if not passed:
        return
    found = missed(
        partial(schedule.next_after, anchor=0.0),
        float(after),
        until=float(until),
        now=float(until),
        misfire=misfire,
        max_misfires=max_misfires,
    )
    kept = passed[-max_misfires:] if misfire == "all" else passed[-1:]
    if misfire == "skip" and until - passed[-1] > GRACE_S:
        kept = []

    assert found.fire == kept
    assert found.newest == passed[-1]
    assert found.is_complete == (kept == passed)


def test_a_year_of_missed_seconds_is_worked_out_quickly() -> None:
    schedule = Schedule("rate(1 second)")
    found = missed(
        partial(schedule.next_after, anchor=0.5),
        0.5,
        until=365 * DAY_S,
        now=365 * DAY_S,
        misfire="all",
        max_misfires=MISFIRES_MAX,
    )

    assert len(found.fire) == MISFIRES_MAX
    assert found.newest == 365 * DAY_S - 0.5


def test_a_schedule_travels_as_its_fields() -> None:
    begin = datetime(2026, 1, 1)  # noqa: DTZ001 - of the schedule's own zone
    schedule = Schedule(
        "cron(0  3 * * ? *)", timezone="Europe/Berlin", name="night", start=begin, jitter=60, input=[1]
    )

    assert Schedule.from_fields(schedule.fields()) == schedule
    assert schedule.definition == "cron(0 3 * * ? *); Europe/Berlin; from 2025-12-31T23:00:00Z"
    assert repr(Schedule("@daily", name="n")) == "Schedule('@daily', name='n')"


def test_the_next_moments_can_be_shown() -> None:
    assert Schedule("rate(2 hours)").next_moments(3600, anchor=0, limit=2) == [7200, 14400]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"jitter": -1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"misfire": "never"}, "misfire"),
        ({"max_misfires": 0}, "max_misfires"),
        ({"max_misfires": True}, "max_misfires"),
        ({"start": "tomorrow"}, "start"),
        ({"start": "2026-01-02T00:00:00", "end": "2026-01-01T00:00:00"}, "ends before"),
        ({"name": ""}, "name"),
        ({"input": {1, object()}}, "input"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidFunction, match=complaint) as raised:
        Schedule("rate(1 minute)", **fields)

    assert raised.value.hint


def test_a_wrong_expression_is_refused_at_declaration() -> None:
    with pytest.raises(InvalidSchedule, match="unit"):
        Schedule("rate(5 fortnights)")
    with pytest.raises(InvalidSchedule, match="timezone"):
        Schedule("@daily", timezone="Berlin")
