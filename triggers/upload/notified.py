"""NotifiedUploads: finds the objects of one upload trigger by what the object store tells, and by sweeps.

Imports the trigger protocol, the model, the object stores and its own room. A notification is recorded before
it is answered, so that a store which keeps what was not accepted loses nothing; one that comes twice, late or
out of order is dropped by the ledger, and what never came is found by a sweep. All that is needed is in the
notification: nothing asks the store.
"""

from collections.abc import Callable, Sequence

import msgspec

from headrace.runtime.errors import Duplicate, Retryable
from headrace.runtime.model.write import Forget
from headrace.runtime.objects.key import PROBES
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import LedgerEntry, Notification, TriggerContext
from headrace.triggers.upload.arrival import Arrival, Recorder
from headrace.triggers.upload.source import UploadSource
from headrace.triggers.upload.trigger import Upload

REMEMBERED_MAX = 16_384
"""Keys whose newest sequencer is remembered, so that a second delivery asks no ledger."""

SOURCE = "headrace:sweep"
"""The `eventSource` of what no notification told."""

MARKED_S = 7 * 86_400.0
"""How long after its modification the ledger marks an object that has gone, against late news of it."""

OLD_S = 3_600.0
"""An object that is older than this before a sweep was there when the sweep passed its key."""


class NotifiedUploads(UploadSource):
    """The source of one Upload trigger of a bucket whose objects are whole by their nature."""

    def __init__(self, trigger: Upload, context: TriggerContext, recorder: Recorder | None = None) -> None:
        super().__init__(trigger, context, recorder)
        self._leave: Callable[[], None] | None = None
        self._in_hand: dict[str, int] = {}
        self._recorded: dict[tuple[str, str | None], str] = {}

    async def _prepare(self) -> None:
        # Before what is there is recorded as old: what is told from here on is recorded as new, and stays so.
        if self._leave is None and self._context.subscribe is not None:
            self._leave = self._context.subscribe(self._bucket, self._hear)

    async def _unwatch(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def _awaits(self, key: str) -> bool:
        return key in self._in_hand

    def _is_wanted(self, info: ObjectInfo) -> bool:
        return super()._is_wanted(info) and not info.key.startswith(PROBES)

    async def _hear(self, notification: Notification) -> None:
        """Return when it is durable, or needs nothing. Raises: a Retryable error when it is to come again."""
        info = notification.info
        if not self._trigger.matches(info, notification.name):
            return
        known = self._recorded.get((info.key, info.version_id))
        # Of equal length, as those of one store are, sequencers compare as text.
        if known is not None and len(known) == len(info.sequencer) and info.sequencer <= known:
            return
        self._in_hand[info.key] = self._in_hand.get(info.key, 0) + 1
        try:
            await self._record(Arrival(info, name=notification.name, source=notification.source))
        finally:
            left = self._in_hand[info.key] - 1
            if left:
                self._in_hand[info.key] = left
            else:
                del self._in_hand[info.key]

    async def _record(self, arrival: Arrival) -> None:
        info = arrival.info
        # What can never be accepted is told, and not asked for again: it would hold up all that comes after.
        with self._reports.catching("an upload was not accepted", unless=Retryable, key=info.key):
            try:
                await self._recorder.record(arrival)
            except Duplicate:
                pass
            if info.sequencer:
                self._remember(info)

    def _remember(self, info: ObjectInfo) -> None:
        name = (info.key, info.version_id)
        known = self._recorded.pop(name, "")
        self._recorded[name] = max(known, info.sequencer)
        if len(self._recorded) > REMEMBERED_MAX:
            del self._recorded[next(iter(self._recorded))]

    async def _take_listed(self, infos: Sequence[ObjectInfo]) -> None:
        if self._trigger.wants_created:
            await self._offering.offer_all([Arrival(info, listed=True, source=SOURCE) for info in infos])
        else:
            await self._offering.pass_over(infos)

    async def _missing(self, rows: Sequence[LedgerEntry]) -> None:
        """Mark rows of keys that a listing did not have, and remove old marks.

        A mark is refused when the key has been recorded anew meanwhile. It is a thousandth of a second
        younger than the object was, so that the same object uploaded again is new, and late news of the old
        one are not.
        """
        now, trigger = self._context.clock.now(), self._trigger
        had = [row for row in rows if row.etag and not self._awaits(row.key)]
        # A size that is passed over by now is not listed either.
        sized = trigger.min_size is not None or trigger.max_size is not None
        unsure = [row.key for row in had if sized or now - row.modified_at < OLD_S]
        there = await self._context.in_thread(self._still_there, unsure) if unsure else set()
        old = [row.key for row in rows if not row.etag and now - row.modified_at > MARKED_S]
        if old:
            await self._context.accept([], [Forget(self._context.name, self._bucket, old, gone=True)])
        marks = [self._removal(row) for row in had if row.key not in there]
        wanted = [mark for mark in marks if trigger.matches(mark.info, mark.name)]
        await self._offering.offer_all(wanted)
        await self._offering.note([mark for mark in marks if mark not in wanted] if wanted else marks)

    def _removal(self, row: LedgerEntry) -> Arrival:
        removal = super()._removal(row)
        info = msgspec.structs.replace(removal.info, modified_at=row.modified_at + 0.001)
        return msgspec.structs.replace(removal, info=info, source=SOURCE)

    async def _look_again(self, arrival: Arrival) -> Arrival | None:
        # What has replaced it is told of, or found, by itself.
        if arrival.removed:
            return arrival
        found = await self._context.in_thread(self._etag, arrival.info.key)
        return arrival if found == arrival.info.etag else None

    async def _settled(self, infos: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        return [info for info in infos if info.key not in self._in_hand]
