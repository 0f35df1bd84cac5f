"""A PostgreSQL database of an older release is brought to this release's schema when a node starts."""

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer
from store_values import request

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import Fired, Put
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.version import REVISION, SCHEMA

SECOND = (Path(__file__).parent / "postgres_schema_2.sql").read_text(encoding="utf-8")
"""The tables as the releases with schema 2 made them."""


def execute(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(statement)
        return cursor.fetchall() if cursor.description else []


def shape(url: str) -> dict[str, list[Any]]:
    """Columns, indexes, constraints and facts."""
    return {
        "columns": execute(
            url,
            "SELECT table_name, column_name, ordinal_position, data_type, collation_name, is_nullable,"
            " column_default FROM information_schema.columns WHERE table_schema = current_schema()"
            " ORDER BY table_name, ordinal_position",
        ),
        "indexes": execute(
            url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1"
        ),
        "constraints": execute(
            url,
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = current_schema()::regnamespace AND contype <> 'n' ORDER BY 1, 2",
        ),
        "options": execute(
            url,
            "SELECT relname, reloptions FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
            " ORDER BY 1",
        ),
        "facts": execute(url, "SELECT key, value FROM meta WHERE key NOT LIKE 'writer:%' ORDER BY key"),
        "revision": execute(url, "SELECT version_num FROM alembic_version"),
    }


async def start_and_stop(url: str) -> None:
    store = PostgresStore(url)
    await store.start()
    await store.stop()


async def test_an_upgraded_database_equals_a_fresh_one(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    execute(postgres_url, SECOND)
    await start_and_stop(postgres_url)
    fresh = postgres_server.database()
    await start_and_stop(fresh)

    assert shape(postgres_url) == shape(fresh)
    assert shape(fresh)["revision"] == [(REVISION,)]
    assert dict(shape(fresh)["facts"])["schema"] == str(SCHEMA)


async def test_what_was_recorded_before_an_upgrade_is_there_after_it(postgres_url: str) -> None:
    execute(postgres_url, SECOND)
    execute(postgres_url, "INSERT INTO schedule VALUES ('s', 'rate(1 hour)', 3, 100, false, 3700)")
    execute(postgres_url, "INSERT INTO fired VALUES ('s', 3700)")
    store = PostgresStore(postgres_url)
    await store.start()
    try:
        [state] = await store.schedules()
        again, new = [
            (await store.apply([Fired("s", due, 3), Put(request(id))], now=due))[0].refused
            for id, due in ((2, 3700.0), (3, 7300.0))
        ]

        assert (state.generation, state.last_due_at) == (3, 3700)
        assert again is not None
        assert new is None
        found = await store.get(3)
        assert found is not None
        assert found.status is Status.WAITING
    finally:
        await store.stop()


async def test_nodes_that_start_at_once_upgrade_a_database_once(postgres_url: str) -> None:
    execute(postgres_url, SECOND)

    await asyncio.gather(*(start_and_stop(postgres_url) for _ in range(5)))

    assert dict(shape(postgres_url)["facts"])["schema"] == str(SCHEMA)


async def test_an_upgrade_that_others_hold_up_changes_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(postgres_url, SECOND)
    monkeypatch.setattr("headrace.runtime.store.postgres.connection._SESSION",
                        "SELECT set_config('lock_timeout', '200', false)")  # fmt: skip
    before = shape(postgres_url)
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE fired IN ACCESS SHARE MODE")
        with pytest.raises(StoreUnavailable):
            await start_and_stop(postgres_url)

    assert shape(postgres_url) == before


async def test_a_node_of_the_release_before_works_on_beside_the_new_schema(postgres_url: str) -> None:
    """What such a node writes of a schedule, on the tables that the new one has."""
    execute(postgres_url, SECOND)
    await start_and_stop(postgres_url)

    execute(
        postgres_url,
        "INSERT INTO schedule (name, definition, generation, anchor, paused)"
        " VALUES ('s', 'rate(1 hour)', 1, 0, FALSE)",
    )
    execute(postgres_url, "INSERT INTO fired (schedule, due_at) VALUES ('s', 3600)")
    assert dict(shape(postgres_url)["facts"])["min_reader"] == "2"
