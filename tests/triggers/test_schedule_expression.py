"""Schedule expressions: AWS's documented examples, clock changes, and a reading minute by minute."""

import copy
import math
import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.runtime.errors import HeadraceError
from headrace.triggers.schedule.expression import (
    PERIOD_S_MAX,
    TEXT_CHARS_MAX,
    Expression,
    InvalidSchedule,
    jitter,
    parse,
)


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def fires(
    expression: str, start: str, count: int, zone: str = "UTC", seconds: bool = False, end: float = math.inf
) -> list[str]:
    """The next local times after the local time `start`, in short."""
    moments = parse(expression, timezone=zone).between(at(start, zone), end, limit=count)
    form = "%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M"
    return [datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime(form) for moment in moments]


def gaps_min(expression: str, start: str, end: str, zone: str) -> list[float]:
    """Minutes of elapsed time between the firings from local `start` (included) to `end`."""
    found = parse(expression, timezone=zone).between(at(start, zone) - 1, at(end, zone), limit=1000)
    return [(later - earlier) / 60 for earlier, later in pairwise(found)]


# ---- what AWS documents ----


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("cron(0 10 * * ? *)", "2026-01-01T10:00", ["2026-01-02 10:00", "2026-01-03 10:00"]),
        ("cron(15 12 * * ? *)", "2026-02-28T00:00", ["2026-02-28 12:15", "2026-03-01 12:15"]),
        ("cron(0 18 ? * MON-FRI *)", "2026-01-01T18:00", ["2026-01-02 18:00", "2026-01-05 18:00"]),
        ("cron(0 8 1 * ? *)", "2026-01-01T08:00", ["2026-02-01 08:00", "2026-03-01 08:00"]),
        ("cron(0/15 * * * ? *)", "2026-01-01T23:44", ["2026-01-01 23:45", "2026-01-02 00:00"]),
        ("cron(0/10 * ? * MON-FRI *)", "2026-01-02T23:40", ["2026-01-02 23:50", "2026-01-05 00:00"]),
        ("cron(0/5 8-17 ? * MON-FRI *)", "2026-01-02T17:50", ["2026-01-02 17:55", "2026-01-05 08:00"]),
        (
            "cron(0/30 20-2 ? * MON-FRI *)",  # Friday
            "2026-01-02T23:00",
            ["2026-01-02 23:30", "2026-01-05 00:00", "2026-01-05 00:30", "2026-01-05 01:00"],
        ),
        ("cron(15 10 ? * 6L 2022-2023)", "2022-01-01T00:00", ["2022-01-28 10:15", "2022-02-25 10:15"]),
        ("cron(30 8 * * ? *)", "2026-01-01T00:00", ["2026-01-01 08:30"]),
        (
            "cron(1/10 0 1 1 ? *)",
            "2026-01-01T00:00",
            ["2026-01-01 00:01", "2026-01-01 00:11", "2026-01-01 00:21"],
        ),
        ("cron(0 0 ? * 3#2 *)", "2026-01-01T00:00", ["2026-01-13 00:00", "2026-02-10 00:00"]),
        ("cron(0 0 ? * MON#1 *)", "2026-01-01T00:00", ["2026-01-05 00:00", "2026-02-02 00:00"]),
        ("cron(0 0 3W * ? *)", "2026-01-01T00:00", ["2026-01-02 00:00", "2026-02-03 00:00"]),
        ("cron(0 9 L * ? *)", "2026-01-31T09:00", ["2026-02-28 09:00", "2026-03-31 09:00"]),
        ("cron(0 10 1 1,4,7,10 ? *)", "2026-01-01T10:00", ["2026-04-01 10:00", "2026-07-01 10:00"]),
        ("cron(0 0 1 JAN,FEB,MAR ? *)", "2026-03-01T00:00", ["2027-01-01 00:00"]),
        ("cron(0 0 ? * L *)", "2026-01-01T00:00", ["2026-01-03 00:00", "2026-01-10 00:00"]),
    ],
)
def test_the_examples_of_aws_fire_when_aws_says(expression: str, start: str, expected: list[str]) -> None:
    assert fires(expression, start, len(expected)) == expected


def test_the_last_friday_of_each_month_ends_with_its_last_year() -> None:
    found = fires("cron(15 10 ? * 6L 2022-2023)", "2021-06-01T00:00", 1000)

    assert len(found) == 24
    assert found[-1] == "2023-12-29 10:15"
    assert parse("cron(15 10 ? * 6L 2022-2023)").next_after(at("2023-12-29T10:15")) is None


def test_the_one_time_example_of_aws_is_local_time() -> None:
    once = parse("at(2022-11-20T13:00:00)", timezone="America/Los_Angeles")

    assert once.next_after(0.0) == at("2022-11-20T21:00:00")
    assert once.next_after(at("2022-11-20T21:00:00") - 0.001) == at("2022-11-20T21:00:00")
    assert once.next_after(at("2022-11-20T21:00:00")) is None


def test_the_year_may_be_left_out_of_cron() -> None:
    assert fires("cron(0 0 1 1 ?)", "2026-01-02T00:00", 1) == ["2027-01-01 00:00"]


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (
            "1W",
            ["2026-08-03", "2026-09-01", "2026-10-01", "2026-11-02"],
        ),  # Aug 1 is a Saturday, Nov 1 a Sunday
        ("15W", ["2026-08-14", "2026-09-15", "2026-10-15", "2026-11-16"]),
        ("31W", ["2026-08-31", "2026-10-30", "2026-12-31", "2027-01-29"]),  # Oct 31 Saturday, Jan 31 Sunday
        ("LW", ["2026-08-31", "2026-09-30", "2026-10-30", "2026-11-30"]),
        ("1,LW", ["2026-08-01", "2026-08-31", "2026-09-01", "2026-09-30"]),
    ],
)
def test_the_nearest_weekday_stays_within_its_month(day: str, expected: list[str]) -> None:
    assert fires(f"cron(0 0 {day} * ? *)", "2026-07-31T12:00", 4) == [f"{found} 00:00" for found in expected]


def test_a_fifth_weekday_rests_in_months_that_have_four() -> None:
    assert fires("cron(0 0 ? * FRI#5 *)", "2026-01-01T00:00", 3) == [
        "2026-01-30 00:00",
        "2026-05-29 00:00",
        "2026-07-31 00:00",
    ]


# ---- crontab ----


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("*/5 * * * 1-5", "2026-01-02T23:50", ["2026-01-02 23:55", "2026-01-05 00:00"]),
        ("0 0 13 * FRI", "2026-02-01T00:00", ["2026-02-06 00:00", "2026-02-13 00:00", "2026-02-20 00:00"]),
        ("0 0 1,15 * WED", "2026-01-01T00:00", ["2026-01-07 00:00", "2026-01-14 00:00", "2026-01-15 00:00"]),
        ("0 0 */2 * MON", "2026-01-01T00:00", ["2026-01-05 00:00", "2026-01-19 00:00", "2026-02-09 00:00"]),
        ("0 0 * * 7", "2026-01-01T00:00", ["2026-01-04 00:00", "2026-01-11 00:00"]),
        ("0 0 * * 0", "2026-01-01T00:00", ["2026-01-04 00:00", "2026-01-11 00:00"]),
        ("0 0 * * 0-0", "2026-01-01T00:00", ["2026-01-04 00:00", "2026-01-11 00:00"]),
        ("0 0 * * fri-sun", "2026-01-01T00:00", ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00"]),
        (
            "5-20/7,40/10 0 * jan *",
            "2026-01-01T00:00",
            [f"2026-01-01 00:{m}" for m in ("05", "12", "19", "40")],
        ),
        ("0 0 29 2 *", "2096-03-01T00:00", ["2104-02-29 00:00"]),
        ("@hourly", "2026-01-01T00:00", ["2026-01-01 01:00"]),
        ("@daily", "2026-01-01T00:00", ["2026-01-02 00:00"]),
        ("@midnight", "2026-01-01T00:00", ["2026-01-02 00:00"]),
        ("@weekly", "2026-01-01T00:00", ["2026-01-04 00:00"]),
        ("@monthly", "2026-01-01T00:00", ["2026-02-01 00:00"]),
        ("@yearly", "2026-01-01T00:00", ["2027-01-01 00:00"]),
        ("@annually", "2026-01-01T00:00", ["2027-01-01 00:00"]),
    ],
)
def test_crontab_lines_fire_as_crontab_says(expression: str, start: str, expected: list[str]) -> None:
    assert fires(expression, start, len(expected)) == expected


def test_a_cron_begins_with_1970_and_ends_with_2199() -> None:
    every = parse("* * * * *")

    assert every.next_after(-math.inf) == 0.0
    assert every.next_after(-1e300) == 0.0
    assert every.next_after(at("2199-12-31T23:58:30")) == at("2199-12-31T23:59")
    assert every.next_after(at("2199-12-31T23:59")) is None
    assert every.next_after(math.inf) is None
    assert parse("* * * * *", timezone="Pacific/Kiritimati").next_after(-1e9) == at(
        "1970-01-01", "Pacific/Kiritimati"
    )


# ---- rate ----


@pytest.mark.parametrize(
    ("expression", "period_s"),
    [
        ("rate(1 second)", 1),
        ("rate(30 seconds)", 30),
        ("rate(1 minute)", 60),
        ("rate(5 minutes)", 300),
        ("rate(1 hour)", 3600),
        ("rate(2 hours)", 7200),
        ("rate(1 day)", 86_400),
        ("rate(5 days)", 432_000),
    ],
)
def test_a_rate_follows_elapsed_time_from_its_anchor(expression: str, period_s: int) -> None:
    rate = parse(expression, timezone="Europe/Berlin")
    anchor = at("2026-03-28T12:34:56", "Europe/Berlin") + 0.25

    assert rate.next_after(anchor - 1000, anchor=anchor) == anchor
    assert rate.next_after(anchor, anchor=anchor) == anchor + period_s
    assert rate.between(anchor, anchor + 3 * period_s, limit=9, anchor=anchor) == [
        anchor + period_s,
        anchor + 2 * period_s,
        anchor + 3 * period_s,
    ]


def test_a_rate_in_days_is_24_hours_across_a_clock_change() -> None:
    anchor = at("2026-03-28T12:00", "Europe/Berlin")
    moment = parse("rate(1 day)", timezone="Europe/Berlin").next_after(anchor, anchor=anchor)

    assert moment == at("2026-03-29T13:00", "Europe/Berlin")


@given(
    period_s=st.integers(1, 10**7),
    anchor=st.floats(-1e10, 1e10),
    instant=st.floats(-1e10, 1e10),
)
@example(period_s=1, anchor=0.1, instant=0.1 + 3)
@example(period_s=3, anchor=1e10, instant=-1e10)
def test_a_rate_fires_next_at_the_first_multiple_after_the_instant(
    period_s: int, anchor: float, instant: float
) -> None:
    rate = parse(f"rate({period_s} second{'s' if period_s > 1 else ''})")
    moment = rate.next_after(instant, anchor=anchor)

    assert moment is not None
    assert moment > instant
    count = round((moment - anchor) / period_s)
    assert count >= 0
    assert moment == anchor + count * period_s
    assert count == 0 or anchor + (count - 1) * period_s <= instant


def test_a_rate_ends_where_floats_no_longer_tell_its_moments_apart() -> None:
    assert parse("rate(1 second)").next_after(1e300) is None
    assert parse("rate(1 second)").next_after(math.inf) is None
    assert parse("rate(1 second)").next_after(math.nan) is None


# ---- clock changes ----

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


@pytest.mark.parametrize(
    ("zone", "expression", "start", "expected"),
    [
        (BERLIN, "30 2 * * *", "2026-03-28T00:00", ["2026-03-28 02:30", "2026-03-30 02:30"]),
        (NEW_YORK, "cron(30 2 * * ? *)", "2026-03-07T00:00", ["2026-03-07 02:30", "2026-03-09 02:30"]),
        (LORD_HOWE, "15 2 * * *", "2026-10-03T00:00", ["2026-10-03 02:15", "2026-10-05 02:15"]),
        (LORD_HOWE, "30 2 * * *", "2026-10-03T00:00", ["2026-10-03 02:30", "2026-10-04 02:30"]),
        ("Pacific/Apia", "0 12 * * *", "2011-12-29T00:00", ["2011-12-29 12:00", "2011-12-31 12:00"]),
    ],
)
def test_a_local_time_that_a_change_skips_does_not_fire(
    zone: str, expression: str, start: str, expected: list[str]
) -> None:
    assert fires(expression, start, len(expected), zone) == expected


@pytest.mark.parametrize(
    ("zone", "expression", "day", "repeated"),
    [
        (BERLIN, "30 2 * * *", "2026-10-25", "02:30"),
        (NEW_YORK, "cron(30 1 * * ? *)", "2026-11-01", "01:30"),
        (LORD_HOWE, "45 1 * * *", "2026-04-05", "01:45"),
    ],
)
def test_a_local_time_that_a_change_repeats_fires_the_first_time_only(
    zone: str, expression: str, day: str, repeated: str
) -> None:
    start = at(f"{day}T00:00", zone)
    found = parse(expression, timezone=zone).between(start, start + 86_400, limit=9)

    assert found == [at(f"{day}T{repeated}", zone, fold=0)]
    assert found != [at(f"{day}T{repeated}", zone, fold=1)]


@pytest.mark.parametrize(
    ("zone", "start", "end", "expected_min"),
    [
        (BERLIN, "2026-03-29T01:30", "2026-03-29T03:30", [15] * 4),  # 1:30 1:45 3:00 3:15 3:30
        (BERLIN, "2026-10-25T02:30", "2026-10-25T03:15", [15, 75, 15]),  # 2:30 2:45, an hour more, 3:00 3:15
        (NEW_YORK, "2026-03-08T01:45", "2026-03-08T03:15", [15, 15]),
        (NEW_YORK, "2026-11-01T01:45", "2026-11-01T02:15", [75, 15]),
        (LORD_HOWE, "2026-10-04T01:45", "2026-10-04T02:45", [15, 15]),  # 1:45 2:30 2:45
        (
            LORD_HOWE,
            "2026-04-05T01:30",
            "2026-04-05T02:15",
            [15, 45, 15],
        ),  # 1:30 1:45, half an hour more, 2:00
    ],
)
def test_every_quarter_of_an_hour_follows_the_same_rule(
    zone: str, start: str, end: str, expected_min: list[int]
) -> None:
    assert gaps_min("*/15 * * * *", start, end, zone) == expected_min
    assert gaps_min("cron(0/15 * * * ? *)", start, end, zone) == expected_min


def test_from_within_the_repeated_hour_the_next_firing_is_after_it() -> None:
    second_pass = at("2026-10-25T02:10", BERLIN, fold=1)

    assert parse("*/15 * * * *", timezone=BERLIN).next_after(second_pass) == at("2026-10-25T03:00", BERLIN)


def test_at_takes_the_first_of_two_and_refuses_what_does_not_exist() -> None:
    once = parse("at(2026-10-25T02:30:00)", timezone=BERLIN)
    assert once.next_after(0.0) == at("2026-10-25T02:30", BERLIN, fold=0)

    with pytest.raises(InvalidSchedule, match=r"never fires.*does not exist in Europe/Berlin"):
        parse("at(2026-03-29T02:30:00)", timezone=BERLIN)


def test_a_cron_whose_days_all_fall_into_skipped_hours_ends() -> None:
    skipped = parse("cron(30 2 ? 3 1#2 *)", timezone=NEW_YORK)

    assert skipped.next_after(at("2026-01-01")) is None
    with pytest.raises(InvalidSchedule, match="never fires"):
        parse("cron(30 2 ? 3 1#2 2020-2199)", timezone=NEW_YORK)


# ---- brute force ----

DayTest = Callable[[date], bool]
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@st.composite
def lists(
    draw: st.DrawFn, low: int, high: int, *, names: tuple[str, ...] = (), base: int = 0, wraps: bool = False
) -> tuple[str, set[int]]:
    """One field's text, of several items, and the numbers that it names."""

    def word(number: int) -> str:
        if len(names) > 0 and draw(st.booleans()):
            name = names[(number - base) % len(names)]
            return draw(st.sampled_from([name, name.lower(), name.title()]))
        return str(number)

    texts: list[str] = []
    numbers: set[int] = set()
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["one", "range", "star", "from", "step"]))
        first = draw(st.integers(low, high))
        last = draw(st.integers(low if wraps else first, high))
        step = draw(st.integers(1, min(high, 9)))
        line = (
            [*range(first, last + 1)] if first <= last else [*range(first, high + 1), *range(low, last + 1)]
        )
        if kind == "one":
            texts.append(word(first))
            numbers.add(first)
        elif kind == "range":
            # The end is a number: SUN there would be 7 in one form and 1 in the other.
            texts.append(f"{word(first)}-{last}")
            numbers.update(line)
        elif kind == "star":
            texts.append(f"*/{step}")
            numbers.update(range(low, high + 1, step))
        elif kind == "from":
            texts.append(f"{first}/{step}")
            numbers.update(range(first, high + 1, step))
        else:
            texts.append(f"{first}-{last}/{step}")
            numbers.update(line[::step])
    return ",".join(texts), numbers


def sunday_first(day: date) -> int:
    return day.isoweekday() % 7


def month_length(day: date) -> int:
    following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return (following - date(day.year, day.month, 1)).days


def is_nearest_workday(day: date, wanted: int) -> bool:
    """By definition: the nearest of the month's Mondays to Fridays; two are never equally near."""
    if wanted > month_length(day):
        return False
    month = [day.replace(day=n) for n in range(1, month_length(day) + 1)]
    return day == min((d for d in month if d.weekday() < 5), key=lambda d: abs(d.day - wanted))


@st.composite
def aws_days(draw: st.DrawFn) -> tuple[str, str, DayTest]:
    """AWS's day-of-month and day-of-week, and whether a date matches."""
    kinds = ["any", "days", "last", "workday", "last workday", "weekdays", "nth", "last weekday"]
    kind = draw(st.sampled_from(kinds))
    number, weekday, count = draw(st.integers(1, 31)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    name = draw(st.sampled_from([str(weekday), DAYS[weekday - 1]]))
    if kind == "any":
        star, question = draw(st.permutations(["*", "?"]))
        return star, question, lambda day: True
    if kind == "days":
        text, numbers = draw(lists(1, 31, wraps=True))
        return text, "?", lambda day: day.day in numbers
    if kind == "last":
        return "L", "?", lambda day: day.day == month_length(day)
    if kind == "workday":
        return f"{number}W", "?", lambda day: is_nearest_workday(day, number)
    if kind == "last workday":
        return "LW", "?", lambda day: is_nearest_workday(day, month_length(day))
    if kind == "weekdays":
        text, numbers = draw(lists(1, 7, names=DAYS, base=1, wraps=True))
        return "?", text, lambda day: sunday_first(day) + 1 in numbers
    if kind == "nth":
        return (
            "?",
            f"{name}#{count}",
            lambda day: sunday_first(day) + 1 == weekday and (day.day - 1) // 7 + 1 == count,
        )
    return (
        "?",
        f"{name}L",
        lambda day: sunday_first(day) + 1 == weekday and day.day + 7 > month_length(day),
    )


@st.composite
def aws_crons(draw: st.DrawFn, minutes: str = "", hours: str = "") -> tuple[str, Callable[[datetime], bool]]:
    minute_text, minute_set = draw(lists(0, 59, wraps=True)) if not minutes else (minutes, {int(minutes)})
    hour_text, hour_set = draw(lists(0, 23, wraps=True)) if not hours else (hours, {int(hours)})
    days, weekdays, matches = draw(aws_days())
    month_text, month_set = draw(
        st.one_of(st.just(("*", set(range(1, 13)))), lists(1, 12, names=MONTHS, base=1, wraps=True))
    )
    return (
        f"cron({minute_text} {hour_text} {days} {month_text} {weekdays} *)",
        lambda wall: (
            wall.minute in minute_set
            and wall.hour in hour_set
            and wall.month in month_set
            and matches(wall.date())
        ),
    )


@st.composite
def crontabs(draw: st.DrawFn, minutes: str = "", hours: str = "") -> tuple[str, Callable[[datetime], bool]]:
    minute_text, minute_set = draw(lists(0, 59)) if not minutes else (minutes, {int(minutes)})
    hour_text, hour_set = draw(lists(0, 23)) if not hours else (hours, {int(hours)})
    days, day_set = draw(st.one_of(st.just(("*", set(range(1, 32)))), lists(1, 31)))
    months, month_set = draw(st.one_of(st.just(("*", set(range(1, 13)))), lists(1, 12, names=MONTHS, base=1)))
    weekdays, weekday_set = draw(st.one_of(st.just(("*", set(range(8)))), lists(0, 7)))
    weekday_set = {number % 7 for number in weekday_set}
    either = days[0] != "*" and weekdays[0] != "*"

    def matches(wall: datetime) -> bool:
        sides = wall.day in day_set, sunday_first(wall.date()) in weekday_set
        return (
            wall.minute in minute_set
            and wall.hour in hour_set
            and wall.month in month_set
            and (any(sides) if either else all(sides))
        )

    return f"{minute_text} {hour_text} {days} {months} {weekdays}", matches


CHANGES = [
    ("UTC", "2026-02-27"),
    (BERLIN, "2026-03-28"),
    (BERLIN, "2026-10-24"),
    (NEW_YORK, "2026-03-07"),
    (NEW_YORK, "2026-10-31"),
    (LORD_HOWE, "2026-04-04"),
    (LORD_HOWE, "2026-10-03"),
    ("Asia/Kathmandu", "1985-12-31"),
    ("Pacific/Apia", "2011-12-29"),
    ("Antarctica/Troll", "2026-10-24"),
    ("Africa/Casablanca", "2026-02-14"),
    ("America/St_Johns", "2006-10-28"),
]


def readable(text: str, zone: str = "UTC") -> Expression | None:
    """None for what can never fire, such as the 31st of February."""
    try:
        return parse(text, timezone=zone)
    except InvalidSchedule as error:
        if "never fires" not in error.why:
            raise
        return None


@settings(max_examples=120, deadline=None)
@given(
    cron=st.one_of(aws_crons(), crontabs()),
    change=st.sampled_from(CHANGES),
    ahead_min=st.integers(0, 1440),
    seconds=st.floats(0, 60),
)
def test_every_firing_is_the_one_that_reading_minute_by_minute_finds(
    cron: tuple[str, Callable[[datetime], bool]], change: tuple[str, str], ahead_min: int, seconds: float
) -> None:
    text, matches = cron
    zone_name, day = change
    zone = ZoneInfo(zone_name)
    start = at(f"{day}T00:00", zone_name) + 60 * ahead_min + seconds
    end = start + 1.5 * 86_400
    expression = readable(text, zone_name)

    slow = []
    minute = math.floor(start / 60) * 60
    while minute <= end:
        wall = datetime.fromtimestamp(minute, zone)
        if minute > start and wall.fold == 0 and matches(wall):
            slow.append(float(minute))
        minute += 60

    assert ([] if expression is None else expression.between(start, end, limit=10_000)) == slow


@settings(max_examples=150, deadline=None)
@given(
    cron=st.one_of(aws_crons("7", "13"), crontabs("7", "13")),
    start=st.dates(date(1970, 1, 1), date(2195, 1, 1)),
)
def test_every_day_is_the_one_that_reading_day_by_day_finds(
    cron: tuple[str, Callable[[datetime], bool]], start: date
) -> None:
    text, matches = cron
    first = datetime(start.year, start.month, start.day, 13, 7, tzinfo=UTC)
    expression = readable(text)

    slow = [
        wall.timestamp() for wall in (first + timedelta(days=day) for day in range(1, 1200)) if matches(wall)
    ]
    fast = (
        []
        if expression is None
        else expression.between(first.timestamp(), (first + timedelta(days=1199)).timestamp(), limit=2000)
    )
    assert fast == slow


# ---- forms ----


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        aws_crons().map(lambda pair: pair[0]),
        crontabs().map(lambda pair: pair[0]),
        st.integers(2, 9999).map(lambda value: f"  rate( {value}   minutes )\n"),
        st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31)).map(  # noqa: DTZ001
            lambda wall: f"at({wall:%Y-%m-%dT%H:%M:%S})"
        ),
        st.sampled_from(["@hourly", "@Daily", "\t*/5  * * *\n*  "]),
    )
)
def test_an_expression_reads_back_from_its_own_text(text: str) -> None:
    expression = readable(text, "Asia/Tokyo")
    if expression is not None:
        again = parse(expression.text, timezone=expression.timezone)

        assert again == expression
        assert hash(again) == hash(expression)
        assert pickle.loads(pickle.dumps(expression)) == expression
        assert copy.deepcopy(expression).next_after(1.7e9) == expression.next_after(1.7e9)
        assert "  " not in expression.text


def test_between_leaves_out_its_start_includes_its_end_and_keeps_its_limit() -> None:
    hourly = parse("@hourly")

    assert hourly.between(0.0, 7200.0, limit=10) == [3600.0, 7200.0]
    assert hourly.between(-1.0, 7199.9, limit=10) == [0.0, 3600.0]
    assert hourly.between(0.0, math.inf, limit=3) == [3600.0, 7200.0, 10_800.0]
    assert hourly.between(0.0, 7200.0, limit=0) == []
    assert hourly.between(7200.0, 0.0, limit=10) == []


def test_the_kind_of_an_expression_is_known() -> None:
    texts = ("rate(1 hour)", "cron(0 0 * * ? *)", "0 0 * * *", "@daily", "at(2030-01-01T00:00:00)")

    assert [parse(text).kind for text in texts] == ["rate", "cron", "cron", "cron", "at"]


# ---- errors ----


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("", "expression", "empty"),
        ("cron(0 0 31 2 ? *)", "expression", "never fires"),
        ("0 0 30 2 *", "expression", "never fires"),
        ("cron(0 0 29 2 ? 2023)", "expression", "never fires"),
        ("crn(0 0 * * ? *)", "expression", "did you mean cron?"),
        ("Rate(5 minutes)", "expression", "did you mean rate?"),
        ("cron(0 0 * * ? *", "expression", "brackets do not match"),
        ("@dayly", "expression", "did you mean @daily?"),
        ("@reboot", "expression", "allowed are @yearly"),
        ("rate(1 minutes)", "unit", "write rate(1 minute)"),
        ("rate(5 minute)", "unit", "write rate(5 minutes)"),
        ("rate(5 mins)", "unit", "did you mean minutes?"),
        ("rate(0 minutes)", "value", "above 0"),
        ("rate(-5 minutes)", "value", "above 0"),
        ("rate(1.5 hours)", "value", "whole number"),
        ("rate(36501 days)", "value", "at most 36500 days"),
        ("rate(5)", "rate", "rate(5 minutes)"),
        ("at(tomorrow)", "time", "yyyy-mm-ddThh:mm:ss"),
        ("at(2026-01-01T00:00:00Z)", "time", "without offset"),
        ("at(2026-02-29T00:00:00)", "time", "no date and time"),
        ("at(2200-01-01T00:00:00)", "time", "outside 1970-2199"),
        ("cron(60 0 * * ? *)", "minutes", "60 is outside 0-59"),
        ("cron(0 24 * * ? *)", "hours", "24 is outside 0-23"),
        ("cron(0 0 0 * ? *)", "day-of-month", "0 is outside 1-31"),
        ("cron(0 0 32W * ? *)", "day-of-month", "32 is outside 1-31"),
        ("cron(0 0 L-3 * ? *)", "day-of-month", "allowed are 1-31 and , - * ? / L W"),
        ("cron(0 0 * 13 ? *)", "month", "13 is outside 1-12"),
        ("cron(0 0 * JANUARY ? *)", "month", "cannot read 'JANUARY'"),
        ("cron(0 0 ? * 0 *)", "day-of-week", "0 is outside 1-7"),
        ("cron(0 0 ? * 3#6 *)", "day-of-week", "1 to 5"),
        ("cron(0 0 ? * 3#1,6#3 *)", "day-of-week", "only one expression"),
        ("cron(0 0 * * ? 2200)", "year", "2200 is outside 1970-2199"),
        ("cron(0 0 * * ? 2030-2020)", "year", "runs backwards"),
        ("cron(0 0 * * * *)", "day-of-month and day-of-week", "neither is"),
        ("cron(0 0 ? * ? *)", "day-of-month and day-of-week", "both are"),
        ("cron(*/5 * * * *)", "day-of-month and day-of-week", "without cron(...)"),
        ("cron(0 0 1)", "fields", "six fields"),
        ("0 0 1 * ? *", "fields", "written cron(...)"),
        ("* * * *", "fields", "got 4"),
        ("0 0 L * *", "day-of-month", "belong to AWS's cron(...)"),
        ("0 0 * * 5#2", "day-of-week", "belong to AWS's cron(...)"),
        ("0 22-2 * * *", "hours", "write 22-23,0-2"),
        ("*/90 * * * *", "minutes", "from 1 to 59"),
        ("*/0 * * * *", "minutes", "from 1 to 59"),
        ("1,,2 * * * *", "minutes", "cannot read ''"),
        ("٣ * * * *", "minutes", "cannot read"),
    ],
)
def test_an_error_names_the_field_what_was_wrong_and_what_is_allowed(
    text: str, field: str, says: str
) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        parse(text)

    assert caught.value.field == field
    assert says in caught.value.why
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("zone", "near"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("Berlin", "Europe/Berlin"),
        ("utc", "UTC"),
    ],
)
def test_an_unknown_time_zone_is_refused_with_the_nearest_known_one(zone: str, near: str) -> None:
    with pytest.raises(InvalidSchedule, match=f"did you mean {near}"):
        parse("rate(5 minutes)", timezone=zone)


@pytest.mark.parametrize("zone", ["", "../UTC", "/etc/localtime", "Europe", "localtime", "a\0b", "x" * 5000])
def test_what_is_no_name_of_a_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        parse("@daily", timezone=zone)

    assert caught.value.field == "timezone"
    assert len(str(caught.value)) < 400


PIECES = [
    "cron(",
    "rate(",
    "at(",
    ")",
    " ",
    "*",
    "/",
    "-",
    ",",
    "?",
    "L",
    "W",
    "#",
    "@",
    "0",
    "5",
    "59",
    "MON",
    "JAN",
    "2026",
    "2026-01-01T00:00:00",
    "minutes",
    "hour",
    "\n",
    "٣",
    "999999999999",
    "1#2",
    "W-",
    "LW",
]


@settings(max_examples=400, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(PIECES), max_size=16).map("".join),
        st.lists(st.sampled_from([*PIECES, "* "]), min_size=6, max_size=6).map(
            lambda fields: f"cron({' '.join(fields)})"
        ),
        st.lists(st.sampled_from(PIECES), min_size=5, max_size=5).map(" ".join),
    ),
    zone=st.one_of(st.just("UTC"), st.text(max_size=20)),
)
def test_garbage_is_an_invalid_schedule_or_a_schedule_and_nothing_else(text: str, zone: str) -> None:
    refusal = expression = None
    try:
        expression = parse(text, timezone=zone)
    except InvalidSchedule as error:
        refusal = error

    if refusal is not None:
        line = str(refusal)
        assert len(line.splitlines()) == 1
        assert len(line) < 500
        assert refusal.field in line
        assert str(pickle.loads(pickle.dumps(refusal))) == line
    if expression is not None:
        moment = expression.next_after(1.7e9)
        assert moment is None or moment > 1.7e9


def test_an_expression_has_a_longest_length() -> None:
    with pytest.raises(InvalidSchedule, match=f"limit is {TEXT_CHARS_MAX}"):
        parse("1," * TEXT_CHARS_MAX + "1 * * * *")
    assert parse(f"rate({PERIOD_S_MAX // 86_400} days)").next_after(0.0) == PERIOD_S_MAX


def test_what_is_not_text_is_an_invalid_schedule() -> None:
    with pytest.raises(InvalidSchedule, match="is text, got int"):
        parse(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidSchedule, match="got NoneType"):
        parse("@daily", timezone=None)  # type: ignore[arg-type]


def test_an_invalid_schedule_is_one_of_our_errors() -> None:
    error = InvalidSchedule("x", "fields", "why")

    assert isinstance(error, HeadraceError)
    assert (error.code, error.http_status) == ("invalid_schedule", 400)
    assert "rate(5 minutes)" in error.hint


# ---- jitter ----


def test_jitter_is_the_same_on_every_node() -> None:
    assert jitter("reports/0", 1_800_000_000.0, 60.0) == jitter("reports/0", 1_800_000_000, 60.0)
    assert jitter("reports/0", 1_800_000_000.0, 60.0) == pytest.approx(31.911968656673935, abs=1e-9)


@given(name=st.text(), instant=st.floats(allow_nan=False), window_s=st.floats(0, 1e9, exclude_min=True))
def test_jitter_stays_within_its_window(name: str, instant: float, window_s: float) -> None:
    assert 0 <= jitter(name, instant, window_s) < window_s


def test_jitter_spreads_over_schedules_and_over_instants() -> None:
    by_schedule = [jitter(f"schedule-{n}", 1.8e9, 100.0) for n in range(2000)]
    by_instant = [jitter("schedule", 1.8e9 + 60 * n, 100.0) for n in range(2000)]

    for delays in (by_schedule, by_instant):
        tenths = [sum(10 * n <= delay < 10 * (n + 1) for delay in delays) for n in range(10)]
        assert all(140 < count < 260 for count in tenths), tenths


def test_no_window_means_no_jitter_and_a_wrong_one_is_an_error() -> None:
    assert jitter("a", 0.0, 0.0) == 0.0
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="window_s"):
            jitter("a", 0.0, wrong)
