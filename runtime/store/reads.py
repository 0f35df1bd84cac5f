"""Reads: what is asked of a database beside its writer.

Imports the floor and its own room. Plain functions over a connection that sees committed rows only.
"""

from collections.abc import Sequence

from headrace.runtime.model.ids import moment_of
from headrace.runtime.model.invocation import Invocation, Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.store.database import POSTGRESQL, Database
from headrace.runtime.store.page import ids, records
from headrace.runtime.store.protocol import Closure, Counters, Deployment, LedgerRow
from headrace.runtime.store.rows import JOB, RECORD, job_of, record_of
from headrace.runtime.store.tally import BOOK_NAMES

_FLOWS_MAX = 1_000
_FLOWS_ALL = 1 << 62
_OLDEST_OF = 200


def latest(db: Database) -> float:
    """The moment of the newest id."""
    ids = [db.execute(f"SELECT max(id) FROM {table}").fetchone()[0] for table in ("invocation", "job")]
    return max((moment_of(id) for id in ids if id is not None), default=0.0)


# ---- invocations ----


def get(db: Database, id: int) -> Record | None:
    row = db.execute(f"SELECT {RECORD} FROM invocation WHERE id = ?", (id,)).fetchone()
    return None if row is None else record_of(row)


def known(db: Database, ids: Sequence[int]) -> set[int]:
    query = f"SELECT id FROM invocation WHERE {db.dialect.among('id')}"
    return {row[0] for row in db.execute(query, (db.dialect.listed(ids),))}


def find(
    db: Database,
    function: str | None,
    status: Status | None,
    tag: str | None,
    before: int | None,
    limit: int,
) -> list[Record]:
    where, values = list[str](), list[object]()
    if function is not None:
        where.append("function = ?")
        values.append(function)
    if status is not None:
        where.append(f"status = {int(status)}")  # a literal, so that the partial indexes can serve
    if tag is not None:
        where.append(f"{db.dialect.position}(',' || tags || ',', ?) > 0")
        values.append(f",{tag},")
    if before is not None:
        where.append("id < ?")
        values.append(before)
    query = f"SELECT id FROM invocation{_where(where)} ORDER BY id DESC LIMIT ?"
    return records(db, ids(db, query, (*values, limit)))


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def ended(db: Database, asked: Sequence[int]) -> list[Record]:
    query = f"SELECT id FROM invocation WHERE {db.dialect.among('id')} AND status IN (2, 3, 4)"
    return records(db, ids(db, query, (db.dialect.listed(asked),)))


def ahead(db: Database, invocation: Invocation, now: float, limit: int) -> int:
    """By stretches of the index: each higher priority's due rows, then those before it in its own."""
    count = 0
    for priority in priorities(db, invocation.flow):
        if priority < invocation.priority or count >= limit:
            break
        until = (
            (invocation.due_at, invocation.id) if priority == invocation.priority else (now, (1 << 63) - 1)
        )
        [found] = db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM invocation WHERE status = 0 AND flow = ? AND priority = ?"
            " AND (due_at, id) < (?, ?) LIMIT ?) AS before",
            (invocation.flow, priority, *until, limit - count),
        ).fetchone()
        count += found
    return count


def counters(db: Database) -> dict[str, Counters]:
    """The books; waiting is what remains, so that no row has to be counted."""
    with db.snapshot():
        sums = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in BOOK_NAMES)
        books = db.execute(f"SELECT function, {sums} FROM counter GROUP BY function").fetchall()
        running = dict(
            db.execute(
                "SELECT function, count(*) FROM invocation WHERE status = 1 GROUP BY function"
            ).fetchall()
        )
        oldest: dict[str, float] = {}
        for function, accepted_at in _oldest(db):
            oldest[function] = min(accepted_at, oldest.get(function, accepted_at))
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


_OLDEST = (
    "SELECT function, accepted_at FROM invocation WHERE {waiting}"
    " AND flow = {flow} AND priority = {priority} ORDER BY due_at, id LIMIT {limit}"
)


def _oldest(db: Database) -> list[tuple[str, float]]:
    """The oldest among the first few of each flow and priority: exact for a short queue, close for a long
    one.
    """
    if not db.dialect.pages:
        return db.execute(_OLDEST_AT_ONCE).fetchall()
    first = _OLDEST.format(waiting=db.dialect.waiting, flow="?", priority="?", limit="?")
    query = f"SELECT function, min(accepted_at) FROM ({first}) AS first GROUP BY function"
    found: list[tuple[str, float]] = []
    for flow in flows(db, limit=_FLOWS_MAX):
        for priority in priorities(db, flow):
            found += db.execute(query, (flow, priority, _OLDEST_OF)).fetchall()
    return found


# PostgreSQL's: each statement is a journey to the server, and LATERAL spares them.
_PLACE = f"SELECT i.flow, i.priority FROM invocation i WHERE {POSTGRESQL.waiting}"
_OLDEST_AT_ONCE = (
    "WITH RECURSIVE place(flow, priority, number) AS ("
    f"(SELECT p.flow, p.priority, 1 FROM ({_PLACE} ORDER BY i.flow, i.priority DESC LIMIT 1) p)"
    " UNION ALL"
    " SELECT n.flow, n.priority, place.number + 1 FROM place, LATERAL ("
    f" (SELECT * FROM ({_PLACE} AND i.flow = place.flow AND i.priority < place.priority"
    "    ORDER BY i.priority DESC LIMIT 1) lower)"
    " UNION ALL"
    f" (SELECT * FROM ({_PLACE} AND i.flow > place.flow ORDER BY i.flow, i.priority DESC LIMIT 1) further)"
    f" LIMIT 1) n WHERE place.number < {_FLOWS_MAX})"
    " SELECT function, min(accepted_at) FROM place, LATERAL ("
    + _OLDEST.format(
        waiting=POSTGRESQL.waiting, flow="place.flow", priority="place.priority", limit=_OLDEST_OF
    )
    + ") first GROUP BY function"
)


def flows(db: Database, after: str = "", limit: int | None = None) -> list[str]:
    """By jumps through the index from one flow to the next, whatever the number of rows."""
    waiting = db.dialect.waiting
    return [
        flow
        for [flow] in db.execute(
            f"WITH RECURSIVE f(flow) AS (SELECT min(flow) FROM invocation WHERE {waiting} AND flow > :after"
            f" UNION ALL SELECT (SELECT min(i.flow) FROM invocation i WHERE {waiting} AND i.flow > f.flow)"
            " FROM f WHERE f.flow IS NOT NULL) SELECT flow FROM f WHERE flow IS NOT NULL LIMIT :limit",
            {"after": after, "limit": _FLOWS_ALL if limit is None else limit},
        )
    ]


def priorities(db: Database, flow: str) -> list[int]:
    """The priorities at which a flow has waiting rows, the highest first, by jumps through the index."""
    waiting = db.dialect.waiting
    return [
        priority
        for [priority] in db.execute(
            f"WITH RECURSIVE p(priority) AS (SELECT max(priority) FROM invocation WHERE {waiting}"
            " AND flow = :flow UNION ALL"
            f" SELECT (SELECT max(i.priority) FROM invocation i WHERE {waiting} AND i.flow = :flow"
            " AND i.priority < p.priority) FROM p WHERE p.priority IS NOT NULL)"
            " SELECT priority FROM p WHERE priority IS NOT NULL",
            {"flow": flow},
        )
    ]


def paused(db: Database) -> set[str]:
    return {function for [function] in db.execute("SELECT function FROM paused")}


def closures(db: Database, now: float) -> list[Closure]:
    rows = db.execute("SELECT name, until_at, reason FROM closure WHERE until_at > ? ORDER BY name", (now,))
    return [Closure(name=name, until_at=until_at, reason=reason) for name, until_at, reason in rows]


def deployments(db: Database, before: float, limit: int) -> list[Deployment]:
    rows = db.execute(
        "SELECT node, version, since FROM deployment WHERE since <= ? ORDER BY since DESC LIMIT ?",
        (before, limit),
    )
    return [Deployment(node=node, version=version, since=since) for node, version, since in rows]


# ---- jobs ----


def job(db: Database, id: int) -> Job | None:
    row = db.execute(f"SELECT {JOB} FROM job WHERE id = ?", (id,)).fetchone()
    return None if row is None else job_of(row)


def jobs(
    db: Database, statuses: Sequence[str], function: str | None, before: int | None, limit: int
) -> list[Job]:
    where, values = list[str](), list[object]()
    if statuses:
        where.append(f"status IN ({', '.join('?' * len(statuses))})")
        values += statuses
    if function is not None:
        where.append("function = ?")
        values.append(function)
    if before is not None:
        where.append("id < ?")
        values.append(before)
    rows = db.execute(f"SELECT {JOB} FROM job{_where(where)} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [job_of(row) for row in rows]


_COUNT_NAMES = ("waiting", "running", "succeeded", "dead", "cancelled")


def job_counts(db: Database, id: int) -> dict[int, JobCounts]:
    counts: dict[int, JobCounts] = {}
    for stage, status, count in db.execute(
        "SELECT stage, status, count(*) FROM invocation WHERE job = ? GROUP BY status, stage", (id,)
    ):
        setattr(counts.setdefault(stage, JobCounts()), _COUNT_NAMES[status], count)
    return dict(sorted(counts.items()))


def job_parts(
    db: Database, id: int, stage: int, after: int, limit: int, status: Status | None
) -> list[Record]:
    only = "" if status is None else f" AND status = {int(status)}"
    chosen = ids(
        db,
        f"SELECT id FROM invocation WHERE job = ? AND stage = ? AND idx > ?{only} ORDER BY idx LIMIT ?",
        (id, stage, after, limit),
    )
    return records(db, chosen)


# ---- triggers ----


def ledger(db: Database, trigger: str, bucket: str, after: str, limit: int) -> list[LedgerRow]:
    """One row a key: of several versions the latest, so that a page never ends inside a key."""
    rows = db.execute(
        'SELECT "key", etag, size, sequencer, modified_at FROM ledger AS shown'
        ' WHERE "trigger" = ? AND bucket = ? AND "key" > ? AND NOT EXISTS (SELECT 1 FROM ledger AS later'
        ' WHERE later."trigger" = shown."trigger" AND later.bucket = shown.bucket'
        ' AND later."key" = shown."key"'
        " AND (later.modified_at > shown.modified_at"
        "  OR (later.modified_at = shown.modified_at AND later.version_id > shown.version_id)))"
        ' ORDER BY "key" LIMIT ?',
        (trigger, bucket, after, limit),
    )
    return [LedgerRow(key=r[0], etag=r[1], size=r[2], sequencer=r[3], modified_at=r[4]) for r in rows]


def ledger_entry(db: Database, trigger: str, bucket: str, key: str) -> LedgerRow | None:
    r = db.execute(
        'SELECT "key", etag, size, sequencer, modified_at FROM ledger'
        ' WHERE "trigger" = ? AND bucket = ? AND "key" = ?'
        " ORDER BY modified_at DESC, version_id DESC LIMIT 1",
        (trigger, bucket, key),
    ).fetchone()
    if r is None:
        return None
    return LedgerRow(key=r[0], etag=r[1], size=r[2], sequencer=r[3], modified_at=r[4])


def cursor(db: Database, name: str) -> str | None:
    row = db.execute("SELECT value FROM cursor WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])
