"""Long reads of a PostgreSQL database: one at a time, on a thread and connection of their own, from one
snapshot.

Imports the floor and its own room. They keep neither writers nor other readers waiting; but the server cannot
reuse the space of rows that were removed while one is under way.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.fault import fault

T = TypeVar("T")

_NAME = "headrace audit"


class LongReader:
    """Asks questions that read very much of the database at `url`; `where` is how messages name it."""

    def __init__(self, url: str, where: str) -> None:
        self._url = url
        self._where = where
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="headrace-audit")
        self._under_way: set[_Reading] = set()

    async def ask(self, question: Callable[[PostgresDatabase], T]) -> T:
        """What `question` answers. It is broken off when the caller is cancelled, and with StoreUnavailable
        by `stop`.
        """
        if self._pool is None:
            raise StoreUnavailable("the store is stopped")
        reading = _Reading()
        self._under_way.add(reading)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._answer, question, reading
            )
        except asyncio.CancelledError:
            reading.break_off()
            raise
        finally:
            self._under_way.discard(reading)

    def stop(self) -> None:
        """Break off what is under way, and wait for its end."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            for reading in tuple(self._under_way):
                reading.break_off()
            pool.shutdown(wait=True)

    def _answer(self, question: Callable[[PostgresDatabase], T], reading: "_Reading") -> T:
        try:
            db = PostgresDatabase.connect(self._url, name=_NAME)
            with contextlib.closing(db), reading.of(db), db.snapshot():
                return question(db)
        except psycopg.Error as error:
            if reading.unwanted:
                raise StoreUnavailable("the store is stopped") from error
            raise fault(error, self._where) from error


class _Reading:
    """One question under way, which another thread may break off."""

    def __init__(self) -> None:
        self.unwanted = False
        self._db: PostgresDatabase | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def of(self, db: PostgresDatabase) -> Iterator[None]:
        """Within, `db` answers the question. Raises StoreUnavailable when nobody wants it any more."""
        with self._lock:
            if self.unwanted:
                raise StoreUnavailable("the store is stopped")
            self._db = db
        try:
            yield
        finally:
            with self._lock:
                self._db = None

    def break_off(self) -> None:
        with self._lock:
            self.unwanted = True
            if self._db is not None:
                # Not the statement is ended but the session: the next statement must not begin either.
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._db.raw.fileno())) as own:
                    own.shutdown(socket.SHUT_RDWR)
