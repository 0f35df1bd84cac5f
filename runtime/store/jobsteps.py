"""Job steps: how a job is planned, gathered, moved and redriven.

Imports the floor and its own room. Each step is a few statements inside its caller's savepoint.
"""

from collections.abc import Sequence
from typing import Any

from headrace.runtime.errors import Duplicate, UnknownJob, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.job import ENDED, LIVE
from headrace.runtime.model.write import Applied, ChunkDone, JobMoved, JobPlanned, JobPut, JobRedriven
from headrace.runtime.store.database import counted
from headrace.runtime.store.recording import PLAIN, Recording, Refused
from headrace.runtime.store.rows import json_decode, text_of
from headrace.runtime.store.tally import CANCELLED, DEAD, REMOVED

_GROUP_LOCKS = 16
"""Locks for the groups of one stage, of which each serves many: a server has a bounded number."""

_CANCELLED_ERROR = '{"code":"cancelled","message":"its job ended first"}'


def put(transaction: Recording, write: JobPut, now: float) -> Applied:
    inserted = transaction.db.execute(
        "INSERT INTO job (id, function, status, accepted_at, generation, chunks, levels, tags, code_version,"
        " spec, input, plan) VALUES (?, ?, 'planning', ?, 0, 0, 0, ?, ?, ?, ?, '{}')"
        " ON CONFLICT DO NOTHING",
        (write.id, write.function, write.accepted_at, write.tags, write.code_version, text_of(write.spec),
         text_of(write.input)),
    ).rowcount  # fmt: skip
    if not inserted:
        raise Refused(Duplicate(f"job {show_id(write.id)}"))
    return PLAIN


def planned(transaction: Recording, write: JobPlanned, now: float) -> Applied:
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


def gather_all(transaction: Recording, writes: Sequence[ChunkDone]) -> list[Applied]:
    """`gather` for each, where other nodes may end chunks of the same groups at once. All of the
    transaction's ends must have been written.

    Of two transactions that end the last chunks of a group, the second waits here for the first, and then
    reads what that has recorded: so one of them finds the group complete. Neither can a job end meanwhile.
    """
    db, dialect = transaction.db, transaction.db.dialect
    groups = [
        (write.settle.claim.invocation.job, write.settle.claim.invocation.stage, write.group[0])
        for write in writes
        if write.group is not None and write.settle.claim.invocation.job is not None
    ]
    if dialect.groups is not None and groups:
        names = {f"headrace:{job}:{stage}:{first // 16 % _GROUP_LOCKS}" for job, stage, first in groups}
        db.execute(dialect.groups, (sorted(names),))
        jobs = dialect.listed({job for job, _, _ in groups})
        db.execute(f"SELECT id FROM job WHERE {dialect.among('id')} ORDER BY id{dialect.share}", (jobs,))
    return [gather(transaction, write) for write in writes]


def gather(transaction: Recording, write: ChunkDone) -> Applied:
    """Accept the reduce above a group once all of its children have succeeded or are dead, unless it is
    there. Nobody else may be ending children of the group.

    In a job that has ended it is recorded as cancelled, so that a redrive finds it.
    """
    invocation, group, parent = write.settle.claim.invocation, write.group, write.parent
    if group is None or parent is None or invocation.job is None:
        return PLAIN
    ended, children, there, live = transaction.db.execute(
        f"SELECT count(*), {transaction.db.dialect.children},"
        "  (SELECT count(*) FROM invocation WHERE job = :job AND stage = :above AND idx = :parent),"
        "  (SELECT status NOT IN ('succeeded', 'failed', 'cancelled') FROM job WHERE id = :job)"
        " FROM (SELECT status, idx, result, result_ref FROM invocation WHERE job = :job AND stage = :stage"
        "  AND idx BETWEEN :first AND :last AND status IN (2, 3) ORDER BY idx) AS child",
        {"job": invocation.job, "stage": invocation.stage, "first": group[0], "last": group[1],
         "above": parent.stage, "parent": parent.index},
    ).fetchone()  # fmt: skip
    if ended != group[1] - group[0] + 1 or there:
        return PLAIN
    filled = _filled(parent, children or b"")
    transaction.accept(filled, None)
    if live is not None and not live:
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


def moved(transaction: Recording, write: JobMoved, now: float) -> Applied:
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


def redriven(transaction: Recording, write: JobRedriven, now: float) -> Applied:
    """From the leaves up: reduces above what runs again are removed, other dead and cancelled ones wait.
    Refused once retention has begun to remove the job.
    """
    db, job = transaction.db, write.job
    _expect(transaction, job, write.expected, "be redriven")
    [chunks] = _job(transaction, job, "chunks")
    [kept] = db.execute("SELECT count(*) FROM invocation WHERE job = ? AND stage = 0", (job,)).fetchone()
    if kept < chunks:
        shown = f"out of date, {chunks - kept} of its {chunks} chunks are removed,"
        raise Refused(WrongState(f"job {show_id(job)}", shown, "be redriven: submit it again"))
    top = db.execute("SELECT max(stage) FROM invocation WHERE job = ?", (job,)).fetchone()[0]
    stale: set[int] = set()
    among, listed = db.dialect.among, db.dialect.listed
    for stage in range(-1, -1 if top is None else top + 1):
        if stale:
            _remove(transaction, job, f"stage = ? AND {among('idx')}", (stage, listed(sorted(stale))))
        again = db.execute(
            "SELECT id, function, flow, priority, status, idx FROM invocation"
            f" WHERE job = ? AND stage = ? AND status IN (3, 4){db.dialect.lock}",
            (job, stage),
        ).fetchall()
        if again:
            db.execute(
                "UPDATE invocation SET status = 0, attempts = 0, due_at = ?, expires_at = ?,"
                " started_at = NULL, ended_at = NULL, result = NULL, result_ref = NULL, error = NULL,"
                f" node = NULL WHERE {among('id')} AND status IN (3, 4)",
                (write.at, write.expires_at, listed(row[0] for row in again)),
            )
        for id, function, flow, priority, status, index in again:
            transaction.tally.add(function, DEAD if status == 3 else CANCELLED, -1)
            transaction.freed(flow, priority, write.at, id)
            stale.add(index)
        stale = {index // write.fan_in for index in stale} if stage >= 0 else set()
    db.execute(
        "UPDATE job SET status = ?, ended_at = NULL, result = NULL, result_ref = NULL, error = NULL WHERE"
        " id = ?",
        ("running" if chunks else "planning", job),
    )
    return PLAIN


def _job(transaction: Recording, job: int, columns: str) -> tuple[Any, ...]:
    """Columns of a job that nobody else changes, and to which nobody adds, until the transaction ends."""
    db = transaction.db
    row: tuple[Any, ...] | None = db.execute(
        f"SELECT {columns} FROM job WHERE id = ?{db.dialect.lock}", (job,)
    ).fetchone()
    if row is None:
        raise Refused(UnknownJob(show_id(job)))
    return row


def _expect(transaction: Recording, job: int, expected: tuple[str, ...], what: str) -> None:
    [status] = _job(transaction, job, "status")
    if status not in expected:
        raise Refused(WrongState(f"job {show_id(job)}", status, what))


def _remove(transaction: Recording, job: int, where: str, values: tuple[Any, ...]) -> None:
    """Delete invocations of a job; what had not ended counts as cancelled, and claims on it become stale. The
    books remember what was removed.
    """
    db, scope = transaction.db, f"job = ? AND {where}"
    held = transaction.claimed_of_job(job)
    if held:
        claimed = f"SELECT id FROM invocation WHERE {scope} AND {db.dialect.among('id')}"
        for [id] in db.execute(claimed, (job, *values, db.dialect.listed(held))).fetchall():
            transaction.drop_claim(id)
    remove = "DELETE FROM invocation"
    removed = counted(db, remove, scope, "function, status", (job, *values))
    if db.dialect.returning:
        # What ended while we waited for its row has moved to another partition: now it is found there.
        removed += counted(db, remove, scope, "function, status", (job, *values))
    for function, status, count in removed:
        if status < Status.SUCCEEDED:
            transaction.tally.add(function, CANCELLED, count)
            status = Status.CANCELLED
        transaction.tally.add(function, status - 1 + REMOVED, count)


def _cancel(transaction: Recording, job: int, at: float, *, only: int | None = None) -> None:
    """End the job's unclaimed waiting invocations, or one of them, as cancelled."""
    db, free = transaction.db, "job = :job AND status = 0 AND node IS NULL"
    values: dict[str, Any] = {"job": job, "at": at, "error": _CANCELLED_ERROR}
    if only is not None:
        free += " AND id = :only"
        values["only"] = only
    held = transaction.claimed_of_job(job)
    if held:
        free += f" AND NOT ({db.dialect.among('id', ':held')})"
        values["held"] = db.dialect.listed(held)
    change = "UPDATE invocation SET status = 4, ended_at = :at, error = :error"
    for function, count in counted(db, change, free, "function", values):
        transaction.tally.add(function, CANCELLED, count)
