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
    CancelMatching,
    CancelWaiting,
    Closed,
    CursorMoved,
    Deployed,
    Discard,
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
from headrace.runtime.store import firing, jobsteps
from headrace.runtime.store.database import Database, counted
from headrace.runtime.store.page import ids
from headrace.runtime.store.recording import PLAIN, Recording, Refused
from headrace.runtime.store.rows import json_decode, text_of
from headrace.runtime.store.tally import CANCELLED, DEAD, DEDUPLICATED

DEPLOYMENTS_KEPT = 1_000
_CANCELLED_WAITING = '{"code":"cancelled","message":"cancelled while it waited"}'


def record(transaction: Recording, write: Write, now: float) -> Applied:
    """Record one write that is not on the usual path."""
    return _STEPS[type(write)](transaction, write, now)


def put(transaction: Recording, write: Put, now: float) -> Applied:
    """An invocation with an idempotency key, or with a place in a job."""
    db, invocation = transaction.db, write.invocation
    if invocation.job is not None:
        # Two nodes may fill one place: the job's row is what they wait for each other at.
        db.execute(f"SELECT id FROM job WHERE id = ?{db.dialect.lock}", (invocation.job,)).fetchone()
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
        known = _first_with_key(db, name, (invocation.id, digest, write.idempotency_until), now)
        if known is not None:
            if known[1] != digest:
                raise Refused(IdempotencyMismatch(*name))
            transaction.tally.add(invocation.function, DEDUPLICATED)
            return Applied(known[0], True)
    applied = transaction.accept(invocation, write.node)
    transaction.flush()
    return applied


def _first_with_key(
    db: Database, name: tuple[str, str], entry: tuple[int, bytes, float], now: float
) -> tuple[int, bytes] | None:
    """The invocation and payload hash that an idempotency key stands for, None when it now stands for those
    of `entry`.
    """
    look = not db.dialect.lock  # on a server each question is a journey: there the insertion asks it too
    while True:
        if look:
            known = db.execute(
                "SELECT invocation, payload_hash, expires_at FROM idempotency"
                ' WHERE function = ? AND "key" = ?',
                name,
            ).fetchone()
            if known is not None and (known[2] > now or _unfinished(db, known[0])):
                return (known[0], known[1])
        taken = db.execute(
            'INSERT INTO idempotency (function, "key", invocation, payload_hash, expires_at)'
            ' VALUES (?, ?, ?, ?, ?) ON CONFLICT (function, "key") DO UPDATE'
            " SET invocation = excluded.invocation, payload_hash = excluded.payload_hash,"
            " expires_at = excluded.expires_at WHERE idempotency.expires_at <= ? AND NOT EXISTS"
            " (SELECT 1 FROM invocation WHERE invocation.id = idempotency.invocation"
            " AND invocation.status IN (0, 1))",
            (*name, *entry, now),
        ).rowcount
        if taken:
            return None
        look = True


def _unfinished(db: Database, id: int) -> bool:
    """Whether a key that is past its time still stands: its first invocation has not ended."""
    query = "SELECT 1 FROM invocation WHERE id = ? AND status IN (0, 1)"
    return db.execute(query, (id,)).fetchone() is not None


def cancel_waiting(transaction: Recording, write: CancelWaiting, now: float) -> Applied:
    function, status, node = _locked(transaction, write.id, "function, status, node")
    if status != Status.WAITING or node is not None or transaction.is_claimed(write.id):
        shown = "claimed" if status == Status.WAITING else _shown(status)
        raise Refused(WrongState(f"invocation {show_id(write.id)}", shown, "be cancelled as waiting"))
    transaction.db.execute(
        "UPDATE invocation SET status = 4, ended_at = ?, error = ? WHERE id = ? AND status = 0",
        (now, _CANCELLED_WAITING, write.id),
    )
    transaction.tally.add(function, CANCELLED)
    return PLAIN


def redrive(transaction: Recording, write: Redrive, now: float) -> Applied:
    db = transaction.db
    if db.dialect.share:
        # Retention removes a job only with all of its invocations, and a job is locked before they are.
        db.execute(
            f"SELECT id FROM job WHERE id = (SELECT job FROM invocation WHERE id = ?){db.dialect.share}",
            (write.id,),
        ).fetchone()
    function, flow, priority, status = _locked(transaction, write.id, "function, flow, priority, status")
    if status != Status.DEAD:
        raise Refused(WrongState(f"invocation {show_id(write.id)}", _shown(status), "be redriven"))
    if write.payload is not None or write.payload_ref is not None:
        db.execute(
            "UPDATE invocation SET payload = ?, payload_ref = ? WHERE id = ? AND status = 3",
            (write.payload or b"", write.payload_ref, write.id),
        )
    db.execute(
        "UPDATE invocation SET status = 0, attempts = 0, due_at = ?, expires_at = ?, started_at = NULL,"
        " ended_at = NULL,"
        " result = NULL, result_ref = NULL, error = NULL, node = NULL WHERE id = ? AND status = 3",
        (write.due_at, write.expires_at, write.id),
    )
    transaction.tally.add(function, DEAD, -1)
    transaction.freed(flow, priority, write.due_at, write.id)
    return PLAIN


def discard(transaction: Recording, write: Discard, now: float) -> Applied:
    function, status, error = _locked(transaction, write.id, "function, status, error")
    if status != Status.DEAD:
        raise Refused(WrongState(f"invocation {show_id(write.id)}", _shown(status), "be discarded"))
    told = {"code": "cancelled", "message": "discarded by request", "cause": json_decode(error or "null")}
    transaction.db.execute(
        "UPDATE invocation SET status = 4, ended_at = ?, error = ? WHERE id = ? AND status = 3",
        (now, text_of(told), write.id),
    )
    transaction.tally.add(function, DEAD, -1)
    transaction.tally.add(function, CANCELLED)
    return PLAIN


def cancel_matching(transaction: Recording, write: CancelMatching, now: float) -> Applied:
    """A function's are found through the index of what waits: its flows are its name, and its name, `#` and a
    key. With a tag the rows have to be read, once each, in the order of their ids.
    """
    db = transaction.db
    where, values = f"{db.dialect.waiting} AND job IS NULL AND id > ?", list[Any]([write.after])
    held = transaction.claimed()
    if held:
        where += f" AND NOT ({db.dialect.among('id')})"
        values.append(db.dialect.listed(held))
    if write.below is not None:
        where += " AND id < ?"
        values.append(write.below)
    if write.function is not None:
        where += " AND flow >= ? AND flow < ? AND function = ?"
        values += [write.function, write.function + "$", write.function]  # $ is the character after #
    order = ""
    if write.tag is not None:
        where += f" AND {db.dialect.position}(',' || tags || ',', ?) > 0"
        values.append(f",{write.tag},")
        order = " ORDER BY id"
    # What others are claiming at this moment does not match.
    query = f"SELECT id FROM invocation WHERE {where}{order} LIMIT ?{db.dialect.skip}"
    found = ids(db, query, (*values, write.limit))
    for function, count in counted(
        db,
        "UPDATE invocation SET status = 4, ended_at = :at, error = :error",
        f"{db.dialect.among('id', ':found')} AND status = 0",
        "function",
        {"at": now, "error": _CANCELLED_WAITING, "found": db.dialect.listed(found)},
    ):
        transaction.tally.add(function, CANCELLED, count)
    return Applied(ids=found)


def _locked(transaction: Recording, id: int, columns: str) -> tuple[Any, ...]:
    """Columns of an invocation that nobody else changes until the transaction ends."""
    db = transaction.db
    while True:
        row: tuple[Any, ...] | None = db.execute(
            f"SELECT {columns} FROM invocation WHERE id = ?{db.dialect.lock}", (id,)
        ).fetchone()
        if row is not None:
            return row
        # A row for which we waited while another node moved it to another partition is not found there.
        if db.execute("SELECT id FROM invocation WHERE id = ?", (id,)).fetchone() is None:
            raise Refused(UnknownInvocation(show_id(id)))


def _shown(status: int) -> str:
    return Status(status).name.lower()


def seen(transaction: Recording, write: Seen, now: float) -> Applied:
    """The rules of Seen. A row made or renewed by a listing is `listed`: its sequencer is an older upload's,
    or none.
    """
    db = transaction.db
    name = (write.trigger, write.bucket, write.key, write.version_id)
    by_listing = write.listed or not write.sequencer
    while (row := _ledger_row(db, name)) is None:
        inserted = db.execute(
            'INSERT INTO ledger ("trigger", bucket, "key", version_id, etag, size, sequencer, modified_at,'
            " listed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*name, write.etag, write.size, write.sequencer, write.modified_at, by_listing),
        ).rowcount
        if inserted:
            return PLAIN  # otherwise another node was faster, and its row is judged
    sequencer = write.sequencer
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
        fill = (write.sequencer, *name, etag, size)
        raise Refused(duplicate, lambda transaction: _fill_in(transaction, fill))
    elif listed and write.modified_at < modified_at:
        # A late notification of an upload that a newer one, already fired, has replaced.
        raise Refused(duplicate)
    db.execute(
        f"UPDATE ledger SET etag = ?, size = ?, sequencer = ?, modified_at = ?, listed = ? WHERE {_LEDGER}",
        (write.etag, write.size, sequencer, write.modified_at, by_listing, *name),
    )
    return PLAIN


_LEDGER = '"trigger" = ? AND bucket = ? AND "key" = ? AND version_id = ?'


def _ledger_row(db: Database, name: tuple[str, ...]) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = db.execute(
        f"SELECT etag, size, sequencer, modified_at, listed FROM ledger WHERE {_LEDGER}{db.dialect.lock}",
        name,
    ).fetchone()
    return row


def _fill_in(transaction: Recording, fill: tuple[Any, ...]) -> None:
    """A late notification gives its sequencer to the row that a sweep made, though its list is refused."""
    transaction.db.execute(
        f"UPDATE ledger SET sequencer = ?, listed = FALSE WHERE {_LEDGER} AND listed AND etag = ?"
        " AND size = ?",
        fill,
    )


def _higher(sequencer: str, known: str) -> bool:
    """Whether a sequencer is the later one.

    Source: "Event message structure", Amazon S3 User Guide: of two for one key, the shorter is padded with
    zeros on the right, and then they are compared as text.
    """
    length = max(len(sequencer), len(known))
    return sequencer.ljust(length, "0") > known.ljust(length, "0")


def forget(transaction: Recording, write: Forget, now: float) -> Applied:
    only = " AND etag = ''" if write.gone else ""
    transaction.db.executemany(
        f'DELETE FROM ledger WHERE "trigger" = ? AND bucket = ? AND "key" = ?{only}',
        [(write.trigger, write.bucket, key) for key in sorted(write.keys)],
    )
    return PLAIN


def cursor_moved(transaction: Recording, write: CursorMoved, now: float) -> Applied:
    if write.expected is not None:
        if write.expected:
            moved = transaction.db.execute(
                "UPDATE cursor SET value = ? WHERE name = ? AND value = ?",
                (write.value, write.name, write.expected),
            )
        else:
            moved = transaction.db.execute(
                "INSERT INTO cursor (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                (write.name, write.value),
            )
        if not moved.rowcount:
            raise Refused(Duplicate(f"the position {write.name!r} is not {write.expected!r} any more"))
        return PLAIN
    transaction.db.execute(
        "INSERT INTO cursor (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (write.name, write.value),
    )
    return PLAIN


def function_paused(transaction: Recording, write: FunctionPaused, now: float) -> Applied:
    if write.paused:
        transaction.db.execute(
            "INSERT INTO paused (function) VALUES (?) ON CONFLICT DO NOTHING", (write.function,)
        )
    else:
        transaction.db.execute("DELETE FROM paused WHERE function = ?", (write.function,))
    return PLAIN


def closed(transaction: Recording, write: Closed, now: float) -> Applied:
    transaction.db.execute("DELETE FROM closure WHERE until_at <= ?", (now,))
    transaction.db.execute(
        "INSERT INTO closure (name, until_at, reason) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET until_at = excluded.until_at, reason = excluded.reason"
        " WHERE closure.until_at < excluded.until_at",
        (write.name, write.until_at, write.reason),
    )
    return PLAIN


def opened(transaction: Recording, write: Opened, now: float) -> Applied:
    transaction.db.execute("DELETE FROM closure WHERE name = ?", (write.name,))
    return PLAIN


def deployed(transaction: Recording, write: Deployed, now: float) -> Applied:
    transaction.db.execute(
        "INSERT INTO deployment (node, since, version) VALUES (?, ?, ?)"
        " ON CONFLICT (node, since) DO UPDATE SET version = excluded.version",
        (write.node, write.at, write.version),
    )
    transaction.db.execute(
        "DELETE FROM deployment WHERE since <"
        " (SELECT since FROM deployment ORDER BY since DESC LIMIT 1 OFFSET ?)",
        (DEPLOYMENTS_KEPT,),
    )
    return PLAIN


_STEPS: dict[type, Callable[[Recording, Any, float], Applied]] = {
    Put: put,
    CancelWaiting: cancel_waiting,
    Redrive: redrive,
    Discard: discard,
    CancelMatching: cancel_matching,
    Seen: seen,
    Forget: forget,
    Fired: firing.fired,
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
