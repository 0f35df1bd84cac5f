"""Reads: what is asked of a SQLite file beside its writer.

Imports the floor and its own room. Plain functions over a connection that sees committed rows only; `Readers`
runs them on a small pool of threads.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.model.ids import moment_of
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.store.page import ids, records
from headrace.runtime.store.protocol import Closure, Counters, Deployment, LedgerRow, ScheduleState
from headrace.runtime.store.rows import JOB, RECORD, job_of, json_encode, record_of
from headrace.runtime.store.tally import BOOK_NAMES
from headrace.runtime.store.writer import fault

T = TypeVar("T")

THREADS = 2
_FLOWS_MAX = 1_000
_OLDEST_OF = 200


class Readers:
    """A few threads, each with a read-only connection. `noticed` is handed each error of the database."""

    def __init__(self, path: Path, noticed: Callable[[Exception], Exception]) -> None:
        self._path = path
        self._noticed = noticed
        self._own = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            THREADS, thread_name_prefix="headrace-read"
        )

    async def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
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

    def _answer(self, question: Callable[[sqlite3.Connection], T]) -> T:
        try:
            db: sqlite3.Connection | None = getattr(self._own, "db", None)
            if db is None:
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                db = sqlite3.connect(
                    uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False
                )
                self._own.db = db
                self._opened.append(db)
            return question(db)
        except sqlite3.Error as error:
            raise self._noticed(fault(error, str(self._path))) from error


def latest(db: sqlite3.Connection) -> float:
    """The moment of the newest id."""
    ids = [db.execute(f"SELECT max(id) FROM {table}").fetchone()[0] for table in ("invocation", "job")]
    return max((moment_of(id) for id in ids if id is not None), default=0.0)


# ---- invocations ----


def get(db: sqlite3.Connection, id: int) -> Record | None:
    row = db.execute(f"SELECT {RECORD} FROM invocation WHERE id = ?", (id,)).fetchone()
    return None if row is None else record_of(row)


def known(db: sqlite3.Connection, ids: Sequence[int]) -> set[int]:
    wanted = json_encode(list(ids)).decode()
    rows = db.execute("SELECT id FROM invocation WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
    return {row[0] for row in rows}


def find(
    db: sqlite3.Connection,
    function: str | None,
    status: Status | None,
    tag: str | None,
    before: int | None,
    limit: int,
) -> list[Record]:
    where, values = ["1"], list[object]()
    if function is not None:
        where.append("function = ?")
        values.append(function)
    if status is not None:
        where.append(f"status = {int(status)}")  # a literal, so that the partial indexes can serve
    if tag is not None:
        where.append("instr(',' || tags || ',', ',' || ? || ',') > 0")
        values.append(tag)
    if before is not None:
        where.append("id < ?")
        values.append(before)
    query = f"SELECT id FROM invocation WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
    return records(db, ids(db, query, (*values, limit)))


def ended(db: sqlite3.Connection, asked: Sequence[int]) -> list[Record]:
    text = json_encode(asked).decode()
    query = "SELECT id FROM invocation WHERE id IN (SELECT value FROM json_each(?)) AND status >= 2"
    return records(db, ids(db, query, (text,)))


def counters(db: sqlite3.Connection) -> dict[str, Counters]:
    """The books; waiting is what remains, so that no row has to be counted."""
    db.execute("BEGIN")  # one snapshot for all of them
    try:
        sums = ", ".join(f"sum({name})" for name in BOOK_NAMES)
        books = db.execute(f"SELECT function, {sums} FROM counter GROUP BY function").fetchall()
        running = dict(
            db.execute(
                "SELECT function, count(*) FROM invocation WHERE status = 1 GROUP BY function"
            ).fetchall()
        )
        oldest: dict[str, float] = {}
        for flow in flows(db)[:_FLOWS_MAX]:
            for function, accepted_at in _oldest(db, flow):
                oldest[function] = min(accepted_at, oldest.get(function, accepted_at))
    finally:
        db.execute("COMMIT")
    return {
        function: Counters(
            **(book := dict(zip(BOOK_NAMES, counts, strict=True))),
            waiting=book["accepted"]
            - book["succeeded"]
            - book["dead"]
            - book["cancelled"]
            - running.get(function, 0),
            running=running.get(function, 0),
            oldest_accepted_at=oldest.get(function),
        )
        for function, *counts in books
    }


def _oldest(db: sqlite3.Connection, flow: str) -> list[tuple[str, float]]:
    """The oldest among the first few of each priority: exact for a short queue, close for a long one."""
    found: list[tuple[str, float]] = []
    for priority in priorities(db, flow):
        found += db.execute(
            "SELECT function, min(accepted_at) FROM (SELECT function, accepted_at FROM invocation WHERE"
            " status = 0"
            " AND flow = ? AND priority = ? ORDER BY due_at, id LIMIT ?) GROUP BY function",
            (flow, priority, _OLDEST_OF),
        ).fetchall()
    return found


def flows(db: sqlite3.Connection) -> list[str]:
    """By jumps through the index from one flow to the next, whatever the number of rows."""
    return [
        flow
        for [flow] in db.execute(
            "WITH RECURSIVE f(flow) AS (SELECT min(flow) FROM invocation WHERE status = 0 UNION ALL"
            " SELECT (SELECT min(i.flow) FROM invocation i WHERE i.status = 0 AND i.flow > f.flow) FROM f"
            " WHERE f.flow IS NOT NULL) SELECT flow FROM f WHERE flow IS NOT NULL"
        )
    ]


def priorities(db: sqlite3.Connection, flow: str) -> list[int]:
    """The priorities at which a flow has waiting rows, the highest first, by jumps through the index."""
    return [
        priority
        for [priority] in db.execute(
            "WITH RECURSIVE p(priority) AS (SELECT max(priority) FROM invocation WHERE status = 0 AND flow"
            " = :flow UNION ALL"
            " SELECT (SELECT max(i.priority) FROM invocation i WHERE i.status = 0 AND i.flow = :flow"
            " AND i.priority < p.priority) FROM p WHERE p.priority IS NOT NULL)"
            " SELECT priority FROM p WHERE priority IS NOT NULL",
            {"flow": flow},
        )
    ]


def paused(db: sqlite3.Connection) -> set[str]:
    return {function for [function] in db.execute("SELECT function FROM paused")}


def closures(db: sqlite3.Connection, now: float) -> list[Closure]:
    rows = db.execute("SELECT name, until_at, reason FROM closure WHERE until_at > ? ORDER BY name", (now,))
    return [Closure(name=name, until_at=until_at, reason=reason) for name, until_at, reason in rows]


def deployments(db: sqlite3.Connection, before: float, limit: int) -> list[Deployment]:
    rows = db.execute(
        "SELECT node, version, since FROM deployment WHERE since <= ? ORDER BY since DESC LIMIT ?",
        (before, limit),
    )
    return [Deployment(node=node, version=version, since=since) for node, version, since in rows]


# ---- jobs ----


def job(db: sqlite3.Connection, id: int) -> Job | None:
    row = db.execute(f"SELECT {JOB} FROM job WHERE id = ?", (id,)).fetchone()
    return None if row is None else job_of(row)


def jobs(
    db: sqlite3.Connection, statuses: Sequence[str], function: str | None, before: int | None, limit: int
) -> list[Job]:
    where, values = ["1"], list[object]()
    if statuses:
        where.append(f"status IN ({', '.join('?' * len(statuses))})")
        values += statuses
    if function is not None:
        where.append("function = ?")
        values.append(function)
    if before is not None:
        where.append("id < ?")
        values.append(before)
    rows = db.execute(
        f"SELECT {JOB} FROM job WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", (*values, limit)
    )
    return [job_of(row) for row in rows]


_COUNT_NAMES = ("waiting", "running", "succeeded", "dead", "cancelled")


def job_counts(db: sqlite3.Connection, id: int) -> dict[int, JobCounts]:
    counts: dict[int, JobCounts] = {}
    for stage, status, count in db.execute(
        "SELECT stage, status, count(*) FROM invocation WHERE job = ? GROUP BY status, stage", (id,)
    ):
        setattr(counts.setdefault(stage, JobCounts()), _COUNT_NAMES[status], count)
    return dict(sorted(counts.items()))


def job_parts(
    db: sqlite3.Connection, id: int, stage: int, after: int, limit: int, status: Status | None
) -> list[Record]:
    only = "" if status is None else f" AND status = {int(status)}"
    chosen = ids(
        db,
        f"SELECT id FROM invocation WHERE job = ? AND stage = ? AND idx > ?{only} ORDER BY idx LIMIT ?",
        (id, stage, after, limit),
    )
    return records(db, chosen)


# ---- triggers ----


def ledger(db: sqlite3.Connection, trigger: str, bucket: str, after: str, limit: int) -> list[LedgerRow]:
    """One row a key: of several versions the latest, so that a page never ends inside a key."""
    rows = db.execute(
        'SELECT "key", etag, size, sequencer, max(modified_at) FROM ledger'
        ' WHERE "trigger" = ? AND bucket = ? AND "key" > ?'
        ' GROUP BY "key" ORDER BY "key" LIMIT ?',
        (trigger, bucket, after, limit),
    )
    return [LedgerRow(key=r[0], etag=r[1], size=r[2], sequencer=r[3], modified_at=r[4]) for r in rows]


def cursor(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM cursor WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


SCHEDULE = "name, definition, generation, anchor, paused, last_due_at"


def schedules(db: sqlite3.Connection) -> list[ScheduleState]:
    return [schedule_of(row) for row in db.execute(f"SELECT {SCHEDULE} FROM schedule ORDER BY name")]


def schedule_of(row: Sequence[Any]) -> ScheduleState:
    name, definition, generation, anchor, is_paused, last_due_at = row
    return ScheduleState(name=name, definition=definition, generation=generation, anchor=anchor,
                         paused=bool(is_paused), last_due_at=last_due_at)  # fmt: skip
