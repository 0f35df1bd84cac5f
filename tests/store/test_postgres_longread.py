"""Long reads of a PostgreSQL database end when nobody wants them any more."""

import asyncio
import threading

import pytest

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.longread import LongReader

pytestmark = pytest.mark.timeout(60)


class Question:
    """One that the server would answer in an hour."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def __call__(self, db: PostgresDatabase) -> None:
        self.begun.set()
        db.execute("SELECT pg_sleep(3600)")


async def test_a_stop_breaks_off_what_is_under_way(postgres_url: str) -> None:
    reader, question = LongReader(postgres_url, "here"), Question()
    asking = asyncio.ensure_future(reader.ask(question))
    await asyncio.to_thread(question.begun.wait)
    await asyncio.to_thread(reader.stop)

    with pytest.raises(StoreUnavailable):
        await asking
    with pytest.raises(StoreUnavailable):
        await reader.ask(lambda db: None)


async def test_a_caller_that_gives_up_leaves_the_thread_to_the_next(postgres_url: str) -> None:
    reader, question = LongReader(postgres_url, "here"), Question()
    asking = asyncio.ensure_future(reader.ask(question))
    await asyncio.to_thread(question.begun.wait)
    asking.cancel()

    assert await reader.ask(lambda db: db.execute("SELECT 1").fetchone()) == (1,)
    assert asking.cancelled()
    await asyncio.to_thread(reader.stop)
