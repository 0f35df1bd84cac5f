"""Checkup: how a PostgreSQL server is doing, asked without leaving anything behind.

Imports the floor and its own room.
"""

import contextlib
from dataclasses import dataclass
from statistics import median

import psycopg

from headrace.runtime.clock import Clock
from headrace.runtime.store.postgres.connection import PostgresDatabase, shown
from headrace.runtime.store.postgres.store import unreachable

CONNECTIONS = 5
"""Connections that one node opens at most: a writer, two readers, a listener, and one while it verifies."""

_COMMITS = 11
_SETTINGS = "synchronous_commit", "fsync", "full_page_writes", "max_connections"


@dataclass(frozen=True)
class Checkup:
    """What a server said.

    `settings` are those of `synchronous_commit`, `fsync`, `full_page_writes` and `max_connections` that a new
    session has. `schema` is that of Headrace's tables, 0 where there are none, and `others` counts tables
    there when none is ours. `commit_s` is the median time of a durable commit in seconds, None where it could
    not be measured. `free` are the connections that may still be opened.
    """

    where: str
    version: str
    schema: int
    others: int
    may_create: bool
    commit_s: float | None
    settings: dict[str, str]
    free: int


def checkup(url: str, *, clock: Clock) -> Checkup:
    """Ask the server at `url`; `clock` measures commits. Raises StoreUnavailable or InvalidSettings when it
    cannot be asked, and psycopg.Error when it does not answer a question.
    """
    try:
        db = PostgresDatabase.connect(url, name="headrace doctor")
    except psycopg.Error as error:
        raise unreachable(error, url) from None  # its text and its cause may quote the address
    with contextlib.closing(db):
        return _asked(db, shown(url), clock)


def _asked(db: PostgresDatabase, where: str, clock: Clock) -> Checkup:
    # The session that asks has set some of them for itself: what it was given is what others get.
    settings: dict[str, str] = dict(
        db.raw.execute(
            "SELECT name, reset_val FROM pg_settings WHERE name = ANY(%s)", (list(_SETTINGS),)
        ).fetchall()
    )
    [version, may_create, free, tables, ours] = db.raw.execute(
        "SELECT current_setting('server_version'),"
        " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),"
        " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
        " (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()),"
        " (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
        " AND tablename IN ('meta', 'invocation', 'alembic_version')) = 3"
    ).fetchone() or ("", False, 0, 0, False)
    schema = 0
    if ours:
        with contextlib.suppress(psycopg.ProgrammingError, ValueError):  # another program's tables
            row = db.raw.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
            schema = int(row[0]) if row is not None else 0
    return Checkup(
        where=where, version=version, schema=schema, others=0 if schema else tables, may_create=may_create,
        commit_s=_commit_s(db, clock), settings=settings, free=free,
    )  # fmt: skip


def _commit_s(db: PostgresDatabase, clock: Clock) -> float | None:
    """The median of a few commits, each of which writes a message to the server's journal and to no table."""
    times = []
    try:
        for _ in range(_COMMITS):
            began = clock.monotonic()
            db.raw.execute("SELECT pg_logical_emit_message(true, 'headrace', '')")
            times.append(clock.monotonic() - began)
    except psycopg.Error:
        return None  # a server that may only be read, or a user who may not
    return median(times)
