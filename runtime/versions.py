"""Versions: which code each node has served since when, and the snapshots that are kept of it.

Imports the floor, the stores' protocols and the snapshots. A version's zip is written once, by the first node
that serves it, to `code/VERSION.zip` in the system bucket; `code/VERSION.json` beside it says what is in it
and is written last, so that where it is, the zip is whole.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.runtime.errors import NoSuchObject, PreconditionFailed
from headrace.runtime.model.invocation import Record
from headrace.runtime.model.spec import Manifest
from headrace.runtime.model.write import Deployed
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.snapshot import About, ChangedMeanwhile, Snapshot, take
from headrace.runtime.store.protocol import Deployment, Store

PREFIX = "code/"
DEPLOYMENTS_MAX = 1_000
"""How many of the last deployments are looked at; a version named by none of them is not known any more."""

LOOKED_AT_MAX = 20
"""How many versions are asked for a function that this node has not."""

_REMEMBERED = 64


class Versions:
    """The deployments of a store's nodes and the snapshots in its system bucket.

    `in_thread` runs what blocks. The objects' and the store's errors come through.
    """

    def __init__(
        self, store: Store, objects: ObjectStore, *, in_thread: Callable[..., Awaitable[Any]]
    ) -> None:
        self._store = store
        self._objects = objects
        self._in_thread = in_thread
        self._abouts: dict[str, About] = {}

    async def record(
        self,
        node: str,
        manifest: Manifest,
        *,
        argument: bytes,
        loaded_at: float,
        now: float,
        without: Sequence[Path] = (),
    ) -> str:
        """Record that `node` serves the manifest's version from `now` on, and keep a snapshot where there is
        none. Returns a note for operators when none could be kept, else an empty text.

        `argument` is the loader's; `loaded_at` when the loading began; `without` are folders to leave out.
        """
        version = manifest.version
        await self._store.apply([Deployed(node, version, now)], now=now)
        self._abouts.pop(version, None)  # another node may have removed what was seen here once
        if await self.about(version) is not None:
            return ""
        names = [spec.name for spec in manifest.functions if not spec.name.startswith("headrace.")]
        try:
            found: Snapshot = await self._in_thread(
                take, argument, version=version, functions=names, loaded_at=loaded_at, without=without
            )
        except ChangedMeanwhile as change:
            return f"{change} was written while the code was being loaded, so this version is not kept"
        except OSError as error:
            return f"the code could not be read, so this version is not kept: {error}"
        put = self._objects.put
        try:
            if found.about.kept:
                await self._in_thread(put, SYSTEM_BUCKET, _zip(version), found.data, if_none_match=True)
        except PreconditionFailed:
            pass  # another node that serves the same version was first
        await self._in_thread(put, SYSTEM_BUCKET, _json(version), msgspec.json.encode(found.about))
        return found.about.note

    async def about(self, version: str) -> About | None:
        """What is known of a version's snapshot; None when there is none."""
        found = self._abouts.get(version)
        if found is None:
            try:
                data = await self._in_thread(self._objects.get, SYSTEM_BUCKET, _json(version))
            except NoSuchObject:
                return None
            if len(self._abouts) >= _REMEMBERED:
                del self._abouts[next(iter(self._abouts))]
            found = self._abouts[version] = msgspec.json.decode(data, type=About)
        return found

    async def zipped(self, version: str) -> bytes:
        """The version's snapshot. Raises NoSuchObject when it is not kept."""
        data: bytes = await self._in_thread(self._objects.get, SYSTEM_BUCKET, _zip(version))
        return data

    async def that_ran(self, record: Record, *, now: float) -> Deployment | None:
        """What served when the invocation's last attempt began: on its node where that is known, else on
        whichever node was deployed last before. With no attempt yet, what serves now.
        """
        before = now if record.started_at is None else record.started_at
        found = await self._store.deployments(before=before, limit=DEPLOYMENTS_MAX)
        return next((each for each in found if each.node == record.node), found[0] if found else None)

    async def having(self, function: str, *, now: float) -> list[Deployment]:
        """The newest deployment of each of the last versions that have a function of this name."""
        out: list[Deployment] = []
        seen: set[str] = set()
        for each in await self._store.deployments(before=now, limit=DEPLOYMENTS_MAX):
            if each.version in seen:
                continue
            seen.add(each.version)
            about = await self.about(each.version)
            if about is not None and function in about.functions:
                out.append(each)
            if len(seen) >= LOOKED_AT_MAX:
                break
        return out

    async def collect(self, *, before: float, now: float) -> int:
        """Remove the snapshots of versions that served nowhere since `before`; how many were removed."""
        kept = versions_in_use(
            await self._store.deployments(before=now, limit=DEPLOYMENTS_MAX), before=before
        )
        removed = 0
        after = ""
        while True:
            page = await self._in_thread(
                self._objects.list, SYSTEM_BUCKET, prefix=PREFIX, after=after, limit=1000
            )
            for info in page:
                version = info.key.removeprefix(PREFIX).rpartition(".")[0]
                # One that was written a moment ago may belong to a deployment that this list has not yet.
                if version in kept or info.modified_at >= before:
                    continue
                await self._in_thread(self._objects.delete, SYSTEM_BUCKET, info.key)
                self._abouts.pop(version, None)
                removed += info.key.endswith(".json")
            if len(page) < 1000:
                return removed
            after = page[-1].key


def versions_in_use(deployments: Sequence[Deployment], *, before: float) -> frozenset[str]:
    """The versions of which something may have run since `before`.

    `deployments` are newest first. Of those that began earlier, each machine's newest served on until its
    next; a machine is the part of a node's name ahead of the process (`#`).
    """
    used: set[str] = set()
    machines: set[str] = set()
    for each in deployments:
        machine = each.node.partition("#")[0]
        if each.since >= before or machine not in machines:
            used.add(each.version)
        if each.since < before:
            machines.add(machine)
    return frozenset(used)


def _zip(version: str) -> str:
    return f"{PREFIX}{version}.zip"


def _json(version: str) -> str:
    return f"{PREFIX}{version}.json"
