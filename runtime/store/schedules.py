"""Schedules: what a database remembers of each, of its instants, and of its backfills.

Imports the floor and its own room. Plain functions over a connection; those that write do so in one
transaction. What fires is decided in `firing.py`.
"""

from collections.abc import Sequence
from typing import Any

from headrace.runtime.errors import WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.store.database import Database
from headrace.runtime.store.firing import unended
from headrace.runtime.store.protocol import Backfill, Fire, ScheduleState
from headrace.runtime.store.rows import json_decode, text_of

BACKFILLS_KEPT = 1_000
"""Backfills that are remembered after their end."""

_COLUMNS = "name, definition, generation, anchor, paused, last_due_at, resumed_at, queued_at, forgotten_at"
_BACKFILL = (
    "id, schedule, generation, from_at, until_at, position, concurrency, again, instants, created_at, status,"
    " fired, present, live, ended_at, note"
)


def schedule(db: Database, name: str, definition: str, now: float) -> ScheduleState:
    """The schedule, made or changed; of several nodes that bring the same definition, one changes it."""
    # Nearly always nothing is to be changed; the statement below locks the row all the same.
    row = db.execute(f"SELECT {_COLUMNS} FROM schedule WHERE name = ?", (name,)).fetchone()
    if row is not None and row[1] == definition:
        return _schedule_of(row)
    with db.transaction():
        db.execute(
            "INSERT INTO schedule (name, definition, generation, anchor, paused)"
            " VALUES (:name, :definition, 1, :now, FALSE)"
            " ON CONFLICT (name) DO UPDATE SET definition = excluded.definition,"
            " generation = schedule.generation + 1, anchor = excluded.anchor"
            " WHERE schedule.definition != excluded.definition",
            {"name": name, "definition": definition, "now": now},
        )
        row = db.execute(f"SELECT {_COLUMNS} FROM schedule WHERE name = ?", (name,)).fetchone()
    return _schedule_of(row)


def pause_schedule(db: Database, name: str, paused: bool, now: float) -> None:
    if paused:
        db.execute("UPDATE schedule SET paused = TRUE WHERE name = ?", (name,))
    else:
        db.execute(
            "UPDATE schedule SET paused = FALSE, resumed_at = ? WHERE name = ? AND paused", (now, name)
        )


def schedules(db: Database) -> list[ScheduleState]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM schedule")
    return sorted((_schedule_of(row) for row in rows), key=lambda state: state.name)


def fires(
    db: Database, name: str, after: float | None, until: float | None, newest: bool, limit: int
) -> list[Fire]:
    conditions, values = ["schedule = ?"], [name, *(bound for bound in (after, until) if bound is not None)]
    conditions += ["due_at > ?"] if after is not None else []
    conditions += ["due_at <= ?"] if until is not None else []
    rows = db.execute(
        f"SELECT due_at, fired_at, cause, subject, backfill FROM fired WHERE {' AND '.join(conditions)}"
        f" ORDER BY due_at {'DESC' if newest else 'ASC'} LIMIT ?",
        (*values, limit),
    )
    return [
        Fire(due_at=due_at, fired_at=fired_at, cause=cause or "due", subject=subject, backfill=backfill)
        for due_at, fired_at, cause, subject, backfill in rows
    ]


# ---- backfills ----


def begin_backfill(db: Database, backfill: Backfill) -> None:
    with db.transaction():
        # Nodes that begin one of the same schedule at once wait for each other here.
        name = backfill.schedule
        db.execute(f"SELECT name FROM schedule WHERE name = ?{db.dialect.lock}", (name,)).fetchone()
        running = db.execute(
            "SELECT id FROM backfill WHERE schedule = ? AND ended_at IS NULL", (name,)
        ).fetchone()
        if running is not None:
            raise WrongState(
                f"schedule {name}", f"being backfilled by {show_id(running[0])}", "be backfilled beside it"
            )
        db.execute(
            "DELETE FROM backfill WHERE ended_at IS NOT NULL AND id <="
            " (SELECT id FROM backfill ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (BACKFILLS_KEPT,),
        )
        db.execute(
            f"INSERT INTO backfill ({_BACKFILL}) VALUES ({', '.join(['?'] * len(_BACKFILL.split(',')))})",
            (backfill.id, name, backfill.generation, backfill.from_at, backfill.until_at, backfill.position,
             backfill.concurrency, backfill.again, backfill.instants, backfill.created_at, backfill.status,
             backfill.fired, backfill.present, text_of(backfill.live), backfill.ended_at, backfill.note),
        )  # fmt: skip


def pass_backfill(db: Database, id: int, position: float, present: int) -> None:
    db.execute(
        "UPDATE backfill SET position = :position, present = present + :present"
        " WHERE id = :id AND ended_at IS NULL AND position < :position",
        {"id": id, "position": position, "present": present},
    )


def end_backfill(db: Database, id: int, status: str, note: str, now: float) -> Backfill | None:
    with db.transaction():
        row = db.execute(f"SELECT {_BACKFILL} FROM backfill WHERE id = ?{db.dialect.lock}", (id,)).fetchone()
        if row is None:
            return None
        found = _backfill_of(row)
        if found.ended_at is not None:
            return found
        live = unended(db, found.live)
        if live != found.live:
            found.live = live
            db.execute("UPDATE backfill SET live = ? WHERE id = ?", (text_of(live), id))
        if status == "cancelled" or not live:
            found.status, found.note, found.ended_at = status, note, now
            db.execute(
                "UPDATE backfill SET status = ?, note = ?, ended_at = ? WHERE id = ?", (status, note, now, id)
            )
    return found


def backfill(db: Database, id: int) -> Backfill | None:
    row = db.execute(f"SELECT {_BACKFILL} FROM backfill WHERE id = ?", (id,)).fetchone()
    return _backfill_of(row) if row is not None else None


def backfills(
    db: Database, schedule: str | None, running: bool, before: int | None, limit: int
) -> list[Backfill]:
    conditions = ["id < ?"]
    given: list[Any] = [before if before is not None else (1 << 63) - 1]
    if schedule is not None:
        conditions.append("schedule = ?")
        given.append(schedule)
    if running:
        conditions.append("ended_at IS NULL")
    rows = db.execute(
        f"SELECT {_BACKFILL} FROM backfill WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
        (*given, limit),
    )
    return [_backfill_of(row) for row in rows]


def _schedule_of(row: Sequence[Any]) -> ScheduleState:
    name, definition, generation, anchor, paused, last_due_at, resumed_at, queued_at, forgotten_at = row
    return ScheduleState(name=name, definition=definition, generation=generation, anchor=anchor,
                         paused=bool(paused), last_due_at=last_due_at, resumed_at=resumed_at,
                         queued_at=queued_at, forgotten_at=forgotten_at)  # fmt: skip


def _backfill_of(row: Sequence[Any]) -> Backfill:
    (id, schedule, generation, from_at, until_at, position, concurrency, again, instants, created_at, status,
     fired, present, live, ended_at, note) = row  # fmt: skip
    return Backfill(
        id=id, schedule=schedule, generation=generation, from_at=from_at, until_at=until_at,
        position=position, concurrency=concurrency, again=bool(again), instants=instants,
        created_at=created_at, status=status, fired=fired, present=present, live=json_decode(live),
        ended_at=ended_at, note=note,
    )  # fmt: skip
