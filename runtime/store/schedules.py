"""Schedules: what a database remembers of each.

Imports the floor and its own room. Plain functions over a connection; those that write do so in one
transaction.
"""

from collections.abc import Sequence
from typing import Any

from headrace.runtime.store.database import Database
from headrace.runtime.store.protocol import ScheduleState

_COLUMNS = "name, definition, generation, anchor, paused, last_due_at"


def schedule(db: Database, name: str, definition: str, now: float) -> ScheduleState:
    """The schedule, made or changed; of several nodes that bring the same definition, one changes it."""
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


def pause_schedule(db: Database, name: str, paused: bool) -> None:
    db.execute("UPDATE schedule SET paused = ? WHERE name = ?", (paused, name))


def schedules(db: Database) -> list[ScheduleState]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM schedule")
    return sorted((_schedule_of(row) for row in rows), key=lambda state: state.name)


def _schedule_of(row: Sequence[Any]) -> ScheduleState:
    name, definition, generation, anchor, paused, last_due_at = row
    return ScheduleState(name=name, definition=definition, generation=generation, anchor=anchor,
                         paused=bool(paused), last_due_at=last_due_at)  # fmt: skip
