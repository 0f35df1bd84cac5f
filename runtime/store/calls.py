"""Calls: what runs on the writer's thread of a SQLite file between transactions: claims and leases.

Imports the floor and its own room. Plain functions over the writing connection; each that writes does so in
one transaction of its own, and whoever runs it rolls back when it raises.
"""

from collections.abc import Sequence

import msgspec

from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import Held, Limits, key_of, next_token_at, tokens_at, whole_tokens
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.page import invocations
from headrace.runtime.store.reads import priorities
from headrace.runtime.store.rows import INVOCATION, invocation_of

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


def claim_within(
    db: SqliteDatabase,
    claims: Claims,
    node: str,
    flow: str,
    limit: int,
    now: float,
    function: str,
    limits: Limits,
) -> list[Claim]:
    """`claim`, of what is not closed and within the limits.

    What is left of a rate is recorded with the claim, so that a restart cannot exceed it.
    """
    if _closure(db, flow, function, now) is not None:
        return []
    if limits.concurrency is not None or limits.key_concurrency is not None:
        total, of_flow = claims.count(function, flow)
        if limits.concurrency is not None:
            limit = min(limit, limits.concurrency - total)
        if limits.key_concurrency is not None:
            limit = min(limit, limits.key_concurrency - of_flow)
    if limits.rate is None:
        return claim(db, claims, node, flow, limit, now) if limit > 0 else []
    tokens = _tokens(db, function, limits, now)
    limit = min(limit, whole_tokens(tokens))
    claimed = claim(db, claims, node, flow, limit, now) if limit > 0 else []
    if claimed:
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                "INSERT INTO gate (function, tokens, refilled_at) VALUES (?, ?, ?) ON CONFLICT (function)"
                " DO UPDATE SET tokens = excluded.tokens, refilled_at = excluded.refilled_at",
                (function, tokens - len(claimed), now),
            )
            db.execute("COMMIT")
        except Exception:
            _free(claims, claimed)  # the queue's head goes back to them
            raise
    return claimed


def held_back(
    db: SqliteDatabase, claims: Claims, flow: str, function: str, limits: Limits, now: float
) -> Held | None:
    """The first that holds of what `claim_within` and the dispatcher keep to."""
    closure = _closure(db, flow, function, now)
    if closure is not None:
        return Held("closed", closure[0], closure[1])
    if db.execute("SELECT 1 FROM paused WHERE function = ?", (function,)).fetchone() is not None:
        return Held("paused")
    if limits.concurrency is not None or limits.key_concurrency is not None:
        total, of_flow = claims.count(function, flow)
        if limits.concurrency is not None and total >= limits.concurrency:
            return Held("concurrency")
        if limits.key_concurrency is not None and of_flow >= limits.key_concurrency:
            return Held("key_concurrency")
    if limits.rate is not None:
        tokens = _tokens(db, function, limits, now)
        if not whole_tokens(tokens):
            return Held("rate", next_token_at(limits, tokens, now=now))
    return None


def _closure(db: SqliteDatabase, flow: str, function: str, now: float) -> tuple[float, str] | None:
    """Until when the flow is closed, by its function or its key, and why; the later of the two."""
    key = key_of(flow)
    found: tuple[float, str] | None = db.execute(
        "SELECT until_at, reason FROM closure WHERE name IN (?, ?) AND until_at > ?"
        " ORDER BY until_at DESC LIMIT 1",
        (f"function:{function}", f"key:{key}" if key is not None else "", now),
    ).fetchone()
    return found


def _tokens(db: SqliteDatabase, function: str, limits: Limits, now: float) -> float:
    """What the function's bucket holds; full when nothing was ever claimed."""
    row = db.execute("SELECT tokens, refilled_at FROM gate WHERE function = ?", (function,)).fetchone()
    return limits.burst if row is None else tokens_at(limits, *row, now=now)


def claim(db: SqliteDatabase, claims: Claims, node: str, flow: str, limit: int, now: float) -> list[Claim]:
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


def next_due(db: SqliteDatabase, claims: Claims, flow: str, now: float) -> float | None:
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


def release(db: SqliteDatabase, claims: Claims, given_back: Sequence[Claim]) -> None:
    """Claims that were not begun wait again; no attempt is spent."""
    standing = [claim for claim in given_back if claims.stands(claim)]
    _wait_again(
        db, claims, [claim for claim in standing if claim.invocation.id in claims.marked], spent=False
    )
    _free(claims, standing)


def leave(db: SqliteDatabase, claims: Claims, node: str) -> None:
    release(db, claims, claims.of_nodes({node}))
    db.execute("DELETE FROM node WHERE name = ?", (node,))
    claims.leases.pop(node, None)


def release_expired(db: SqliteDatabase, claims: Claims, now: float) -> list[Claim]:
    gone = claims.expired(now)
    held = claims.of_nodes(gone) if gone else []
    begun = [claim for claim in held if claim.invocation.id in claims.marked]
    _wait_again(db, claims, begun, spent=True)
    _free(claims, held)
    lost, claims.lost = claims.lost, []
    return lost + begun


def _wait_again(db: SqliteDatabase, claims: Claims, begun: list[Claim], *, spent: bool) -> None:
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


def join(db: SqliteDatabase, claims: Claims, node: str, until: float, now: float) -> int:
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


def recover(db: SqliteDatabase) -> list[Claim]:
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
