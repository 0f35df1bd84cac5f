"""Schedule expressions: when a schedule fires, as pure arithmetic.

Imports the floor only, and never reads a clock. Clock changes follow the section on daylight saving time of
"Schedule types in EventBridge Scheduler" (Amazon EventBridge Scheduler User Guide), minute by minute,
whatever the expression:

- a local time that a change skips does not fire (`30 2 * * *` rests on the spring day; `*/15 * * * *` fires
  at 1:45 and then at 3:00, which is 15 minutes later);
- a local time that a change repeats fires once, the first time ("runs the schedule only once at 2:30 a.m.
  before the shift occurs"). So `*/15 * * * *` and `0 * * * *` pause while the hour is repeated. Who wants
  evenly spaced firing writes `rate(...)`, which counts elapsed seconds and sees neither clock changes nor
  time zones.

With `clock_changes="cron"` a cron expression follows cron(8) of Vixie's cron instead, for changes of less
than three hours; a greater one is a correction of the clock, and is followed as if with wildcards:

- without `*` at the beginning of its minutes and hours (so `30 2 * * *`), what a change skips fires at the
  moment of the change, all of it as one fire, and what it repeats fires the first time only;
- with one (`*/15 * * * *`, `0 * * * *`) it follows the clock as it is: what is skipped rests, and what is
  repeated fires both times, so that it goes on evenly.

Two nodes that read the same expression agree on every instant to the last bit, as the key (schedule, instant)
requires.
"""

import difflib
import hashlib
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo, available_timezones

from headrace.runtime.errors import Invalid
from headrace.triggers.schedule.calendar import (
    FIRST_YEAR,
    LAST_YEAR,
    MACROS,
    Calendar,
    FieldError,
    parse_aws,
    parse_crontab,
    quoted,
)

TEXT_CHARS_MAX = 512
"""The longest expression that `parse` reads."""

PERIOD_S_MAX = 36_500 * 86_400
"""The longest period of a rate, about a hundred years."""

Kind = Literal["rate", "cron", "at"]

ClockChanges = Literal["eventbridge", "cron"]
CLOCK_CHANGES: tuple[ClockChanges, ...] = ("eventbridge", "cron")


class InvalidSchedule(Invalid):
    """A schedule's expression or time zone cannot be used: (expression, field, why)."""

    code = "invalid_schedule"
    hint = (
        "Write rate(5 minutes), cron(0 9 ? * MON-FRI *), a crontab line such as */5 * * * *, "
        "or at(2030-01-31T09:00:00), with an IANA time zone such as Europe/Berlin."
    )

    def __init__(self, expression: str, field: str, why: str) -> None:
        super().__init__(expression, field, why)
        self.expression, self.field, self.why = expression, field, why

    def __str__(self) -> str:
        return f"schedule {quoted(self.expression)}: {self.field}: {self.why}"


@dataclass(frozen=True, slots=True)
class Rate:
    """Every `period_s` seconds of elapsed time, counted from an anchor."""

    kind: ClassVar[Kind] = "rate"
    period_s: int

    def next_after(self, instant: float, anchor: float) -> float | None:
        if not instant < math.inf:
            return None
        if instant < anchor:
            return anchor
        # Each instant is computed from its number alone, so that every node finds the same float; the
        # division may be off by one at the edges, which the two corrections undo.
        count = int((instant - anchor) // self.period_s) + 1
        if anchor + (count - 1) * self.period_s > instant:
            count -= 1
        if anchor + count * self.period_s <= instant:
            count += 1
        moment = anchor + count * self.period_s
        return moment if moment > instant else None  # None when floats that large no longer tell them apart


@dataclass(frozen=True, slots=True)
class At:
    """Once, at `moment` (epoch seconds)."""

    kind: ClassVar[Kind] = "at"
    moment: float

    def next_after(self, instant: float, anchor: float) -> float | None:
        return self.moment if instant < self.moment else None


@dataclass(frozen=True, slots=True)
class Cron:
    """At the local minutes that a calendar names, in one time zone; `clock_changes` as in `parse`."""

    kind: ClassVar[Kind] = "cron"
    calendar: Calendar
    zone: ZoneInfo
    clock_changes: ClockChanges = "eventbridge"

    def next_after(self, instant: float, anchor: float) -> float | None:
        if not instant < _END:
            return None
        wall = datetime.fromtimestamp(math.floor(max(instant, _START)), self.zone)
        wall = wall.replace(second=0, microsecond=0, tzinfo=None)
        found: float | None = None
        while (named := self.calendar.first_from(wall)) is not None:
            moment = self._moment(named)
            # Two reasons to go on: a time that does not exist, and one that has had its turn before the
            # clocks went back. Either holds for the minutes of one change at a time, and the calendar itself
            # ends in 2199.
            if moment is not None and moment > instant:
                found = moment
                break
            wall = named + timedelta(minutes=1)
        if self.clock_changes == "cron" and instant >= _START:
            repeated = self._repeated(instant, math.inf if found is None else found)
            return found if repeated is None else repeated
        return found

    def _moment(self, wall: datetime) -> float | None:
        """When it fires for a local time, None when not at all; for a repeated one, the first time."""
        moment = _first_moment(wall, self.zone)
        if moment is None and self.clock_changes == "cron" and not self.calendar.wild:
            change, length_s = _skip(wall, self.zone)
            return change if length_s < _CORRECTION_S else None
        return moment

    def _repeated(self, instant: float, before: float) -> float | None:
        """The first second showing of a local time that fires again, in (instant, before)."""
        # The clocks go back within the next day, or have within the last one, or not at all near here.
        near = [_offset(instant + days * 86_400, self.zone) for days in (-1, 0, 1)]
        if near[0] <= near[1] <= near[2]:
            return None
        start = datetime.fromtimestamp(math.floor(instant), UTC) + timedelta(seconds=min(near))
        wall = start.replace(second=0, microsecond=0, tzinfo=None)
        while (named := self.calendar.first_from(wall)) is not None:
            first = named.replace(tzinfo=self.zone).timestamp()
            second = named.replace(tzinfo=self.zone, fold=1).timestamp()
            if first >= before or first > instant + 86_400:
                return None
            # Of what a change skips, fold 1 comes before fold 0.
            is_again = self.calendar.wild or second - first >= _CORRECTION_S
            if is_again and second > first and instant < second < before:
                return second
            wall = named + timedelta(minutes=1)
        return None


@dataclass(frozen=True, slots=True)
class Expression:
    """A schedule's expression, read. Frozen, hashable, picklable; `parse` reads it back from
    `text` and `timezone`.

    `text` is the expression with its white space normalised; `timezone` an IANA name, which a rate ignores.
    """

    text: str
    timezone: str
    rule: Rate | At | Cron

    @property
    def kind(self) -> Kind:
        return self.rule.kind

    def next_after(self, instant: float, *, anchor: float = 0.0) -> float | None:
        """The first moment strictly after `instant` at which the schedule fires.

        Args:
            instant: UTC epoch seconds.
            anchor: UTC epoch seconds of a rate's first firing (`anchor`, `anchor + period`, ...); others
            ignore it.

        Returns: UTC epoch seconds, or None when it never fires again: after an `at`, past the last year of a
        cron (2199 at the latest), or when all that is left falls into skipped local times.
        """
        return self.rule.next_after(instant, anchor)

    def between(self, start: float, end: float, *, limit: int, anchor: float = 0.0) -> list[float]:
        """The moments after `start` up to and including `end`, ascending, at most the first `limit`."""
        moments: list[float] = []
        moment = self.next_after(start, anchor=anchor)
        while moment is not None and moment <= end and len(moments) < limit:
            moments.append(moment)
            moment = self.next_after(moment, anchor=anchor)
        return moments


def parse(text: str, *, timezone: str = "UTC", clock_changes: ClockChanges = "eventbridge") -> Expression:
    """Read a schedule expression. `clock_changes` is the rule that a cron follows where clocks change.

    `text` is one of:

    - `rate(5 minutes)`: second(s), minute(s), hour(s), day(s), where a day is 24 hours; a value of 1 takes
      the singular and every other the plural (AWS's rule). Seconds are ours: AWS starts at a minute.
    - `cron(0 9 ? * MON-FRI *)`: AWS's six fields with `? L W #`, 1 being Sunday, the year from 1970 to 2199;
      exactly one of day-of-month and day-of-week is `?`. See `parse_aws` for what is ours.
    - `*/5 * * * 1-5`: crontab's five fields, and `@hourly @daily @midnight @weekly @monthly @yearly
      @annually`.
    - `at(2030-01-31T09:00:00)`: once, in local time of `timezone`.

    Names of months and days may be in either case.

    Raises: InvalidSchedule, also for an unknown time zone and for what can never fire, such as the 31st of
    February (for a cron: from 1970 to 2199) or an `at` inside the hour that a clock change skips.
    """
    if not isinstance(text, str):
        raise InvalidSchedule(repr(text), "expression", f"is text, got {type(text).__name__}")
    if len(text) > TEXT_CHARS_MAX:
        raise InvalidSchedule(
            text, "expression", f"is {len(text)} characters long; the limit is {TEXT_CHARS_MAX}"
        )
    zone = _zone(timezone, text)
    try:
        return _parse(text, timezone, zone, clock_changes)
    except FieldError as error:
        raise InvalidSchedule(text, error.field, error.why) from None


def jitter(schedule_name: str, instant: float, window_s: float) -> float:
    """Seconds to delay one firing, in [0, window_s), spread evenly over schedules and instants.

    Hashed (SHA-256) from the schedule's name and the instant, so that every node and every restart finds the
    same one.

    Raises: ValueError if `window_s` is negative or not finite.
    """
    if not 0 <= window_s < math.inf:
        raise ValueError(f"window_s must be finite and not below 0, got {window_s}")
    if window_s == 0:
        return 0.0
    digest = hashlib.sha256(f"{schedule_name}\0{float(instant)!r}".encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:6], "big") / 2**48
    # The product may round up to the window itself.
    return min(share * window_s, math.nextafter(window_s, 0.0))


_UNITS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
# Two days to spare on both sides: a local 1970 begins up to 14 hours before, and a local 2199 ends after
# UTC's.
_START = -2 * 86_400
_CORRECTION_S = 3 * 3600
_END = datetime(LAST_YEAR + 1, 1, 3, tzinfo=UTC).timestamp()


def _parse(text: str, timezone: str, zone: ZoneInfo, changes: ClockChanges) -> Expression:
    words = text.split()
    if not words:
        raise FieldError("expression", "is empty")
    call = re.fullmatch(r"\s*([A-Za-z_]+)\s*\((.*)\)\s*", text, re.DOTALL)
    if call is not None:
        name, inside = call[1], call[2].split()
        normal = f"{name}({' '.join(inside)})"
        if name == "rate":
            return Expression(normal, timezone, _rate(inside))
        if name == "cron":
            return Expression(normal, timezone, _cron(parse_aws(inside), zone, changes))
        if name == "at":
            return Expression(normal, timezone, _at(" ".join(inside), zone))
        near = difflib.get_close_matches(name.lower(), ("rate", "cron", "at"), n=1)
        raise FieldError(
            "expression",
            f"no kind {quoted(name)}{_meant(near)}; allowed are rate(...), cron(...) and at(...)",
        )
    if words[0].startswith("@"):
        if len(words) > 1 or words[0].lower() not in MACROS:
            near = difflib.get_close_matches(words[0].lower(), MACROS, n=1)
            raise FieldError(
                "expression",
                f"no macro {quoted(' '.join(words))}{_meant(near)}; allowed are {' '.join(MACROS)}",
            )
        calendar = parse_crontab(MACROS[words[0].lower()].split())
        return Expression(words[0], timezone, _cron(calendar, zone, changes))
    if words[0].startswith(("rate", "cron", "at(")):
        raise FieldError("expression", "the brackets do not match; write rate(...), cron(...) or at(...)")
    return Expression(" ".join(words), timezone, _cron(parse_crontab(words), zone, changes))


def _rate(words: list[str]) -> Rate:
    if len(words) != 2:
        raise FieldError("rate", "takes a value and a unit, as in rate(5 minutes)")
    value_text, unit_text = words
    if not re.fullmatch(r"[0-9]{1,12}", value_text) or int(value_text) == 0:
        raise FieldError("value", f"is a whole number above 0, got {quoted(value_text)}")
    value = int(value_text)
    unit = unit_text.removesuffix("s")
    if unit not in _UNITS_S:
        near = difflib.get_close_matches(unit_text.lower(), [f"{name}s" for name in _UNITS_S], n=1)
        raise FieldError(
            "unit",
            f"no unit {quoted(unit_text)}{_meant(near)}; "
            "allowed are second(s), minute(s), hour(s) and day(s)",
        )
    right = unit if value == 1 else f"{unit}s"
    if unit_text != right:
        raise FieldError(
            "unit", f"a value of 1 takes the singular and any other the plural: write rate({value} {right})"
        )
    if value * _UNITS_S[unit] > PERIOD_S_MAX:
        raise FieldError("value", f"a period is at most {PERIOD_S_MAX // 86_400} days")
    return Rate(value * _UNITS_S[unit])


def _cron(calendar: Calendar, zone: ZoneInfo, changes: ClockChanges) -> Cron:
    cron = Cron(calendar, zone, changes)
    if cron.next_after(-math.inf, 0.0) is None:
        raise FieldError(
            "expression", f"never fires: no such day or time from {FIRST_YEAR} to {LAST_YEAR} in {zone.key}"
        )
    return cron


def _at(inside: str, zone: ZoneInfo) -> At:
    match = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})", inside)
    if match is None:
        raise FieldError(
            "time",
            "is yyyy-mm-ddThh:mm:ss in local time, without offset (the time zone is given beside it), "
            f"got {quoted(inside)}",
        )
    year, month, day, hour, minute, second = (int(part) for part in match.groups())
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise FieldError("time", f"the year {year} is outside {FIRST_YEAR}-{LAST_YEAR}")
    try:
        wall = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - the zone is applied below
    except ValueError as error:
        raise FieldError("time", f"{inside} is no date and time: {error}") from None
    moment = _first_moment(wall, zone)
    if moment is None:
        raise FieldError(
            "time", f"never fires: {inside} does not exist in {zone.key}, where a clock change skips it"
        )
    return At(moment)


def _first_moment(wall: datetime, zone: ZoneInfo) -> float | None:
    """The first moment at which clocks in `zone` show `wall`; None if a clock change skips it."""
    moment = wall.replace(tzinfo=zone).timestamp()  # fold=0 is the first of two
    if datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0) != wall:
        return None
    return moment


def _offset(moment: float, zone: ZoneInfo) -> float:
    """Seconds by which clocks in `zone` are ahead of UTC."""
    offset = datetime.fromtimestamp(math.floor(moment), zone).utcoffset()
    assert offset is not None
    return offset.total_seconds()


def _skip(wall: datetime, zone: ZoneInfo) -> tuple[float, float]:
    """Of the change that skips the local time `wall`: its moment, and how many seconds it skips."""
    # Read with the offset from before, a skipped time lies behind the change, and the other way round.
    low = int(wall.replace(tzinfo=zone, fold=1).timestamp())
    high = int(wall.replace(tzinfo=zone).timestamp())
    length_s = high - low
    before = _offset(low, zone)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(middle, zone) == before else (low, middle)
    return float(high), float(length_s)


@cache
def _zone_names() -> dict[str, str]:
    """Known zones by their lower-case names; without the two that mean something else on every machine."""
    return {name.lower(): name for name in sorted(available_timezones() - {"localtime", "Factory"})}


def _zone(name: str, text: str) -> ZoneInfo:
    if name == "UTC":
        return ZoneInfo("UTC")
    if not isinstance(name, str):
        raise InvalidSchedule(
            text, "timezone", f"is the name of an IANA time zone, got {type(name).__name__}"
        )
    # Looked up by the exact name, since a file system may open europe/berlin, or a folder, or a file that is
    # no zone.
    known = _zone_names()
    wanted = name.strip()[:80].lower()
    if known.get(wanted) == name:
        return ZoneInfo(name)
    near = [wanted] if wanted in known else difflib.get_close_matches(wanted, known, n=1)
    if not near:
        cities = {key.rpartition("/")[2]: key for key in known}
        near = [cities[city] for city in difflib.get_close_matches(wanted.replace(" ", "_"), cities, n=1)]
    raise InvalidSchedule(
        text,
        "timezone",
        f"no IANA time zone is called {quoted(name)}{_meant([known[key] for key in near])}"
        "; allowed are names such as UTC or Europe/Berlin",
    )


def _meant(near: list[str]) -> str:
    return f", did you mean {near[0]}?" if near else ""
