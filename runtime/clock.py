"""Time, handed in: the one place of the engine that asks the operating system what time it is.

Imports nothing. Durations and deadlines use `monotonic`, which no clock change moves; moments that are stored
or shown use `now`, UTC epoch seconds. A node has two clocks: the wall clock, by which schedules fire and
files are dated, and a `SteadyClock`, by which its queue, its leases and its ids go.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What the engine asks about time."""

    def now(self) -> float:
        """The current moment, in UTC epoch seconds."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back, whatever happens to the wall clock."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of monotonic time."""


class SystemClock:
    """The operating system's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SteadyClock:
    """Moments that neither jump nor go back, whatever becomes of the wall clock: it is read once, and from
    then on the time that passed is added.

    Args:
        clock: asked for `now` once, and for `monotonic` and `sleep` always.
        not_before: the newest moment that is known, in UTC epoch seconds. A wall clock that is behind it was
            set back while nobody looked, and this clock goes on from there.
        base: what to begin with instead of `clock.now()`: the present moment, in UTC epoch seconds, as an
            authority has it that several nodes share.
        elapsed: seconds since an arbitrary point; `clock.monotonic` by default. See `machine_elapsed`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        not_before: float = 0.0,
        base: Callable[[], float] | None = None,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self._elapsed = elapsed or clock.monotonic
        self._floor = 0.0
        self._offset = max((base or clock.now)(), not_before) - self._elapsed()

    def now(self) -> float:
        moment = self._offset + self._elapsed()
        return moment if moment > self._floor else self._floor

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def follow(self, moment: float) -> None:
        """The authority says that it is now `moment`. When that is in the past, this clock stands until it is
        reached: it never goes back.
        """
        self._floor = self.now()
        self._offset = moment - self._elapsed()


def machine_elapsed() -> Callable[[], float]:
    """What counts the seconds of this machine, those too that it slept, where the system has such a clock.

    Python's monotonic clock stands while a Linux machine is suspended: a SteadyClock on it would stay behind
    by the length of each suspension, and delayed work would be late by that.
    Source: clock_gettime(2), CLOCK_BOOTTIME.
    """
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is None:
        return time.monotonic
    return lambda: time.clock_gettime(boot_time)
