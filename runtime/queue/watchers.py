"""Watchers: who waits here for the ends of invocations, and what they are told.

Imports the floor only.
"""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.write import Settle


class Ended(msgspec.Struct, gc=False):
    """How an invocation ended, for those who wait for it."""

    id: int
    status: Status
    result: bytes = b""
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    attempts: int = 0


Watcher = Callable[[Ended], None]


class Watchers:
    """By invocation; each is called once, when its end is durable. `on_end` is called with every end."""

    def __init__(self) -> None:
        self.on_end: Watcher | None = None
        self._by_id: dict[int, Watcher | list[Watcher]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def watch(self, id: int, watcher: Watcher) -> None:
        """Call `watcher` once when the invocation has ended and that is durable."""
        found = self._by_id.get(id)
        if found is None:
            self._by_id[id] = watcher  # nearly always the only one
        elif isinstance(found, list):
            found.append(watcher)
        else:
            self._by_id[id] = [found, watcher]

    def unwatch(self, id: int, watcher: Watcher) -> None:
        """Undo `watch`; harmless when it was called."""
        found = self._by_id.get(id)
        if isinstance(found, list):
            if watcher in found:
                found.remove(watcher)
            if not found:
                del self._by_id[id]
        elif found == watcher:
            del self._by_id[id]

    def forget(self, id: int) -> None:
        """Drop every watcher of an invocation that was not accepted."""
        self._by_id.pop(id, None)

    def some(self, limit: int) -> list[int]:
        """Up to `limit` invocations that somebody waits for."""
        return list(itertools.islice(self._by_id, limit))

    # ---- telling ----

    def settled(self, settle: Settle) -> None:
        """This end of an invocation is durable."""
        id = settle.claim.invocation.id
        if id in self._by_id or self.on_end is not None:
            self._tell(
                Ended(id, settle.status, settle.result, settle.result_ref, settle.error, settle.attempts)
            )

    def cancelled(self, id: int, message: str) -> None:
        """An invocation was cancelled in the store, before anybody had claimed it."""
        if id in self._by_id or self.on_end is not None:
            self._tell(Ended(id, Status.CANCELLED, error={"code": "cancelled", "message": message}))

    def recorded(self, record: Record) -> None:
        """The store says that an invocation, which another node may have run, has ended."""
        id, result = record.invocation.id, record.result or b""
        self._tell(Ended(id, record.status, result, record.result_ref, record.error, record.attempts))

    def _tell(self, ended: Ended) -> None:
        if self.on_end is not None:
            self.on_end(ended)
        watchers = self._by_id.pop(ended.id, None)
        if isinstance(watchers, list):
            for watcher in watchers:
                watcher(ended)
        elif watchers is not None:
            watchers(ended)
