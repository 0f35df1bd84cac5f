"""Readers: a small pool of threads that read a database beside its writer.

Imports the floor and its own room. Each has a connection that it opens when it is first asked, and that sees
committed rows only.
"""

import asyncio
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.writer import fault

T = TypeVar("T")

THREADS = 2


class Closable(Protocol):
    """A connection."""

    def close(self) -> None: ...


D = TypeVar("D", bound=Closable)


class Readers(ABC, Generic[D]):
    """A few threads; each keeps its connection in `_own.db`, and all that are open are in `_opened`."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._opened: list[D] = []
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            THREADS, thread_name_prefix="headrace-read"
        )

    async def ask(self, question: Callable[[D], T]) -> T:
        if self._pool is None:
            raise StoreUnavailable("the store is stopped")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, question)

    def stop(self) -> None:
        """Wait for what was asked, then close. Blocks for as long as the longest read takes."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=True)
            for db in self._opened:
                db.close()

    @abstractmethod
    def _answer(self, question: Callable[[D], T]) -> T:
        """What `question` answers over this thread's connection, on the thread."""


class SqliteReaders(Readers[SqliteDatabase]):
    """Readers of a SQLite file. `noticed` is handed each error of the database."""

    def __init__(self, path: Path, noticed: Callable[[Exception], Exception]) -> None:
        super().__init__()
        self._path = path
        self._noticed = noticed

    def _answer(self, question: Callable[[SqliteDatabase], T]) -> T:
        try:
            db: SqliteDatabase | None = getattr(self._own, "db", None)
            if db is None:
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                db = sqlite3.connect(
                    uri,
                    uri=True,
                    factory=SqliteDatabase,
                    isolation_level=None,
                    timeout=5.0,
                    check_same_thread=False,
                )
                self._own.db = db
                self._opened.append(db)
            return question(db)
        except sqlite3.Error as error:
            raise self._noticed(fault(error, str(self._path))) from error
