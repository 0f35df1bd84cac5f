"""Readers: a small pool of threads that read a SQLite file beside its writer.

Imports the floor and its own room. Each has a connection that sees committed rows only.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.writer import fault

T = TypeVar("T")

THREADS = 2


class Readers:
    """A few threads, each with a read-only connection."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = threading.local()
        self._opened: list[SqliteDatabase] = []
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            THREADS, thread_name_prefix="headrace-read"
        )

    async def ask(self, question: Callable[[SqliteDatabase], T]) -> T:
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
            raise fault(error, str(self._path)) from error
