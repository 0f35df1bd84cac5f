"""VirtualClock: time that passes when a test says so, and takes with it all that is due meanwhile.

Imports nothing of the house. Time stands still while functions run. When it is advanced it stops at each
moment for which somebody sleeps or for which work is due, and whoever woke does all that it has to do before
time goes on. Upkeep is the exception: who wakes at a steady pace and finds nothing to do is woken about
twenty times in an advance, however long, so that a year passes in milliseconds.
"""

import asyncio
from datetime import datetime
from fractions import Fraction
from typing import Protocol

BEGIN = datetime.fromisoformat("2030-01-01T00:00:00+00:00")
"""When a virtual clock begins, unless it is told otherwise: a Tuesday."""

STEPS = 20
"""How often upkeep is woken in one advance."""

UPKEEP = (
    "Dispatcher._mark_long",
    "Membership.keep",
    "SetSource._tick",
    "Upkeep.collect",
    "Upkeep.expire",
    "Upkeep.flush_logs",
    "UploadSource._tick",
)
"""Coroutines whose tasks are upkeep from the first."""

PULSE = "Window._sleep_until", 60.0
"""The queue's own look when nothing is due, which is no news to whoever asks `next_due`."""

IDLE_ROUNDS = 2
"""After so many rounds in which nothing happened, any other steady sleeper is woken as upkeep is, and also
whenever somebody else is: it may be waiting for just that.
"""

PACES_MAX = 4_096
MOMENTS_MAX = 1_000_000
_NS = 1_000_000_000


class Driven(Protocol):
    """What goes on when the clock moves."""

    def settle(self) -> None:
        """Do all that is to be done without time passing."""

    def next_due(self) -> float | None:
        """The next moment at which work is due, in epoch seconds."""


class VirtualClock:
    """A `Clock` for tests.

    Args:
        now: where it begins, with a time zone; 2030-01-01 00:00 UTC when not given.

    Whatever takes a moment takes a `datetime` with a time zone, ISO 8601 text with one, or epoch seconds.
    """

    def __init__(self, now: datetime | str | float | None = None) -> None:
        self._wall_ns = _ns(_epoch(BEGIN if now is None else now))
        self._elapsed_ns = 0
        self._sleepers: list[_Sleeper] = []
        self._driven: list[Driven] = []
        self._happened = 0
        self._paces: dict[tuple[str, str, float], tuple[int, int]] = {}

    # ---- Clock ----

    def now(self) -> float:
        """The current moment, in UTC epoch seconds."""
        return self._wall_ns / _NS

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed_ns / _NS

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was advanced by `seconds` in all."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        since, waiter = self._elapsed_ns, asyncio.get_running_loop().create_future()
        sleeper = _Sleeper(since, since + max(_ns(seconds), 1), self._patience(seconds), waiter)
        self._sleepers.append(sleeper)
        try:
            await sleeper.waiter
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    # ---- for tests ----

    def __str__(self) -> str:
        return datetime.fromtimestamp(self.now(), BEGIN.tzinfo).isoformat()

    def advance(self, seconds: float) -> None:
        """Let time pass: all that becomes due meanwhile happens, each at its own moment. Raises ValueError
        for less than nothing.
        """
        if seconds < 0:
            raise ValueError("time goes forward; use jump to set the wall clock back")
        begin, end = self._elapsed_ns, self._elapsed_ns + _ns(seconds)
        step = max((end - begin) // STEPS, 1)
        self._settle()
        for _ in range(MOMENTS_MAX):
            if self._elapsed_ns >= end:
                return
            upkeep = min(begin + ((self._elapsed_ns - begin) // step + 1) * step, end)
            sleepers = [self._heeded(sleeper, step, upkeep) for sleeper in self._sleepers]
            moment = min([end, *sleepers, *self._dues()])
            self._wake(moment, spared=step if moment < upkeep else 0)
            self._settle()
        raise AssertionError(
            f"more than {MOMENTS_MAX:,} moments in one advance; use jump, or advance by less"
        )

    def advance_to(self, moment: datetime | str | float) -> None:
        """`advance` until it is `moment`. Raises ValueError for one that has passed."""
        left = _ns(_epoch(moment)) - self._wall_ns
        self.advance(left / _NS)

    def jump(self, seconds: float) -> None:
        """Change the wall clock alone, forward or back, as an operator or NTP would; no sleeper notices."""
        self._wall_ns += _ns(seconds)

    # ---- for what is driven ----

    def attach(self, driven: Driven) -> None:
        """Have it driven by this clock from now on."""
        self._driven.append(driven)

    def detach(self, driven: Driven) -> None:
        """Leave it alone from now on; once detached, or never attached, nothing changes."""
        if driven in self._driven:
            self._driven.remove(driven)

    def something_happened(self) -> None:
        """Something was recorded: whoever did that is no upkeep."""
        self._happened += 1

    def pass_to_next(self) -> bool:
        """Let pass what is left until the next sleeper, or the next work, is due; False when there is
        neither. Nobody is driven.
        """
        moments = [*(sleeper.until_ns for sleeper in self._sleepers), *self._dues()]
        if not moments:
            return False
        self._wake(min(moments))
        return True

    # ---- within ----

    def _patience(self, seconds: float) -> int:
        """Whether this task has slept so long before, and nothing has happened since: see _Sleeper."""
        task = asyncio.current_task()
        assert task is not None
        name = task.get_name()
        coroutine = task.get_coro()
        kind = getattr(coroutine, "__qualname__", type(coroutine).__name__)
        if kind in UPKEEP:
            return 2
        if (kind, seconds) == PULSE:
            return 1
        pace = kind, "" if name.startswith("Task-") else name, seconds
        happened, rounds = self._paces.get(pace, (-1, 0))
        rounds = rounds + 1 if happened == self._happened else 0
        if len(self._paces) >= PACES_MAX:
            self._paces.clear()
        self._paces[pace] = self._happened, rounds
        return int(rounds >= IDLE_ROUNDS)

    def _heeded(self, sleeper: "_Sleeper", step: int, upkeep: int) -> int:
        """When a sleeper is woken in an advance by such steps, the next of which ends at `upkeep`."""
        if sleeper.patience and sleeper.until_ns - sleeper.since_ns < step:
            return max(sleeper.until_ns, upkeep)
        return sleeper.until_ns

    def _dues(self) -> list[int]:
        found = []
        for driven in self._driven:
            due = driven.next_due()
            if due is not None:
                left = _ns(due) - self._wall_ns
                if left > 0:
                    found.append(self._elapsed_ns + left)
        return found

    def _wake(self, moment_ns: int, *, spared: int = 0) -> None:
        """Let it be that moment, and wake who is to wake by then, but not what is upkeep in steps of
        `spared`.
        """
        passed = max(moment_ns - self._elapsed_ns, 0)
        self._elapsed_ns += passed
        self._wall_ns += passed
        due: list[_Sleeper] = []
        rest: list[_Sleeper] = []
        for sleeper in self._sleepers:
            is_spared = sleeper.patience > 1 and sleeper.until_ns - sleeper.since_ns < spared
            (due if sleeper.until_ns <= self._elapsed_ns and not is_spared else rest).append(sleeper)
        self._sleepers = rest
        for sleeper in sorted(due, key=lambda sleeper: sleeper.until_ns):
            if not sleeper.waiter.done():
                sleeper.waiter.set_result(None)

    def _settle(self) -> None:
        for driven in tuple(self._driven):
            driven.settle()


class _Sleeper:
    """Somebody who sleeps until a moment of the monotonic clock.

    `patience` is 0 for who is woken on time, 1 for who may be woken late, as soon as time stops for somebody
    else, and 2 for upkeep, for which time stops now and then.
    """

    __slots__ = ("patience", "since_ns", "until_ns", "waiter")

    def __init__(self, since_ns: int, until_ns: int, patience: int, waiter: "asyncio.Future[None]") -> None:
        self.since_ns, self.until_ns, self.patience, self.waiter = since_ns, until_ns, patience, waiter


def _ns(seconds: float) -> int:
    return round(Fraction(seconds) * _NS)  # exact: a float product would miss a due moment by a little


def _epoch(moment: datetime | str | float) -> float:
    if isinstance(moment, int | float):
        return float(moment)
    read = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if read.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; write for example 2030-01-01T09:00:00+01:00")
    return read.timestamp()
