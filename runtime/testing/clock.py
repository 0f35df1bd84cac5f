"""Clocks that stand until a test moves them.

Imports nothing of the house.
"""

import asyncio
import heapq


class ManualClock:
    """A clock that stands still until `advance` moves it; sleepers wake in order of their deadlines."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._began = now
        self._elapsed = 0.0
        self._order = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._began + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced by `seconds` in all."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._order, waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move both clocks forward, waking each sleeper at its own instant and letting it run."""
        end = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waiter = heapq.heappop(self._sleepers)
            self._elapsed = max(due, self._elapsed)
            if not waiter.done():
                waiter.set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)
        self._elapsed = end
        await asyncio.sleep(0)

    def jump(self, seconds: float) -> None:
        """Change the wall clock alone, as an operator or NTP would; no sleeper notices."""
        self._began += seconds
