"""Upgrade: bring a PostgreSQL database of an older release to this release's schema.

Imports the room's own version alone. The steps are files of statements, `upgrades/NNNN.sql`, named after the
schema that each makes; every one also records it, in `meta` and in Alembic's table. Nodes of the release
before may be at work meanwhile: a step adds, and never takes away what they use.
"""

from importlib import resources
from typing import Any

import psycopg

from headrace.runtime.store.version import SCHEMA

OLDEST = 2
"""The oldest schema that a PostgreSQL database has had."""


def upgrade(raw: "psycopg.Connection[Any]", schema: int, *, to: int = SCHEMA) -> None:
    """Run the steps from `schema` to `to` in the caller's transaction, which holds the lock of those that
    make or change tables.

    Raises psycopg.Error, with which nothing was changed: LockNotAvailable when others use the tables for
    longer than the session's `lock_timeout`.
    """
    steps = resources.files(__package__).joinpath("upgrades")
    for number in range(max(schema, OLDEST) + 1, to + 1):
        raw.execute(steps.joinpath(f"{number:04}.sql").read_text(encoding="utf-8"))
