"""Claims: who may run what, as rows of a PostgreSQL database that several nodes share.

Imports the floor and its own room. Plain functions over the writing connection, each inside a transaction
that its caller begins and commits. A claim is the column `node` of a live row; a node is a row of table
`node` with the end of its lease, and a claim of a node without such a row is anybody's to take back.
"""

import math
from collections.abc import Sequence
from typing import Any

from headrace.runtime.errors import LeaseLost
from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits, key_of
from headrace.runtime.store.postgres.arrays import bigints, integers, texts
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.transaction import CONTROL, notification
from headrace.runtime.store.rows import INVOCATION, invocation_of

_ROW = ", ".join(f"i.{name.strip()}" for name in INVOCATION.split(","))
_UNCLAIMED = "i.status = 0 AND i.node IS NULL"
# The priorities at which a flow has unclaimed rows, the highest first, by jumps through the index `ready`.
_PRIORITIES = (
    f"WITH RECURSIVE p(priority) AS (SELECT max(i.priority) FROM invocation_live i WHERE {_UNCLAIMED}"
    " AND i.flow = %(flow)s UNION ALL"
    f" SELECT (SELECT max(i.priority) FROM invocation_live i WHERE {_UNCLAIMED} AND i.flow = %(flow)s"
    " AND i.priority < p.priority) FROM p WHERE p.priority IS NOT NULL)"
)
# The lateral join reads one priority after the other, and no further than the limit: no row is locked that is
# not claimed. The order of the answer is restored by the caller.
_CLAIM = (
    f"{_PRIORITIES}, chosen AS (SELECT due.id FROM p CROSS JOIN LATERAL ("
    f"SELECT i.id FROM invocation_live i WHERE {_UNCLAIMED} AND i.flow = %(flow)s"
    " AND i.priority = p.priority AND i.due_at <= %(now)s ORDER BY i.due_at, i.id LIMIT %(limit)s"
    " FOR UPDATE SKIP LOCKED) AS due"
    " WHERE NOT EXISTS (SELECT FROM closure WHERE name = ANY(%(names)s::text[]) AND until_at > %(now)s)"
    " LIMIT %(limit)s)"
    " UPDATE invocation_live AS i SET node = %(node)s FROM chosen WHERE i.id = chosen.id"
    f" RETURNING {_ROW}"
)
_NEXT_DUE = (
    f"{_PRIORITIES} SELECT min(due.due_at) FROM p CROSS JOIN LATERAL ("
    f"SELECT i.due_at FROM invocation_live i WHERE {_UNCLAIMED} AND i.flow = %(flow)s"
    " AND i.priority = p.priority AND i.due_at > %(now)s ORDER BY i.due_at LIMIT 1) AS due"
)
_CLAIMED = "SELECT count(*) FROM invocation_live WHERE node IS NOT NULL AND function = %s"
_RELEASE = (
    "UPDATE invocation_live AS i SET status = 0, node = NULL, started_at = NULL"
    " FROM unnest(%s, %s, %s) AS v(id, node, before)"
    " WHERE i.id = v.id AND i.node = v.node AND i.attempts = v.before RETURNING i.flow"
)
# `status` is 1 where MarkRunning recorded that the attempt ran: so many attempts are spent.
_TAKE_BACK = (
    "WITH held AS (SELECT c.id, c.status, c.node FROM invocation_live c WHERE c.node IS NOT NULL"
    " AND {whose} ORDER BY c.id FOR UPDATE SKIP LOCKED)"
    " UPDATE invocation_live AS i SET status = 0, node = NULL, started_at = NULL,"
    " attempts = i.attempts + held.status FROM held WHERE i.id = held.id"
    f" RETURNING {_ROW}, held.status, held.node"
)
_TAKE_BACK_OF = _TAKE_BACK.format(whose="c.node = %s")
_TAKE_BACK_OF_NOBODY = _TAKE_BACK.format(whose="NOT EXISTS (SELECT FROM node WHERE node.name = c.node)")
_ENOUGH = 1e-9


# ---- claims ----


def claim(
    db: PostgresDatabase,
    node: str,
    flow: str,
    limit: int,
    now: float,
    function: str = "",
    limits: Limits = NO_LIMITS,
) -> list[Claim]:
    """The next unclaimed due invocations that nobody else is claiming at this moment.

    With limits, whoever claims of the function waits here for the others' claims to be committed, by the lock
    on the function's gate; so that counting what is claimed is exact.
    """
    tokens = 0.0
    if limits.any:
        room, tokens = _room(db, flow, function, limits, now)
        limit = min(limit, room)
    if limit <= 0:
        return []
    rows = db.raw.execute(
        _CLAIM,
        {"flow": flow, "now": now, "limit": limit, "node": node, "names": _closable(flow, function)},
    ).fetchall()
    claims = [Claim(invocation, invocation.attempts + 1, node) for invocation in map(invocation_of, rows)]
    claims.sort(key=_order)
    if claims and limits.rate is not None:
        db.raw.execute(
            "UPDATE gate SET tokens = %s, refilled_at = %s WHERE function = %s",
            (tokens - len(claims), now, function),
        )
    return claims


def _order(claim: Claim) -> tuple[int, float, int]:
    return (-claim.invocation.priority, claim.invocation.due_at, claim.invocation.id)


def _closable(flow: str, function: str) -> list[str]:
    """The closures that would keep a flow's invocations from being claimed."""
    key = key_of(flow)
    names = [f"function:{function or flow.partition('#')[0]}"]
    return names if key is None else [*names, f"key:{key}"]


def _room(db: PostgresDatabase, flow: str, function: str, limits: Limits, now: float) -> tuple[int, float]:
    """How many more may be claimed, and the tokens that the function's bucket holds now."""
    db.raw.execute(
        "INSERT INTO gate (function, tokens, refilled_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (function, limits.burst, now),
    )
    row = db.raw.execute(
        "SELECT tokens, refilled_at FROM gate WHERE function = %s FOR UPDATE", (function,)
    ).fetchone()
    tokens = _refilled(row, limits, now)
    rooms: list[int] = []
    if limits.concurrency is not None:
        rooms.append(limits.concurrency - _count(db, function))
    if limits.key_concurrency is not None:
        rooms.append(limits.key_concurrency - _count(db, function, flow))
    if limits.rate is not None:
        rooms.append(math.floor(tokens + _ENOUGH))
    return max(min(rooms), 0), tokens


def _refilled(row: Sequence[Any] | None, limits: Limits, now: float) -> float:
    if row is None or limits.rate is None:
        return limits.burst
    tokens, refilled_at = row
    return float(min(limits.burst, tokens + max(now - refilled_at, 0.0) * limits.rate))


def _count(db: PostgresDatabase, function: str, flow: str | None = None) -> int:
    text, values = _CLAIMED, [function]
    if flow is not None:
        text, values = f"{text} AND flow = %s", [function, flow]
    [count] = db.raw.execute(text, values).fetchone() or (0,)
    return int(count)


def held_back(db: PostgresDatabase, flow: str, function: str, limits: Limits, now: float) -> Held | None:
    """What keeps the flow's due invocations from being claimed now, if anything does."""
    if db.raw.execute("SELECT 1 FROM paused WHERE function = %s", (function,)).fetchone():
        return Held("paused")
    closed = db.raw.execute(
        "SELECT until_at, reason FROM closure WHERE name = ANY(%s::text[]) AND until_at > %s"
        " ORDER BY until_at DESC LIMIT 1",
        (_closable(flow, function), now),
    ).fetchone()
    if closed is not None:
        return Held("closed", *closed)
    if limits.concurrency is not None and _count(db, function) >= limits.concurrency:
        return Held("concurrency")
    if limits.key_concurrency is not None and _count(db, function, flow) >= limits.key_concurrency:
        return Held("key_concurrency")
    if limits.rate is not None:
        row = db.raw.execute(
            "SELECT tokens, refilled_at FROM gate WHERE function = %s", (function,)
        ).fetchone()
        tokens = _refilled(row, limits, now)
        if tokens + _ENOUGH < 1:
            return Held("rate", now + (1 - tokens) / limits.rate if limits.rate > 0 else None)
    return None


def next_due(db: PostgresDatabase, flow: str, now: float) -> float | None:
    row = db.raw.execute(_NEXT_DUE, {"flow": flow, "now": now}).fetchone()
    return None if row is None else row[0]


# ---- claims given back ----


def release(db: PostgresDatabase, given_back: Sequence[Claim]) -> bool:
    """Claims that were not begun wait again; no attempt is spent. Whether there was any."""
    rows = db.raw.execute(_RELEASE, (
        bigints([claim.invocation.id for claim in given_back]), texts([claim.node for claim in given_back]),
        integers([claim.attempt - 1 for claim in given_back]),
    )).fetchall()  # fmt: skip
    tell(db, {flow for [flow] in rows})
    return bool(rows)


def leave(db: PostgresDatabase, node: str) -> None:
    rows = db.raw.execute(
        "UPDATE invocation_live SET status = 0, node = NULL, started_at = NULL"
        " WHERE node IS NOT NULL AND node = %s RETURNING flow",
        (node,),
    ).fetchall()
    gone = db.raw.execute("DELETE FROM node WHERE name = %s", (node,)).rowcount
    tell(db, {flow for [flow] in rows} | ({CONTROL} if gone else set()))


def release_expired(db: PostgresDatabase, now: float) -> tuple[set[str], list[Claim]]:
    """End the leases that have run out, and take back what nodes without a lease have claimed: also what a
    node accepted for itself in the moment when others ended its lease. What the others were told, nothing if
    nothing changed; and the claims that were recorded to run.
    """
    gone = db.raw.execute(
        "DELETE FROM node WHERE name IN"
        " (SELECT name FROM node WHERE until_at <= %s ORDER BY name FOR UPDATE SKIP LOCKED)",
        (now,),
    ).rowcount
    rows = db.raw.execute(_TAKE_BACK_OF_NOBODY).fetchall()
    names = {row[2] for row in rows} | ({CONTROL} if gone else set())
    tell(db, names)
    return names, _begun(rows)


def _begun(rows: list[Any]) -> list[Claim]:
    """The claims of rows taken back that were recorded to run, as they were."""
    begun: list[Claim] = []
    for row in rows:
        status, node = row[-2:]
        if status:
            invocation = invocation_of(row)
            invocation.attempts -= 1
            begun.append(Claim(invocation, invocation.attempts + 1, node))
    return begun


# ---- nodes ----


def tell(db: PostgresDatabase, words: set[str]) -> None:
    """Say words to the listeners of all other nodes, once the transaction is committed."""
    if words:
        db.raw.execute(*notification(words))


def nodes(db: PostgresDatabase, now: float) -> list[str]:
    """The nodes whose leases have not run out."""
    rows = db.raw.execute("SELECT name FROM node WHERE until_at > %s ORDER BY number", (now,))
    return [name for [name] in rows]


def join(db: PostgresDatabase, node: str, until: float, now: float) -> tuple[int, list[Claim]]:
    """Begin a lease: the node's number, and what an earlier node of this name was recorded to run."""
    [number] = db.raw.execute(
        "UPDATE meta SET value = (value::bigint + 1)::text WHERE key = 'nodes' RETURNING value::bigint"
    ).fetchone() or (0,)
    rows = db.raw.execute(_TAKE_BACK_OF, (node,)).fetchall()
    db.raw.execute(
        "INSERT INTO node (name, number, joined_at, until_at) VALUES (%s, %s, %s, %s) ON CONFLICT (name)"
        " DO UPDATE SET number = excluded.number, joined_at = excluded.joined_at,"
        " until_at = excluded.until_at",
        (node, number, now, until),
    )
    tell(db, {CONTROL, *(row[2] for row in rows)})
    return int(number), _begun(rows)


def renew(db: PostgresDatabase, node: str, until: float) -> None:
    renewed = db.raw.execute("UPDATE node SET until_at = %s WHERE name = %s", (until, node)).rowcount
    if not renewed:
        raise LeaseLost("all that it had claimed", node, 0)
