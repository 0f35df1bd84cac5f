"""Writer: the one thread that owns the one writing connection of a SQLite file.

Imports the floor and its own room. What waits together is made durable by one fsync. Claims are made, and
ended, on this thread, so they are seen in one order by construction.
"""

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from headrace.runtime.clock import Clock
from headrace.runtime.errors import DataDamaged, HeadraceError, ReadOnlyStorage, StorageFull, StoreUnavailable
from headrace.runtime.model.write import Applied, ChunkDone, Write
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.group import Call, GroupCommit
from headrace.runtime.store.protocol import Item
from headrace.runtime.store.recording import Answer, Recording
from headrace.runtime.store.transaction import Transaction

T = TypeVar("T")


class Writer(GroupCommit[Call]):
    """Records in one SQLite file; `call` is for what runs between transactions."""

    _too_many = "too many writes are waiting for the disk"

    def __init__(
        self,
        db: SqliteDatabase,
        path: str,
        claims: Claims,
        clock: Clock,
        cold: Callable[[Recording, Write, float], Applied],
        gather: Callable[[Recording, ChunkDone], Applied],
    ) -> None:
        super().__init__(clock.monotonic)
        self._db = db
        self._path = path
        self._claims = claims
        self._clock = clock
        self._cold = cold
        self._gather = gather
        self.damage: DataDamaged | None = None
        """Once the file was found damaged nothing more is recorded or claimed: the answer is this error."""

    async def call(self, run: Callable[[SqliteDatabase], T]) -> T:
        """What `run` returns or raises, on the thread, after all that was submitted before."""
        self._check_running()
        if self.damage is not None:
            raise self.damage
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(Call(run, future))
        return await future

    def noticed(self, error: Exception) -> Exception:
        """The same error; when it says that the file is damaged, nothing more is done with the file. Any
        thread may notice.
        """
        if isinstance(error, DataDamaged) and self.damage is None:
            self.damage = error
        return error

    def _refusal(self) -> HeadraceError | None:
        return self.damage or super()._refusal()

    # ---- on the thread ----

    def _record(self, items: list[Item]) -> list[Answer]:
        if self.damage is not None:
            return [self.damage] * len(items)
        began = self._clock.monotonic()
        lists = [(writes, now) for writes, _, now, _ in items]
        carefully = False
        transaction = Transaction(self._db, self._claims, self._cold, self._gather)
        while True:
            try:
                answers = transaction.run(lists, carefully=carefully)
                transaction.commit()
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

    def _serve(self, call: Call) -> None:
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
