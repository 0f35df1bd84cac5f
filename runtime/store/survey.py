"""Survey: the objects that rows name, which of them are there, and the objects that no row names.

Imports the floor, the object stores and its own room. An object is written before the row that names it, so
only one that is older than a day can be said to have no row. What rows name is gathered in a temporary file,
so that memory stays bounded whatever their number; objects are asked for in pages.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from headrace.runtime.errors import InvalidObjectUrl, NoSuchBucket, Unknown
from headrace.runtime.model.audit import Problem, Reference
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectInfo, ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.store.protocol import AuditStore

UNREFERENCED_S = 86_400.0
"""Seconds that an object may be without a row: it is written first, and its row may take long."""

PREFIXES = ("jobs/", "payloads/", "results/")
"""Where the system bucket holds what rows name."""

_PAGE = 1_000
_AT_ONCE = 4
_GIVEN_UP_HINT = "Restore the buckets from a backup; without the object its value is lost."

InThread = Callable[..., Awaitable[Any]]


class Objects(msgspec.Struct, kw_only=True):
    """What a survey found: references `checked`; those whose object is `missing` from the system bucket, or
    `gone` from another one, where it was the user's to remove; and objects of the system bucket that are
    `unreferenced`, some of them by name.
    """

    checked: int = 0
    missing: int = 0
    gone: int = 0
    unreferenced: int = 0
    unreferenced_bytes: int = 0
    unreferenced_keys: list[str] = msgspec.field(default_factory=list)


class Survey:
    """One look at all references. `objects` is called through `in_thread`, which runs blocking calls."""

    def __init__(self, store: AuditStore, objects: ObjectStore, *, in_thread: InThread) -> None:
        self._store = store
        self._objects = objects
        self._in_thread = in_thread
        self.found = Objects()
        self.problems: list[Problem] = []

    async def check(self, *, now: float, limit: int = 100) -> Objects:
        """Ask for every object that a row names, then look for those that none names. At most `limit` of
        either are named.
        """
        needed = await self._in_thread(_Needed)
        try:
            for jobs in (False, True):
                await self._walk(needed, jobs=jobs, check=True, limit=limit)
            async for page in self._unreferenced(needed, older_than=now - UNREFERENCED_S):
                self.found.unreferenced += len(page)
                self.found.unreferenced_bytes += sum(info.size for info in page)
                room = limit - len(self.found.unreferenced_keys)
                self.found.unreferenced_keys += [info.key for info in page[: max(room, 0)]]
        finally:
            await self._in_thread(needed.close)
        return self.found

    async def collect(self, *, now: float) -> int:
        """Remove the objects that no row names; how many there were. Nothing is read from the store when no
        object is old enough.
        """
        older_than = now - UNREFERENCED_S
        if not await self._in_thread(self._any_old, older_than):
            return 0
        removed = 0
        needed = await self._in_thread(_Needed)
        try:
            for jobs in (False, True):
                await self._walk(needed, jobs=jobs, check=False, limit=0)
            async for page in self._unreferenced(needed, older_than=older_than):
                await self._in_thread(self._remove, page)
                removed += len(page)
        finally:
            await self._in_thread(needed.close)
        return removed

    # ---- what rows name ----

    async def _walk(self, needed: "_Needed", *, jobs: bool, check: bool, limit: int) -> None:
        after = 0
        while page := await self._store.references(jobs=jobs, after=after, limit=_PAGE):
            after = page[-1].id
            await self._in_thread(needed.add, page, jobs)
            if check:
                self.found.checked += sum(len(reference.addresses) for reference in page)
                await self._check(page, jobs=jobs, limit=limit)

    async def _check(self, page: list[Reference], *, jobs: bool, limit: int) -> None:
        size = -(-len(page) // _AT_ONCE)
        parts = [page[at : at + size] for at in range(0, len(page), size)]
        for absent in await asyncio.gather(*(self._in_thread(self._absent, part) for part in parts)):
            for reference, address, why in absent:
                if await self._still_named(reference, address, jobs=jobs):
                    self._name(reference, address, why, jobs=jobs, limit=limit)

    def _absent(self, references: Sequence[Reference]) -> list[tuple[Reference, str, str]]:
        absent = []
        for reference in references:
            for address in reference.addresses:
                try:
                    self._objects.head(*parse_object_url(address))
                except InvalidObjectUrl as error:
                    absent.append((reference, address, str(error)))
                except Unknown:
                    absent.append((reference, address, "there is no such object"))
        return absent

    async def _still_named(self, reference: Reference, address: str, *, jobs: bool) -> bool:
        """Whether the row is still there: retention removes rows first, and then their objects."""
        again = await self._store.references(jobs=jobs, after=reference.id - 1, limit=1)
        return bool(again) and again[0].id == reference.id and address in again[0].addresses

    def _name(self, reference: Reference, address: str, why: str, *, jobs: bool, limit: int) -> None:
        if not address.startswith(f"s3://{SYSTEM_BUCKET}/") and why == "there is no such object":
            self.found.gone += 1  # an output is its owner's, to move and to remove
            return
        self.found.missing += 1
        if self.found.missing <= limit:
            self.problems.append(
                Problem(
                    check="object",
                    message=f"{'its job' if jobs else 'it'} names {address}: {why}",
                    hint=_GIVEN_UP_HINT,
                    function=reference.function,
                    id=show_id(reference.id),
                )
            )

    # ---- what no row names ----

    async def _unreferenced(self, needed: "_Needed", *, older_than: float) -> AsyncIterator[list[ObjectInfo]]:
        for prefix in PREFIXES:
            after = ""
            while page := await self._in_thread(self._list, prefix, after):
                after = page[-1].key
                old = [info for info in page if info.modified_at < older_than]
                unnamed = await self._in_thread(needed.without, old)
                if unnamed:
                    yield unnamed

    def _list(self, prefix: str, after: str) -> list[ObjectInfo]:
        try:
            return self._objects.list(SYSTEM_BUCKET, prefix=prefix, after=after, limit=_PAGE)
        except NoSuchBucket:  # data that a node has never served
            return []

    def _any_old(self, older_than: float) -> bool:
        return any(
            info.modified_at < older_than
            for prefix in PREFIXES
            for info in self._objects.iterate(SYSTEM_BUCKET, prefix)
        )

    def _remove(self, page: Sequence[ObjectInfo]) -> None:
        for info in page:
            self._objects.delete(SYSTEM_BUCKET, info.key)


class _Needed:
    """The addresses that rows name and the jobs that there are, in a temporary file that SQLite removes."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE needed (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        self._db.close()

    def add(self, page: Sequence[Reference], jobs: bool) -> None:
        names = [(address,) for reference in page for address in reference.addresses]
        if jobs:
            names += [(_job_name(reference.id),) for reference in page]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO needed VALUES (?)", names)
        self._db.execute("COMMIT")

    def without(self, page: Sequence[ObjectInfo]) -> list[ObjectInfo]:
        """Those of a page that nothing needs."""
        return [info for info in page if not self._holds(info.key)]

    def _holds(self, key: str) -> bool:
        names = [f"s3://{SYSTEM_BUCKET}/{key}"]
        folder, _, rest = key.partition("/")
        if folder == "jobs":  # what chunks leave is named by their results, for as long as the job is there
            id = read_id(rest.partition("/")[0])
            if id is None:
                return True
            names.append(_job_name(id))
        marks = ", ".join("?" * len(names))
        return self._db.execute(f"SELECT 1 FROM needed WHERE name IN ({marks})", names).fetchone() is not None


def _job_name(id: int) -> str:
    return f"job:{id}"
