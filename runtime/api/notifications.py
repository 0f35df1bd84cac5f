"""Notifications: what object stores tell of their buckets, given to whoever subscribed.

Imports the trigger protocol and the rooms below. It knows no trigger.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.runtime.errors import NodeStopping, Throttled
from headrace.runtime.objects.key import PROBES
from headrace.runtime.trigger import Hear, Notification

IN_HAND_MAX = 4_096
"""Notifications that are being recorded at once; with more the store is told to try again."""
PROBES_MAX = 64
_UNKNOWN_TOLD_MAX = 100


class Notifications:
    """Who hears of which bucket. Closed until triggers are ready, so that no answer comes too early."""

    def __init__(self, report: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self._report = report or (lambda message, facts: None)
        self._hearers: dict[str, list[Hear]] = {}
        self._unknown: set[str] = set()
        self._in_hand = 0
        self._probes: dict[str, Probe] = {}
        self.is_open = False
        self.stray: Callable[[str, str], None] | None = None
        """Told of the deliveries of probes that another node may have put: key and target."""

    def subscribe(self, bucket: str, hear: Hear) -> Callable[[], None]:
        """Have a bucket's notifications told to `hear`, until the returned function is called."""
        hearers = self._hearers.setdefault(bucket, [])
        hearers.append(hear)

        def leave() -> None:
            if hear in hearers:
                hearers.remove(hear)
            if not hearers and self._hearers.get(bucket) is hearers:
                del self._hearers[bucket]

        return leave

    async def tell(self, notifications: Sequence[Notification], *, target: str = "") -> None:
        """Return when all of them are durable, or nobody wants them.

        Raises: NodeStopping while triggers are not ready, Throttled when too many are in hand, or what a
        hearer raised.
        """
        if not self.is_open:
            raise NodeStopping("the triggers are not ready")
        if self._in_hand + len(notifications) > IN_HAND_MAX and self._in_hand:
            raise Throttled("too many notifications are being recorded", 1.0)
        self._in_hand += len(notifications)
        try:
            told = [hear(note) for note in notifications for hear in self._hearing(note, target)]
            if len(told) == 1:
                await told[0]
                return
            for outcome in await asyncio.gather(*told, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            self._in_hand -= len(notifications)

    def expect(self, key: str) -> "Probe":
        """Notice deliveries of a probe object until `Probe.close`. Raises: Throttled."""
        if len(self._probes) >= PROBES_MAX:
            raise Throttled("too many probes are under way", 5.0)
        probe = self._probes[key] = Probe(lambda: self._probes.pop(key, None))
        return probe

    def _hearing(self, notification: Notification, target: str) -> Sequence[Hear]:
        info = notification.info
        if info.key.startswith(PROBES):
            if not notification.name.startswith("ObjectCreated"):
                return ()
            probe = self._probes.get(info.key)
            if probe is not None:
                probe.deliver(target)
            elif self.stray is not None:
                self.stray(info.key, target)
            return ()
        found = self._hearers.get(info.bucket)
        if found is not None:
            return found
        if info.bucket not in self._unknown and len(self._unknown) < _UNKNOWN_TOLD_MAX:
            self._unknown.add(info.bucket)
            self._report(
                "notifications of a bucket without triggers are ignored",
                {"bucket": info.bucket, "key": info.key},
            )
        return ()


class Probe:
    """The deliveries of one probe object, by the names of the targets that made them."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget
        self._came = asyncio.Event()
        self.deliveries: deque[str] = deque(maxlen=100)

    def deliver(self, target: str) -> None:
        self.deliveries.append(target)
        self._came.set()

    async def wait_next(self) -> None:
        """Return when something is delivered that was not there at the last call."""
        await self._came.wait()
        self._came.clear()

    def close(self) -> None:
        self._forget()
