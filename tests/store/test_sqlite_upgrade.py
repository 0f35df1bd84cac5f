"""A SQLite file of an older release is brought to this release's schema when a node starts."""

import sqlite3
from contextlib import closing
from pathlib import Path

from headrace.runtime.errors import Duplicate
from headrace.runtime.model.write import Fired
from headrace.runtime.store.migrate import upgrade
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.store.version import SCHEMA


async def test_schedules_of_schema_2_go_on_with_what_they_remember(tmp_path: Path) -> None:
    upgrade(tmp_path / "h.db", "0002")
    with closing(sqlite3.connect(tmp_path / "h.db")) as db:
        for name, count in (("long", 1000), ("short", 3)):
            db.execute("INSERT INTO schedule VALUES (?, 'rate(1 second)', 2, 0, 0, 5000)", (name,))
            instants = [(name, 5000.0 - number) for number in range(count)]
            db.executemany("INSERT INTO fired (schedule, due_at) VALUES (?, ?)", instants)
        db.commit()
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    try:
        long, short = await store.schedules()
        assert (await store.health())["schema"] == SCHEMA
        assert (long.generation, long.last_due_at, long.paused) == (2, 5000.0, False)
        # Of the one that had a thousand, what was before the oldest is not known; the other has them all.
        assert (long.forgotten_at, short.forgotten_at) == (4001.0, None)
        assert [fire.cause for fire in await store.fires("short")] == ["due"] * 3
        for name, due, refused in (("long", 4000.0, Duplicate), ("short", 4000.0, type(None))):
            [answer] = await store.apply([Fired(name, due, 2, "backfill")], now=5001.0)
            assert isinstance(answer.refused, refused)
    finally:
        await store.stop()
