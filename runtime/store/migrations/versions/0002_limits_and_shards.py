"""Counters in shards, with what was removed; closures, rates, deployments; leases and limits in rows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BOOKS = ("accepted", "succeeded", "dead", "cancelled", "deduplicated")
_REMOVED = ("removed_succeeded", "removed_dead", "removed_cancelled")


def upgrade() -> None:
    op.create_table(
        "counter_2",
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*_BOOKS, *_REMOVED)),
        sa.PrimaryKeyConstraint("function", "shard"),
        sqlite_with_rowid=False,
    )
    # What retention removed before was not counted: it is what the books have beyond the rows that are kept.
    kept = "(SELECT count(*) FROM invocation i WHERE i.function = counter.function AND i.status = {})"
    removed = ", ".join(
        f"{column} - {kept.format(status)}"
        for status, column in ((2, "succeeded"), (3, "dead"), (4, "cancelled"))
    )
    op.execute(
        f"INSERT INTO counter_2 (function, shard, {', '.join(_BOOKS)}, {', '.join(_REMOVED)})"
        f" SELECT function, 0, {', '.join(_BOOKS)}, {removed} FROM counter"
    )
    op.drop_table("counter")
    op.rename_table("counter_2", "counter")
    op.add_column("invocation", sa.Column("memory_bytes", sa.BigInteger()))
    op.drop_table("node")
    op.create_table(
        "node",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("joined_at", sa.Double(), nullable=False),
        sa.Column("until_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "closure",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("until_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "gate",
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("refilled_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("function"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "deployment",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("node", "since"),
        sqlite_with_rowid=False,
    )
    op.create_index("deployment_since", "deployment", ["since"])
    op.execute("UPDATE meta SET value = '2' WHERE \"key\" IN ('schema', 'min_reader')")
