"""Time, handed in: the one place of the engine that asks the operating system what time it is.

Imports nothing. Durations and deadlines use `monotonic`, which no clock change moves; moments that are stored
or shown use `now`, UTC epoch seconds.
"""

import asyncio
import time
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
