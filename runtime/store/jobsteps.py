"""Job steps: how a job is planned, gathered, moved and redriven.

Imports the floor and its own room. Each step is a few statements inside its caller's savepoint.
"""

from typing import Any

from headrace.runtime.errors import Duplicate, UnknownJob, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Invocation
from headrace.runtime.model.job import ENDED, LIVE
from headrace.runtime.model.write import Applied, ChunkDone, JobMoved, JobPlanned, JobPut, JobRedriven
from headrace.runtime.store.rows import json_decode, json_encode, text_of
from headrace.runtime.store.tally import CANCELLED, DEAD, REMOVED
from headrace.runtime.store.transaction import PLAIN, Refused, Transaction

_CANCELLED_ERROR = '{"code":"cancelled","message":"its job ended first"}'


def put(transaction: Transaction, write: JobPut, now: float) -> Applied:
    inserted = transaction.db.execute(
        "INSERT OR IGNORE INTO job (id, function, status, accepted_at, generation, chunks, levels, tags,"
        " code_version,"
        " spec, input, plan) VALUES (?, ?, 'planning', ?, 0, 0, 0, ?, ?, ?, ?, '{}')",
        (write.id, write.function, write.accepted_at, write.tags, write.code_version, text_of(write.spec),
         text_of(write.input)),
    ).rowcount  # fmt: skip
    if not inserted:
        raise Refused(Duplicate(f"job {show_id(write.id)}"))
    return PLAIN


def planned(transaction: Transaction, write: JobPlanned, now: float) -> Applied:
    """A plan's generation must be the job's plus one, which it becomes: each plan is recorded once."""
    db = transaction.db
    status, generation = _job(transaction, write.job, "status, generation")
    if status not in LIVE or write.generation != generation + 1:
        raise Refused(WrongState(f"job {show_id(write.job)}", f"{status}, generation {generation}",
                                 f"take a plan of generation {write.generation}"))  # fmt: skip
    _remove(transaction, write.job, "((stage = 0 AND idx >= ?) OR stage > 0)", (write.first,))
    for invocation in write.invocations:
        transaction.accept(invocation, None)
    transaction.flush()
    db.execute(
        "UPDATE job SET status = 'running', generation = ?, chunks = ?, levels = ?, plan = ?,"
        " started_at = coalesce(started_at, ?) WHERE id = ?",
        (
            write.generation,
            write.first + len(write.invocations),
            write.levels,
            text_of(write.plan),
            now,
            write.job,
        ),
    )
    return PLAIN


def gather(transaction: Transaction, write: ChunkDone) -> Applied:
    """Accept the reduce above a group once all of its children have succeeded or are dead, unless it is
    there.

    In a job that has ended it is recorded as cancelled, so that a redrive finds it.
    """
    invocation, group, parent = write.settle.claim.invocation, write.group, write.parent
    if group is None or parent is None or invocation.job is None:
        return PLAIN
    ended, children, there, live = transaction.db.execute(
        "SELECT count(*), CAST(group_concat(child, ',') AS BLOB),"
        "  (SELECT count(*) FROM invocation WHERE job = :job AND stage = :above AND idx = :parent),"
        "  (SELECT status NOT IN ('succeeded', 'failed', 'cancelled') FROM job WHERE id = :job)"
        " FROM (SELECT CASE WHEN status != 2 THEN NULL WHEN result_ref IS NOT NULL THEN json_object('ref',"
        " result_ref)"
        "   WHEN coalesce(length(result), 0) = 0 THEN 'null' ELSE CAST(result AS TEXT) END AS child"
        "  FROM invocation WHERE job = :job AND stage = :stage AND idx BETWEEN :first AND :last"
        "   AND status IN (2, 3)"
        " ORDER BY idx)",
        {"job": invocation.job, "stage": invocation.stage, "first": group[0], "last": group[1],
         "above": parent.stage, "parent": parent.index},
    ).fetchone()  # fmt: skip
    if ended != group[1] - group[0] + 1 or there:
        return PLAIN
    filled = _filled(parent, children or b"")
    transaction.accept(filled, None)
    if live == 0:
        transaction.flush()
        _cancel(transaction, invocation.job, filled.accepted_at, only=filled.id)
        return PLAIN
    return Applied(parent=filled)


def _filled(parent: Invocation, children: bytes) -> Invocation:
    """The reduce with its children's results put into its payload, which is a JSON object."""
    head = parent.payload.rstrip()
    if not head.startswith(b"{") or not head.endswith(b"}"):
        raise ValueError("the payload of a reduce must be a JSON object")
    head = head[:-1].rstrip()
    comma = b"" if head == b"{" else b","
    payload = head + comma + b'"children":[' + children + b"]}"
    return Invocation(parent.id, parent.function, parent.flow, payload, parent.accepted_at, parent.due_at,
                      parent.expires_at, parent.priority, parent.attempts, parent.payload_ref,
                      parent.idempotency_key, parent.tags, parent.source, parent.job, parent.stage,
                      parent.index, parent.memory_bytes)  # fmt: skip


def moved(transaction: Transaction, write: JobMoved, now: float) -> Applied:
    _expect(transaction, write.job, write.expected, f"become {write.status}")
    ended_at = write.at if write.status in ENDED else None
    [plan] = _job(transaction, write.job, "plan")
    if write.notes:
        plan = text_of(json_decode(plan) | write.notes)
    transaction.db.execute(
        "UPDATE job SET status = ?, plan = ?, ended_at = ?, started_at = coalesce(started_at, ?), result = ?,"
        " result_ref = ?,"
        " error = ? WHERE id = ?",
        (write.status, plan, ended_at, None if write.status == "planning" else write.at, write.result,
         write.result_ref, text_of(write.error), write.job),
    )  # fmt: skip
    if write.status in ("failed", "cancelled"):
        _cancel(transaction, write.job, write.at)
    return PLAIN


def redriven(transaction: Transaction, write: JobRedriven, now: float) -> Applied:
    """From the leaves up: reduces above what runs again are removed, other dead and cancelled ones wait."""
    db, job = transaction.db, write.job
    _expect(transaction, job, write.expected, "be redriven")
    chunks = _job(transaction, job, "chunks")[0]
    top = db.execute("SELECT max(stage) FROM invocation WHERE job = ?", (job,)).fetchone()[0]
    stale: set[int] = set()
    for stage in range(-1, -1 if top is None else top + 1):
        if stale:
            above = json_encode(sorted(stale)).decode()
            _remove(transaction, job, "stage = ? AND idx IN (SELECT value FROM json_each(?))", (stage, above))
        again = db.execute(
            "SELECT id, function, flow, priority, status, idx FROM invocation"
            " WHERE job = ? AND stage = ? AND status IN (3, 4)",
            (job, stage),
        ).fetchall()
        db.executemany(
            "UPDATE invocation SET status = 0, attempts = 0, due_at = ?, expires_at = ?, started_at = NULL,"
            " ended_at = NULL, result = NULL, result_ref = NULL, error = NULL, node = NULL WHERE id = ?",
            [(write.at, write.expires_at, row[0]) for row in again],
        )
        for id, function, flow, priority, status, index in again:
            transaction.tally.add(function, DEAD if status == 3 else CANCELLED, -1)
            transaction.claims.freed(flow, priority, write.at, id)
            stale.add(index)
        stale = {index // write.fan_in for index in stale} if stage >= 0 else set()
    db.execute(
        "UPDATE job SET status = ?, ended_at = NULL, result = NULL, result_ref = NULL, error = NULL WHERE"
        " id = ?",
        ("running" if chunks else "planning", job),
    )
    return PLAIN


def _job(transaction: Transaction, job: int, columns: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = transaction.db.execute(
        f"SELECT {columns} FROM job WHERE id = ?", (job,)
    ).fetchone()
    if row is None:
        raise Refused(UnknownJob(show_id(job)))
    return row


def _expect(transaction: Transaction, job: int, expected: tuple[str, ...], what: str) -> None:
    [status] = _job(transaction, job, "status")
    if status not in expected:
        raise Refused(WrongState(f"job {show_id(job)}", status, what))


def _remove(transaction: Transaction, job: int, where: str, values: tuple[Any, ...]) -> None:
    """Delete invocations of a job; what had not ended counts as cancelled, and claims on it become stale. The
    books remember what was removed.
    """
    db, scope = transaction.db, (job, *values)
    open_ones = f"FROM invocation WHERE job = ? AND {where} AND status < 2"
    for function, count in db.execute(
        f"SELECT function, count(*) {open_ones} GROUP BY function", scope
    ).fetchall():
        transaction.tally.add(function, CANCELLED, count)
        transaction.tally.add(function, CANCELLED + REMOVED, count)
    for function, status, count in db.execute(
        f"SELECT function, status, count(*) FROM invocation WHERE job = ? AND {where} AND status >= 2"
        " GROUP BY function, status",
        scope,
    ).fetchall():
        transaction.tally.add(function, status - 1 + REMOVED, count)
    claimed = f"SELECT id {open_ones} AND id IN (SELECT value FROM json_each(?))"
    for [id] in db.execute(claimed, (*scope, _held(transaction, job))).fetchall():
        transaction.claims.drop(id)
    db.execute(f"DELETE FROM invocation WHERE job = ? AND {where}", scope)


def _cancel(transaction: Transaction, job: int, at: float, *, only: int | None = None) -> None:
    """End the job's unclaimed waiting invocations, or one of them, as cancelled."""
    free = (
        "job = :job AND status = 0 AND (:only IS NULL OR id = :only)"
        " AND id NOT IN (SELECT value FROM json_each(:held))"
    )
    scope = {"job": job, "only": only, "held": _held(transaction, job), "at": at, "error": _CANCELLED_ERROR}
    counts = f"SELECT function, count(*) FROM invocation WHERE {free} GROUP BY function"
    for function, count in transaction.db.execute(counts, scope).fetchall():
        transaction.tally.add(function, CANCELLED, count)
    transaction.db.execute(
        f"UPDATE invocation SET status = 4, ended_at = :at, error = :error WHERE {free}",
        scope,
    )


def _held(transaction: Transaction, job: int) -> str:
    """The claimed invocations of a job, as a JSON list."""
    held = transaction.claims.held
    return json_encode([id for id, claim in held.items() if claim.invocation.job == job]).decode()
