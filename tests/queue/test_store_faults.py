"""The dispatcher when its store cannot write: nothing that ran is forgotten, and nothing is said twice."""

import sqlite3
from pathlib import Path
from typing import Any, ClassVar

import pytest

from headrace import App
from headrace.runtime.errors import StorageFull
from headrace.runtime.model.invocation import Status
from headrace.runtime.store.database import SqliteDatabase
from tests.inline_node import InlineNode


class FullDisk(SqliteDatabase):
    """Fails every commit while `full`, as SQLite does on a full disk."""

    full: ClassVar[bool] = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if FullDisk.full and sql.startswith(("COMMIT", "INSERT INTO acceptance")):  # which commits by itself
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(sql, *args)


app = App("disk")
ran: list[Any] = []


@app.function(retries=0, on_success="disk.follow")
def work(event: Any) -> Any:
    ran.append(event)
    return event


@app.function(retries=2)
def fails(event: Any) -> None:
    raise ValueError("no")


@app.function(rate="1/s")
def paced(event: Any) -> None:
    ran.append(event)


@app.function
def follow(event: Any) -> None: ...


@pytest.fixture(autouse=True)
def _room() -> Any:
    FullDisk.full = False
    ran.clear()
    yield
    FullDisk.full = False


async def test_ends_that_a_full_disk_refused_are_recorded_once_there_is_room(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, workers=4, held=True, connection=FullDisk) as node:
        ids = await node.put_many("disk.work", range(12))
        failing = await node.put("disk.fails", None)
        FullDisk.full = True
        node.pool.run()
        for _ in range(30):
            await node.quiet()
            await node.clock.advance(1.0)
        node.pool.run()
        for _ in range(30):
            await node.quiet()
            await node.clock.advance(1.0)
        assert (len(ran), node.pool.begun) == (7, 8)
        assert node.pool.attempts == [], "more is begun although no end can be recorded"
        assert any("could not be recorded" in message for message, _ in node.said)
        assert len(node.said) < 100, "a full disk fills the log"

        FullDisk.full = False
        await node.clock.advance(1.01)
        while len(ran) < 12:
            await node.until(lambda: node.pool.attempts)
            node.pool.run()
        node.pool.held = False
        node.pool.run()
        records = await node.drive(*ids, failing)
        assert [records[id].result for id in ids] == [b"%d" % n for n in range(12)]
        assert (records[failing].status, records[failing].attempts) == (Status.DEAD, 3)
        await node.idle()
        books = await node.books()
        assert (books.accepted, books.succeeded, books.dead) == (25, 24, 1)
    assert ran == list(range(12))


async def test_what_a_full_disk_cannot_accept_is_refused_and_counted_nowhere(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, connection=FullDisk) as node:
        FullDisk.full = True
        with pytest.raises(StorageFull):
            await node.put_many("disk.work", range(3))
        FullDisk.full = False
        id = await node.put("disk.work", 9)
        await node.drive(id)
        await node.idle()
        assert (await node.books()).accepted == 2  # it and what follows on success
    assert ran == [9]


async def test_a_ready_invocation_whose_cancel_was_not_recorded_still_runs(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True, connection=FullDisk) as node:
        first, second = await node.put_many("disk.follow", range(2))
        FullDisk.full = True
        with pytest.raises(StorageFull):
            await node.dispatcher.cancelling.cancel(second)
        FullDisk.full = False
        node.pool.run()
        node.pool.run()
        records = await node.drive(first, second)
        assert {record.status for record in records.values()} == {Status.SUCCEEDED}


async def test_what_cannot_be_counted_against_a_rate_does_not_begin(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, connection=FullDisk) as node:
        ids = await node.put_many("disk.paced", range(3))
        await node.until(lambda: ran == [0])
        await node.quiet()
        FullDisk.full = True
        for _ in range(5):
            await node.clock.advance(1.0)
            for _ in range(4):  # each goes through the store's thread, and records nothing
                await node.store.next_due("disk.paced", now=0.0)
        assert ran == [0]
        assert 1 <= len(node.said) <= 10
        FullDisk.full = False
        await node.drive(*ids, step_s=0.5, within_s=10)
    assert ran == [0, 1, 2]
