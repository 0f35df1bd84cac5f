"""Firing: the step that decides, for each due instant of a schedule, whether it fires.

Imports the floor and its own room. Several nodes ask for one instant at once: the schedule's row is locked by
one of them, the others are told to ask again, and are then refused by what the first has left.
"""

from typing import Any

from headrace.runtime.errors import Contended, Duplicate, Overlapping
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.write import Applied, Fired
from headrace.runtime.store.database import Database
from headrace.runtime.store.recording import PLAIN, Recording, Refused
from headrace.runtime.store.rows import json_decode, text_of

FIRED_KEPT = 10_000
"""Due instants remembered of each schedule; an instant before all of them counts as fired."""

FORGET_EVERY = 64
"""After how many instants more those beyond FIRED_KEPT are removed."""

LIVE_MAX = 100
"""How many of the newest fires are looked at for those that have not ended."""

IN_TURN = frozenset(("due", "missed", "queued"))
"""The causes by which a schedule fires by itself: the overlap policy is about these."""


def fired(transaction: Recording, write: Fired, now: float) -> Applied:
    db = transaction.db
    queued_at, forgotten_at = _locked(db, write)
    duplicate = _duplicate(write)
    known = db.execute(
        "SELECT cause FROM fired WHERE schedule = ? AND due_at = ?", (write.schedule, write.due_at)
    ).fetchone()
    forgotten = forgotten_at is not None and write.due_at <= forgotten_at
    if not write.again and (forgotten or _stands(write, known, queued_at)):
        raise Refused(duplicate)
    if write.overlap != "allow" and write.cause in IN_TURN:
        _look_for_overlap(db, write, queued_at)
    if write.backfill is not None:
        _move_backfill(db, write, duplicate)
    if write.cause == "waits":
        _queue(db, write, queued_at, now)
        return PLAIN
    if queued_at is not None and (queued_at == write.due_at or write.overlap == "cancel"):
        # It fires now, or gives way to this one.
        db.execute("UPDATE schedule SET queued_at = NULL WHERE name = ?", (write.schedule,))
        if queued_at != write.due_at:
            db.execute(
                "UPDATE fired SET cause = 'skipped' WHERE schedule = ? AND due_at = ?",
                (write.schedule, queued_at),
            )
    _remember(db, write, "due" if write.cause == "queued" else write.cause, now)
    return PLAIN


def unended(db: Database, ids: list[int]) -> list[int]:
    """Those of these invocations and jobs that have not ended."""
    if not ids:
        return []
    among, listed = db.dialect.among("id"), db.dialect.listed(ids)
    found = {
        id
        for condition in ("invocation WHERE status IN (0, 1)", "job WHERE ended_at IS NULL")
        for [id] in db.execute(f"SELECT id FROM {condition} AND {among}", (listed,))
    }
    return [id for id in ids if id in found]


def _duplicate(write: Fired) -> Duplicate:
    return Duplicate(f"schedule {write.schedule} at {write.due_at}, generation {write.generation}")


def _locked(db: Database, write: Fired) -> tuple[float | None, float | None]:
    """What the schedule's row says of `queued_at` and `forgotten_at`; it stays so until the end of the
    transaction.

    Nobody waits for the row: a transaction holds those of many schedules, in whatever order they came, so
    that waiting nodes would often wait for each other.
    """
    row = db.execute(
        f"SELECT generation, queued_at, forgotten_at FROM schedule WHERE name = ?{db.dialect.skip}",
        (write.schedule,),
    ).fetchone()
    if row is None:
        row = db.execute("SELECT generation FROM schedule WHERE name = ?", (write.schedule,)).fetchone()
        if row is not None and row[0] == write.generation:
            raise Refused(Contended(f"schedule {write.schedule}"))
    if row is None or row[0] != write.generation:
        raise Refused(_duplicate(write))
    return row[1], row[2]


def _stands(write: Fired, known: Any, queued_at: float | None) -> bool:
    """Whether what is recorded of the instant refuses this write."""
    if write.cause == "queued":
        return known is None or queued_at != write.due_at
    if known is None:
        return False
    return write.cause not in ("run", "backfill") or known[0] != "skipped"


def _look_for_overlap(db: Database, write: Fired, queued_at: float | None) -> None:
    """Refuse what would overlap with an earlier fire."""
    newest = db.execute(
        "SELECT subject FROM fired WHERE schedule = ? AND subject IS NOT NULL"
        " AND cause IN ('due', 'missed') ORDER BY due_at DESC LIMIT ?",
        (write.schedule, LIVE_MAX),
    )
    live = unended(db, [subject for [subject] in newest])
    waits = queued_at is not None and write.cause != "queued" and write.overlap != "cancel"
    if live or waits:
        raise Refused(Overlapping(write.schedule, [show_id(id) for id in live]))


def _queue(db: Database, write: Fired, queued_at: float | None, now: float) -> None:
    """One instant waits; while it does, others are skipped."""
    _remember(db, write, "queued" if queued_at is None else "skipped", now)
    if queued_at is None:
        db.execute("UPDATE schedule SET queued_at = ? WHERE name = ?", (write.due_at, write.schedule))


def _move_backfill(db: Database, write: Fired, duplicate: Duplicate) -> None:
    row = db.execute(
        f"SELECT status, position, concurrency, live FROM backfill WHERE id = ?{db.dialect.lock}",
        (write.backfill,),
    ).fetchone()
    if row is None or row[0] != "running" or write.due_at <= row[1]:
        raise Refused(duplicate)
    live = unended(db, json_decode(row[3]))
    if len(live) >= row[2]:
        raise Refused(Overlapping(write.schedule, [show_id(id) for id in live]))
    if write.subject is not None:
        live.append(write.subject)
    db.execute(
        "UPDATE backfill SET position = ?, fired = fired + 1, present = present + ?, live = ? WHERE id = ?",
        (write.due_at, write.present, text_of(live), write.backfill),
    )


def _remember(db: Database, write: Fired, cause: str, now: float) -> None:
    db.execute(
        "INSERT INTO fired (schedule, due_at, fired_at, cause, subject, backfill) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (schedule, due_at) DO UPDATE SET fired_at = excluded.fired_at, cause = excluded.cause,"
        " subject = excluded.subject, backfill = excluded.backfill",
        (write.schedule, write.due_at, now, cause, write.subject, write.backfill),
    )
    # An instant that is fired by hand says nothing of those between.
    moves = write.cause not in ("run", "backfill")
    db.execute(
        "UPDATE schedule SET recorded = coalesce(recorded, 0) + 1, last_due_at = CASE WHEN :moves = 0"
        " OR last_due_at > :due THEN last_due_at ELSE :due END WHERE name = :name",
        {"moves": int(moves), "due": write.due_at, "name": write.schedule},
    )
    [recorded] = db.execute("SELECT recorded FROM schedule WHERE name = ?", (write.schedule,)).fetchone()
    if recorded % FORGET_EVERY == 0:
        _forget(db, write.schedule)


def _forget(db: Database, schedule: str) -> None:
    oldest = db.execute(
        "SELECT due_at FROM fired WHERE schedule = ? ORDER BY due_at DESC LIMIT 1 OFFSET ?",
        (schedule, FIRED_KEPT),
    ).fetchone()
    if oldest is None:
        return
    db.execute("DELETE FROM fired WHERE schedule = ? AND due_at <= ?", (schedule, oldest[0]))
    db.execute(
        "UPDATE schedule SET forgotten_at = :due WHERE name = :name"
        " AND (forgotten_at IS NULL OR forgotten_at < :due)",
        {"due": oldest[0], "name": schedule},
    )
