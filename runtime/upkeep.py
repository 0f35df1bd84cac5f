"""Upkeep: what a node does beside its work, at a steady pace, until it stops.

Imports the stores, the versions and the settings.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.settings import Kept
from headrace.runtime.store.logs import LogStore
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.survey import Survey
from headrace.runtime.versions import Versions

FLUSH_S = 0.2
ROW_BATCH = 500
"""Rows out of date that one transaction removes, between which the others' turns come."""
KEY_BATCH = 2_000
KEY_BATCHES = 200
"""Expired idempotency keys that are forgotten at once, and how often in a row."""
COLLECT_S = 3600.0
LOGS_LOST = "what functions printed could not be kept"

_log = structlog.get_logger("headrace")


class Upkeep:
    """The upkeep of one node. `wall` is the clock that objects are dated by; `logs_dirty` says that there is
    output which is not on the disk.
    """

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        *,
        logs: LogStore,
        versions: Versions,
        kept: Kept,
        clock: Clock,
        wall: Clock,
        in_thread: Callable[..., Awaitable[Any]],
        report: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.logs_dirty = False
        self._store = store
        self._objects = objects
        self._logs = logs
        self._versions = versions
        self._kept = kept
        self._clock = clock
        self._wall = wall
        self._in_thread = in_thread
        self._report = report

    async def flush_logs(self) -> None:
        """Have what functions printed on the disk soon, until cancelled."""
        while True:
            await self._clock.sleep(FLUSH_S)
            if self.logs_dirty:
                self.logs_dirty = False
                try:
                    await self._in_thread(self._logs.flush)
                except HeadraceError as error:
                    self._report(LOGS_LOST, {"error": str(error)})

    async def expire(self) -> None:
        """Remove what is out of date now and then, until cancelled."""
        kept = self._kept
        while True:
            await self._clock.sleep(kept.every_s)
            now = self._clock.now()
            try:
                removed = ROW_BATCH
                while removed >= ROW_BATCH:
                    batch = await self._store.expire(
                        succeeded_before=now - kept.succeeded_s,
                        dead_before=now - kept.dead_s,
                        keep=kept.succeeded_rows,
                        limit=ROW_BATCH,
                    )
                    removed = batch.count
                    for ref in batch.refs:
                        await self._in_thread(self._objects.delete, *parse_object_url(ref))
                await self._versions.collect(before=now - max(kept.succeeded_s, kept.dead_s), now=now)
                for _ in range(KEY_BATCHES):
                    if await self._store.expire_keys(before=now, limit=KEY_BATCH) < KEY_BATCH:
                        break
                await self._in_thread(self._logs.expire, before=now - kept.logs_s, bytes_max=kept.logs_bytes)
            except HeadraceError as error:
                self._report("what is out of date could not be removed", {"error": str(error)})

    async def collect(self) -> None:
        """Remove the objects of the system bucket that no row names, which lost attempts leave, now and then,
        until cancelled.
        """
        while True:
            await self._clock.sleep(COLLECT_S)
            try:
                survey = Survey(self._store, self._objects, in_thread=self._in_thread)
                # The earlier of both: an object is dated by the wall clock, and a jump must not make it old.
                removed = await survey.collect(now=min(self._wall.now(), self._clock.now()))
            except HeadraceError as error:
                self._report("objects without a row could not be removed", {"error": str(error)})
            else:
                if removed:
                    _log.info("objects without a row were removed", objects=removed)
