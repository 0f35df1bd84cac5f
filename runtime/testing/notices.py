"""Notices: an object store's notifications on their way to the node under test.

Imports the trigger protocol and its own room. They wait, in order, while the node is down or cannot record
them, as those of MinIO do in a target's queue; what is lost is lost by a fault of the test's.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from headrace.runtime.clock import Clock
from headrace.runtime.errors import Retryable
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.testing.faults import Faults
from headrace.runtime.trigger import Notification

SOURCE = "headrace:memory"
"""The `eventSource` of what the buckets in memory tell."""

WAITING_MAX = 100_000
"""Notifications that wait; what comes beyond them is lost, and found by a sweep."""

AT_ONCE = 100
AGAIN_S = 1.0

Tell = Callable[[Sequence[Notification]], Awaitable[None]]


class Notices:
    """What waits to be told. `told` may be called on any thread while the loop does not run."""

    def __init__(self, faults: Faults, clock: Clock) -> None:
        self.buckets: set[str] = set()
        """Those whose notifications are on."""
        self._faults = faults
        self._clock = clock
        self._waiting: deque[Notification] = deque()
        self._awake: Callable[[], None] | None = None

    def told(self, name: str, info: ObjectInfo) -> None:
        """The buckets tell of an object."""
        if info.bucket not in self.buckets:
            return
        for _ in range(self._faults.notices()):
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append(Notification(info, name, SOURCE))
        if self._awake is not None:
            self._awake()

    async def deliver(self, tell: Tell) -> None:
        """Tell the node of them, until cancelled; what it does not take comes again."""
        loop, some = asyncio.get_running_loop(), asyncio.Event()

        def awake() -> None:
            loop.call_soon_threadsafe(some.set)

        self._awake = awake
        try:
            while True:
                some.clear()
                while self._waiting:
                    page = [self._waiting[at] for at in range(min(len(self._waiting), AT_ONCE))]
                    try:
                        await tell(page)
                    except Retryable:
                        await self._clock.sleep(AGAIN_S)
                    else:
                        for _ in page:
                            self._waiting.popleft()
                await some.wait()
        finally:
            self._awake = None
