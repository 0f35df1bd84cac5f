"""Calls: what runs on the writer's thread between transactions: claims, leases, schedules' states, retention.

Imports the floor and its own room. Plain functions over the writing connection; each that writes does so in
one transaction of its own, and whoever runs it rolls back when it raises.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.runtime.model.invocation import Claim
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.page import ids, invocations
from headrace.runtime.store.protocol import ScheduleState
from headrace.runtime.store.reads import SCHEDULE, priorities, schedule_of
from headrace.runtime.store.rows import INVOCATION, invocation_of, json_encode

# The ids come as one row (see `page`). Two ranges, since SQLite seeks by the first column alone of a
# comparison of pairs: it would read every equal moment.
_WAITING = "SELECT id, due_at FROM invocation WHERE status = 0 AND flow = :flow AND priority = :priority"
_NEXT = (
    "SELECT json_group_array(id), max(due_at) FROM ("
    f"SELECT * FROM ({_WAITING} AND due_at = :after_due AND id > :after_id ORDER BY id LIMIT :limit)"
    " UNION ALL"
    f" SELECT * FROM ({_WAITING} AND due_at > :after_due AND due_at <= :now ORDER BY due_at, id LIMIT :limit)"
    " LIMIT :limit)"
)
_NEXT_MAX = 1_000
_ids = msgspec.json.Decoder(list[int]).decode


def claim(
    db: sqlite3.Connection, claims: Claims, node: str, flow: str, limit: int, now: float
) -> list[Claim]:
    """The next unclaimed due invocations, read from where the flow's last claim ended: as dear as `limit`."""
    chosen: list[int] = []
    heads: list[tuple[int, float, int]] = []
    for priority in priorities(db, flow):
        due_at, id = claims.head(flow, priority)
        moved = False
        while len(chosen) < limit:
            want = min(limit - len(chosen), _NEXT_MAX)
            asked = {
                "flow": flow,
                "priority": priority,
                "now": now,
                "after_due": due_at,
                "after_id": id,
                "limit": want,
            }
            text, last_due_at = db.execute(_NEXT, asked).fetchone()
            page = _ids(text)
            if not page:
                break
            chosen += [id for id in page if id not in claims.held]
            due_at, id, moved = last_due_at, page[-1], True
            if len(page) < want:
                break
        if moved:
            heads.append((priority, due_at, id))
        if len(chosen) >= limit:
            break
    if not chosen:
        claimed: list[Claim] = []
    else:
        found = invocations(db, chosen)
        claimed = [Claim(found[id], found[id].attempts + 1, node) for id in chosen]
        for taken in claimed:
            claims.hold(taken)
    for priority, due_at, id in heads:
        claims.advance(flow, priority, due_at, id)
    return claimed


def next_due(db: sqlite3.Connection, claims: Claims, flow: str, now: float) -> float | None:
    earliest: float | None = None
    for priority in priorities(db, flow):
        for id, due_at in db.execute(
            "SELECT id, due_at FROM invocation WHERE status = 0 AND flow = ? AND priority = ? AND due_at > ?"
            " ORDER BY due_at, id",
            (flow, priority, now),
        ):
            if id not in claims.held:
                earliest = due_at if earliest is None else min(earliest, due_at)
                break
    return earliest


# ---- claims given back ----


def release(db: sqlite3.Connection, claims: Claims, given_back: Sequence[Claim]) -> None:
    """Claims that were not begun wait again; no attempt is spent."""
    standing = [claim for claim in given_back if claims.stands(claim)]
    _wait_again(
        db, claims, [claim for claim in standing if claim.invocation.id in claims.marked], spent=False
    )
    _free(claims, standing)


def leave(db: sqlite3.Connection, claims: Claims, node: str) -> None:
    release(db, claims, claims.of_nodes({node}))
    db.execute("DELETE FROM node WHERE name = ?", (node,))
    claims.leases.pop(node, None)


def release_expired(db: sqlite3.Connection, claims: Claims, now: float) -> list[Claim]:
    gone = claims.expired(now)
    held = claims.of_nodes(gone) if gone else []
    begun = [claim for claim in held if claim.invocation.id in claims.marked]
    _wait_again(db, claims, begun, spent=True)
    _free(claims, held)
    lost, claims.lost = claims.lost, []
    return lost + begun


def _wait_again(db: sqlite3.Connection, claims: Claims, begun: list[Claim], *, spent: bool) -> None:
    """Undo in the rows what MarkRunning recorded."""
    if begun:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "UPDATE invocation SET status = 0, attempts = ?, node = NULL, started_at = NULL WHERE id = ?",
            [(claim.attempt if spent else claim.attempt - 1, claim.invocation.id) for claim in begun],
        )
        db.execute("COMMIT")


def _free(claims: Claims, given_back: list[Claim]) -> None:
    for claim in given_back:
        claims.drop(claim.invocation.id)
        claims.freed_claim(claim)


# ---- nodes ----


def join(db: sqlite3.Connection, claims: Claims, node: str, until: float, now: float) -> int:
    """Numbers come from a counter in the file, so that they grow over restarts."""
    db.execute("BEGIN IMMEDIATE")
    [last] = db.execute("SELECT value FROM meta WHERE \"key\" = 'nodes'").fetchone()
    number = int(last) + 1
    db.execute("UPDATE meta SET value = ? WHERE \"key\" = 'nodes'", (str(number),))
    db.execute(
        "INSERT OR REPLACE INTO node (name, number, joined_at, until_at) VALUES (?, ?, ?, ?)",
        (node, number, now, until),
    )
    db.execute("COMMIT")
    claims.leases[node] = until
    return number


def recover(db: sqlite3.Connection) -> list[Claim]:
    """At start: what an earlier process was recorded to run waits again, an attempt spent."""
    rows = db.execute(f"SELECT {INVOCATION}, node FROM invocation WHERE status = 1").fetchall()
    lost = [Claim(invocation_of(row), row[8] + 1, row[17] or "") for row in rows]
    db.execute("BEGIN IMMEDIATE")
    db.execute(
        "UPDATE invocation SET status = 0, attempts = attempts + 1, node = NULL, started_at = NULL WHERE"
        " status = 1"
    )
    db.execute("DELETE FROM node")
    db.execute("COMMIT")
    return lost


# ---- schedules ----


def schedule(db: sqlite3.Connection, name: str, definition: str, now: float) -> ScheduleState:
    db.execute("BEGIN IMMEDIATE")
    db.execute(
        "INSERT INTO schedule (name, definition, generation, anchor, paused)"
        " VALUES (:name, :definition, 1, :now, 0)"
        " ON CONFLICT (name) DO UPDATE"
        " SET definition = :definition, generation = generation + 1, anchor = :now"
        " WHERE definition != :definition",
        {"name": name, "definition": definition, "now": now},
    )
    row = db.execute(f"SELECT {SCHEDULE} FROM schedule WHERE name = ?", (name,)).fetchone()
    db.execute("COMMIT")
    return schedule_of(row)


def pause_schedule(db: sqlite3.Connection, name: str, paused: bool) -> None:
    db.execute("UPDATE schedule SET paused = ? WHERE name = ?", (paused, name))


# ---- retention ----

_ENDED = "status IN (2, 4) AND job IS NULL"


def expire(
    db: sqlite3.Connection, succeeded_before: float, dead_before: float, keep: int, limit: int, system: str
) -> list[str]:
    """One batch of retention, the oldest first."""
    db.execute("BEGIN IMMEDIATE")
    kept = db.execute(f"SELECT count(*) FROM invocation WHERE {_ENDED}").fetchone()[0]
    ended = _first(db, f"{_ENDED} AND ended_at < ? ORDER BY ended_at, id LIMIT ?", (succeeded_before, limit))
    beyond = min(kept - keep, limit)
    if beyond > len(ended):
        ended = _first(db, f"{_ENDED} ORDER BY ended_at, id LIMIT ?", (beyond,))
    ended += _first(
        db,
        "status = 3 AND job IS NULL AND ended_at < ? ORDER BY ended_at, id LIMIT ?",
        (dead_before, limit - len(ended)),
    )
    refs: list[str] = []
    for job, result_ref in db.execute(
        "SELECT id, result_ref FROM job WHERE ended_at IS NOT NULL AND ended_at < ? ORDER BY ended_at LIMIT"
        " ?",
        (dead_before, max(limit - len(ended), 0)),
    ).fetchall():
        ended += _first(db, "job = ? AND status >= 2 LIMIT ?", (job, limit - len(ended)))
        if len(ended) >= limit:
            break  # the rest of its invocations, and then the job, next time
        if db.execute("SELECT 1 FROM invocation WHERE job = ? AND status < 2 LIMIT 1", (job,)).fetchone():
            continue  # what ran when the job ended is not settled yet: it must not leave the books
        db.execute("DELETE FROM job WHERE id = ?", (job,))
        refs.append(result_ref)
    chosen = json_encode(ended).decode()
    for pair in db.execute(
        "SELECT payload_ref, result_ref FROM invocation WHERE id IN (SELECT value FROM json_each(?))"
        " AND (payload_ref IS NOT NULL OR result_ref IS NOT NULL)",
        (chosen,),
    ):
        refs += pair
    removed: dict[str, list[int]] = {}
    for function, status, count in db.execute(
        "SELECT function, status, count(*) FROM invocation WHERE id IN (SELECT value FROM json_each(?))"
        " GROUP BY function, status",
        (chosen,),
    ):
        removed.setdefault(function, [0, 0, 0])[status - 2] += count
    db.executemany(
        "UPDATE counter SET removed_succeeded = removed_succeeded + ?, removed_dead = removed_dead + ?,"
        " removed_cancelled = removed_cancelled + ? WHERE function = ? AND shard = 0",
        [(*counts, function) for function, counts in removed.items()],
    )
    db.execute("DELETE FROM invocation WHERE id IN (SELECT value FROM json_each(?))", (chosen,))
    db.execute("COMMIT")
    return [ref for ref in dict.fromkeys(refs) if ref is not None and ref.startswith(system)]


def _first(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[int]:
    return ids(db, f"SELECT id FROM invocation WHERE {where}", values)
