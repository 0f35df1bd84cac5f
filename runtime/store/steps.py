"""Steps: how the rarer writes are recorded, each by a few statements inside its caller's savepoint.

Imports the floor and its own room. Every step either records all of its write or raises Refused.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from headrace.runtime.errors import Duplicate, IdempotencyMismatch, UnknownInvocation, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import (
    Applied,
    CancelWaiting,
    Closed,
    CursorMoved,
    Deployed,
    Fired,
    Forget,
    FunctionPaused,
    JobMoved,
    JobPlanned,
    JobPut,
    JobRedriven,
    Opened,
    Put,
    Redrive,
    Seen,
    Write,
)
from headrace.runtime.store import jobsteps
from headrace.runtime.store.tally import CANCELLED, DEAD, DEDUPLICATED
from headrace.runtime.store.transaction import PLAIN, Refused, Transaction

FIRED_KEPT = 1_000
"""Due instants remembered of each schedule; an instant before all of them counts as fired."""

_FORGOTTEN_AT_ONCE = 100


def record(transaction: Transaction, write: Write, now: float) -> Applied:
    """Record one write that is not on the usual path."""
    return _STEPS[type(write)](transaction, write, now)


def put(transaction: Transaction, write: Put, now: float) -> Applied:
    """An invocation with an idempotency key, or with a place in a job."""
    db, invocation = transaction.db, write.invocation
    if invocation.job is not None:
        taken = db.execute(
            "SELECT id FROM invocation WHERE job = ? AND stage = ? AND idx = ?",
            (invocation.job, invocation.stage, invocation.index),
        ).fetchone()
        if taken is not None:
            place = f"job {show_id(invocation.job)}, stage {invocation.stage}, index {invocation.index}"
            raise Refused(Duplicate(f"{place} is invocation {show_id(taken[0])}"))
    if invocation.idempotency_key is not None:
        name = (invocation.function, invocation.idempotency_key)
        said = (invocation.payload_ref or "").encode() + b"\0" + invocation.payload
        if write.fingerprint:
            said = b"\0" + write.fingerprint
        digest = hashlib.blake2b(said, digest_size=16).digest()
        db.execute(
            "DELETE FROM idempotency WHERE (function, \"key\") IN (SELECT function, \"key\" FROM idempotency"
            " WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
            (now, _FORGOTTEN_AT_ONCE),
        )  # fmt: skip
        known = db.execute(
            'SELECT invocation, payload_hash, expires_at FROM idempotency WHERE function = ? AND "key" = ?',
            name,
        ).fetchone()
        if known is not None and known[2] > now:
            if known[1] != digest:
                raise Refused(IdempotencyMismatch(*name))
            transaction.tally.add(invocation.function, DEDUPLICATED)
            return Applied(known[0], True)
        db.execute(
            "INSERT OR REPLACE INTO idempotency (function, \"key\", invocation, payload_hash, expires_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (*name, invocation.id, digest, write.idempotency_until),
        )  # fmt: skip
    applied = transaction.accept(invocation, write.node)
    transaction.flush()
    return applied


def cancel_waiting(transaction: Transaction, write: CancelWaiting, now: float) -> Applied:
    function, status = _state(transaction, write.id)
    if status is not Status.WAITING or write.id in transaction.claims.held:
        shown = "claimed" if status is Status.WAITING else status.name.lower()
        raise Refused(WrongState(f"invocation {show_id(write.id)}", shown, "be cancelled as waiting"))
    transaction.db.execute(
        "UPDATE invocation SET status = 4, ended_at = ?, error = ? WHERE id = ?",
        (now, '{"code":"cancelled","message":"cancelled while it waited"}', write.id),
    )
    transaction.tally.add(function, CANCELLED)
    return PLAIN


def redrive(transaction: Transaction, write: Redrive, now: float) -> Applied:
    function, status = _state(transaction, write.id)
    if status is not Status.DEAD:
        raise Refused(WrongState(f"invocation {show_id(write.id)}", status.name.lower(), "be redriven"))
    flow, priority = transaction.db.execute(
        "SELECT flow, priority FROM invocation WHERE id = ?", (write.id,)
    ).fetchone()
    transaction.db.execute(
        "UPDATE invocation SET status = 0, attempts = 0, due_at = ?, expires_at = ?, started_at = NULL,"
        " ended_at = NULL,"
        " result = NULL, result_ref = NULL, error = NULL, node = NULL WHERE id = ?",
        (write.due_at, write.expires_at, write.id),
    )
    transaction.tally.add(function, DEAD, -1)
    transaction.claims.freed(flow, priority, write.due_at, write.id)
    return PLAIN


def _state(transaction: Transaction, id: int) -> tuple[str, Status]:
    row = transaction.db.execute("SELECT function, status FROM invocation WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise Refused(UnknownInvocation(show_id(id)))
    return row[0], Status(row[1])


def seen(transaction: Transaction, write: Seen, now: float) -> Applied:
    """The rules of Seen. A row made or renewed by a listing is `listed`: its sequencer is an older upload's,
    or none.
    """
    db = transaction.db
    name = (write.trigger, write.bucket, write.key, write.version_id)
    row = db.execute(
        "SELECT etag, size, sequencer, modified_at, listed FROM ledger"
        ' WHERE "trigger" = ? AND bucket = ? AND "key" = ? AND version_id = ?',
        name,
    ).fetchone()
    sequencer, by_listing = write.sequencer, write.listed or not write.sequencer
    if row is not None:
        etag, size, known, modified_at, listed = row
        same = (etag, size) == (write.etag, write.size)
        duplicate = Duplicate(f"s3://{write.bucket}/{write.key} in the ledger of {write.trigger}")
        if by_listing:
            if same or write.modified_at < modified_at:
                raise Refused(duplicate)
            sequencer = max(known, write.sequencer, key=lambda text: text.rstrip("0"))
        elif not _higher(write.sequencer, known):
            raise Refused(duplicate)
        elif listed and same:
            fill = (write.sequencer, *name)
            raise Refused(duplicate, lambda transaction: _fill_in(transaction, fill))
        elif listed and write.modified_at < modified_at:
            raise Refused(
                duplicate
            )  # a late notification of an upload that a newer one, already fired, has replaced
    db.execute(
        'INSERT OR REPLACE INTO ledger ("trigger", bucket, "key", version_id, etag, size, sequencer,'
        " modified_at, listed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*name, write.etag, write.size, sequencer, write.modified_at, by_listing),
    )
    return PLAIN


def _fill_in(transaction: Transaction, fill: tuple[str, ...]) -> None:
    """A late notification gives its sequencer to the row that a sweep made, though its list is refused."""
    transaction.db.execute(
        "UPDATE ledger SET sequencer = ?, listed = 0"
        ' WHERE "trigger" = ? AND bucket = ? AND "key" = ? AND version_id = ?',
        fill,
    )


def _higher(sequencer: str, known: str) -> bool:
    """Whether a sequencer is the later one.

    Source: "Event message structure", Amazon S3 User Guide: of two for one key, the shorter is padded with
    zeros on the right, and then they are compared as text.
    """
    length = max(len(sequencer), len(known))
    return sequencer.ljust(length, "0") > known.ljust(length, "0")


def forget(transaction: Transaction, write: Forget, now: float) -> Applied:
    transaction.db.executemany(
        'DELETE FROM ledger WHERE "trigger" = ? AND bucket = ? AND "key" = ?',
        [(write.trigger, write.bucket, key) for key in write.keys],
    )
    return PLAIN


def fired(transaction: Transaction, write: Fired, now: float) -> Applied:
    db = transaction.db
    duplicate = Duplicate(f"schedule {write.schedule} at {write.due_at}, generation {write.generation}")
    row = db.execute("SELECT generation FROM schedule WHERE name = ?", (write.schedule,)).fetchone()
    if row is None or row[0] != write.generation:
        raise Refused(duplicate)
    oldest = db.execute(
        "SELECT due_at FROM fired WHERE schedule = ? ORDER BY due_at DESC LIMIT 1 OFFSET ?",
        (write.schedule, FIRED_KEPT - 1),
    ).fetchone()
    if oldest is not None and write.due_at <= oldest[0]:
        raise Refused(duplicate)
    inserted = db.execute(
        "INSERT OR IGNORE INTO fired VALUES (?, ?)", (write.schedule, write.due_at)
    ).rowcount
    if not inserted:
        raise Refused(duplicate)
    if oldest is not None:
        db.execute("DELETE FROM fired WHERE schedule = ? AND due_at < ?", (write.schedule, oldest[0]))
    db.execute(
        "UPDATE schedule SET last_due_at = max(coalesce(last_due_at, :due), :due) WHERE name = :name",
        {"due": write.due_at, "name": write.schedule},
    )
    return PLAIN


def cursor_moved(transaction: Transaction, write: CursorMoved, now: float) -> Applied:
    transaction.db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?)", (write.name, write.value))
    return PLAIN


def function_paused(transaction: Transaction, write: FunctionPaused, now: float) -> Applied:
    if write.paused:
        transaction.db.execute("INSERT OR IGNORE INTO paused VALUES (?)", (write.function,))
    else:
        transaction.db.execute("DELETE FROM paused WHERE function = ?", (write.function,))
    return PLAIN


def closed(transaction: Transaction, write: Closed, now: float) -> Applied:
    transaction.db.execute("DELETE FROM closure WHERE until_at <= ?", (now,))
    transaction.db.execute(
        "INSERT INTO closure (name, until_at, reason) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET until_at = excluded.until_at, reason = excluded.reason"
        " WHERE closure.until_at < excluded.until_at",
        (write.name, write.until_at, write.reason),
    )
    return PLAIN


def opened(transaction: Transaction, write: Opened, now: float) -> Applied:
    transaction.db.execute("DELETE FROM closure WHERE name = ?", (write.name,))
    return PLAIN


def deployed(transaction: Transaction, write: Deployed, now: float) -> Applied:
    transaction.db.execute(
        "INSERT INTO deployment (node, since, version) VALUES (?, ?, ?)"
        " ON CONFLICT (node, since) DO UPDATE SET version = excluded.version",
        (write.node, write.at, write.version),
    )
    return PLAIN


_STEPS: dict[type, Callable[[Transaction, Any, float], Applied]] = {
    Put: put,
    CancelWaiting: cancel_waiting,
    Redrive: redrive,
    Seen: seen,
    Forget: forget,
    Fired: fired,
    CursorMoved: cursor_moved,
    FunctionPaused: function_paused,
    Closed: closed,
    Opened: opened,
    Deployed: deployed,
    JobPut: jobsteps.put,
    JobPlanned: jobsteps.planned,
    JobMoved: jobsteps.moved,
    JobRedriven: jobsteps.redriven,
}
