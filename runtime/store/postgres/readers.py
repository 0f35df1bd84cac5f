"""Readers: a small pool of threads that read a PostgreSQL database beside its writer.

Imports the floor and its own room. A read whose connection is lost is asked once more on another one, since
it has changed nothing.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.fault import AGAIN, fault

T = TypeVar("T")

THREADS = 2
_TRIES = 3
_NAME = "headrace reader"


class Readers:
    """A few threads, each with a connection that it opens when it is first asked."""

    def __init__(self, url: str, where: str) -> None:
        self._url = url
        self._where = where
        self._own = threading.local()
        self._opened: list[PostgresDatabase] = []
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            THREADS, thread_name_prefix="headrace-read"
        )

    async def ask(self, question: Callable[[PostgresDatabase], T]) -> T:
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

    def _answer(self, question: Callable[[PostgresDatabase], T]) -> T:
        for tries in range(1, _TRIES + 1):
            try:
                return question(self._connected())
            except psycopg.Error as error:
                lost = not isinstance(error, AGAIN) and not self._lost()
                if lost or tries == _TRIES:
                    raise fault(error, self._where) from error
        raise AssertionError("the last try returns or raises")

    def _lost(self) -> bool:
        db: PostgresDatabase | None = getattr(self._own, "db", None)
        return db is not None and db.broken

    def _connected(self) -> PostgresDatabase:
        db: PostgresDatabase | None = getattr(self._own, "db", None)
        if db is not None and not db.broken:
            return db
        if db is not None:
            self._opened.remove(db)
            self._own.db = None
        db = PostgresDatabase.connect(self._url, name=_NAME)
        self._own.db = db
        self._opened.append(db)
        return db
