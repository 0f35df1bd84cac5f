"""UploadSource: finds the objects of one upload trigger by sweeps, whatever kind of bucket it is.

Imports the trigger protocol, the model, the object stores' protocol and its own room. A sweep compares the
whole bucket with the ledger, at the start and every `sweep_s` seconds, and what is new is offered to the
recorder. That is the truth, and all that a bucket without notices needs; a kind of bucket that has them adds
its own way to the recorder (see `folder`), and the ledger row that is recorded together with the event drops
what comes by two ways.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from headrace.runtime.errors import InvalidFunction, NoSuchBucket, NoSuchObject
from headrace.runtime.fault import reach
from headrace.runtime.model.write import CursorMoved, Forget
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import LedgerEntry, TriggerContext
from headrace.triggers.upload.arrival import REMOVED, Arrival, EventRecorder, Recorder, event_of
from headrace.triggers.upload.comparison import Comparison, Differences
from headrace.triggers.upload.offering import Offering, renewed
from headrace.triggers.upload.position import Position
from headrace.triggers.upload.report import Reports
from headrace.triggers.upload.trigger import Upload

PAGE = 1_000
_SWEEP_AGAIN_S = 30.0


class UploadSource:
    """The source of one Upload trigger. `recorder` decides what becomes of an arrival: an event, by default.

    Work in hand at `stop` is left: what had not been recorded is found by the next start's sweep.
    """

    def __init__(self, trigger: Upload, context: TriggerContext, recorder: Recorder | None = None) -> None:
        self._trigger = trigger
        self._context = context
        self._bucket = trigger.bucket
        self._reports = Reports(context, trigger.bucket)
        self._recorder = recorder or EventRecorder(trigger, context)
        self._offering = Offering(context, self._recorder, self._reports, look_again=self._look_again)
        self._position = Position(context)
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._sweep_wanted = asyncio.Event()
        self._begun = False
        self.swept = asyncio.Event()
        """Set once the bucket has been compared with the ledger for the first time since the start."""

    async def start(self) -> None:
        """Return once the bucket is watched; the first sweep goes on in the background.

        At the trigger's first start ever, with `existing="skip"`, what the bucket holds is recorded first.
        """
        if self._task is not None:
            return
        with self._reports.catching("the bucket cannot be read at the start; later sweeps try again"):
            await self._prepare()
            await self._begin()
        await self._watch()
        self._sweep_wanted.set()
        self._task = asyncio.create_task(self._run(), name=f"upload {self._context.name}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._group = None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await self._unwatch()

    async def take(self, infos: Sequence[ObjectInfo]) -> None:
        """Offer what somebody else found, once it is whole; a notice that is under way is left alone."""
        new = [info for info in infos if not self._awaits(info.key)]
        if new:
            await self._take_listed(new)

    def wants(self, info: ObjectInfo) -> bool:
        """Whether an object is one that this source would offer."""
        return self._is_wanted(info)

    # ---- what a kind of bucket adds ----

    async def _prepare(self) -> None:
        """Whatever the bucket needs before it is read for the first time."""

    async def _watch(self) -> None:
        """Begin to hear of objects at once, where there are notices."""

    async def _watch_anew(self) -> None:
        """Before each sweep: mend what was lost of the watch."""

    async def _unwatch(self) -> None:
        """Hear nothing any more."""

    def _works(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What else runs as long as the source does."""
        return ()

    def _awaits(self, key: str) -> bool:
        """Whether a notice of this key is on its way to the recorder, so that a sweep leaves it alone."""
        return False

    def _is_wanted(self, info: ObjectInfo) -> bool:
        return self._trigger.tracks(info)

    async def _settled(self, infos: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        """Those that were whole before the trigger first began. Objects are whole by their nature."""
        return infos

    async def _take_listed(self, infos: Sequence[ObjectInfo]) -> None:
        """Offer what a listing showed; a trigger that wants removals only records it."""
        if self._trigger.wants_created:
            await self._offering.offer_all([Arrival(info, listed=True) for info in infos])
        else:
            await self._offering.pass_over(infos)

    async def _missing(self, rows: Sequence[LedgerEntry]) -> None:
        """Deal with rows of keys that a listing did not have: remove them, unless they have come since."""
        looked: Mapping[str, ObjectInfo | None] = await self._context.in_thread(
            self._look, [row.key for row in rows]
        )
        gone = [row for row in rows if looked.get(row.key) is None and not self._awaits(row.key)]
        if gone:
            forget = Forget(self._context.name, self._bucket, [row.key for row in gone])
            events = []
            if self._trigger.wants_removed:
                # What is only passed over by now has not gone.
                there = await self._context.in_thread(self._still_there, [row.key for row in gone])
                went = [row for row in gone if row.key not in there and self._trigger.matches_key(row.key)]
                events = [event_of(self._removal(row)) for row in went]
            await self._context.accept(events, [forget])

    def _removal(self, row: LedgerEntry) -> Arrival:
        """What a listing tells of an object that has gone: no more than that."""
        info = ObjectInfo(self._bucket, row.key, 0, "", row.modified_at, row.sequencer)
        return Arrival(info, name=REMOVED, listed=True)

    # ---- the beginning ----

    async def _begin(self) -> None:
        """Record what was there before the trigger, or what a change of its filters adds to that.

        The watch is armed only afterwards: otherwise an object could be recorded as an old one between its
        upload and its notice, and would be lost.
        """
        context, declared = self._context, self._trigger.fields()
        existing = declared.pop("existing")
        for name in ("metadata", "tags", "max_hops"):  # which say nothing of what is passed over
            del declared[name]
        cursor, value = f"upload:{context.name}:begun", json.dumps(declared, sort_keys=True)
        known = await context.state.cursor(cursor)
        if known == value:
            self._begun = True
            return
        before = _declared_before(known)
        passed = 0
        if existing == "skip":
            try:
                async with contextlib.aclosing(self._differences("", None)) as differences:
                    async for found in differences:
                        if await context.state.cursor(cursor) != known:
                            break  # another node has just done it, and now objects are new
                        old = [info for info in found.new if before is None or not before.covers(info)]
                        passed += await self._offering.pass_over(await self._settled(old))
            except NoSuchBucket as error:
                # What is in it once somebody makes it is new.
                self._reports.tell("the bucket does not exist yet", error=error)
        reach("cursor.before")
        await context.accept([], [CursorMoved(cursor, value)])
        reach("cursor.after")
        self._begun = True
        if passed:
            self._reports.tell("objects that were there before the trigger are skipped", count=passed)

    # ---- running ----

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._tick())
            group.create_task(self._sweep_when_wanted())
            for work in self._works():
                group.create_task(work)

    async def _tick(self) -> None:
        while True:
            await self._context.clock.sleep(self._context.sweep_s)
            with self._reports.catching("a sweep failed"):
                if not await self._position.is_held_elsewhere():
                    self._sweep_wanted.set()

    async def _sweep_when_wanted(self) -> None:
        clock = self._context.clock
        while True:
            await self._sweep_wanted.wait()
            self._sweep_wanted.clear()
            began, complete = clock.monotonic(), False
            with self._reports.catching("a sweep failed", once=True):
                await self._sweep()
                complete = True
            if complete:
                self.swept.set()
                # Of a large bucket under a constant stream of uploads, every second moment is enough.
                await clock.sleep(clock.monotonic() - began)
            else:
                await clock.sleep(min(_SWEEP_AGAIN_S, self._context.sweep_s))
                self._sweep_wanted.set()

    async def _sweep(self) -> None:
        await self._watch_anew()
        if not self._begun:
            await self._begin()
        begun_after = await self._position.begin()
        await self._sweep_between(begun_after, None)
        if begun_after:
            await self._sweep_between("", begun_after)
        await self._position.end()

    async def _sweep_between(self, after: str, until: str | None) -> None:
        """Sweep the keys above `after`, up to and with `until`."""
        async with contextlib.aclosing(self._differences(after, until)) as differences:
            async for found in differences:
                if found.missing:
                    await self._missing(found.missing)
                new = [info for info in found.new if not self._awaits(info.key)]
                if new:
                    await self._take_listed(new)
                await self._position.passed(found.until)

    async def _differences(self, after: str, until: str | None) -> AsyncGenerator[Differences, None]:
        context, comparison = self._context, Comparison()
        listing = context.objects.iterate(self._bucket, self._trigger.prefix, after=after)
        while not comparison.is_done:
            if comparison.wants_listed:
                page, last = await context.in_thread(self._next_page, listing, until)
                comparison.feed_listed(page, last=last)
            if comparison.wants_rows:
                rows = await context.state.ledger(context.name, self._bucket, after=after, limit=PAGE)
                last = len(rows) < PAGE
                after = rows[-1].key if rows else after
                if until is not None and after >= until:
                    rows, last = [row for row in rows if row.key <= until], True
                comparison.feed_rows(rows, last=last)
            yield comparison.compare()

    async def _look_again(self, arrival: Arrival) -> Arrival | None:
        key = arrival.info.key
        looked: dict[str, ObjectInfo | None] = await self._context.in_thread(self._look, [key])
        return renewed(arrival, looked.get(key))

    # ---- in threads: what blocks ----

    def _look(self, keys: Sequence[str]) -> dict[str, ObjectInfo | None]:
        """The objects of keys, without those that the trigger passes over."""
        looked: dict[str, ObjectInfo | None] = {}
        for key in keys:
            try:
                info = self._context.objects.head(self._bucket, key)
            except NoSuchObject:
                looked[key] = None
            else:
                looked[key] = info if self._is_wanted(info) else None
        return looked

    def _still_there(self, keys: Sequence[str]) -> set[str]:
        """Those keys that have an object, of whatever kind."""
        return {key for key in keys if self._etag(key) is not None}

    def _etag(self, key: str) -> str | None:
        try:
            return self._context.objects.head(self._bucket, key).etag
        except NoSuchObject:
            return None

    def _next_page(
        self, listing: Iterator[ObjectInfo], until: str | None = None
    ) -> tuple[list[ObjectInfo], bool]:
        """A page of the objects that the trigger wants, and whether it is the last up to the key `until`."""
        page = list(itertools.islice(listing, PAGE))
        last = len(page) < PAGE
        if until is not None and page and page[-1].key >= until:
            page, last = [info for info in page if info.key <= until], True
        return [info for info in page if self._is_wanted(info)], last


def _declared_before(cursor: str | None) -> Upload | None:
    """The declaration under which the trigger began before; None if there was none that can still be read."""
    if cursor is None:
        return None
    try:
        return Upload.from_fields(json.loads(cursor))
    except (ValueError, TypeError, KeyError, InvalidFunction):
        return None
