"""Retention: how ended invocations and jobs leave a database.

Imports the floor and its own room. What is kept is known from the books, so that no call counts rows.
"""

from typing import Any

from headrace.runtime.store.database import Database, counted
from headrace.runtime.store.page import ids
from headrace.runtime.store.protocol import KEY_GRACE_S, Removed
from headrace.runtime.store.tally import REMOVED, Tally, add_to_books

_ENDED = "status IN (2, 4) AND job IS NULL"
_LOCK = 7_310_034
"""Of the node that removes now, among PostgreSQL's advisory locks of this database."""


def expire(
    db: Database,
    succeeded_before: float,
    dead_before: float,
    keep: int,
    limit: int,
    system: str,
    *,
    shard: int = 0,
) -> Removed:
    """One batch of retention, the oldest first; nothing while another node is at it.

    `system` is how addresses in the system bucket begin; `shard` the shard of the books that this node adds
    to, from 0.
    """
    with db.transaction():
        alone = db.dialect.alone
        if alone is not None and not db.execute(alone, (_LOCK,)).fetchone()[0]:
            return Removed(0, [])
        return _expire(db, succeeded_before, dead_before, keep, limit, system, shard)


def expire_keys(db: Database, before: float, limit: int) -> int:
    """One batch of expired idempotency keys, the oldest first. A key that still stands is put off, so that no
    number of them keeps later ones from being found.
    """
    with db.transaction():
        found = db.execute(
            'SELECT k.function, k."key", (SELECT 1 FROM invocation WHERE invocation.id = k.invocation'
            " AND invocation.status IN (0, 1)) FROM idempotency AS k"
            f" WHERE k.expires_at <= ? ORDER BY k.expires_at LIMIT ?{db.dialect.skip}",
            (before, limit),
        ).fetchall()
        gone = [(function, key) for function, key, standing in found if not standing]
        put_off = [(before + KEY_GRACE_S, function, key) for function, key, standing in found if standing]
        if gone:
            db.executemany('DELETE FROM idempotency WHERE function = ? AND "key" = ?', gone)
        if put_off:
            db.executemany('UPDATE idempotency SET expires_at = ? WHERE function = ? AND "key" = ?', put_off)
    return len(found)


def _expire(
    db: Database, succeeded_before: float, dead_before: float, keep: int, limit: int, system: str, shard: int
) -> Removed:
    skip = db.dialect.skip
    ended = _first(
        db, f"{_ENDED} AND ended_at < ? ORDER BY ended_at, id LIMIT ?{skip}", (succeeded_before, limit)
    )
    beyond = min(_kept(db) - keep, limit)
    if beyond > len(ended):
        ended = _first(db, f"{_ENDED} ORDER BY ended_at, id LIMIT ?{skip}", (beyond,))
    ended += _first(
        db,
        f"status = 3 AND job IS NULL AND ended_at < ? ORDER BY ended_at, id LIMIT ?{skip}",
        (dead_before, limit - len(ended)),
    )
    refs: list[str | None] = []
    jobs = 0
    # What a node still runs of an ended job keeps the job, until it ends as well.
    for job, result_ref in db.execute(
        "SELECT id, result_ref FROM job WHERE ended_at IS NOT NULL AND ended_at < ? AND NOT EXISTS"
        " (SELECT 1 FROM invocation WHERE invocation.job = job.id AND invocation.status IN (0, 1))"
        f" ORDER BY ended_at LIMIT ?{skip}",
        (dead_before, max(limit - len(ended), 0)),
    ).fetchall():
        parts = _first(
            db, f"job = ? AND status IN (2, 3, 4) LIMIT ?{db.dialect.lock}", (job, limit - len(ended))
        )
        ended += parts
        if len(ended) >= limit:
            break  # the rest of its invocations, and then the job, next time
        db.execute("DELETE FROM job WHERE id = ?", (job,))
        jobs += 1
        refs.append(result_ref)
    chosen = f"{db.dialect.among('id')} AND status IN (2, 3, 4)"
    listed = (db.dialect.listed(ended),)
    for pair in db.execute(
        f"SELECT payload_ref, result_ref FROM invocation WHERE {chosen}"
        " AND (payload_ref IS NOT NULL OR result_ref IS NOT NULL)",
        listed,
    ):
        refs += pair
    removed, count_all = Tally(), 0
    for function, status, count in counted(db, "DELETE FROM invocation", chosen, "function, status", listed):
        removed.add(function, status - 1 + REMOVED, count)
        count_all += count
    add_to_books(db, removed, shard)
    ours = [ref for ref in dict.fromkeys(refs) if ref is not None and ref.startswith(system)]
    return Removed(count_all + jobs, ours)


def _kept(db: Database) -> int:
    """About how many succeeded and cancelled invocations without a job there are: never more than there are.

    Of each job it takes off what the job may have: a reduce tree over n chunks that is 16 wide has less than
    n / 15 nodes and one a level.
    """
    [kept] = db.execute(
        "SELECT CAST(coalesce(sum(succeeded + cancelled - removed_succeeded - removed_cancelled), 0)"
        " AS BIGINT) FROM counter"
    ).fetchone()
    [parts] = db.execute(
        "SELECT CAST(coalesce(sum(chunks + chunks / 15 + levels + 1), 0) AS BIGINT) FROM job"
    ).fetchone()
    return int(kept) - int(parts)


def _first(db: Database, where: str, values: tuple[Any, ...]) -> list[int]:
    return ids(db, f"SELECT id FROM invocation WHERE {where}", values)
