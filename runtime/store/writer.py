"""Writer: the one thread that owns the one writing connection of a SQLite file.

Imports the floor and its own room. Whatever waits is drained together, recorded in one transaction and made
durable by one fsync; then one call into the event loop tells all callers of that transaction. What is not a
list of writes (a claim, a lease) is a call that runs between transactions, so claims and their ends are seen
in one order by construction.
"""

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from headrace.runtime.clock import Clock
from headrace.runtime.errors import DataDamaged, HeadraceError, ReadOnlyStorage, StorageFull, StoreUnavailable
from headrace.runtime.fault import reach
from headrace.runtime.model.write import Applied, ChunkDone, Write
from headrace.runtime.store.answers import Answers, Later
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.protocol import Done, Gather, Item
from headrace.runtime.store.recording import Answer, Recording
from headrace.runtime.store.transaction import Transaction

T = TypeVar("T")

WRITES_MAX = 5_000
"""Writes packed into one transaction; a longer list of one caller still is one transaction."""

WAITING_MAX = 500_000
"""Lists that may wait for the thread; beyond that the answer is StoreUnavailable."""


class _Call:
    """Something to run on the thread between transactions, and the future of its result."""

    __slots__ = ("future", "run")

    def __init__(self, run: Callable[[SqliteDatabase], Any], future: "asyncio.Future[Any]") -> None:
        self.run, self.future = run, future


class Writer:
    """Group commit on its own thread: `start` once, `submit` and `call` from the event loop, then `stop`."""

    def __init__(
        self,
        db: SqliteDatabase,
        path: str,
        claims: Claims,
        clock: Clock,
        cold: Callable[[Recording, Write, float], Applied],
        gather: Callable[[Recording, ChunkDone], Applied],
    ) -> None:
        self._db = db
        self._path = path
        self._claims = claims
        self._clock = clock
        self._cold = cold
        self._gather = gather
        # None comes last: the end. A queue of C code: a `threading.Event` costs more than a short commit.
        self._waiting: SimpleQueue[Item | Later | _Call | None] = SimpleQueue()
        self._stopping = False
        self.damage: DataDamaged | None = None
        """Once the file was found damaged nothing more is recorded or claimed: the answer is this error."""
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(self._loop)
        self._thread = threading.Thread(target=self._run, name="headrace-store", daemon=True)
        self.commits = 0
        self.durations: deque[float] = deque(maxlen=256)

    def start(self) -> None:
        self._thread.start()

    def submit(
        self, writes: Sequence[Write], done: Done, now: float, on_disk: Callable[[], None] | None = None
    ) -> None:
        if self.damage is not None:
            self._loop.call_soon(done, self.damage)
            return
        if self._stopping or self._waiting.qsize() >= WAITING_MAX:
            why = "the store is stopped" if self._stopping else "too many writes are waiting for the disk"
            self._loop.call_soon(done, StoreUnavailable(why))
            return
        self._waiting.put((writes, done, now, on_disk))

    def submit_later(self, gather: Gather) -> None:
        if self._stopping:
            raise StoreUnavailable("the store is stopped")
        self._waiting.put(Later(gather))

    async def call(self, run: Callable[[SqliteDatabase], T]) -> T:
        """What `run` returns or raises, on the thread, after all that was submitted before."""
        if self._stopping:
            raise StoreUnavailable("the store is stopped")
        if self.damage is not None:
            raise self.damage
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Call(run, future))
        return await future

    async def stop(self) -> None:
        """Record everything that waits, then end the thread."""
        if self._stopping:
            return
        self._stopping = True
        self._waiting.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def noticed(self, error: Exception) -> Exception:
        """The same error; when it says that the file is damaged, nothing more is done with the file. Any
        thread may notice.
        """
        if isinstance(error, DataDamaged) and self.damage is None:
            self.damage = error
        return error

    @property
    def waiting(self) -> int:
        return self._waiting.qsize()

    # ---- on the thread ----

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if not self._step(item):
                return

    def _step(self, item: "Item | Later | _Call | None") -> bool:
        """Drain at most one transaction's worth, `item` first, record it, and answer; then the call that came
        behind it. False at the end.
        """
        waiting = self._waiting
        items: list[Item] = []
        room = WRITES_MAX
        while item is not None and type(item) is not _Call:
            if type(item) is Later:
                item = self._answers.gathered(item)
            if item is not None:
                items.append(item)  # type: ignore[arg-type]
                room -= len(item[0])  # type: ignore[index]
            if room <= 0 or waiting.empty():
                if items:
                    self._answers.lists(items, self._record(items))
                return True
            item = waiting.get_nowait()
        if items:
            self._answers.lists(items, self._record(items))
        if item is None:
            return False
        self._serve(item)
        return True

    def _record(self, items: list[Item]) -> list[Answer]:
        if self.damage is not None:
            return [self.damage] * len(items)
        began = self._clock.monotonic()
        lists = [(writes, now) for writes, _, now, _ in items]
        carefully = False
        transaction = Transaction(self._db, self._claims, self._cold, self._gather)
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                answers = transaction.run(lists, carefully=carefully)
                transaction.close()
                reach("commit.before")
                self._db.execute("COMMIT")
                reach("commit.after")
            except Exception as error:
                self._back_out(transaction)
                if not carefully and not _database_fault(error):
                    carefully = True  # one list spoils the others' statements: give each its own
                    continue
                answers = [self.noticed(fault(error, self._path))] * len(items)
            else:
                self._claims.committed()
                self.commits += 1
                self.durations.append(self._clock.monotonic() - began)
            return answers

    def _back_out(self, transaction: Transaction) -> None:
        if self._db.in_transaction:
            # The error that brought us here is the answer; a full disk also fails the rollback's own
            # bookkeeping.
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        transaction.undo()

    def _serve(self, call: _Call) -> None:
        try:
            result = call.run(self._db)
        except Exception as error:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            self._claims.undo_to(0)
            self._answers.failure(call.future, self.noticed(fault(error, self._path)))
        else:
            self._claims.committed()
            self._answers.result(call.future, result)


def _database_fault(error: Exception) -> bool:
    """Whether the database failed, rather than one list of writes."""
    return (
        isinstance(error, (sqlite3.OperationalError, sqlite3.InternalError))
        or type(error) is sqlite3.DatabaseError
    )


# Primary result codes, from sqlite3.h: PERM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB.
_READ_ONLY = (3, 8, 14)
_DAMAGED = (11, 26)
_FULL = 13
# IOERR_WRITE and IOERR_SHMSIZE: SQLite reports only ENOSPC as FULL; a quota or a file size limit looks like
# this.
_NO_ROOM = (778, 4874)


def _is_read_only(path: str) -> bool:
    """Whether nothing can be made beside the file: the kernel may refuse that once it has found errors,
    without saying of the file system that it is read-only; only an attempt tells.
    """
    probe = f"{path}.probe"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(probe)
    except OSError as error:
        return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    return False


def fault(error: Exception, path: str) -> Exception:
    """The error of our tree for what SQLite reports; anything else is returned as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    made: HeadraceError
    if code & 0xFF in _READ_ONLY or (code in _NO_ROOM and _is_read_only(path)):
        made = ReadOnlyStorage(path)
    elif code & 0xFF == _FULL or code in _NO_ROOM:
        made = StorageFull(path)
    elif code & 0xFF in _DAMAGED:
        made = DataDamaged(path, str(error))
    else:
        made = StoreUnavailable(f"{path}: {error}")
    made.__cause__ = error
    return made
