"""Calendars: which minutes of local time a cron expression names, whatever the time zone.

Imports nothing of Headrace. A calendar knows no clock changes: it answers in naive local time, and
`expression.py` says which of those times exist. Sets of minutes, hours, days, months and years are integers,
bit n standing for the value n (for years, for 1970 + n), because "the next member from n on" is then two
machine operations.

Sources: "Schedule types in EventBridge Scheduler", Amazon EventBridge Scheduler User Guide, for six fields;
crontab in POSIX.1-2017 and crontab(5) of Vixie cron for five.
"""

import re
from calendar import isleap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime

FIRST_YEAR, LAST_YEAR = 1970, 2199

MACROS: Mapping[str, str] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Short names of five-field schedules, as in crontab(5)."""


class FieldError(ValueError):
    """One field of an expression is wrong: (field, why). Never leaves `headrace.triggers.schedule`."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why


@dataclass(frozen=True, slots=True)
class Calendar:
    """The local minutes that a cron expression names.

    `days` bit 1 is the first of a month; `weekdays` and `last_weekdays` bit 0 is Sunday. A day matches the
    day-of-month side through `days`, `last_day`, `last_workday` or `nearest` (the Monday to Friday nearest to
    each of these days, within the month), and the day-of-week side through `weekdays`, `last_weekdays` (the
    last such day of the month) or `nth` (pairs of weekday and 1 to 5). It must match both sides, or, with
    `either`, at least one. `wild` says that the minutes or the hours were written with `*`, which is what
    cron's own rule for clock changes asks.
    """

    minutes: int
    hours: int
    days: int
    months: int
    weekdays: int
    years: int
    last_day: bool = False
    last_workday: bool = False
    nearest: tuple[int, ...] = ()
    last_weekdays: int = 0
    nth: tuple[tuple[int, int], ...] = ()
    either: bool = False
    wild: bool = False

    def first_from(self, wall: datetime) -> datetime | None:
        """The first minute named at or after `wall` (naive, on a whole minute), None when there is none.

        Takes at most one step for each month from `wall` to the end of 2199.
        """
        hour, minute = _first_bit(self.hours, wall.hour), None
        if hour == wall.hour:
            minute = _first_bit(self.minutes, wall.minute)
            if minute is None:
                hour = _first_bit(self.hours, wall.hour + 1)
        day = self._first_day_from(wall.year, wall.month, wall.day if hour is not None else wall.day + 1)
        if day is None:
            return None
        if hour is None or day != (wall.year, wall.month, wall.day):
            hour, minute = _first_bit(self.hours, 0), None
        if minute is None:
            minute = _first_bit(self.minutes, 0)
        assert hour is not None
        assert minute is not None
        return datetime(*day, hour, minute)  # noqa: DTZ001 - a calendar speaks of local time, without a zone

    def _first_day_from(self, year: int, month: int, day: int) -> tuple[int, int, int] | None:
        """`day` may be one past the end of the month."""
        offset = _first_bit(self.years, max(year - FIRST_YEAR, 0))
        while offset is not None:
            if offset != year - FIRST_YEAR:
                year, month, day = FIRST_YEAR + offset, 1, 1
            at = _first_bit(self.months, month)
            while at is not None:
                found = _first_bit(self._days_of(year, at), day if at == month else 1)
                if found is not None:
                    return year, at, found
                at = _first_bit(self.months, at + 1)
            offset = _first_bit(self.years, offset + 1)
        return None

    def _days_of(self, year: int, month: int) -> int:
        """The days named in one month, bit 1 being the first."""
        length = 29 if month == 2 and isleap(year) else _LENGTHS[month]
        first = date(year, month, 1).isoweekday() % 7

        days = self.days
        if self.last_day:
            days |= 1 << length
        if self.last_workday:
            days |= 1 << _nearest_workday(length, length, first)
        for near in self.nearest:
            if near <= length:
                days |= 1 << _nearest_workday(near, length, first)

        weekdays = 0
        for weekday in range(7):
            initial = 1 + (weekday - first) % 7
            if self.weekdays >> weekday & 1:
                weekdays |= _EVERY_SEVENTH << initial
            if self.last_weekdays >> weekday & 1:
                weekdays |= 1 << initial + (length - initial) // 7 * 7
        for weekday, count in self.nth:
            weekdays |= 1 << 1 + (weekday - first) % 7 + 7 * (count - 1)

        return (days | weekdays if self.either else days & weekdays) & ((1 << length + 1) - 2)


def parse_aws(fields: list[str]) -> Calendar:
    """The calendar of AWS's `cron(minutes hours day-of-month month day-of-week year)`.

    The year may be left out, which means every year (the User Guide calls it optional). `L` in day-of-week is
    Saturday, the last day of AWS's week; `6L` or `FRIL` is the month's last Friday; `W` stays within its
    month. A range may run past the end of its field (not of the years): AWS's own example
    `0/30 20-2 ? * MON-FRI *` means the hours 20-23 and 0-2 of these five days, so Monday's first hours, not
    Saturday's. AWS's table does not list `LW` (the month's last Monday to Friday) nor steps in day-of-week:
    they are ours, with Quartz's meaning.

    Raises: FieldError naming the field, what was wrong and what is allowed.
    """
    if len(fields) not in (5, 6):
        raise FieldError(
            "fields",
            "cron(...) takes six fields (minutes hours day-of-month month day-of-week year), "
            f"got {len(fields)}",
        )
    minutes, hours, days, months, weekdays, years = fields if len(fields) == 6 else [*fields, "*"]
    if (days == "?") == (weekdays == "?"):
        both = "both are" if days == "?" else "neither is"
        raise FieldError(
            "day-of-month and day-of-week",
            f"exactly one of them must be '?' in cron(...), but {both}; "
            "five-field crontab is written without cron(...)",
        )

    last_day = last_workday = False
    nearest: list[int] = []
    plain: list[str] = []
    for item in _items("*" if days == "?" else days):
        if item == "L":
            last_day = True
        elif item == "LW":
            last_workday = True
        elif re.fullmatch(r"[0-9]{1,4}W", item):
            nearest.append(_AWS_DAY.value(item[:-1], item))
        else:
            plain.append(item)
    day_set = _AWS_DAY.set_of(plain, wraps=True)

    last_weekdays = saturday = 0
    nth: list[tuple[int, int]] = []
    plain = []
    items = _items("*" if weekdays == "?" else weekdays)
    for item in items:
        name, hash_, count = item.partition("#")
        if hash_:
            if len(items) > 1:
                raise FieldError(_AWS_WEEKDAY.name, "with '#' only one expression is allowed, without ','")
            weekday = _AWS_WEEKDAY.value(name, item)
            if not re.fullmatch(r"[1-5]", count):
                raise FieldError(
                    _AWS_WEEKDAY.name, f"after '#' comes 1 to 5 (which of the month), got {quoted(item)}"
                )
            nth.append((weekday - 1, int(count)))
        elif item == "L":
            saturday = 1 << 6
        elif item.endswith("L"):
            last_weekdays |= 1 << _AWS_WEEKDAY.value(item[:-1], item) - 1
        else:
            plain.append(item)
    weekday_set = _AWS_WEEKDAY.set_of(plain, wraps=True) >> 1 | saturday

    return Calendar(
        minutes=_MINUTE.set_of(_items(minutes), wraps=True),
        hours=_HOUR.set_of(_items(hours), wraps=True),
        days=day_set,
        months=_MONTH.set_of(_items(months), wraps=True),
        weekdays=weekday_set,
        years=_YEAR.set_of(_items(years)) >> FIRST_YEAR,
        last_day=last_day,
        last_workday=last_workday,
        nearest=tuple(nearest),
        last_weekdays=last_weekdays,
        nth=tuple(nth),
        wild=minutes.startswith("*") or hours.startswith("*"),
    )


def parse_crontab(fields: list[str]) -> Calendar:
    """The calendar of a crontab line: minute, hour, day of month, month, day of week (0 and 7 are Sunday).

    When day-of-month and day-of-week are both restricted, a day that matches either is named (POSIX); as in
    Vixie cron a field that begins with `*` does not count as restricted, so that `0 0 */2 * MON` is every odd
    day that is a Monday.

    Raises: FieldError naming the field, what was wrong and what is allowed.
    """
    if len(fields) != 5:
        aws = "; six fields with a year are written cron(...)" if len(fields) == 6 else ""
        raise FieldError(
            "fields",
            f"crontab takes five fields (minute hour day-of-month month day-of-week), got {len(fields)}{aws}",
        )
    for field, text in zip((_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY), fields, strict=True):
        if "?" in text or "#" in text or re.search(r"(?i)[0-9]W|[0-9]L|\bLW?\b", text):
            raise FieldError(
                field.name,
                f"? L W # belong to AWS's cron(...), got {quoted(text)}; allowed are {field.allowed}",
            )
    minutes, hours, days, months, weekdays = fields
    weekday_set = _WEEKDAY.set_of(_items(weekdays))
    return Calendar(
        minutes=_MINUTE.set_of(_items(minutes)),
        hours=_HOUR.set_of(_items(hours)),
        days=_DAY.set_of(_items(days)),
        months=_MONTH.set_of(_items(months)),
        weekdays=(weekday_set | weekday_set >> 7) & 0x7F,
        years=_YEAR.set_of(["*"]) >> FIRST_YEAR,
        either=not days.startswith("*") and not weekdays.startswith("*"),
        wild=minutes.startswith("*") or hours.startswith("*"),
    )


def quoted(text: str) -> str:
    """`text` quoted on one line and short enough for a message."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _items(text: str) -> list[str]:
    return text.upper().split(",")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    allowed: str
    names: Mapping[str, int]

    @property
    def step_max(self) -> int:
        return self.high - self.low + (self.low > 0)

    def set_of(self, items: Iterable[str], *, wraps: bool = False) -> int:
        """The set that the items of a list name together; `wraps` allows 20-2 for 20-23,0-2."""
        found = 0
        for item in items:
            found |= self._range(item, wraps)
        return found

    def value(self, word: str, item: str) -> int:
        """The number that `word`, a part of `item`, stands for."""
        if word in self.names:
            return self.names[word]
        if not re.fullmatch(r"[0-9]{1,4}", word):
            raise FieldError(self.name, f"cannot read {quoted(item)}; allowed are {self.allowed}")
        number = int(word)
        if not self.low <= number <= self.high:
            raise FieldError(
                self.name,
                f"{number} is outside {self.low}-{self.high} in {quoted(item)}; allowed are {self.allowed}",
            )
        return number

    def _range(self, item: str, wraps: bool) -> int:
        span, slash, step_text = item.partition("/")
        step = 1
        if slash:
            if not re.fullmatch(r"[0-9]{1,4}", step_text) or not 1 <= int(step_text) <= self.step_max:
                raise FieldError(
                    self.name, f"the step after '/' is a number from 1 to {self.step_max}, got {quoted(item)}"
                )
            step = int(step_text)
        start_text, dash, end_text = span.partition("-")
        if span == "*":
            start, end = self.low, self.high
        else:
            start = self.value(start_text, item)
            # A single value with a step runs to the end of the field: AWS's 1/10 is 1, 11, 21, ...
            end = self.value(end_text, item) if dash else self.high if slash else start
            if start > end == 0 and self.high == 7:
                end = 7  # crontab's FRI-SUN: Sunday is 7 as well as 0
        size = self.high - self.low + 1
        if start > end:
            if not wraps:
                other = f"; write {start}-{self.high},{self.low}-{end}" if step == 1 else ""
                raise FieldError(self.name, f"{quoted(item)} runs backwards{other}")
            end += size
        return sum(1 << self.low + (number - self.low) % size for number in range(start, end + 1, step))


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

_MINUTE = _Field("minutes", 0, 59, "0-59 and , - * /", {})
_HOUR = _Field("hours", 0, 23, "0-23 and , - * /", {})
_DAY = _Field("day-of-month", 1, 31, "1-31 and , - * /", {})
_AWS_DAY = _Field("day-of-month", 1, 31, "1-31 and , - * ? / L W", {})
_MONTH = _Field("month", 1, 12, "1-12, JAN-DEC and , - * /", {name: n for n, name in enumerate(_MONTHS, 1)})
_WEEKDAY = _Field(
    "day-of-week", 0, 7, "0-7, SUN-SAT and , - * /", {name: n for n, name in enumerate(_WEEKDAYS)}
)
_AWS_WEEKDAY = _Field(
    "day-of-week",
    1,
    7,
    "1-7 (1 is SUN), SUN-SAT and , - * ? / L #",
    {name: n for n, name in enumerate(_WEEKDAYS, 1)},
)
_YEAR = _Field("year", FIRST_YEAR, LAST_YEAR, f"{FIRST_YEAR}-{LAST_YEAR} and , - * /", {})

_LENGTHS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_EVERY_SEVENTH = sum(1 << 7 * week for week in range(5))


def _first_bit(bits: int, start: int) -> int | None:
    """The lowest bit set at or above `start`."""
    above = bits >> start
    return start + (above & -above).bit_length() - 1 if above else None


def _nearest_workday(day: int, length: int, first: int) -> int:
    """The Monday to Friday nearest to `day`, within the month."""
    weekday = (first + day - 1) % 7
    if weekday == 6:
        return day - 1 if day > 1 else day + 2
    if weekday == 0:
        return day + 1 if day < length else day - 2
    return day
