"""Memories: what is remembered of sets, as rows of the trigger's ledger, and as objects where they are long.

Imports the trigger protocol, the model, the object stores' keys and its own room. One row per set under a
ledger of its own, whose sequencer counts the row's changes: of two nodes that change one row, the store
refuses the second.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from headrace.runtime.errors import NoSuchObject
from headrace.runtime.model.write import Forget, Seen
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.trigger import LedgerEntry, TriggerContext
from headrace.triggers.uploadset.condition import SetFile
from headrace.triggers.uploadset.decision import SetMemory

LIST_KEPT_S = 30 * 86_400.0
"""How long the list of a large set's files is kept for those who handle its event."""

_FOLDER = "sets"
_FILES, _KNOWN = "-files.json", "-known.json"


class Remembered(msgspec.Struct, frozen=True):
    """A memory as it was read; `revision` counts its changes, 0 if there is none."""

    name: str
    memory: SetMemory | None = None
    revision: int = 0


class Memories:
    """The memories of one trigger's sets."""

    def __init__(self, context: TriggerContext, bucket: str) -> None:
        self._context, self._bucket = context, bucket
        self._ledger = f"{context.name}/sets"
        self._folder = f"{_FOLDER}/{_digest(context.name)}/"

    async def read(self, name: str) -> Remembered:
        entry = await self._context.state.ledger_entry(self._ledger, self._bucket, name)
        return Remembered(name) if entry is None else _remembered(entry)

    async def page(self, after: str, limit: int) -> Sequence[Remembered]:
        """Memories of sets whose names lie above `after`, by name."""
        rows = await self._context.state.ledger(self._ledger, self._bucket, after=after, limit=limit)
        return [_remembered(row) for row in rows]

    def write(self, before: Remembered, memory: SetMemory, files: int) -> Seen:
        """Replaces the memory, refused with Duplicate if it is not `before` any more."""
        return Seen(
            trigger=self._ledger,
            bucket=self._bucket,
            key=before.name,
            etag=msgspec.json.encode(memory).decode(),
            size=files,
            sequencer=f"{before.revision + 1:016x}",
            modified_at=max(memory.changed_at, 0.0),
        )

    def forget(self, names: Iterable[str]) -> Forget:
        return Forget(self._ledger, self._bucket, list(names))

    # ---- what is too long for a row or an event; these methods block ----

    def put_files(self, name: str, memory: SetMemory, files: Sequence[dict[str, Any]]) -> str:
        """Keep the list of an event's files; its address. The same list is always the same object."""
        key = self._key(name, memory, _FILES)
        data = msgspec.json.encode(files)
        self._context.objects.put(SYSTEM_BUCKET, key, data, content_type="application/json")
        return f"s3://{SYSTEM_BUCKET}/{key}"

    def put_known(self, name: str, memory: SetMemory, files: Sequence[SetFile]) -> str:
        """Keep which files a set has been told of; the object's key."""
        key = self._key(name, memory, _KNOWN)
        held = {"set": name, "files": [[file.key, file.etag] for file in files]}
        data = msgspec.json.encode(held)
        self._context.objects.put(SYSTEM_BUCKET, key, data, content_type="application/json")
        return key

    def read_known(self, memory: SetMemory) -> set[tuple[str, str]] | None:
        """Keys and ETags of what the set has been told of; None if that list has gone."""
        if memory.known is None:
            return None
        try:
            data = self._context.objects.get(SYSTEM_BUCKET, memory.known)
        except NoSuchObject:
            return None
        return {(key, etag) for key, etag in json.loads(data)["files"]}

    def drop_known(self, memory: SetMemory | None) -> None:
        if memory is not None and memory.known is not None:
            self._context.objects.delete(SYSTEM_BUCKET, memory.known)

    def old_lists(self, before: float, after: str, limit: int) -> tuple[list[tuple[str, str | None]], str]:
        """A page of the lists from before a moment, each with its set's name if it is one that a memory may
        name; and where the next page begins, "" at the end.
        """
        infos = self._context.objects.list(SYSTEM_BUCKET, prefix=self._folder, after=after, limit=limit)
        found: list[tuple[str, str | None]] = []
        for info in infos:
            if info.modified_at >= before:
                continue
            if info.key.endswith(_FILES):
                found.append((info.key, None))
            elif info.key.endswith(_KNOWN):
                found.append(
                    (info.key, str(json.loads(self._context.objects.get(SYSTEM_BUCKET, info.key))["set"]))
                )
        return found, infos[-1].key if len(infos) == limit else ""

    def drop_list(self, key: str) -> None:
        self._context.objects.delete(SYSTEM_BUCKET, key)

    def _key(self, name: str, memory: SetMemory, kind: str) -> str:
        return f"{self._folder}{_digest(name)}/{memory.told:06d}-{memory.seen}{kind}"


def _remembered(entry: LedgerEntry) -> Remembered:
    return Remembered(entry.key, msgspec.json.decode(entry.etag, type=SetMemory), int(entry.sequencer, 16))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
