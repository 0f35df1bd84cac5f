"""PostgreSQL: the store of several nodes, in one database.

Imports the floor and its own room. All nodes are equal: each writes on one connection of its own, claims what
is unclaimed by rows, and hears of the others' work by notifications. psycopg is loaded with this module only.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import psycopg
from psycopg import errors

from headrace.runtime.clock import Clock, SystemClock
from headrace.runtime.errors import DataDamaged, DataTooNew, StoreUnavailable
from headrace.runtime.model.audit import Audit, Reference
from headrace.runtime.model.invocation import Claim, Invocation, Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits
from headrace.runtime.model.write import Applied, Write
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.store import audit, jobsteps, reads, retention, schedules, steps
from headrace.runtime.store.postgres import claims
from headrace.runtime.store.postgres.connection import PostgresDatabase, shown
from headrace.runtime.store.postgres.fault import fault
from headrace.runtime.store.postgres.listener import Listener
from headrace.runtime.store.postgres.longread import LongReader
from headrace.runtime.store.postgres.readers import Readers
from headrace.runtime.store.postgres.writer import PATIENCE_S, Writer
from headrace.runtime.store.protocol import (
    Closure,
    Counters,
    Deployment,
    Done,
    Gather,
    LedgerRow,
    ScheduleState,
)
from headrace.runtime.store.version import SCHEMA

_OLDEST_SERVER = 130_000
_MAKING = 0x6865_6164_7261_6365  # of the lock that nodes take which find the database empty at once


class PostgresStore:
    """A `Store` in the database at `url` (`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`).

    Its tables are made when the database is empty. `clock` measures commits and patience: for `patience_s`
    after the connection is lost, writes wait for another before they are answered with StoreUnavailable.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, patience_s: float = PATIENCE_S) -> None:
        self.where = shown(url)
        """The address without its password."""
        self._url = url
        self._clock = clock or SystemClock()
        self._patience_s = patience_s
        self._hear: Callable[[str], None] | None = None
        self._running: tuple[Writer, Readers, Listener | None] | None = None
        self._lost: list[Claim] = []
        self._long = LongReader(url, self.where)

    # ---- life ----

    async def start(self) -> None:
        db = await asyncio.to_thread(self._open)
        writer = Writer(db, self._url, self.where, self._clock, steps.record, jobsteps.gather_all,
                        patience_s=self._patience_s)  # fmt: skip
        listener = None
        if self._hear is not None:
            listener = Listener(self._url, self._hear, lambda: writer.pid)
            listener.start()
        self._running = (writer, Readers(self._url, self.where), listener)
        writer.start()

    async def stop(self) -> None:
        if self._running is None:
            return
        (writer, readers, listener), self._running = self._running, None
        await writer.stop()
        await asyncio.to_thread(self._long.stop)
        await asyncio.to_thread(readers.stop)
        if listener is not None:
            await asyncio.to_thread(listener.stop)

    @property
    def lock_fd(self) -> None:
        """Several nodes may share the database, so nothing keeps others out."""
        return None

    def problem(self) -> None:
        """A server that fails is asked again: nothing is given up."""
        return None

    async def latest(self) -> float:
        return await self._readers.ask(reads.latest)

    async def health(self) -> dict[str, Any]:
        def ask(db: PostgresDatabase) -> dict[str, Any]:
            facts: dict[str, str] = dict(
                db.raw.execute("SELECT key, value FROM meta WHERE key = 'schema'").fetchall()
            )
            [version, size, claimed] = db.raw.execute(
                "SELECT current_setting('server_version'), pg_database_size(current_database()),"
                " (SELECT count(*) FROM invocation_live WHERE node IS NOT NULL)"
            ).fetchone() or ("", 0, 0)
            return {"schema": int(facts["schema"]), "postgresql": version, "bytes": size, "claims": claimed}

        facts = await self._readers.ask(ask)
        writer = self._writer
        return {
            "kind": "postgresql",
            "url": self.where,
            **facts,
            "commits": writer.commits,
            "longest_commit_s": max(writer.durations, default=0.0),
            "waiting_lists": writer.waiting,
            "connected": writer.connected,
            "reconnects": writer.reconnects,
        }

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

    @property
    def shared(self) -> bool:
        return True

    def listen(self, wake: Callable[[str], None]) -> None:
        self._hear = wake

    async def claim(
        self, node: str, *, flow: str, limit: int, now: float, function: str = "", limits: Limits = NO_LIMITS
    ) -> list[Claim]:
        return await self._writer.call(
            lambda db: claims.claim(db, node, flow, limit, now, function, limits), changed=bool
        )

    async def held_back(self, *, flow: str, function: str, limits: Limits, now: float) -> Held | None:
        return await self._writer.call(
            lambda db: claims.held_back(db, flow, function, limits, now), changed=_nothing
        )

    async def next_due(self, flow: str, *, now: float) -> float | None:
        return await self._writer.call(lambda db: claims.next_due(db, flow, now), changed=_nothing)

    async def tell(self, word: str) -> None:
        await self._writer.call(lambda db: claims.tell(db, {word}))

    async def moment(self) -> float:
        def ask(db: PostgresDatabase) -> float:
            [now] = db.raw.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or (
                0.0,
            )
            return float(now)

        return await self._readers.ask(ask)

    async def nodes(self, *, now: float) -> list[str]:
        return await self._readers.ask(lambda db: claims.nodes(db, now))

    async def flows(self, *, after: str = "", limit: int | None = None) -> list[str]:
        return await self._readers.ask(lambda db: reads.flows(db, after, limit))

    async def release(self, given_back: Sequence[Claim]) -> None:
        await self._writer.call(lambda db: claims.release(db, given_back), changed=bool)

    async def join(self, node: str, *, until: float, now: float) -> int:
        number, lost = await self._writer.call(lambda db: claims.join(db, node, until, now))
        self._writer.number = number
        self._lost += lost
        return number

    async def renew(self, node: str, *, until: float) -> None:
        await self._writer.call(lambda db: claims.renew(db, node, until))

    async def leave(self, node: str) -> None:
        await self._writer.call(lambda db: claims.leave(db, node))

    async def release_expired(self, *, now: float) -> list[Claim]:
        _, taken = await self._writer.call(
            lambda db: claims.release_expired(db, now), changed=lambda answer: answer[0]
        )
        lost, self._lost = self._lost, []
        return lost + taken

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

    async def counters(self) -> dict[str, Counters]:
        return await self._readers.ask(reads.counters)

    async def ahead(self, invocation: Invocation, *, now: float, limit: int) -> int:
        return await self._readers.ask(lambda db: reads.ahead(db, invocation, now, limit))

    async def paused(self) -> set[str]:
        return await self._readers.ask(reads.paused)

    async def closures(self, *, now: float) -> list[Closure]:
        return await self._readers.ask(lambda db: reads.closures(db, now))

    async def deployments(self, *, before: float, limit: int = 100) -> list[Deployment]:
        return await self._readers.ask(lambda db: reads.deployments(db, before, limit))

    async def expire(
        self, *, succeeded_before: float, dead_before: float, keep: int, limit: int
    ) -> list[str]:
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

    async def cursor(self, name: str) -> str | None:
        return await self._readers.ask(lambda db: reads.cursor(db, name))

    async def schedule(self, name: str, *, definition: str, now: float) -> ScheduleState:
        return await self._writer.call(lambda db: schedules.schedule(db, name, definition, now))

    async def schedules(self) -> list[ScheduleState]:
        return await self._readers.ask(schedules.schedules)

    async def pause_schedule(self, name: str, *, paused: bool) -> None:
        await self._writer.call(lambda db: schedules.pause_schedule(db, name, paused))

    # ---- audits ----

    async def audit(self, *, function: str | None = None, limit: int = 100) -> Audit:
        return await self._long.ask(lambda db: audit.audit(db, function=function, limit=limit))

    async def references(self, *, jobs: bool = False, after: int = 0, limit: int = 1000) -> list[Reference]:
        return await self._long.ask(lambda db: audit.references(db, jobs=jobs, after=after, limit=limit))

    # ---- within ----

    @property
    def _writer(self) -> Writer:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[0]

    @property
    def _readers(self) -> Readers:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[1]

    def _open(self) -> PostgresDatabase:
        """Connect, check, and make the tables where there are none; on a thread, since each step waits."""
        try:
            db = PostgresDatabase.connect(self._url, name="headrace writer")
        except psycopg.Error as error:
            raise self._unreachable(error) from None  # its text and its cause may quote the address
        try:
            self._ready(db)
            db.make_mark()
        except BaseException as error:
            db.close()
            if isinstance(error, psycopg.Error):
                raise fault(error, self.where) from error
            raise
        return db

    def _unreachable(self, error: psycopg.Error) -> Exception:
        if isinstance(error, errors.InvalidCatalogName):
            return StoreUnavailable(f"{self.where}: there is no such database")
        text = str(error).lower()
        if "password" in text or "authentication" in text:
            return StoreUnavailable(f"{self.where}: the server refuses this user and password")
        if "does not exist" in text and "database" in text:
            return StoreUnavailable(f"{self.where}: there is no such database; make it with createdb")
        if "translate host name" in text or "resolve host" in text:
            return StoreUnavailable(f"{self.where}: there is no host of that name")
        if "refused" in text or "no such file" in text:
            return StoreUnavailable(f"{self.where}: no PostgreSQL server answers there")
        return StoreUnavailable(f"{self.where}: {type(error).__name__}, no connection to the database")

    def _ready(self, db: PostgresDatabase) -> None:
        if db.raw.info.server_version < _OLDEST_SERVER:
            raise StoreUnavailable(
                f"{self.where}: PostgreSQL {db.raw.info.server_version // 10_000} is too old: 13 or newer is"
                " needed"
            )
        with db.transaction():
            db.raw.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
            tables = {
                name
                for [name] in db.raw.execute(
                    "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
                )
            }
            if not tables:
                fresh = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
                db.raw.execute(fresh)
                return
        if not {"meta", "invocation", "alembic_version"} <= tables:
            raise DataDamaged(self.where, "it holds tables, but none of Headrace's")
        facts: dict[str, str] = {}
        with contextlib.suppress(psycopg.ProgrammingError):  # another program's table of that name
            facts = dict(db.raw.execute("SELECT key, value FROM meta").fetchall())
        if "schema" not in facts or "min_reader" not in facts:
            raise DataDamaged(self.where, "it holds tables, but none of Headrace's")
        schema, min_reader = int(facts["schema"]), int(facts["min_reader"])
        if min_reader > SCHEMA:
            raise DataTooNew(self.where, schema, SCHEMA)


def _nothing(_: object) -> bool:
    return False
