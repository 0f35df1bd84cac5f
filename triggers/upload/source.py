"""UploadSource: finds the objects of one upload trigger, by a watch for speed and by sweeps for truth.

Imports the trigger protocol, the model, the object stores and its own room. Three ways lead to an event, and
the ledger row that is recorded together with it drops what comes by two of them:

- a notice of the watch, when a writer closed a file or renamed it into place;
- a look through a directory that appeared, since files may have been in it before it was watched;
- a sweep, which compares the whole bucket with the ledger, at the start and every `sweep_s` seconds.

The last two cannot see whether a file is finished. They pass over what a program of this machine has open for
writing; a sweep also waits until a file has been quiet for QUIET_S seconds, since writers of other machines
cannot be seen. A file whose time lies in the future counts as quiet when it stays the same for that long.
"""

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, auto

import msgspec

from headrace.runtime.errors import Duplicate, InvalidFunction, NoSuchObject, Retryable, Throttled
from headrace.runtime.fault import reach
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.model.write import CursorMoved, Forget, Seen
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.key import file_names, is_temporary_name
from headrace.runtime.objects.protocol import Notifying, ObjectInfo
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.upload.comparison import Comparison, Differences
from headrace.triggers.upload.lease import is_being_written
from headrace.triggers.upload.told import StoreWatch
from headrace.triggers.upload.trigger import Upload
from headrace.triggers.upload.watch import FolderWatch, Happening, Notice, watch_folder

QUIET_S = 2.0
"""How long a file must not have changed before a sweep takes it for finished."""

PAGE = 1_000
IN_HAND_MAX = 64
NOTICED_MAX = 16_384
UNSETTLED_MAX = 16_384
DIRECTORIES_MAX = 4_096
_SWEEP_AGAIN_S = 30.0
_BUSY_LOOK_MAX_S = 60.0
_HOLD_THROTTLED_MAX_S = 5.0
_HOLD_MAX_S = 30.0
_LAST_TIME = 253_402_300_799.0  # the end of the year 9999


class _Proof(Enum):
    """What shows that a file is finished; a file that is known to be open for writing never is."""

    NOT_OPEN = auto()
    """Nothing else."""

    CLOSED = auto()
    """The system says that it is closed, or it has been quiet where the system does not say."""

    QUIET = auto()
    """It has been quiet: writers of other machines cannot be seen."""


class _Unsettled(msgspec.Struct):
    """A file that may still be written: how it looked, and when to look again (monotonic)."""

    etag: str
    look_at: float
    wait_s: float = QUIET_S


class UploadSource:
    """The source of one Upload trigger.

    Work in hand at `stop` is left: what had not been recorded is found by the next start's sweep.
    """

    def __init__(self, trigger: Upload, context: TriggerContext) -> None:
        self._trigger = trigger
        self._context = context
        self._bucket = trigger.bucket
        self._folder: bytes | None = None
        self._watch: FolderWatch | None = None
        if isinstance(context.objects, FolderStore):
            self._folder = os.path.join(os.fsencode(context.objects.root), trigger.bucket.encode())
            self._watch = watch_folder(os.fsdecode(self._folder), self._on_notices, context.in_thread)
        elif isinstance(context.objects, Notifying):
            self._watch = StoreWatch(context.objects, trigger.bucket, self._on_notices)
        self._task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._noticed: dict[str, None] = {}
        self._in_hand: dict[str, bool] = {}  # True: noticed again meanwhile
        self._unsettled: dict[str, _Unsettled] = {}
        self._directories: dict[str, None] = {}
        self._sweep_wanted = asyncio.Event()
        self._some_unsettled = asyncio.Event()
        self._some_directories = asyncio.Event()
        self._holding = False
        self._begun = False
        self.swept = asyncio.Event()
        """Set once the bucket has been compared with the ledger for the first time since the start."""

    async def start(self) -> None:
        """Return once the bucket is watched; the first sweep goes on in the background.

        At the trigger's first start ever, with `existing="skip"`, what the bucket holds is recorded first.
        """
        if self._task is not None:
            return
        with self._reporting("the bucket cannot be read at the start; later sweeps try again"):
            await self._make_bucket()
            await self._begin()
        await self._arm()
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
        if self._watch is not None:
            await self._watch.disarm()

    # ---- the beginning ----

    async def _make_bucket(self) -> None:
        objects, in_thread = self._context.objects, self._context.in_thread
        if self._watch is None or self._bucket in await in_thread(objects.buckets):
            return
        await in_thread(objects.make_bucket, self._bucket)
        self._report("the bucket was missing and has been made")

    async def _begin(self) -> None:
        """Record what was there before the trigger, or what a change of its filters adds to that.

        The watch is armed only afterwards: otherwise an object could be recorded as an old one between its
        upload and its notice, and would be lost.
        """
        context, declared = self._context, self._trigger.fields()
        existing = declared.pop("existing")
        cursor, value = f"upload:{context.name}:begun", json.dumps(declared, sort_keys=True)
        known = await context.state.cursor(cursor)
        if known == value:
            self._begun = True
            return
        before = _declared_before(known)
        passed = 0
        if existing == "skip":
            async with contextlib.aclosing(self._differences()) as differences:
                async for found in differences:
                    if await context.state.cursor(cursor) != known:
                        break  # another node has just done it, and now objects are new
                    old = [info for info in found.new if before is None or not before.covers(info)]
                    finished, _ = await context.in_thread(self._finished, old, _Proof.NOT_OPEN)
                    passed += await self._pass_over(finished)
        reach("cursor.before")
        await context.accept([], [CursorMoved(cursor, value)])
        reach("cursor.after")
        self._begun = True
        if passed:
            self._report("objects that were there before the trigger are skipped", count=passed)

    async def _pass_over(self, infos: Sequence[ObjectInfo]) -> int:
        """Record objects without events; how many were not known before."""
        if not infos:
            return 0
        rows = [self._seen(info, listed=True) for info in infos]
        try:
            await self._context.accept([], rows)
        except Duplicate:
            # One of them is known, and that refused them all.
            half = len(infos) // 2
            return await self._pass_over(infos[:half]) + await self._pass_over(infos[half:]) if half else 0
        return len(infos)

    async def _arm(self) -> None:
        if self._watch is None:
            return
        try:
            await self._watch.arm()
        except OSError as error:
            self._report("not all of the bucket's folder is watched; sweeps find the rest", error=error)

    # ---- running ----

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._tick())
            group.create_task(self._sweep_when_wanted())
            group.create_task(self._look_at_unsettled())
            group.create_task(self._look_through_directories())
            self._pump()

    def _on_notices(self, notices: list[Notice], *, lost: bool) -> None:
        for happening, key in notices:
            if happening is Happening.DIRECTORY:
                self._add_directory(key)
            elif not self._trigger.matches_key(key):
                continue
            elif happening is Happening.FINISHED:
                self._notice(key)
            else:
                self._unsettle(key, "")
        if lost:
            self._sweep_wanted.set()
        self._pump()

    def _notice(self, key: str) -> None:
        self._unsettled.pop(key, None)
        if key in self._in_hand:
            self._in_hand[key] = True
        elif len(self._noticed) < NOTICED_MAX:
            self._noticed[key] = None
        else:
            self._sweep_wanted.set()

    def _pump(self) -> None:
        """Take noticed keys in hand, as many as there is room for."""
        room = IN_HAND_MAX - len(self._in_hand)
        if self._group is None or room <= 0 or not self._noticed:
            return
        keys = list(itertools.islice(self._noticed, room))
        for key in keys:
            del self._noticed[key]
            self._in_hand[key] = False
        self._group.create_task(self._take(keys))

    async def _take(self, keys: list[str]) -> None:
        looked: dict[str, ObjectInfo | None] = {}
        with self._reporting("uploads cannot be looked at; the next sweep tries again"):
            looked = await self._context.in_thread(self._look, keys)
        for key in keys:
            info = looked.get(key)
            if info is None or self._group is None:
                self._let_go(key)
            else:
                self._group.create_task(self._offer_noticed(info))

    async def _offer_noticed(self, info: ObjectInfo) -> None:
        try:
            await self._offer(info, listed=False)
        finally:
            self._let_go(info.key)

    def _let_go(self, key: str) -> None:
        if self._in_hand.pop(key):
            self._notice(key)
        self._pump()

    async def _offer(self, info: ObjectInfo, *, listed: bool) -> None:
        """Get an object accepted, however long that takes; it may be replaced or deleted meanwhile."""
        key = info.key

        async def once() -> None:
            event = UploadEvent.of(
                self._bucket,
                key,
                size=info.size,
                etag=info.etag,
                sequencer=info.sequencer,
                time=_iso(info.modified_at),
                version_id=info.version_id,
            )
            reach("ledger.before")
            await self._context.accept([event], [self._seen(info, listed=listed)])
            reach("ledger.after")

        for attempt in itertools.count():
            with self._reporting("an upload was not accepted", key=key):
                try:
                    await once()
                except Duplicate:
                    pass
                except Retryable as error:
                    await self._hold(error, attempt)
                    looked = await self._context.in_thread(self._look, [key])
                    if (found := looked.get(key)) is None:
                        return
                    info = found
                    continue
                self._holding = False
            return

    async def _offer_all(self, infos: Sequence[ObjectInfo]) -> None:
        places = asyncio.Semaphore(IN_HAND_MAX)

        async def offer(info: ObjectInfo) -> None:
            try:
                await self._offer(info, listed=True)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for info in infos:
                await places.acquire()
                group.create_task(offer(info))

    # ---- sweeps ----

    async def _tick(self) -> None:
        while True:
            await self._context.clock.sleep(self._context.sweep_s)
            self._sweep_wanted.set()

    async def _sweep_when_wanted(self) -> None:
        clock = self._context.clock
        while True:
            await self._sweep_wanted.wait()
            self._sweep_wanted.clear()
            began, complete = clock.monotonic(), False
            with self._reporting("a sweep failed"):
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
        if self._watch is not None and await self._watch.is_stale():
            await self._arm()
        if not self._begun:
            await self._begin()
        async with contextlib.aclosing(self._differences()) as differences:
            async for found in differences:
                await self._forget(found.missing)
                await self._offer_finished(found.new, _Proof.QUIET)

    async def _differences(self) -> AsyncGenerator[Differences, None]:
        context, comparison, after = self._context, Comparison(), ""
        listing = context.objects.iterate(self._bucket, self._trigger.prefix)
        while not comparison.is_done:
            if comparison.wants_listed:
                page, last = await context.in_thread(self._next_page, listing)
                comparison.feed_listed(page, last=last)
            if comparison.wants_rows:
                rows = await context.state.ledger(context.name, self._bucket, after=after, limit=PAGE)
                comparison.feed_rows(rows, last=len(rows) < PAGE)
                after = rows[-1].key if rows else after
            yield comparison.compare()

    async def _forget(self, keys: list[str]) -> None:
        """Remove rows of keys that the listing did not have, unless they have come since it passed."""
        if not keys:
            return
        looked = await self._context.in_thread(self._look, keys)
        gone = [
            k for k in keys if looked.get(k) is None and k not in self._in_hand and k not in self._noticed
        ]
        if gone:
            await self._context.accept([], [Forget(self._context.name, self._bucket, gone)])

    async def _offer_finished(self, infos: Sequence[ObjectInfo], proof: _Proof) -> None:
        """Offer what is finished and look again later at the rest."""
        new = [info for info in infos if info.key not in self._in_hand and info.key not in self._noticed]
        if not new:
            return
        finished, others = await self._context.in_thread(self._finished, new, proof)
        for info in others:
            if info.key not in self._unsettled:
                self._unsettle(info.key, info.etag)
        for info in finished:
            self._unsettled.pop(info.key, None)
        await self._offer_all(finished)

    # ---- files that may still be written ----

    def _unsettle(self, key: str, etag: str) -> None:
        if key in self._in_hand or key in self._noticed:
            return
        if len(self._unsettled) < UNSETTLED_MAX or key in self._unsettled:
            self._unsettled[key] = _Unsettled(etag, self._context.clock.monotonic() + QUIET_S)
            self._some_unsettled.set()
        # Else the next sweep finds it again.

    async def _look_at_unsettled(self) -> None:
        clock = self._context.clock
        while True:
            if not self._unsettled:
                self._some_unsettled.clear()
                await self._some_unsettled.wait()
            await clock.sleep(QUIET_S)
            now = clock.monotonic()
            due = {key: file for key, file in self._unsettled.items() if file.look_at <= now}
            with self._reporting("files cannot be looked at; they are tried again"):
                await self._settle(due, now)

    async def _settle(self, due: Mapping[str, _Unsettled], now: float) -> None:
        looked: dict[str, ObjectInfo | None] = await self._context.in_thread(self._look, list(due))
        present = [info for info in looked.values() if info is not None]
        closed, _ = await self._context.in_thread(self._finished, present, _Proof.NOT_OPEN)
        closed_keys = {info.key for info in closed}
        settled = []
        for key, file in due.items():
            info = looked.get(key)
            if self._unsettled.get(key) is not file:
                continue  # a notice came, and its way is the faster one
            if info is None:
                del self._unsettled[key]
            elif key not in closed_keys:
                file.wait_s = min(2 * file.wait_s, _BUSY_LOOK_MAX_S)
                file.etag, file.look_at = info.etag, now + file.wait_s
            elif info.etag != file.etag:
                file.etag, file.look_at = info.etag, now + QUIET_S
            else:
                del self._unsettled[key]
                settled.append(info)
        await self._offer_all(settled)

    # ---- directories that appeared ----

    def _add_directory(self, prefix: str) -> None:
        self._some_directories.set()  # also for one without interest, since the watch has to be extended
        wanted = self._trigger.prefix
        if not (prefix.startswith(wanted) or wanted.startswith(prefix)):
            return
        if len(self._directories) < DIRECTORIES_MAX:
            self._directories[prefix] = None
        else:
            self._sweep_wanted.set()

    async def _look_through_directories(self) -> None:
        while True:
            await self._some_directories.wait()
            self._some_directories.clear()
            prefixes, self._directories = sorted(self._directories), {}
            if self._watch is not None:
                with self._reporting("not all of the bucket's folder is watched; sweeps find the rest"):
                    await self._watch.extend()
            done: str | None = None
            for prefix in prefixes:
                if done is not None and prefix.startswith(done):
                    continue
                done = prefix
                with self._reporting("a directory cannot be looked through", prefix=prefix):
                    await self._look_through(max(prefix, self._trigger.prefix, key=len))

    async def _look_through(self, prefix: str) -> None:
        listing, last = self._context.objects.iterate(self._bucket, prefix), False
        while not last:
            page, last = await self._context.in_thread(self._next_page, listing)
            await self._offer_finished(page, _Proof.CLOSED)

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
                # A file that is being written again is noticed again when that writer closes it.
                looked[key] = info if self._is_wanted(info) and self._is_whole(info) else None
        return looked

    def _is_whole(self, info: ObjectInfo) -> bool:
        if self._folder is None:
            return True
        path = os.path.join(self._folder, *file_names(info.key))
        return not is_being_written(path) and self._unchanged(info)

    def _next_page(self, listing: Iterator[ObjectInfo]) -> tuple[list[ObjectInfo], bool]:
        """A page of the objects that the trigger wants, and whether it is the last."""
        page = list(itertools.islice(listing, PAGE))
        return [info for info in page if self._is_wanted(info)], len(page) < PAGE

    def _is_wanted(self, info: ObjectInfo) -> bool:
        return self._trigger.matches(info) and not (self._folder is not None and is_temporary_name(info.key))

    def _finished(
        self, infos: Sequence[ObjectInfo], proof: _Proof
    ) -> tuple[Sequence[ObjectInfo], Sequence[ObjectInfo]]:
        """Objects that nobody is writing, and the others. Without a folder, objects are whole by their
        nature.
        """
        if self._folder is None:
            return infos, []
        now = self._context.clock.now()
        finished: list[ObjectInfo] = []
        others: list[ObjectInfo] = []
        for info in infos:
            is_open = is_being_written(os.path.join(self._folder, *file_names(info.key)))
            quiet = (
                proof is _Proof.NOT_OPEN
                or (proof is _Proof.CLOSED and is_open is False)
                or now - info.modified_at >= QUIET_S
            )
            whole = quiet and not is_open and self._unchanged(info)
            (finished if whole else others).append(info)
        return finished, others

    def _unchanged(self, info: ObjectInfo) -> bool:
        """Whether the object still is what was looked at before its writers were asked about: only then was
        that state nobody's work in progress.
        """
        try:
            return self._context.objects.head(self._bucket, info.key).etag == info.etag
        except NoSuchObject:
            return False

    # ---- small parts ----

    def _seen(self, info: ObjectInfo, *, listed: bool) -> Seen:
        return Seen(
            trigger=self._context.name,
            bucket=self._bucket,
            key=info.key,
            etag=info.etag,
            size=info.size,
            sequencer=info.sequencer,
            modified_at=info.modified_at,
            listed=listed,
            version_id=info.version_id or "",
        )

    async def _hold(self, error: Retryable, attempt: int) -> None:
        """Wait before an upload is offered again: part of a time that doubles with each attempt."""
        if not self._holding:
            self._holding = True
            self._report("uploads are held back until they can be accepted", error=error)
        most = _HOLD_THROTTLED_MAX_S if isinstance(error, Throttled) else _HOLD_MAX_S
        least = error.retry_after_s if isinstance(error, Throttled) else 0.5
        wait_s = min(most, max(least, 0.5) * 2.0 ** min(attempt, 10))
        await self._context.clock.sleep(wait_s * (0.5 + self._context.chance.random() / 2))

    @contextlib.contextmanager
    def _reporting(self, message: str, **facts: object) -> Iterator[None]:
        """The outermost catch of whatever runs in the background: it is reported, and the source goes on."""
        try:
            yield
        except Exception as error:
            self._report(message, error=error, **facts)

    def _report(self, message: str, *, error: Exception | None = None, **facts: object) -> None:
        shown = {"trigger": self._context.name, "bucket": self._bucket, **facts}
        if error is not None:
            shown |= {
                "error": f"{type(error).__name__}: {error}",
                "hint": getattr(error, "hint", ""),
            }
        self._context.report(message, shown)


def _declared_before(cursor: str | None) -> Upload | None:
    """The declaration under which the trigger began before; None if there was none that can still be read."""
    if cursor is None:
        return None
    try:
        return Upload.from_fields(json.loads(cursor))
    except (ValueError, TypeError, KeyError, InvalidFunction):
        return None


def _iso(moment: float) -> str:
    """ISO 8601 UTC, to the millisecond as S3 writes it; a time that no calendar holds becomes the nearest it
    does.
    """
    held = min(max(moment, 0.0), _LAST_TIME)
    return datetime.fromtimestamp(held, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
