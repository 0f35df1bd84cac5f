"""Long reads of a SQLite file: one at a time, on a thread and connection of their own, from one snapshot.

Imports the floor and its own room. They keep neither the writer nor the other readers waiting; but the
journal cannot be reset while one is under way, so it grows by what is written meanwhile.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.writer import fault

T = TypeVar("T")

_LOOK_EVERY = 100_000  # steps of SQLite's machine: a few milliseconds
_CACHE_KIB = 16 << 10


class LongReader:
    """Asks questions that read very much of the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="headrace-audit")
        self._unwanted: set[threading.Event] = set()

    async def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """What `question` answers. It is broken off when the caller is cancelled, and with StoreUnavailable
        by `stop`.
        """
        if self._pool is None:
            raise StoreUnavailable("the store is stopped")
        unwanted = threading.Event()
        self._unwanted.add(unwanted)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._answer, question, unwanted
            )
        finally:
            unwanted.set()
            self._unwanted.discard(unwanted)

    def stop(self) -> None:
        """Break off what is under way, and wait for its end, a few milliseconds."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            for unwanted in tuple(self._unwanted):
                unwanted.set()
            pool.shutdown(wait=True)

    def _answer(self, question: Callable[[sqlite3.Connection], T], unwanted: threading.Event) -> T:
        if unwanted.is_set():
            raise StoreUnavailable("the store is stopped")
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)) as db:
                db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                db.set_progress_handler(unwanted.is_set, _LOOK_EVERY)
                db.text_factory = _readable  # a damaged text is to be reported, not to end the reading
                db.execute("BEGIN")
                return question(db)
        except sqlite3.Error as error:
            raise fault(error, str(self._path)) from error


def _readable(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")
