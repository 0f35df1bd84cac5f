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
        elapsed: seconds since an arbitrary point; `clock.monotonic` by default. See `machine_elapsed`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self._elapsed = elapsed or clock.monotonic
        self._floor = 0.0
        self._offset = clock.now() - self._elapsed()

    def now(self) -> float:
        moment = self._offset + self._elapsed()
        return moment if moment > self._floor else self._floor

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def advance_to(self, moment: float) -> None:
        """`moment` is known to have been, in UTC epoch seconds. A clock that is behind it was set back while
        nobody looked, and goes on from there.
        """
        self._offset += max(0.0, moment - self.now())

    def follow(self, moment: float) -> None:
        """It is now `moment`, in UTC epoch seconds, as the clock has it that all nodes share. When that is in
        the past, this one stands until it is reached: it never goes back.
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
