"""The schema, as SQLAlchemy Core metadata: the truth that `schema.sql` and the migrations are compared with.

Imported by migrations and tests only: a node starts from `schema.sql`, since importing SQLAlchemy takes
longer than opening the database. `python -m headrace.runtime.store.schema` prints what that file must hold.

In `invocation` the payload and the result come last, so that a scan of the columns before them never reads
overflow pages (`memory_bytes` is read only with them). The partial indexes
are chosen for the usual path: an accepted and settled invocation enters `ready` and leaves it, and enters
`settled`; all others hold rare rows only.
"""

import sys
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    desc,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from headrace.runtime.store.version import MIN_READER, REVISION, SCHEMA

metadata = MetaData()

# On SQLite only INTEGER makes the column the row's own number; BIGINT would add a second tree.
_ROW_ID = BigInteger().with_variant(Integer(), "sqlite")
# Keys are compared by their UTF-8 bytes: SQLite's default, and PostgreSQL's collation "C".
_BYTEWISE = Text().with_variant(Text(collation="C"), "postgresql")


def _only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)

invocation = Table(
    "invocation",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=False),
    Column("function", Text, nullable=False),
    Column("flow", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("node", Text),
    Column("job", BigInteger),
    Column("stage", SmallInteger),
    Column("idx", Integer),
    Column("idempotency_key", Text),
    Column("tags", Text),
    Column("source", Text),
    Column("payload_ref", Text),
    Column("result_ref", Text),
    Column("error", Text),
    Column("payload", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Column("memory_bytes", BigInteger),
)
Index("ready", invocation.c.flow, desc(invocation.c.priority), invocation.c.due_at, invocation.c.id,
      **_only("status = 0"))  # fmt: skip
Index("running", invocation.c.function, **_only("status = 1"))
Index("settled", invocation.c.ended_at, **_only("status IN (2, 4) AND job IS NULL"))
Index("dead", invocation.c.ended_at, **_only("status = 3"))
Index("dead_letters", invocation.c.id, **_only("status = 3"))
Index("part", invocation.c.job, invocation.c.stage, invocation.c.idx, unique=True, **_only("job IS NOT NULL"))
Index("part_status", invocation.c.job, invocation.c.status, invocation.c.stage, **_only("job IS NOT NULL"))

# `shard` keeps nodes that share a database from waiting for each other's transactions; sums are the books.
counter = Table(
    "counter",
    metadata,
    Column("function", Text, primary_key=True),
    Column("shard", SmallInteger, primary_key=True),
    Column("accepted", BigInteger, nullable=False),
    Column("succeeded", BigInteger, nullable=False),
    Column("dead", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("deduplicated", BigInteger, nullable=False),
    Column("removed_succeeded", BigInteger, nullable=False),
    Column("removed_dead", BigInteger, nullable=False),
    Column("removed_cancelled", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("function", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("invocation", BigInteger, nullable=False),
    Column("payload_hash", LargeBinary, nullable=False),
    Column("expires_at", Double, nullable=False),
    sqlite_with_rowid=False,
)
Index("idempotency_expiry", idempotency.c.expires_at)

job = Table(
    "job",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=False),
    Column("function", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("generation", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("levels", Integer, nullable=False),
    Column("tags", Text),
    Column("code_version", Text, nullable=False),
    Column("result_ref", Text),
    Column("spec", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("error", Text),
    Column("result", LargeBinary),
)
Index("job_ended", job.c.ended_at, **_only("ended_at IS NOT NULL"))

ledger = Table(
    "ledger",
    metadata,
    Column("trigger", Text, primary_key=True),
    Column("bucket", Text, primary_key=True),
    Column("key", _BYTEWISE, primary_key=True),
    Column("version_id", Text, primary_key=True),
    Column("etag", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sequencer", Text, nullable=False),
    Column("modified_at", Double, nullable=False),
    Column("listed", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

cursor = Table(
    "cursor",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)

schedule = Table(
    "schedule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("definition", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("anchor", Double, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("last_due_at", Double),
    Column("resumed_at", Double),
    Column("queued_at", Double),
    Column("forgotten_at", Double),
    Column("recorded", BigInteger),
    sqlite_with_rowid=False,
)

# What became of each instant: `cause` says why it fired or did not, `subject` is the invocation or the job.
fired = Table(
    "fired",
    metadata,
    Column("schedule", Text, primary_key=True),
    Column("due_at", Double, primary_key=True),
    Column("fired_at", Double),
    Column("cause", Text),
    Column("subject", BigInteger),
    Column("backfill", BigInteger),
    sqlite_with_rowid=False,
)

backfill = Table(
    "backfill",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=False),
    Column("schedule", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("from_at", Double, nullable=False),
    Column("until_at", Double, nullable=False),
    Column("position", Double, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("again", Boolean, nullable=False),
    Column("instants", BigInteger, nullable=False),
    Column("fired", BigInteger, nullable=False),
    Column("present", BigInteger, nullable=False),
    Column("live", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("note", Text, nullable=False),
)
# One that runs at a time for each schedule.
Index("backfill_open", backfill.c.schedule, unique=True, **_only("ended_at IS NULL"))

paused = Table("paused", metadata, Column("function", Text, primary_key=True), sqlite_with_rowid=False)

closure = Table(
    "closure",
    metadata,
    Column("name", Text, primary_key=True),
    Column("until_at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)

# The token bucket of a function with a rate; its row is what claims of a limited function lock.
gate = Table(
    "gate",
    metadata,
    Column("function", Text, primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("refilled_at", Double, nullable=False),
    sqlite_with_rowid=False,
)

deployment = Table(
    "deployment",
    metadata,
    Column("node", Text, primary_key=True),
    Column("since", Double, primary_key=True),
    Column("version", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index("deployment_since", deployment.c.since)

node = Table(
    "node",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("joined_at", Double, nullable=False),
    Column("until_at", Double, nullable=False),
    sqlite_with_rowid=False,
)

# Alembic's own table, in the shape that Alembic gives it, so that migrations can take over from a fresh
# schema.
revision = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

FACTS = (("schema", str(SCHEMA)), ("min_reader", str(MIN_READER)), ("nodes", "0"))
"""Rows of `meta` when fresh: the schema, the oldest that may read it, the last node number given out."""


def fresh_sql() -> str:
    """The statements that make a fresh SQLite database."""
    dialect = sqlite.dialect()
    parts = [
        "-- Generated from schema.py by `python -m headrace.runtime.store.schema`; a test compares them.\n"
    ]
    for table in metadata.sorted_tables:
        parts.append(_tidy(str(CreateTable(table).compile(dialect=dialect))))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            parts.append(_tidy(str(CreateIndex(index).compile(dialect=dialect))))
    parts += [f"INSERT INTO meta (\"key\", value) VALUES ('{key}', '{value}');\n" for key, value in FACTS]
    parts.append(f"INSERT INTO alembic_version (version_num) VALUES ('{REVISION}');\n")
    return "\n".join(parts)


def _tidy(statement: str) -> str:
    lines = [line.replace("\t", "    ").rstrip() for line in statement.strip().splitlines()]
    return "\n".join(line for line in lines if line) + ";\n"


if __name__ == "__main__":
    sys.stdout.write(fresh_sql())
