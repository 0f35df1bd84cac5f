"""Listener: hears from the database what other nodes have made claimable.

Imports the floor and its own room. A notification may be lost with the connection, so after each new LISTEN
the answer is `*`, for anything; and whoever needs to be certain also asks the store from time to time.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

import psycopg

from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.transaction import ANY, CHANNEL

_LOOK_S = 0.5
_CHECKS_EACH = 20
_PAUSE_S = 1.0
_NAME = "headrace listener"


class Listener:
    """A thread with a connection of its own: `start` once, then `stop`.

    `wake` is called on the event loop with a name; `own` gives the server's process ids of this node's
    writer, whose notifications are not news.
    """

    def __init__(self, url: str, wake: Callable[[str], None], own: Callable[[], int]) -> None:
        self._url = url
        self._wake = wake
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-listen", daemon=True)
        self.listening = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Blocks until the thread has ended, at most half a second when the server answers."""
        self._ending.set()
        self._thread.join()

    # ---- on the thread ----

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                db = PostgresDatabase.connect(self._url, name=_NAME)
            except psycopg.Error:
                self._ending.wait(_PAUSE_S)  # the writer reports what is wrong with the server
                continue
            with contextlib.suppress(psycopg.Error):
                self._hear(db)
            self.listening.clear()
            db.close()

    def _hear(self, db: PostgresDatabase) -> None:
        db.raw.execute(f"LISTEN {CHANNEL}")
        self.listening.set()
        self._tell([ANY])
        looks = 0
        while not self._ending.is_set():
            heard = {
                notice.payload: None
                for notice in db.raw.notifies(timeout=_LOOK_S, stop_after=1)
                if notice.pid != self._own()
            }
            if heard:
                self._tell(heard)
            looks += 1
            if looks % _CHECKS_EACH == 0:
                db.raw.execute("SELECT 1")  # a connection that died without a word is found out

    def _tell(self, names: Iterable[str]) -> None:
        # A loop that was closed without `stop` has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            for name in names:
                self._loop.call_soon_threadsafe(self._wake, name)
