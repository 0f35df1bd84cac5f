"""Schedules: what became of each instant, pauses that pass over instants, overlaps, backfills.

Releases that know schema 2 run on this one: what is new may be missing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for column in ("resumed_at", "queued_at", "forgotten_at"):
        op.add_column("schedule", sa.Column(column, sa.Double()))
    op.add_column("schedule", sa.Column("recorded", sa.BigInteger()))
    op.add_column("fired", sa.Column("fired_at", sa.Double()))
    op.add_column("fired", sa.Column("cause", sa.Text()))
    op.add_column("fired", sa.Column("subject", sa.BigInteger()))
    op.add_column("fired", sa.Column("backfill", sa.BigInteger()))
    op.create_table(
        "backfill",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("from_at", sa.Double(), nullable=False),
        sa.Column("until_at", sa.Double(), nullable=False),
        sa.Column("position", sa.Double(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("instants", sa.BigInteger(), nullable=False),
        sa.Column("fired", sa.BigInteger(), nullable=False),
        sa.Column("present", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "backfill_open", "backfill", ["schedule"], unique=True, sqlite_where=sa.text("ended_at IS NULL")
    )
    # A thousand instants were remembered of each; what was before the oldest of them is not known any more.
    op.execute(
        "UPDATE schedule SET forgotten_at = (SELECT min(due_at) FROM fired WHERE fired.schedule = name)"
        " WHERE (SELECT count(*) FROM fired WHERE fired.schedule = name) >= 1000"
    )
    op.execute("UPDATE meta SET value = '3' WHERE \"key\" = 'schema'")
