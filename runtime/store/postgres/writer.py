"""Writer: the one thread of a node that writes to the PostgreSQL database, on one connection.

Imports the floor and its own room. When the connection is lost, what was not committed for certain is written
again on a new one; and where the answer to a COMMIT was lost, the new connection finds out whether it
happened, so that nobody is told that their writes failed which stand.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError, StoreUnavailable
from headrace.runtime.fault import reach
from headrace.runtime.model.write import Applied, ChunkDone, Write
from headrace.runtime.store.group import Call, GroupCommit
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.fault import AGAIN, fault, is_database_fault
from headrace.runtime.store.postgres.transaction import SHARDS, Stale, Transaction
from headrace.runtime.store.protocol import Item
from headrace.runtime.store.recording import Answer, Recording

T = TypeVar("T")

PATIENCE_S = 10.0
"""For how long after the loss of the connection writes wait for another one."""

_PAUSE_S = 0.2
_RETRY_S = 1.0
_TRIES = 20
_CARELESS_MAX = 3
_NAME = "headrace writer"


class _Call(Call):
    """A call in a transaction of its own, which is committed when its result has `changed` something."""

    __slots__ = ("changed",)

    def __init__(
        self,
        run: Callable[[PostgresDatabase], Any],
        changed: Callable[[Any], bool],
        future: "asyncio.Future[Any]",
    ) -> None:
        super().__init__(run, future)
        self.changed = changed


class Writer(GroupCommit[_Call]):
    """Records in one PostgreSQL database; `call` is for what has a transaction of its own.

    `number` is the node's; it chooses the shard of the books. `patience_s` is for how long a lost connection
    is waited for before writes are answered with StoreUnavailable.
    """

    _too_many = "too many writes wait for the database"

    def __init__(
        self,
        db: PostgresDatabase,
        url: str,
        where: str,
        clock: Clock,
        cold: Callable[[Recording, Write, float], Applied],
        gather: Callable[[Recording, Sequence[ChunkDone]], list[Applied]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(clock.monotonic)
        self._db: PostgresDatabase = db
        self._url = url
        self._where = where
        self._clock = clock
        self._cold = cold
        self._gather = gather
        self._patience_s = patience_s
        self._lost_at: float | None = None
        self._tried_at = 0.0
        self._trouble: Exception | None = None
        self.number = 0
        self.reconnects = 0

    async def call(
        self, run: Callable[[PostgresDatabase], T], *, changed: Callable[[T], bool] = lambda _: True
    ) -> T:
        """What `run` returns or raises, on the thread, after all that was submitted before. It runs in a
        transaction, again from the start when that meets another's; which is committed when its result has
        `changed` something.
        """
        self._check_running()
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Call(run, changed, future))
        return await future

    @property
    def pid(self) -> int:
        """The server's process of this connection, by which its own notifications are known."""
        return self._db.pid

    @property
    def connected(self) -> bool:
        return not self._db.broken

    # ---- on the thread ----

    def _run(self) -> None:
        super()._run()
        self._db.close()

    def _record(self, items: list[Item]) -> list[Answer]:
        lists = [(writes, now) for writes, _, now, _ in items]
        began = self._clock.monotonic()
        careless = 0
        carefully = False
        apart: set[int] = set()

        def run(db: PostgresDatabase, outcome: list[list[Answer]]) -> None:
            nonlocal carefully, careless
            while True:
                transaction = Transaction(db, self.number % SHARDS, self._cold, self._gather)
                try:
                    outcome[:] = [
                        transaction.run(lists, at_once=not careless, carefully=carefully, apart=apart)
                    ]
                    transaction.finish()
                except Stale as stale:
                    careless += 1
                    carefully = careless > _CARELESS_MAX or (bool(apart) and stale.places <= apart)
                    apart.update(stale.places)
                except Exception as error:
                    if db.broken or carefully or is_database_fault(error):
                        raise
                    carefully = True  # one list spoils the others' statements: give each its own
                else:
                    return
                db.rollback()

        try:
            answers = self._transact(run)
        except Exception as error:
            return [fault(error, self._where)] * len(items)
        self.commits += 1
        self.durations.append(self._clock.monotonic() - began)
        return [fault(one, self._where) if isinstance(one, Exception) else one for one in answers]

    def _serve(self, call: _Call) -> None:
        def run(db: PostgresDatabase, outcome: list[Any]) -> None:
            db.begin()
            outcome[:] = [call.run(db)]
            if call.changed(outcome[0]):
                reach("commit.before")
                db.commit()
                reach("commit.after")
            else:
                db.rollback()

        try:
            result = self._transact(run)
        except Exception as error:
            self._answers.failure(call.future, fault(error, self._where))
        else:
            self._answers.result(call.future, result)

    def _transact(self, run: Callable[[PostgresDatabase, list[T]], None]) -> T:
        """Run what makes and commits one transaction, over lost connections and meetings with others'. It
        puts its outcome into the list that it is given, before it commits.
        """
        for tries in range(1, _TRIES + 1):
            db = self._connection()
            outcome: list[T] = []
            try:
                run(db, outcome)
            except Exception as error:
                if not db.broken:
                    db.rollback()
                    if isinstance(error, AGAIN) and tries < _TRIES:
                        continue
                    raise
                db.close()
                self._lost_at = self._clock.monotonic()
                if db.pending and self._happened(db):
                    return outcome[0]
            else:
                return outcome[0]
        raise StoreUnavailable(f"{self._where}: the connection is lost again and again")

    def _happened(self, lost: PostgresDatabase) -> bool:
        """Whether a transaction whose COMMIT got no answer stands."""
        for _ in range(_TRIES):
            try:
                db = self._connection()
                return db.happened(lost.mark, lost.commits)
            except psycopg.Error:
                db.close()
            except HeadraceError as error:
                raise StoreUnavailable(
                    f"{self._where}: the connection was lost while writes were committed: whether they are"
                    f" recorded is not known, since there is no other connection yet ({error})"
                ) from error
        raise StoreUnavailable(f"{self._where}: it is not known whether writes are recorded")

    def _connection(self) -> PostgresDatabase:
        """The connection, or another one when it was lost. Raises StoreUnavailable after some patience."""
        if not self._db.broken:
            return self._db
        while True:
            now = self._clock.monotonic()
            if self._lost_at is None:
                self._lost_at = now
            impatient = now - self._lost_at >= self._patience_s or self._ending.is_set()
            if impatient and now - self._tried_at < _RETRY_S and self._tried_at > self._lost_at:
                raise StoreUnavailable(str(self._trouble))
            self._tried_at = now
            try:
                db = PostgresDatabase.connect(self._url, name=_NAME)
                try:
                    db.make_mark()
                except BaseException:
                    db.close()
                    raise
            except psycopg.Error as error:
                self._trouble = fault(error, self._where)
                if impatient:
                    raise self._trouble from error
                self._ending.wait(_PAUSE_S)
                continue
            self._db, self._lost_at = db, None
            self.reconnects += 1
            return db
