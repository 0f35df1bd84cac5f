"""Readers of a PostgreSQL database.

Imports the floor and its own room. A read whose connection is lost is asked once more on another one, since
it has changed nothing.
"""

from collections.abc import Callable
from typing import TypeVar

import psycopg

from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.fault import AGAIN, fault
from headrace.runtime.store.readers import Readers

T = TypeVar("T")

_TRIES = 3
_NAME = "headrace reader"


class PostgresReaders(Readers[PostgresDatabase]):
    """Readers of the database at `url`; `where` is how messages name it."""

    def __init__(self, url: str, where: str) -> None:
        super().__init__()
        self._url = url
        self._where = where

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
