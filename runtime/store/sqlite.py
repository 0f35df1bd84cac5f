"""SQLite: the store of one node, in one file and on one writing thread.

Imports the floor and its own room. One process owns the file, by the lock beside it; hence claims are held in
memory and a restart frees them. A reader would otherwise expect claims to be rows: only those that
MarkRunning names are.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from headrace.runtime.clock import Clock, SystemClock
from headrace.runtime.errors import DataDamaged, DataTooNew, HeadraceError, StoreUnavailable
from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits
from headrace.runtime.store import calls, jobsteps, steps
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.database import Database, SqliteDatabase
from headrace.runtime.store.holder import Holder
from headrace.runtime.store.longread import LongReader
from headrace.runtime.store.questions import Questions
from headrace.runtime.store.readers import SqliteReaders
from headrace.runtime.store.transaction import ACCEPTANCE
from headrace.runtime.store.version import SCHEMA
from headrace.runtime.store.writer import Writer, fault

_CHECKPOINT_PAGES = 4_000
_JOURNAL_BYTES = 64 << 20
_CACHE_KIB = 16 << 10
_BUSY_S = 5.0
_STATEMENTS = 128

# A look through every page reads a gigabyte in a second when the file is cached. What is small enough is
# looked through at each start; after a kill, when there is reason to, far more is; what is larger still,
# beside the work.
_CHECKED_BYTES = 128 << 20
_CHECKED_AFTER_KILL_BYTES = 2 << 30
_CHECK_STEPS = 100_000


class SqliteStore(Questions):
    """A `Store` in the file `path`; the folder is made when it is missing.

    `clock` measures commits. `connection` is the class of the writing connection, which a test may replace to
    make statements fail.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        connection: type[SqliteDatabase] = SqliteDatabase,
    ) -> None:
        self.path = Path(path)
        self._clock = clock or SystemClock()
        self._connection = connection
        self._holder = Holder(self.path.with_name(self.path.name + ".lock"))
        self._claims = Claims()
        self._db: SqliteDatabase | None = None
        self._running: tuple[Writer, SqliteReaders] | None = None
        self._unchecked = False
        self._checking: asyncio.Task[None] | None = None
        self._checker_stops = threading.Event()
        self._long = LongReader(self.path)

    # ---- life ----

    async def start(self) -> None:
        await self._holder.take()
        try:
            self._db = await asyncio.to_thread(self._open)
            writer = Writer(
                self._db, str(self.path), self._claims, self._clock, steps.record, jobsteps.gather
            )
        except BaseException:
            self._holder.drop()
            raise
        self._running = (writer, SqliteReaders(self.path, writer.noticed))
        self._long = LongReader(self.path)
        writer.start()
        if self._unchecked:
            self._checking = asyncio.get_running_loop().create_task(self._check_later(writer))

    async def stop(self) -> None:
        if self._running is None:
            return
        (writer, readers), self._running = self._running, None
        if self._checking is not None:
            self._checker_stops.set()
            await asyncio.gather(self._checking, return_exceptions=True)
            self._checking = None
        await writer.stop()
        await asyncio.to_thread(self._long.stop)
        await asyncio.to_thread(readers.stop)
        if self._db is not None:
            await asyncio.to_thread(self._db.close)
            self._db = None
        self._holder.drop()

    @property
    def lock_fd(self) -> int | None:
        """The lock's descriptor while started: a child that inherits it keeps other nodes from the data."""
        return self._holder.fd

    def problem(self) -> str | None:
        damage = self._running[0].damage if self._running is not None else None
        return None if damage is None else str(damage)

    async def health(self) -> dict[str, Any]:
        def ask(db: Database) -> dict[str, Any]:
            facts = dict(db.execute('SELECT "key", value FROM meta').fetchall())
            [mode] = db.execute("PRAGMA journal_mode").fetchone()
            return {"schema": int(facts["schema"]), "journal_mode": mode}

        facts = await self._readers.ask(ask)
        writer = self._writer
        return {
            "kind": "sqlite",
            "path": str(self.path),
            **facts,
            "sqlite": sqlite3.sqlite_version,
            "bytes": _size(self.path),
            "journal_bytes": _size(self.path.with_name(self.path.name + "-wal")),
            "commits": writer.commits,
            "longest_commit_s": max(writer.durations, default=0.0),
            "waiting_lists": writer.waiting,
            "claims": len(self._claims.held),
        }

    # ---- the queue ----

    @property
    def shared(self) -> bool:
        return False

    def listen(self, wake: Callable[[str], None]) -> None:
        """Nobody else writes to this database."""

    async def claim(
        self, node: str, *, flow: str, limit: int, now: float, function: str = "", limits: Limits = NO_LIMITS
    ) -> list[Claim]:
        return await self._writer.call(
            lambda db: calls.claim_within(db, self._claims, node, flow, limit, now, function, limits)
        )

    async def held_back(self, *, flow: str, function: str, limits: Limits, now: float) -> Held | None:
        return await self._writer.call(
            lambda db: calls.held_back(db, self._claims, flow, function, limits, now)
        )

    async def next_due(self, flow: str, *, now: float) -> float | None:
        return await self._writer.call(lambda db: calls.next_due(db, self._claims, flow, now))

    async def release(self, claims: Sequence[Claim]) -> None:
        await self._writer.call(lambda db: calls.release(db, self._claims, claims))

    async def tell(self, word: str) -> None:
        """There is nobody to hear it."""

    async def moment(self) -> float | None:
        return None

    async def nodes(self, *, now: float) -> list[str]:
        return await self._writer.call(
            lambda db: [n for n, until in self._claims.leases.items() if until > now]
        )

    async def join(self, node: str, *, until: float, now: float) -> int:
        return await self._writer.call(lambda db: calls.join(db, self._claims, node, until, now))

    async def renew(self, node: str, *, until: float) -> None:
        def extend(_: sqlite3.Connection) -> None:
            self._claims.leases[node] = until

        await self._writer.call(extend)

    async def leave(self, node: str) -> None:
        await self._writer.call(lambda db: calls.leave(db, self._claims, node))

    async def release_expired(self, *, now: float) -> list[Claim]:
        return await self._writer.call(lambda db: calls.release_expired(db, self._claims, now))

    # ---- within ----

    @property
    def _writer(self) -> Writer:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[0]

    @property
    def _readers(self) -> SqliteReaders:
        if self._running is None:
            raise StoreUnavailable("the store is not started")
        return self._running[1]

    def _open(self) -> SqliteDatabase:
        """Open, make or migrate, and recover; on a thread, since each step may wait for the disk."""
        if sqlite3.sqlite_version_info < (3, 33):
            raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old: 3.33 or newer is needed")
        was_killed = _size(self.path.with_name(self.path.name + "-wal")) > 0  # who closes it leaves none
        try:
            db = sqlite3.connect(self.path, factory=self._connection, isolation_level=None, timeout=_BUSY_S,
                                 check_same_thread=False, cached_statements=_STATEMENTS)  # fmt: skip
        except sqlite3.Error as error:
            raise fault(error, str(self.path)) from error
        try:
            db = self._ready(
                db, _size(self.path) <= (_CHECKED_AFTER_KILL_BYTES if was_killed else _CHECKED_BYTES)
            )
            for statement in ACCEPTANCE:
                db.execute(statement)
            self._unchecked = was_killed and _size(self.path) > _CHECKED_AFTER_KILL_BYTES
            self._claims = Claims()
            self._claims.lost = calls.recover(db)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                raise fault(error, str(self.path)) from error
            raise
        return db

    async def _check_later(self, writer: Writer) -> None:
        """Look through a file that is too large to be looked through before the start."""
        with contextlib.suppress(HeadraceError):  # what it finds is noticed, and each caller's answer
            await asyncio.to_thread(self._check_beside, writer)

    def _check_beside(self, writer: Writer) -> None:
        with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.set_progress_handler(lambda: int(self._checker_stops.is_set()), _CHECK_STEPS)
            try:
                _check(db, self.path)
            except DataDamaged as error:
                raise writer.noticed(error) from error
            except sqlite3.Error as error:
                if not self._checker_stops.is_set():
                    raise writer.noticed(fault(error, str(self.path))) from error

    def _ready(self, db: SqliteDatabase, checked: bool) -> SqliteDatabase:
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        if checked:
            _check(db, self.path)
        tables = {name for [name] in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            fresh = resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
            db.executescript(f"BEGIN IMMEDIATE;\n{fresh}\nCOMMIT;")
            return db
        if "meta" not in tables:
            raise DataDamaged(str(self.path), "it is a SQLite database, but none of Headrace's")
        facts = dict(db.execute('SELECT "key", value FROM meta').fetchall())
        schema, min_reader = int(facts["schema"]), int(facts["min_reader"])
        if min_reader > SCHEMA:
            raise DataTooNew(str(self.path), schema, SCHEMA)
        if schema < SCHEMA:
            from headrace.runtime.store.migrate import (
                upgrade,
            )  # loads SQLAlchemy and Alembic, so only when needed

            upgrade(self.path)
        return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Look at the structure of every page. Raises DataDamaged, or sqlite3.DatabaseError."""
    [found] = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DataDamaged(str(path), " ".join(str(found).split()))


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
