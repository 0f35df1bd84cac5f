"""The stores that the contract is run against."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.sqlite import SqliteStore


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    store = SqliteStore(tmp_path / "headrace.db")
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def postgres_store(postgres_url: str) -> AsyncIterator[Store]:
    store = PostgresStore(postgres_url)
    await store.start()
    yield store
    await store.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(f"{request.param}_store")
