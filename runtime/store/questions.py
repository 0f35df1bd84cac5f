"""Questions: what both databases are asked, and told, in the same way.

Imports the floor and its own room. A store has a thread that writes, a few that read and one for long reads;
these methods only say which of them runs which statements.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from headrace.runtime.model.audit import Audit, Reference
from headrace.runtime.model.invocation import Invocation, Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.model.write import Applied, Write
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.store import audit, reads, retention, schedules
from headrace.runtime.store.protocol import (
    Backfill,
    Closure,
    Counters,
    Deployment,
    Done,
    Fire,
    Gather,
    LedgerRow,
    Removed,
    ScheduleState,
)

T = TypeVar("T")


class Asked(Protocol):
    """Threads that answer questions over a connection."""

    async def ask(self, question: Callable[[Any], T]) -> T: ...

    def stop(self) -> None: ...


class Told(Protocol):
    """The thread that writes."""

    def submit(
        self, writes: Sequence[Write], done: Done, now: float, on_disk: Callable[[], None] | None = None
    ) -> None: ...

    def submit_later(self, gather: Gather) -> None: ...

    async def call(self, run: Callable[[Any], T]) -> T: ...


class Questions(ABC):
    """A part of every store: what it says here runs on these threads. Each raises StoreUnavailable while the
    store is not started.
    """

    _long: Asked

    @property
    @abstractmethod
    def _writer(self) -> Told: ...

    @property
    @abstractmethod
    def _readers(self) -> Asked: ...

    # ---- the queue ----

    def submit(
        self,
        writes: Sequence[Write],
        done: Done,
        *,
        now: float,
        on_disk: Callable[[], None] | None = None,
    ) -> None:
        self._writer.submit(writes, done, now, on_disk)

    def submit_later(self, gather: Gather) -> None:
        self._writer.submit_later(gather)

    async def apply(self, writes: Sequence[Write], *, now: float) -> list[Applied]:
        future: asyncio.Future[list[Applied]] = asyncio.get_running_loop().create_future()

        def done(answer: list[Applied] | BaseException) -> None:
            if future.done():  # the waiter was cancelled; the writes stand
                return
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self._writer.submit(writes, done, now)
        return await future

    async def flows(self, *, after: str = "", limit: int | None = None) -> list[str]:
        return await self._readers.ask(lambda db: reads.flows(db, after, limit))

    async def latest(self) -> float:
        return await self._readers.ask(reads.latest)

    # ---- invocations ----

    async def get(self, id: int) -> Record | None:
        return await self._readers.ask(lambda db: reads.get(db, id))

    async def find(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        tag: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Record]:
        return await self._readers.ask(lambda db: reads.find(db, function, status, tag, before, limit))

    async def ended(self, ids: Sequence[int]) -> list[Record]:
        return await self._readers.ask(lambda db: reads.ended(db, ids))

    async def known(self, ids: Sequence[int]) -> set[int]:
        return await self._readers.ask(lambda db: reads.known(db, ids))

    async def ahead(self, invocation: Invocation, *, now: float, limit: int) -> int:
        return await self._readers.ask(lambda db: reads.ahead(db, invocation, now, limit))

    async def counters(self) -> dict[str, Counters]:
        return await self._readers.ask(reads.counters)

    async def paused(self) -> set[str]:
        return await self._readers.ask(reads.paused)

    async def closures(self, *, now: float) -> list[Closure]:
        return await self._readers.ask(lambda db: reads.closures(db, now))

    async def deployments(self, *, before: float, limit: int = 100) -> list[Deployment]:
        return await self._readers.ask(lambda db: reads.deployments(db, before, limit))

    async def expire(self, *, succeeded_before: float, dead_before: float, keep: int, limit: int) -> Removed:
        system = f"s3://{SYSTEM_BUCKET}/"
        return await self._writer.call(
            lambda db: retention.expire(db, succeeded_before, dead_before, keep, limit, system)
        )

    async def expire_keys(self, *, before: float, limit: int) -> int:
        return await self._writer.call(lambda db: retention.expire_keys(db, before, limit))

    # ---- jobs ----

    async def job(self, id: int) -> Job | None:
        return await self._readers.ask(lambda db: reads.job(db, id))

    async def jobs(
        self,
        *,
        status: Sequence[str] = (),
        function: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Job]:
        return await self._readers.ask(lambda db: reads.jobs(db, status, function, before, limit))

    async def job_counts(self, id: int) -> dict[int, JobCounts]:
        return await self._readers.ask(lambda db: reads.job_counts(db, id))

    async def job_parts(self, id: int, *, stage: int, after: int = -1, limit: int = 1000,
                        status: Status | None = None) -> list[Record]:  # fmt: skip
        return await self._readers.ask(lambda db: reads.job_parts(db, id, stage, after, limit, status))

    # ---- triggers ----

    async def ledger(
        self, trigger: str, bucket: str, *, after: str = "", limit: int = 1000
    ) -> list[LedgerRow]:
        return await self._readers.ask(lambda db: reads.ledger(db, trigger, bucket, after, limit))

    async def ledger_entry(self, trigger: str, bucket: str, key: str) -> LedgerRow | None:
        return await self._readers.ask(lambda db: reads.ledger_entry(db, trigger, bucket, key))

    async def cursor(self, name: str) -> str | None:
        return await self._readers.ask(lambda db: reads.cursor(db, name))

    async def schedule(self, name: str, *, definition: str, now: float) -> ScheduleState:
        return await self._writer.call(lambda db: schedules.schedule(db, name, definition, now))

    async def schedules(self) -> list[ScheduleState]:
        return await self._readers.ask(schedules.schedules)

    async def pause_schedule(self, name: str, *, paused: bool, now: float) -> None:
        await self._writer.call(lambda db: schedules.pause_schedule(db, name, paused, now))

    async def fires(
        self,
        schedule: str,
        *,
        after: float | None = None,
        until: float | None = None,
        newest: bool = False,
        limit: int = 100,
    ) -> list[Fire]:
        return await self._readers.ask(lambda db: schedules.fires(db, schedule, after, until, newest, limit))

    async def begin_backfill(self, backfill: Backfill) -> None:
        await self._writer.call(lambda db: schedules.begin_backfill(db, backfill))

    async def pass_backfill(self, id: int, *, position: float, present: int) -> None:
        await self._writer.call(lambda db: schedules.pass_backfill(db, id, position, present))

    async def end_backfill(self, id: int, *, status: str, note: str = "", now: float) -> Backfill | None:
        return await self._writer.call(lambda db: schedules.end_backfill(db, id, status, note, now))

    async def backfill(self, id: int) -> Backfill | None:
        return await self._readers.ask(lambda db: schedules.backfill(db, id))

    async def backfills(
        self,
        *,
        schedule: str | None = None,
        running: bool = False,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Backfill]:
        return await self._readers.ask(lambda db: schedules.backfills(db, schedule, running, before, limit))

    # ---- audits ----

    async def audit(self, *, function: str | None = None, limit: int = 100) -> Audit:
        return await self._long.ask(lambda db: audit.audit(db, function=function, limit=limit))

    async def references(self, *, jobs: bool = False, after: int = 0, limit: int = 1000) -> list[Reference]:
        return await self._long.ask(lambda db: audit.references(db, jobs=jobs, after=after, limit=limit))
