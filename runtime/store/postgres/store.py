"""PostgreSQL: the store of several nodes, in one database.

Imports the floor and its own room. All nodes are equal: each writes on one connection of its own, claims what
is unclaimed by rows, and hears of the others' work by notifications. psycopg is loaded with this module only.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from headrace.runtime.clock import Clock, SystemClock
from headrace.runtime.errors import DataTooNew, InvalidSettings, StoreUnavailable
from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits
from headrace.runtime.store import jobsteps, steps
from headrace.runtime.store.postgres import claims
from headrace.runtime.store.postgres.connection import PostgresDatabase, shown
from headrace.runtime.store.postgres.fault import fault
from headrace.runtime.store.postgres.listener import Listener
from headrace.runtime.store.postgres.longread import LongReader
from headrace.runtime.store.postgres.readers import PostgresReaders
from headrace.runtime.store.postgres.transaction import words_of
from headrace.runtime.store.postgres.upgrade import upgrade
from headrace.runtime.store.postgres.writer import PATIENCE_S, Writer
from headrace.runtime.store.questions import Questions
from headrace.runtime.store.version import SCHEMA

_OLDEST_SERVER = 130_000
_PAUSE_S = 0.2
_STARTING = ("starting up", "not yet accepting connections", "in recovery mode")
"""What a server says that is about to answer: PostgreSQL's texts of code 57P03 (cannot_connect_now)."""
_MAKING = 0x6865_6164_7261_6365  # of the lock that nodes take which make or change tables at once


class PostgresStore(Questions):
    """A `Store` in the database at `url` (`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`).

    Its tables are made when the database is empty, and brought to this release's schema when they are older.
    `clock` measures commits and patience: for `patience_s` after the connection is lost, writes wait for
    another before they are answered with StoreUnavailable.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, patience_s: float = PATIENCE_S) -> None:
        self.where = shown(url)
        """The address without its password."""
        self._url = url
        self._clock = clock or SystemClock()
        self._patience_s = patience_s
        self._hear: Callable[[str], None] | None = None
        self._running: tuple[Writer, PostgresReaders, Listener | None] | None = None
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
        self._running = (writer, PostgresReaders(self._url, self.where), listener)
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
        names, taken = await self._writer.call(
            lambda db: claims.release_expired(db, now), changed=lambda answer: bool(answer[0])
        )
        if self._hear is not None:  # what this node says itself does not come back to it
            for word in words_of(names):
                self._hear(word)
        lost, self._lost = self._lost, []
        return lost + taken

    # ---- within ----

    @property
    def _writer(self) -> Writer:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[0]

    @property
    def _readers(self) -> PostgresReaders:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[1]

    def _open(self) -> PostgresDatabase:
        """Connect, check, and make the tables where there are none, or bring them up to date; on a thread,
        since each step waits.
        """
        db = self._connected()
        try:
            self._ready(db)
            db.make_mark()
        except BaseException as error:
            db.close()
            if isinstance(error, errors.InsufficientPrivilege):
                raise InvalidSettings(
                    f"{self.where}: its user may not make or use the tables there"
                    f" ({error.diag.message_primary})",
                    "Make it the database's owner, or: GRANT USAGE, CREATE ON SCHEMA public TO the user.",
                ) from error
            if isinstance(error, psycopg.Error):
                raise fault(error, self.where) from error
            raise
        return db

    def _connected(self) -> PostgresDatabase:
        """The first connection. A server that is just starting, or recovers from a crash, is waited for."""
        began = self._clock.monotonic()
        while True:
            try:
                return PostgresDatabase.connect(self._url, name="headrace writer")
            except psycopg.Error as error:
                late = self._clock.monotonic() - began >= self._patience_s
                if late or not any(words in str(error) for words in _STARTING):
                    raise unreachable(error, self._url) from None  # its text and cause may quote the address
            threading.Event().wait(_PAUSE_S)

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
            raise _foreign(self.where)
        if self._schema(db) < SCHEMA:
            with db.transaction():
                db.raw.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
                upgrade(db.raw, self._schema(db))  # asked again: another node may have been first

    def _schema(self, db: PostgresDatabase) -> int:
        """Which schema the database has. Raises InvalidSettings for another program's, DataTooNew."""
        facts: dict[str, str] = {}
        with contextlib.suppress(psycopg.ProgrammingError):  # another program's table of that name
            facts = dict(db.raw.execute("SELECT key, value FROM meta").fetchall())
        if "schema" not in facts or "min_reader" not in facts:
            raise _foreign(self.where)
        schema, min_reader = int(facts["schema"]), int(facts["min_reader"])
        if min_reader > SCHEMA:
            raise DataTooNew(self.where, schema, SCHEMA)
        return schema


def unreachable(error: psycopg.Error, url: str) -> StoreUnavailable:
    """What a failed connection to `url` means, without what its text may quote of the address."""
    where = shown(url)
    if isinstance(error, errors.InvalidCatalogName):
        return StoreUnavailable(f"{where}: there is no such database")
    text = str(error).lower()
    if "password" in text or "authentication" in text:
        return StoreUnavailable(f"{where}: the server refuses this user and password")
    if "does not exist" in text and "database" in text:
        return StoreUnavailable(f"{where}: there is no such database; make it with createdb")
    if "translate host name" in text or "resolve host" in text:
        return StoreUnavailable(f"{where}: there is no host of that name")
    if any(words in text for words in _STARTING):
        return StoreUnavailable(f"{where}: the server is starting, and not ready yet")
    if "refused" in text or "no such file" in text:
        return StoreUnavailable(f"{where}: no PostgreSQL server answers there")
    said = str(error).strip().partition("\n")[0].rpartition("failed: ")[2]
    if "://" in said or any(secret in said for secret in _secrets(url)):
        said = type(error).__name__
    return StoreUnavailable(f"{where}: no connection to the database: {said}")


def _foreign(where: str) -> InvalidSettings:
    return InvalidSettings(
        f"{where} holds tables of another program, and none of Headrace's",
        "Give Headrace a database of its own: createdb headrace.",
    )


def _secrets(url: str) -> list[str]:
    """The passwords of an address that can be read."""
    known = conninfo_to_dict(url)
    return [str(known[name]) for name in ("password", "sslpassword") if known.get(name)]


def _nothing(_: object) -> bool:
    return False
