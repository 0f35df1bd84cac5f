"""FolderUploads: finds the files of one upload trigger, by a watch for speed and by sweeps for truth.

Imports the trigger protocol, the object stores and its own room. Beside the sweep, two ways lead to the
recorder:

- a notice of the watch, when a writer closed a file or renamed it into place;
- a look through a directory that appeared, since files may have been in it before it was watched.

The last one and the sweep cannot see whether a file is finished. They pass over what a program of this
machine has open for writing; a sweep also waits until a file has been quiet for QUIET_S seconds, since
writers of other machines cannot be seen. A file whose time lies in the future counts as quiet when it stays
the same for that long.
"""

import asyncio
import itertools
import os
from collections.abc import Coroutine, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import msgspec

from headrace.runtime.errors import NoSuchObject
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.key import file_names, is_temporary_name
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.upload.arrival import Arrival, Recorder
from headrace.triggers.upload.lease import is_being_written
from headrace.triggers.upload.offering import IN_HAND_MAX
from headrace.triggers.upload.source import UploadSource
from headrace.triggers.upload.trigger import Upload
from headrace.triggers.upload.watch import Happening, Notice, watch_folder

QUIET_S = 2.0
"""How long a file must not have changed before a sweep takes it for finished."""

NOTICED_MAX = 16_384
UNSETTLED_MAX = 16_384
DIRECTORIES_MAX = 4_096
_BUSY_LOOK_MAX_S = 60.0


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


class FolderUploads(UploadSource):
    """The source of one Upload trigger whose bucket is a folder of `folder`, which the context's objects are
    in.
    """

    def __init__(
        self, trigger: Upload, context: TriggerContext, folder: FolderStore, recorder: Recorder | None = None
    ) -> None:
        super().__init__(trigger, context, recorder)
        self._folder = os.path.join(os.fsencode(folder.root), trigger.bucket.encode())
        self._watcher = watch_folder(os.fsdecode(self._folder), self._on_notices, context.in_thread)
        self._noticed: dict[str, None] = {}
        self._in_hand: dict[str, bool] = {}  # True: noticed again meanwhile
        self._unsettled: dict[str, _Unsettled] = {}
        self._directories: dict[str, None] = {}
        self._some_unsettled = asyncio.Event()
        self._some_directories = asyncio.Event()

    async def _prepare(self) -> None:
        objects, in_thread = self._context.objects, self._context.in_thread
        if self._bucket in await in_thread(objects.buckets):
            return
        await in_thread(objects.make_bucket, self._bucket)
        self._reports.tell("the bucket was missing and has been made")

    async def _watch(self) -> None:
        try:
            await self._watcher.arm()
        except OSError as error:
            self._reports.tell("not all of the bucket's folder is watched; sweeps find the rest", error=error)

    async def _watch_anew(self) -> None:
        if await self._watcher.is_stale():
            await self._watch()

    async def _unwatch(self) -> None:
        await self._watcher.disarm()

    def _works(self) -> Sequence[Coroutine[Any, Any, None]]:
        self._pump()
        return (self._look_at_unsettled(), self._look_through_directories())

    def _awaits(self, key: str) -> bool:
        return key in self._in_hand or key in self._noticed

    def _is_wanted(self, info: ObjectInfo) -> bool:
        return super()._is_wanted(info) and not is_temporary_name(info.key)

    async def _settled(self, infos: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        finished, _ = await self._context.in_thread(self._finished, infos, _Proof.NOT_OPEN)
        return finished  # type: ignore[no-any-return]

    async def _take_listed(self, infos: Sequence[ObjectInfo]) -> None:
        await self._offer_finished(infos, _Proof.QUIET)

    # ---- notices ----

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
        with self._reports.catching("uploads cannot be looked at; the next sweep tries again"):
            looked = await self._context.in_thread(self._look, keys)
        for key in keys:
            info = looked.get(key)
            if info is None or self._group is None:
                self._let_go(key)
            else:
                self._group.create_task(self._offer_noticed(info))

    async def _offer_noticed(self, info: ObjectInfo) -> None:
        try:
            await self._offering.offer(Arrival(info))
        finally:
            self._let_go(info.key)

    def _let_go(self, key: str) -> None:
        if self._in_hand.pop(key):
            self._notice(key)
        self._pump()

    async def _offer_finished(self, infos: Sequence[ObjectInfo], proof: _Proof) -> None:
        """Offer what is finished and look again later at the rest."""
        new = [info for info in infos if not self._awaits(info.key)]
        if not new:
            return
        finished, others = await self._context.in_thread(self._finished, new, proof)
        for info in others:
            if info.key not in self._unsettled:
                self._unsettle(info.key, info.etag)
        for info in finished:
            self._unsettled.pop(info.key, None)
        await super()._take_listed(finished)

    # ---- files that may still be written ----

    def _unsettle(self, key: str, etag: str) -> None:
        if self._awaits(key):
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
            with self._reports.catching("files cannot be looked at; they are tried again"):
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
        await super()._take_listed(settled)

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
            with self._reports.catching("not all of the bucket's folder is watched; sweeps find the rest"):
                await self._watcher.extend()
            done: str | None = None
            for prefix in prefixes:
                if done is not None and prefix.startswith(done):
                    continue
                done = prefix
                with self._reports.catching("a directory cannot be looked through", prefix=prefix):
                    await self._look_through(max(prefix, self._trigger.prefix, key=len))

    async def _look_through(self, prefix: str) -> None:
        listing, last = self._context.objects.iterate(self._bucket, prefix), False
        while not last:
            page, last = await self._context.in_thread(self._next_page, listing)
            await self._offer_finished(page, _Proof.CLOSED)

    # ---- in threads: what blocks ----

    def _look(self, keys: Sequence[str]) -> dict[str, ObjectInfo | None]:
        # A file that is being written again is noticed again when that writer closes it.
        looked = super()._look(keys)
        return {
            key: info if info is not None and self._is_whole(info) else None for key, info in looked.items()
        }

    def _is_whole(self, info: ObjectInfo) -> bool:
        path = os.path.join(self._folder, *file_names(info.key))
        return not is_being_written(path) and self._unchanged(info)

    def _finished(
        self, infos: Sequence[ObjectInfo], proof: _Proof
    ) -> tuple[Sequence[ObjectInfo], Sequence[ObjectInfo]]:
        """Objects that nobody is writing, and the others."""
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
