"""Offering: gets arrivals recorded, however long that takes.

Imports the trigger protocol and its own room. What cannot be accepted now (a full queue, a full disk) is held
back and offered again; the object may be replaced or deleted meanwhile.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from headrace.runtime.errors import Duplicate, Retryable, Throttled
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.upload.arrival import Arrival, Recorder, seen
from headrace.triggers.upload.report import Reports

IN_HAND_MAX = 64
_HOLD_THROTTLED_MAX_S = 5.0
_HOLD_MAX_S = 30.0

LookAgain = Callable[[Arrival], Awaitable[Arrival | None]]
"""What has become of an arrival that was held back; None when it is none any more."""


class Offering:
    """Offers arrivals to a recorder; `look_again` says what has become of one that was held back."""

    def __init__(
        self, context: TriggerContext, recorder: Recorder, reports: Reports, *, look_again: LookAgain
    ) -> None:
        self._context, self._recorder, self._reports = context, recorder, reports
        self._look_again = look_again
        self._holding = False

    async def offer(self, arrival: Arrival) -> None:
        """Return when it is recorded, was known already, or is no arrival any more."""
        for attempt in itertools.count():
            with self._reports.catching("an upload was not accepted", key=arrival.info.key):
                try:
                    await self._recorder.record(arrival)
                except Duplicate:
                    pass
                except Retryable as error:
                    await self._hold(error, attempt)
                    found = await self._look_again(arrival)
                    if found is None:
                        return
                    arrival = found
                    continue
                self._holding = False
            return

    async def offer_all(self, arrivals: Sequence[Arrival]) -> None:
        """`offer` each, IN_HAND_MAX at a time, so that they share commits."""
        places = asyncio.Semaphore(IN_HAND_MAX)

        async def offer(arrival: Arrival) -> None:
            try:
                await self.offer(arrival)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                await places.acquire()
                group.create_task(offer(arrival))

    async def pass_over(self, infos: Sequence[ObjectInfo]) -> int:
        """Record objects without events; how many were not known before."""
        return await self.note([Arrival(info, listed=True) for info in infos])

    async def note(self, arrivals: Sequence[Arrival]) -> int:
        """Record arrivals without events; how many were not known before."""
        if not arrivals:
            return 0
        try:
            await self._context.accept([], [seen(self._context.name, arrival) for arrival in arrivals])
        except Duplicate:
            # One of them is known, and that refused them all.
            half = len(arrivals) // 2
            return await self.note(arrivals[:half]) + await self.note(arrivals[half:]) if half else 0
        return len(arrivals)

    async def _hold(self, error: Retryable, attempt: int) -> None:
        """Wait before an upload is offered again: part of a time that doubles with each attempt."""
        if not self._holding:
            self._holding = True
            self._reports.tell("uploads are held back until they can be accepted", error=error)
        most = _HOLD_THROTTLED_MAX_S if isinstance(error, Throttled) else _HOLD_MAX_S
        least = error.retry_after_s if isinstance(error, Throttled) else 0.5
        wait_s = min(most, max(least, 0.5) * 2.0 ** min(attempt, 10))
        await self._context.clock.sleep(wait_s * (0.5 + self._context.chance.random() / 2))


def renewed(arrival: Arrival, info: ObjectInfo | None) -> Arrival | None:
    """The arrival of what an object is now."""
    return None if info is None else msgspec.structs.replace(arrival, info=info)
