"""What the tests of triggers share: a context over a real store, and a record of what was accepted."""

import asyncio
import random
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Write
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.testing import ManualClock
from headrace.runtime.trigger import TriggerContext

DEADLINE_S = 20


class Engine:
    """Accepts events as a node does, with the trigger's own writes; `refuse` holds errors to raise first."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.store = SqliteStore(folder / "engine.db")
        self.objects: ObjectStore = FolderStore(folder / "buckets", fsync=False)
        self.events: list[dict[str, Any]] = []
        self.buried: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.refuse: deque[HeadraceError] = deque()
        self.refused: list[HeadraceError] = []
        self.cancelled: list[str] = []
        self.reports: list[tuple[str, Mapping[str, Any]]] = []
        self._changed = asyncio.Event()
        self._ids = 0

    @property
    def keys(self) -> list[str]:
        return [UploadEvent(event).key for event in self.events]

    @property
    def times(self) -> list[str]:
        return [event["time"] for event in self.events]

    def context(self, name: str = "app.on_upload/upload/0", sweep_s: float = 300.0) -> TriggerContext:
        return TriggerContext(
            name=name,
            function=FunctionSpec(name="app.on_upload", module="app", file="app.py", line=1),
            objects=self.objects,
            state=self.store,
            clock=self.clock,
            chance=random.Random(7),
            accept=self.accept,
            cancel=self.cancel,
            bury=self.bury,
            new_id=self.new_id,
            in_thread=asyncio.to_thread,
            report=self.report,
            sweep_s=sweep_s,
        )

    async def accept(self, events: Sequence[Mapping[str, Any]], writes: Sequence[Write]) -> list[str]:
        try:
            if events and self.refuse:
                raise self.refuse.popleft()
            for applied in await self.store.apply(writes, now=self.clock.now()):
                if applied.refused is not None:
                    raise applied.refused
        except HeadraceError as error:
            self.refused.append(error)
            self._changed.set()
            raise
        self.events.extend(dict(event) for event in events)
        self._changed.set()
        return [self.new_id() for _ in events]

    async def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        self._changed.set()

    async def bury(self, event: Mapping[str, Any], error: Mapping[str, Any], writes: Sequence[Write]) -> str:
        await self.accept([], writes)
        self.buried.append((dict(event), dict(error)))
        self._changed.set()
        return self.new_id()

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids}"

    def report(self, message: str, facts: Mapping[str, Any]) -> None:
        self.reports.append((message, facts))
        self._changed.set()

    async def wait_events(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.events) < count:
                self._changed.clear()
                await self._changed.wait()

    async def wait_buried(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.buried) < count:
                self._changed.clear()
                await self._changed.wait()

    async def wait_refused(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.refused) < count:
                self._changed.clear()
                await self._changed.wait()

    async def wait_report(self, text: str) -> Mapping[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for message, facts in self.reports:
                    if text in message:
                        return facts
                self._changed.clear()
                await self._changed.wait()


class SteppedClock(ManualClock):
    """A manual clock that knows who sleeps, so that it moves only when all work at an instant is done."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.asleep: dict[object, float] = {}
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        mark = object()
        self.asleep[mark] = self.monotonic() + seconds
        self._changed.set()
        try:
            await super().sleep(seconds)
        finally:
            del self.asleep[mark]

    async def wait_asleep(self, sleepers: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.asleep) < sleepers:
                self._changed.clear()
                await self._changed.wait()

    async def run(self, seconds: float, *, sleepers: int = 1) -> None:
        """Advance from one wake-up to the next; before each, wait until `sleepers` are asleep."""
        end = self.monotonic() + seconds
        while True:
            await self.wait_asleep(sleepers)
            until = min(min(self.asleep.values()), end)
            await self.advance(max(until - self.monotonic(), 0.0))
            if until >= end:
                await self.wait_asleep(sleepers)
                return
