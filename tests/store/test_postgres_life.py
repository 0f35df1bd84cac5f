"""The life of a PostgreSQL store: how it starts, loses its server and finds it again, and what it says."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from postgres_server import KEEPER, PASSWORD, PostgresServer
from store_values import apply, balance, ok, put, request, statuses

from headrace.runtime.errors import (
    DataTooNew,
    HeadraceError,
    InvalidSettings,
    StoreUnavailable,
)
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.write import Applied, CursorMoved, Put
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.schema import FACTS, metadata
from headrace.runtime.store.version import REVISION, SCHEMA

WAIT_S = 30.0


@contextlib.asynccontextmanager
async def started(url: str, **settings: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, **settings)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


@contextlib.contextmanager
def down(server: PostgresServer, *, crash: bool = False) -> Iterator[None]:
    """No server meanwhile."""
    server.stop(crash=crash)
    try:
        yield
    finally:
        server.start()


def execute(url: str, *statements: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        for statement in statements:
            cursor = db.execute(statement)
        return cursor.fetchall() if cursor.description else []


def end_sessions(url: str, name: str) -> int:
    """Cut the connections with this application name; how many there were."""
    return len(
        execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name = 'headrace {name}' AND datname = current_database()",
        )
    )


async def failure(url: str) -> HeadraceError:
    """Why a store cannot start, with nothing in it that is nobody's business."""
    with pytest.raises(HeadraceError) as raised:
        async with started(url):
            pass
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    assert "wrong-secret" not in shown
    assert PASSWORD not in shown
    return raised.value


async def apply_once(store: PostgresStore, invocation: Invocation) -> HeadraceError | None:
    try:
        [answer] = await store.apply([Put(invocation)], now=0)
    except HeadraceError as error:
        return error
    return answer.refused


class Stream:
    """Puts one after the other from several callers, and remembers what each was told."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.told: dict[int, str] = {}
        self.ending = False
        self._news = asyncio.Event()
        self._ids = iter(range(1, 1_000_000))

    async def caller(self) -> None:
        while not self.ending:
            id = next(self._ids)
            try:
                [answer] = await self.store.apply([Put(request(id))], now=0)
            except StoreUnavailable:
                self.told[id] = "unavailable"
            else:
                self.told[id] = "recorded" if answer.refused is None else type(answer.refused).__name__
            self._news.set()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(self.caller())
            await self.more(50)
            yield
            await self.more(50)
            self.ending = True

    async def more(self, count: int, what: str = "recorded") -> None:
        """Until so many more have been told this."""
        wanted = self.count(what) + count
        while self.count(what) < wanted:
            self._news.clear()
            await self._news.wait()

    def count(self, what: str) -> int:
        return list(self.told.values()).count(what)

    def check(self, url: str) -> None:
        stored = {id for [id] in execute(url, "SELECT id FROM invocation")}
        assert {id for id, told in self.told.items() if told == "recorded"} == stored
        assert set(self.told.values()) <= {"recorded", "unavailable"}
        [[accepted]] = execute(url, "SELECT sum(accepted) FROM counter")
        assert accepted == len(stored)


# ---- the server goes away and comes back ----


@pytest.mark.parametrize("crash", [False, True])
async def test_writes_that_meet_a_restart_of_the_server_are_all_recorded_once(
    postgres_server: PostgresServer, postgres_url: str, crash: bool
) -> None:
    async with started(postgres_url) as store:
        stream = Stream(store)
        async with stream.flowing():
            await asyncio.to_thread(postgres_server.restart, crash=crash)

        assert set(stream.told.values()) == {"recorded"}
        stream.check(postgres_url)
        balance(await store.counters())
        assert (await store.health())["reconnects"] >= 1


async def test_writes_whose_session_is_cut_again_and_again_are_recorded_once(postgres_url: str) -> None:
    async with started(postgres_url) as store:
        stream = Stream(store)
        async with stream.flowing():
            for _ in range(10):
                assert await asyncio.to_thread(end_sessions, postgres_url, "writer") == 1
                await stream.more(20)

        assert set(stream.told.values()) == {"recorded"}
        stream.check(postgres_url)
        assert (await store.health())["reconnects"] == 10


async def test_without_a_server_writes_are_refused_after_some_patience_and_accepted_when_it_is_back(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with started(postgres_url, patience_s=0.3) as store:
        stream = Stream(store)
        [kept] = [answer.claim for answer in await store.apply([Put(request(10**7), "n")], now=0)]
        async with stream.flowing():
            with down(postgres_server):
                await stream.more(8, "unavailable")
                with pytest.raises(StoreUnavailable, match="postgresql://127"):
                    await store.claim("n", flow="app.f", limit=1, now=0)
                with pytest.raises(StoreUnavailable):
                    await store.get(1)

        assert kept is not None
        await apply(store, ok(kept))
        assert await statuses(store, [10**7]) == [Status.SUCCEEDED]
        balance(await store.counters())


async def test_stop_without_a_server_answers_what_waits_and_returns(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    store = PostgresStore(postgres_url, patience_s=1000.0)
    await store.start()
    await put(store, request(1))
    with down(postgres_server):
        late = asyncio.ensure_future(store.apply([Put(request(2))], now=0))
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await store.stop()
            with pytest.raises(StoreUnavailable):
                await late


class Cut:
    """A way to the server that can lose what is said: `answers` after they are made, or `requests`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.losing = ""
        self.lost = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, onward = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            ways = [
                asyncio.ensure_future(self._carry(near, onward, "requests")),
                asyncio.ensure_future(self._carry(far, back, "answers")),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            back.close()
            onward.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, what: str) -> None:
        while data := await source.read(65536):
            if self.losing == what:
                self.losing = ""
                self.lost += 1
                return
            sink.write(data)


@pytest.mark.parametrize("losing", ["answers", "requests"])
async def test_a_write_whose_answer_is_lost_is_recorded_once_and_told_so(
    postgres_server: PostgresServer, postgres_url: str, losing: str
) -> None:
    cut = Cut(postgres_server.port)
    async with (
        cut.open() as port,
        started(postgres_url.replace(str(postgres_server.port), str(port))) as store,
    ):
        await put(store, request(1))
        cut.losing = losing
        [one, two] = await apply(store, Put(request(2), "n"), Put(request(3)))
        cut.losing = losing
        [answer] = await store.apply([ok(one.claim)], now=1)
        cut.losing = losing
        moved: list[Applied] = await store.apply([CursorMoved("c", "1")], now=1)
        cut.losing = losing
        claims = await store.claim("n", flow="app.f", limit=1, now=2)

        assert cut.lost == 4
        assert (one.id, two.id, answer.refused, moved[0].refused) == (2, 3, None, None)
        assert [claim.invocation.id for claim in claims] == [1]
        assert await statuses(store, [1, 2, 3]) == [Status.WAITING, Status.SUCCEEDED, Status.WAITING]
        assert await store.cursor("c") == "1"
        rest = await store.claim("n", flow="app.f", limit=5, now=2)
        assert [claim.invocation.id for claim in rest] == [3]
        balance(await store.counters())


async def test_reads_go_on_after_their_sessions_were_cut(postgres_url: str) -> None:
    async with started(postgres_url) as store:
        await put(store, request(1))
        assert await statuses(store, [1, 1, 1]) == [Status.WAITING] * 3
        assert end_sessions(postgres_url, "reader") >= 1
        assert await asyncio.gather(*[store.known([1, 2]) for _ in range(8)]) == [{1}] * 8


async def test_a_listener_that_was_cut_listens_again_and_says_that_it_may_have_missed_something(
    postgres_url: str,
) -> None:
    names: asyncio.Queue[str] = asyncio.Queue()
    store = PostgresStore(postgres_url)
    store.listen(names.put_nowait)
    await store.start()
    try:
        async with asyncio.timeout(WAIT_S), started(postgres_url) as other:
            assert await names.get() == "*"
            assert end_sessions(postgres_url, "listener") == 1
            assert await names.get() == "*"
            await put(other, request(1))
            assert await names.get() == "app.f"
    finally:
        await store.stop()


async def test_stop_records_what_was_submitted_and_leaves_no_session(postgres_url: str) -> None:
    answers: list[list[Applied] | BaseException] = []
    async with started(postgres_url) as store:
        for id in range(1, 101):
            store.submit([Put(request(id))], answers.append, now=0)
    await store.stop()
    await asyncio.sleep(0)

    assert [isinstance(answer, list) for answer in answers] == [True] * 100
    assert execute(postgres_url, "SELECT count(*) FROM invocation_live") == [(100,)]
    assert execute(postgres_url, "SELECT key FROM meta WHERE key LIKE 'writer%'") == []
    with pytest.raises(StoreUnavailable):
        await store.claim("n", flow="app.f", limit=1, now=0)


# ---- how it starts ----


@contextlib.asynccontextmanager
async def recovering(port: int, refusals: int) -> AsyncIterator[tuple[int, list[str]]]:
    """A way to the server, which answers the first so many times as one that recovers; the port, and what
    was answered.
    """
    said: list[str] = []
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    cut = Cut(port)

    async def serve(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if len(said) >= refusals:
            await cut.serve(near, back)
            return
        while True:
            size = int.from_bytes(await near.readexactly(4))
            asked = int.from_bytes((await near.readexactly(size - 4))[:4])
            if asked not in (80877103, 80877104):  # neither whether it speaks TLS nor GSSAPI
                break
            back.write(b"N")
        said.append("starting up")
        back.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)
        back.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], said


async def test_a_server_that_recovers_is_waited_for_and_named_when_that_takes_too_long(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    real = str(postgres_server.port)
    async with recovering(postgres_server.port, 3) as (port, said):
        async with started(postgres_url.replace(real, str(port))) as store:
            await put(store, request(1))
        assert len(said) == 3
    async with recovering(postgres_server.port, 1_000) as (port, _):
        with pytest.raises(StoreUnavailable, match="the server is starting"):
            async with started(postgres_url.replace(real, str(port)), patience_s=0.3):
                pass


async def test_nodes_that_find_an_empty_database_at_once_make_its_tables_once(postgres_url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = await asyncio.gather(*[stack.enter_async_context(started(postgres_url)) for _ in range(4)])
        numbers = await asyncio.gather(
            *[store.join(f"n{place}", until=10, now=0) for place, store in enumerate(stores)]
        )
        assert sorted(numbers) == [1, 2, 3, 4]
        assert (await stores[0].health())["schema"] == SCHEMA


async def test_a_fresh_database_has_the_tables_and_columns_of_the_schema(postgres_url: str) -> None:
    async with started(postgres_url):
        pass
    found: dict[str, set[tuple[str, str, bool]]] = {}
    for table, column, kind, null in execute(
        postgres_url,
        "SELECT table_name, column_name, data_type, is_nullable = 'YES' FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name NOT IN ('invocation_live', 'invocation_ended')",
    ):
        found.setdefault(table, set()).add((column, kind, null))

    kinds = {
        "BIGINT": "bigint", "TEXT": "text", "SMALLINT": "smallint", "INTEGER": "integer",
        "FLOAT": "double precision", "DOUBLE": "double precision", "BLOB": "bytea", "BOOLEAN": "boolean",
        "VARCHAR(32)": "character varying",
    }  # fmt: skip
    wanted = {
        table.name: {
            (column.name, kinds[str(column.type.as_generic())], bool(column.nullable))
            for column in table.columns
        }
        for table in metadata.sorted_tables
    }
    assert found == wanted
    facts = dict(execute(postgres_url, "SELECT key, value FROM meta"))
    assert facts == dict(FACTS)
    assert execute(postgres_url, "SELECT version_num FROM alembic_version") == [(REVISION,)]


async def test_an_address_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    await failure("postgresql://u:wrong-secret@127.0.0.1:port:x/db")
    for url in ("postgresql://u:wrong-secret@[::1/db", "postgresql://u:wrong-secret@127.0.0.1/db?colour=red"):
        assert isinstance(await failure(url), InvalidSettings)


async def test_no_server_no_database_and_a_wrong_password_are_told_apart(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    with contextlib.suppress(psycopg.errors.DuplicateObject):
        execute(postgres_url, f"CREATE ROLE {KEEPER} LOGIN PASSWORD '{PASSWORD}'")
    name = postgres_url.rsplit("/", 1)[1]
    execute(
        postgres_url, f"ALTER DATABASE {name} OWNER TO {KEEPER}", f"GRANT ALL ON SCHEMA public TO {KEEPER}"
    )
    port = postgres_server.port

    wrong = await failure(postgres_server.url(name, user=KEEPER, password="wrong-secret"))
    missing = await failure(postgres_server.url("nowhere", password="wrong-secret"))
    nobody = await failure(f"postgresql://u:wrong-secret@127.0.0.1:1/{name}")

    assert str(wrong) == f"postgresql://127.0.0.1:{port}/{name}: the server refuses this user and password"
    assert str(missing).startswith(f"postgresql://127.0.0.1:{port}/nowhere: there is no such database")
    assert str(nobody).endswith("no PostgreSQL server answers there")
    async with started(postgres_server.url(name, user=KEEPER, password=PASSWORD)) as store:
        await put(store, request(1))
        assert PASSWORD not in str(await store.health())


async def test_the_database_of_another_program_is_left_as_it_is(postgres_url: str) -> None:
    execute(postgres_url, "CREATE TABLE invoice (id int)")
    assert isinstance(await failure(postgres_url), InvalidSettings)

    execute(postgres_url, "CREATE TABLE meta (a int)", "CREATE TABLE invocation (b int)",
            "CREATE TABLE alembic_version (c int)")  # fmt: skip
    assert isinstance(await failure(postgres_url), InvalidSettings)
    assert execute(postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(4,)]


async def test_a_database_of_a_newer_release_is_refused(postgres_url: str) -> None:
    async with started(postgres_url):
        pass
    execute(postgres_url, "UPDATE meta SET value = '99' WHERE key IN ('schema', 'min_reader')")
    error = await failure(postgres_url)
    assert isinstance(error, DataTooNew)
    assert error.args[1] == 99


async def test_a_database_that_may_only_be_read_says_so(postgres_url: str) -> None:
    async with started(postgres_url, patience_s=0.1) as store:
        name = postgres_url.rsplit("/", 1)[1]
        execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        end_sessions(postgres_url, "writer")
        with pytest.raises(HeadraceError, match="cannot be written"):
            await store.apply([Put(request(1))], now=0)
        execute(
            postgres_url, "SET default_transaction_read_only = off",
            f"ALTER DATABASE {name} RESET default_transaction_read_only",
        )  # fmt: skip
        async with asyncio.timeout(WAIT_S):
            while isinstance(await apply_once(store, request(2)), StoreUnavailable):
                pass
        assert await statuses(store, [1, 2]) == [None, Status.WAITING]


async def test_the_time_of_the_server_is_told(postgres_url: str) -> None:
    async with started(postgres_url) as store:
        before = await store.moment()
        [[between]] = execute(postgres_url, "SELECT extract(epoch FROM clock_timestamp())::float8")
        assert before <= between <= await store.moment()
