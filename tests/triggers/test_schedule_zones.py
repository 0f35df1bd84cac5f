"""Every time zone over three years: what fires is what reading the clocks minute by minute finds.

The reference knows nothing of cron: an expression is a predicate on what a clock on the wall shows, a zone
the stretches of time over which its clocks keep one offset from UTC.
"""

import asyncio
import bisect
import math
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from trigger_bench import Engine, SteppedClock

from headrace.triggers.schedule import Schedule
from headrace.triggers.schedule.expression import ClockChanges, Expression, parse
from headrace.triggers.schedule.trigger import ScheduleSource

BEGIN = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
END = datetime(2028, 1, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400
LOOK_S = DAY_S
"""No zone changes its clocks twice within this."""

ZONES = sorted(available_timezones() - {"localtime", "Factory"})


@dataclass(frozen=True)
class Stretch:
    """From `start` to `end`, in epoch seconds, clocks are `offset` seconds ahead of UTC."""

    start: int
    end: int
    offset: int


@dataclass(frozen=True)
class Case:
    """An expression, and whether it names what a clock shows. `wild`: a `*` begins its minutes or hours."""

    text: str
    names: Callable[[datetime], bool]
    wild: bool = False


def last_weekday(wall: datetime, weekday: int) -> bool:
    return wall.weekday() == weekday and (wall + timedelta(days=7)).month != wall.month


CASES = [
    Case("30 2 * * *", lambda w: (w.hour, w.minute) == (2, 30)),
    Case("0 0 * * *", lambda w: (w.hour, w.minute) == (0, 0)),
    Case("cron(0/30 1-3 * * ? *)", lambda w: 1 <= w.hour <= 3 and w.minute % 30 == 0),
    Case("*/20 0-4 * * SUN", lambda w: w.hour <= 4 and w.minute % 20 == 0 and w.weekday() == 6, wild=True),
    Case("0 3 1,15 * *", lambda w: w.day in (1, 15) and (w.hour, w.minute) == (3, 0)),
    Case("cron(15 23 ? * 6L 2025-2027)", lambda w: last_weekday(w, 4) and (w.hour, w.minute) == (23, 15)),
    Case(
        "cron(0 1 ? * 1#1 *)",
        lambda w: w.weekday() == 6 and w.day <= 7 and (w.hour, w.minute) == (1, 0),
    ),
    Case("cron(59 23 L * ? *)", lambda w: (w + timedelta(minutes=1)).day == 1 and w.hour == 23 and
         w.minute == 59),
    Case("5 0-3 24-31 3,4,9,10 *", lambda w: w.hour <= 3 and w.minute == 5 and w.day >= 24
         and w.month in (3, 4, 9, 10)),
    Case("45 * * * 5-7", lambda w: w.minute == 45 and w.weekday() >= 4, wild=True),
]  # fmt: skip
SPARSE = [CASES[0], *CASES[4:9]]
"""Those that fire seldom enough for a test that is run every time."""

DENSE = Case("*/15 * * * *", lambda w: w.minute % 15 == 0, wild=True)


def offset(moment: int, zone: ZoneInfo) -> int:
    found = datetime.fromtimestamp(moment, zone).utcoffset()
    assert found is not None
    return int(found.total_seconds())


@cache
def stretches(name: str) -> tuple[Stretch, ...]:
    """The stretches of a zone from two days before BEGIN to two days after END."""
    zone, found = ZoneInfo(name), []
    start = now = int(BEGIN) - 2 * DAY_S
    end = int(END) + 2 * DAY_S
    while now < end:
        ahead = min(now + LOOK_S, end)
        if offset(ahead, zone) != offset(start, zone):
            low, high = now, ahead
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle, zone) == offset(start, zone) else (low, middle)
            found.append(Stretch(start, high, offset(start, zone)))
            start = high
        now = ahead
    return (*found, Stretch(start, end, offset(start, zone)))


@cache
def histories() -> dict[tuple[Stretch, ...], list[str]]:
    """Zones by what their clocks do in these years."""
    found: dict[tuple[Stretch, ...], list[str]] = {}
    for name in ZONES:
        found.setdefault(stretches(name), []).append(name)
    return found


@cache
def shown(text: str) -> list[int]:
    """What clocks show when the expression is named, in seconds since 1970 on the wall; minute by minute."""
    [case] = [case for case in [*CASES, DENSE] if case.text == text]
    wall = datetime(2024, 12, 29)  # noqa: DTZ001 - what a clock on the wall shows
    last, minute, found = datetime(2028, 1, 4), timedelta(minutes=1), []  # noqa: DTZ001 - the same
    seconds = int(wall.replace(tzinfo=UTC).timestamp())
    while wall < last:
        if case.names(wall):
            found.append(seconds)
        wall, seconds = wall + minute, seconds + 60
    return found


def between(numbers: list[int], low: int, high: int) -> Iterable[int]:
    """Those in [low, high)."""
    return numbers[bisect.bisect_left(numbers, low) : bisect.bisect_left(numbers, high)]


def reference(case: Case, history: tuple[Stretch, ...], rule: ClockChanges) -> list[float]:
    """When it fires from BEGIN to END."""
    found: set[int] = set()
    seen_to = -math.inf
    for stretch in history:
        first, last = stretch.start + stretch.offset, stretch.end + stretch.offset
        for wall in between(shown(case.text), first, last):
            if wall >= seen_to or (rule == "cron" and case.wild):
                found.add(wall - stretch.offset)
        skipped = -math.inf < seen_to < first and any(between(shown(case.text), int(seen_to), first))
        if skipped and rule == "cron" and not case.wild:
            found.add(stretch.start)
        seen_to = max(seen_to, last)
    return sorted(float(moment) for moment in found if BEGIN < moment <= END)


def fires(expression: Expression, start: float = BEGIN, end: float = END) -> list[float]:
    return expression.between(start, end, limit=1_000_000)


def test_every_known_zone_is_looked_at_and_many_change_their_clocks() -> None:
    changing = [names for history, names in histories().items() if len(history) > 1]

    assert len(ZONES) > 450
    assert len(changing) > 25
    assert "Australia/Lord_Howe" in {name for names in changing for name in names}


@pytest.mark.parametrize("rule", ["eventbridge", "cron"])
@pytest.mark.parametrize("case", SPARSE, ids=lambda case: case.text)
def test_three_years_of_every_kind_of_zone_are_as_read_minute_by_minute(
    case: Case, rule: ClockChanges
) -> None:
    for history, [name, *_] in histories().items():
        expression = parse(case.text, timezone=name, clock_changes=rule)
        assert fires(expression) == reference(case, history, rule), name


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3]], ids=lambda case: case.text)
def test_every_zone_is_right_around_each_of_its_clock_changes(case: Case) -> None:
    for history, names in histories().items():
        changes = [stretch.start for stretch in history[1:]]
        for number, name in enumerate(names):
            rule: ClockChanges = "cron" if number % 2 else "eventbridge"
            expected = reference(case, history, rule) if changes else []
            expression = parse(case.text, timezone=name, clock_changes=rule)
            for change in changes:
                start, end = max(BEGIN, change - 5_400.0), min(END, change + 12_600.0)
                near = expected[bisect.bisect_right(expected, start) : bisect.bisect_right(expected, end)]
                assert fires(expression, start, end) == near, name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rule", ["eventbridge", "cron"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_three_years_of_every_zone_are_as_read_minute_by_minute(case: Case, rule: ClockChanges) -> None:
    for history, names in histories().items():
        expected = reference(case, history, rule)
        for name in names:
            assert fires(parse(case.text, timezone=name, clock_changes=rule)) == expected, name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rule", ["eventbridge", "cron"])
def test_every_quarter_of_an_hour_of_three_years_is_right_in_every_kind_of_zone(rule: ClockChanges) -> None:
    for history, [name, *_] in histories().items():
        expression = parse(DENSE.text, timezone=name, clock_changes=rule)
        assert fires(expression) == reference(DENSE, history, rule), name


# ---- the same by the clock of a node ----


async def run_between(
    folder: Path, case: Case, zones: list[str], begin: float, end: float, *, rules: list[ClockChanges]
) -> None:
    """Let schedules in these zones run beside each other from `begin` to `end` by a clock that is moved from
    one moment to the next, and compare what they fired.
    """
    clock = SteppedClock(begin)
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    engine = Engine(folder, clock)
    await engine.store.start()
    wanted: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.store.stop)
        for zone in zones:
            for rule in rules:
                name = f"app.f/schedule/{zone} {rule}"
                expected = reference(case, stretches(zone), rule)
                wanted[name] = [moment for moment in expected if begin < moment <= end]
                schedule = Schedule(case.text, timezone=zone, clock_changes=rule)
                source = ScheduleSource(schedule, engine.context(name), look_s=1e9)
                await source.start()
                stack.push_async_callback(source.stop)
        await clock.run(end - begin, sleepers=len(wanted))
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for event in engine.events:
        found[event["resources"][0]].append(datetime.fromisoformat(event["time"]).timestamp())

    assert {name for name in wanted if found[name] != wanted[name]} == set()


@pytest.mark.parametrize("season", ["2025-03-26", "2025-10-22", "2026-10-30"])
async def test_nights_around_the_clock_changes_of_every_kind_of_zone_fire_by_the_clock(
    tmp_path: Path, season: str
) -> None:
    changing = [names[0] for history, names in histories().items() if len(history) > 1]
    begin = datetime.fromisoformat(season).replace(tzinfo=UTC).timestamp()
    await run_between(tmp_path, CASES[0], changing, begin, begin + 6 * DAY_S, rules=["eventbridge", "cron"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_three_years_of_nights_in_every_zone_fire_by_the_clock(tmp_path: Path) -> None:
    for zone in ZONES:
        folder = tmp_path / zone.replace("/", ".")
        await run_between(folder, CASES[8], [zone], BEGIN, END, rules=["eventbridge"])
