"""The SQLite store's own matters: its file, its lock, restarts, crashes, faults of single statements, a full
disk.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from store_values import apply, balance, dead, ok, part, put, put_claimed, put_job, request, statuses

from headrace.runtime.errors import (
    DataDamaged,
    DataInUse,
    DataTooNew,
    HeadraceError,
    ReadOnlyStorage,
    StorageFull,
    StoreUnavailable,
)
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.write import (
    ChunkDone,
    CursorMoved,
    JobMoved,
    JobPlanned,
    MarkRunning,
    Put,
    Retry,
    Write,
)
from headrace.runtime.store import holder
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.migrate import upgrade
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.schema import fresh_sql
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.store.version import SCHEMA

ROOT = Path(__file__).resolve().parents[2]


def shape(path: Path) -> dict[tuple[str, str], Any]:
    """Tables by their columns, indexes by their columns and conditions, and the facts."""
    db = sqlite3.connect(path)
    found: dict[tuple[str, str], Any] = {}
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
        if kind == "table":
            options = "WITHOUT ROWID" in sql
            found[kind, name] = (db.execute(f'PRAGMA table_xinfo("{name}")').fetchall(), options)
        else:
            found[kind, name] = (db.execute(f'PRAGMA index_xinfo("{name}")').fetchall(), sql)
    found["facts", ""] = sorted(
        db.execute("SELECT * FROM meta UNION SELECT 'revision', version_num FROM alembic_version")
    )
    db.close()
    return found


# ---- the schema ----


def test_the_schema_file_is_what_the_metadata_says() -> None:
    assert (ROOT / "runtime/store/schema.sql").read_text(encoding="utf-8") == fresh_sql()


async def test_a_fresh_database_equals_a_migrated_one(tmp_path: Path) -> None:
    upgrade(tmp_path / "migrated.db")
    fresh = SqliteStore(tmp_path / "fresh.db")
    await fresh.start()
    await fresh.stop()

    assert shape(tmp_path / "fresh.db") == shape(tmp_path / "migrated.db")


def test_starting_a_store_loads_neither_sqlalchemy_nor_alembic(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib; from headrace.runtime.store.sqlite import SqliteStore\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        f"        store = SqliteStore(pathlib.Path({str(tmp_path)!r}) / 'h.db'); await store.start(); await"
        f" store.stop()\n"
        "asyncio.run(main()); print({'sqlalchemy', 'alembic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


# ---- opening ----


async def test_a_second_process_is_told_who_holds_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "PATIENCE_S", 0.1)
    first, second = SqliteStore(tmp_path / "h.db"), SqliteStore(tmp_path / "h.db")
    await first.start()
    with pytest.raises(DataInUse, match=f"process {os.getpid()} on "):
        await second.start()
    assert first.lock_fd is not None
    await first.stop()
    await second.start()
    await second.stop()
    await second.stop()
    assert second.lock_fd is None


async def test_a_start_waits_for_a_holder_that_is_about_to_go(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "h.db"), SqliteStore(tmp_path / "h.db")
    await first.start()
    starting = asyncio.ensure_future(second.start())
    await asyncio.sleep(0)
    assert not starting.done()
    await first.stop()
    await starting
    await second.stop()


async def test_what_is_no_database_is_damaged_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "h.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    before = (tmp_path / "h.db").read_bytes()
    with pytest.raises(DataDamaged):
        await SqliteStore(tmp_path / "h.db").start()
    assert (tmp_path / "h.db").read_bytes() == before


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "h.db")
    db.execute("CREATE TABLE mine (a)")
    db.close()
    with pytest.raises(DataDamaged, match="none of Headrace's"):
        await SqliteStore(tmp_path / "h.db").start()


async def test_a_newer_schema_is_refused_only_when_it_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    await store.stop()
    db = sqlite3.connect(tmp_path / "h.db")
    with db:
        db.execute("UPDATE meta SET value = '7' WHERE \"key\" = 'schema'")
    await store.start()
    await store.stop()
    with db:
        db.execute("UPDATE meta SET value = '5' WHERE \"key\" = 'min_reader'")
    db.close()
    with pytest.raises(DataTooNew, match="schema 7"):
        await store.start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_read_only_storage(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    with pytest.raises(ReadOnlyStorage):
        await SqliteStore(tmp_path / "below" / "h.db").start()


async def test_a_store_that_is_not_running_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db")
    await store.stop()
    with pytest.raises(StoreUnavailable):
        await store.get(1)
    await store.start()
    facts = await store.health()
    await store.stop()
    with pytest.raises(StoreUnavailable):
        await store.apply([], now=0)
    assert facts["journal_mode"] == "wal"
    assert facts["schema"] == SCHEMA


async def test_stopping_records_what_was_submitted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    answers = [asyncio.ensure_future(store.apply([Put(request(id))], now=0)) for id in range(500)]
    await asyncio.sleep(0)
    await store.stop()
    assert all(answer[0].refused is None for answer in await asyncio.gather(*answers))
    await store.start()
    assert (await store.counters())["app.f"].waiting == 500
    await store.stop()
    with pytest.raises(StoreUnavailable):
        store.submit_later(lambda: None)


# ---- restarts and crashes ----


async def test_a_restart_frees_claims_and_spends_an_attempt_only_of_what_ran(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    number = await store.join("node-1", until=1e9, now=0)
    claims = await put_claimed(store, request(1), request(2), request(3))
    await apply(store, MarkRunning(claims[0], 5.0))
    await apply(store, ok(claims[2]))
    await store.stop()

    await store.start()
    assert await store.join("node-1", until=1e9, now=0) > number
    [lost] = await store.release_expired(now=0)
    assert (lost.invocation.id, lost.attempt, lost.node) == (1, 1, "node-1")
    assert await store.release_expired(now=0) == []
    again = await store.claim("node-1", flow="app.f", limit=9, now=0)
    assert [(claim.invocation.id, claim.attempt) for claim in again] == [(1, 2), (2, 1)]
    await store.stop()


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_values import ok, request
from headrace.runtime.model.write import Put
from headrace.runtime.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.start()
    async def one(id):
        [answer] = await store.apply([Put(request(id), "n")], now=0)
        print("put", id, flush=True)
        if id % 3:
            await store.apply([ok(answer.claim)], now=1)
            print("end", id, flush=True)
    first = int(sys.argv[3])
    while True:
        await asyncio.gather(*[one(id) for id in range(first, first + 40)])
        first += 40

asyncio.run(main())
"""


def life(path: Path, first: int, lines: int) -> list[tuple[str, int]]:
    """Run a process that puts and settles, kill it after so many lines, and return what it was told."""
    told: list[tuple[str, int]] = []
    command = [sys.executable, "-c", CHILD, str(path), str(Path(__file__).parent), str(first)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for count, line in enumerate(child.stdout, 1):
            if count == lines:
                child.send_signal(signal.SIGKILL)
            if line.endswith("\n"):  # the last line may be torn
                kind, id = line.split()
                told.append((kind, int(id)))
    return told


async def test_whatever_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(20)
    told: list[tuple[str, int]] = []
    for n in range(3):
        told += await asyncio.to_thread(life, tmp_path / "h.db", n * 1_000_000, chance.randrange(1, 900))
    accepted = {id for kind, id in told if kind == "put"}
    ended = {id for kind, id in told if kind == "end"}

    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    found = await statuses(store, sorted(accepted))
    books = await store.counters()
    there = {Status.WAITING, Status.SUCCEEDED}
    assert {status for status in found if status is not None} <= there
    assert None not in found
    assert await statuses(store, sorted(ended)) == [Status.SUCCEEDED] * len(ended)
    balance(books)
    total = len(await store.find(limit=1_000_000))
    assert books["app.f"].accepted == total
    await store.stop()


# ---- faults ----


class Failing(SqliteDatabase):
    """A connection whose Nth statement fails from now on, once."""

    countdown = -1
    kind: type[sqlite3.Error] = sqlite3.OperationalError

    def _count(self) -> None:
        Failing.countdown -= 1
        if Failing.countdown == 0:
            raise Failing.kind("a fault was injected")

    def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(sql, *given)

    def executemany(self, sql: str, *given: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(sql, *given)


async def story(store: Store) -> list[list[Write]]:
    """A life of everything, ended early by the first fault; returns the lists that were recorded."""
    recorded: list[list[Write]] = []

    async def do(*writes: Write) -> list[Claim]:
        answers = await store.apply(list(writes), now=1)
        assert answers[0].refused is None
        recorded.append(list(writes))
        return [answer.claim for answer in answers if answer.claim is not None]

    await store.join("n", until=10, now=0)
    claims = await do(*[Put(request(id), "n") for id in range(1, 6)])
    await do(MarkRunning(claims[0], 1.0), MarkRunning(claims[1], 1.0), CursorMoved("c", "1"))
    await do(ok(claims[0]), Put(request(6, idempotency_key="k"), None, 50.0))
    await do(dead(claims[2]), Put(request(7, tags="t")))
    await do(Retry(claims[3], 0.0))
    await store.release_expired(now=20)
    for claim in await store.claim("n", flow="app.f", limit=9, now=1):
        await do(ok(claim))
    await put_job(store)
    await do(JobPlanned(9, 0, [part(100, 9, 0), part(101, 9, 1)], 1, {}, 1))
    for claim in await store.claim("n", flow="job:9", limit=9, now=1):
        await do(ChunkDone(ok(claim), (0, 1), part(500 + claim.invocation.id, 9, 0, 1, payload=b"{}")))
    await do(JobMoved(9, "cancelled", ("running",), 3.0))
    await store.expire(succeeded_before=2.0, dead_before=0.0, keep=3, limit=10)
    return recorded


@pytest.mark.parametrize("kind", [sqlite3.OperationalError, sqlite3.IntegrityError])
async def test_whichever_statement_fails_the_books_balance_and_nothing_is_half_done(
    tmp_path: Path, kind: type[sqlite3.Error]
) -> None:
    Failing.kind = kind
    statement = 0
    while True:
        statement += 1
        path = tmp_path / str(statement) / "h.db"
        Failing.countdown = -1
        store = SqliteStore(path, connection=Failing)
        await store.start()
        Failing.countdown = statement
        try:
            await story(store)
            finished = True
        except (HeadraceError, AssertionError, sqlite3.Error):
            finished = False
        hit, Failing.countdown = Failing.countdown <= 0, -1
        balance(await store.counters())
        claims_live = await store.claim("n2", flow="app.f", limit=99, now=100)
        await apply(store, *[ok(claim) for claim in claims_live])
        await put(store, request(9_000))
        await store.stop()

        await store.start()
        books = await store.counters()
        balance(books)
        rows = await store.find(limit=1000)
        waiting = [record for record in rows if record.status is Status.WAITING]
        assert sum(book.waiting for book in books.values()) == len(waiting)
        await store.stop()
        if not hit:
            assert finished
            break
    assert statement > 30


async def test_a_failed_commit_leaves_claims_as_they_were(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db", connection=Failing)
    Failing.kind = sqlite3.OperationalError
    await store.start()
    [claim] = await put_claimed(store, request(1))
    Failing.countdown = 2
    with pytest.raises(StoreUnavailable):
        await store.apply([ok(claim), Put(request(2), "n")], now=0)
    Failing.countdown = -1

    assert await store.claim("n", flow="app.f", limit=9, now=0) == []
    await apply(store, ok(claim))
    assert await statuses(store, [1, 2]) == [Status.SUCCEEDED, None]
    await store.stop()


class Bounded(SqliteDatabase):
    """A connection that a test can reach, to bound the file's pages."""

    opened: "Bounded | None" = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        Bounded.opened = self


async def test_a_full_disk_refuses_everyone_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db", connection=Bounded)
    await store.start()
    await put(store, request(1))
    assert Bounded.opened is not None
    pages = Bounded.opened.execute("PRAGMA page_count").fetchone()[0]
    Bounded.opened.execute(f"PRAGMA max_page_count = {pages + 2}")

    big = b'"' + b"x" * 50_000 + b'"'
    answers = await asyncio.gather(
        *[store.apply([Put(request(id, payload=big), "n")], now=0) for id in (2, 3)], return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [StorageFull, StorageFull]
    assert await statuses(store, [1, 2, 3]) == [Status.WAITING, None, None]
    balance(await store.counters())

    Bounded.opened.execute("PRAGMA max_page_count = 100000")
    await put(store, request(2, payload=big))
    claims = await store.claim("n", flow="app.f", limit=9, now=0)
    assert [claim.invocation.id for claim in claims] == [1, 2]
    await store.stop()


async def test_the_space_of_removed_rows_is_used_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    ids = itertools.count(1)

    async def backlog_that_ends() -> int:
        claims = []
        for _ in range(10):
            rows = [request(next(ids), payload=b"x" * 1024) for _ in range(1_000)]
            claims += await put_claimed(store, *rows)
        for at in range(0, len(claims), 1_000):
            await apply(store, *[ok(claim) for claim in claims[at : at + 1_000]], now=1.0)
        while (await store.expire(succeeded_before=2.0, dead_before=0.0, keep=0, limit=500)).count:
            continue
        assert await store.find() == []
        with contextlib.closing(sqlite3.connect(store.path)) as db:
            [pages] = db.execute("PRAGMA page_count").fetchone()
        return int(pages)

    first = await backlog_that_ends()
    assert await backlog_that_ends() <= first * 1.05
    await store.stop()
