"""What finished rows cost on PostgreSQL: nothing, since no statement of the work reads their partition.

The server itself tells the plan of every statement that a store sends (`auto_explain`).
"""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import psycopg
import pytest
from postgres_server import PostgresServer
from store_values import apply, ok, put, put_claimed, request

from headrace.runtime.model.limits import Limits
from headrace.runtime.model.write import MarkRunning, Put, Retry
from headrace.runtime.store.postgres.store import PostgresStore

ENDED = 50_000
WAITING = 20_000
ROUNDS = 12  # after a handful the server plans a statement once for all values
EXPLAIN = (
    "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0"
    " -c auto_explain.log_nested_statements=on"
)
_SCAN = re.compile(r"(Seq Scan|Index Scan|Index Only Scan|Bitmap Heap Scan).* on (invocation\w*)")


def filled(url: str) -> None:
    rows = (
        "INSERT INTO invocation (id, accepted_at, due_at, expires_at, started_at, ended_at, attempts,"
        " priority, status, function, flow, payload) SELECT n, n, 0, 9e9, n, {ended}, {attempts}, 0,"
        " {status}, 'app.f', 'app.f', '1' FROM generate_series({first}, {last}) AS n"
    )
    with psycopg.connect(url, autocommit=True) as db:
        for text in (
            rows.format(ended="n", attempts=1, status=2, first=1, last=ENDED),
            rows.format(ended="NULL", attempts=0, status=0, first=ENDED + 1, last=ENDED + WAITING),
            "VACUUM ANALYZE",
        ):
            db.execute(text)  # type: ignore[arg-type]


@pytest.fixture
async def explained(postgres_server: PostgresServer, postgres_url: str) -> AsyncIterator[PostgresStore]:
    """A store on many finished and waiting rows, whose statements' plans the server logs."""
    try:
        with psycopg.connect(postgres_url, autocommit=True) as db:
            db.execute("LOAD 'auto_explain'")
    except psycopg.errors.UndefinedFile:
        pytest.skip("needs PostgreSQL's module auto_explain: install the package `postgresql-contrib`")
    maker = PostgresStore(postgres_url)
    await maker.start()
    await maker.stop()
    filled(postgres_url)
    store = PostgresStore(f"{postgres_url}?options={quote(EXPLAIN)}")
    await store.start()
    yield store
    await store.stop()


def plans(log: str) -> dict[str, str]:
    """Of each statement that was logged with its plan, the plan."""
    found: dict[str, str] = {}
    for entry in re.split(r"^\S.*?LOG:\s+duration: .*plan:$", log, flags=re.MULTILINE)[1:]:
        lines = [line for line in entry.splitlines() if line.startswith("\t")]
        text = lines[0].partition("Query Text:")[2].strip()
        found[text] = found.get(text, "") + "\n".join(lines[1:]) + "\n"
    return found


async def test_no_statement_of_the_work_reads_finished_rows(
    explained: PostgresStore, postgres_server: PostgresServer
) -> None:
    store, at = explained, ENDED + WAITING
    limits = Limits(concurrency=100, rate=1e6, burst=1e6)
    for number in range(ROUNDS):
        ids = range(at + 100 * number, at + 100 * number + 10)
        claims = await put_claimed(store, *[request(id + 1) for id in ids])
        claims += await store.claim("node-1", flow="app.f", limit=10, now=1.0)
        claims += await store.claim("node-1", flow="app.f", limit=5, now=1.0, function="app.f", limits=limits)
        assert len(claims) == 25
        await apply(store, *[MarkRunning(claim, 1.0) for claim in claims[:5]], now=1.0)
        await apply(store, *[ok(claim) for claim in claims[:15]], now=2.0)
        await apply(store, *[Retry(claim, 5.0, error={"code": "x"}) for claim in claims[15:20]], now=2.0)
        await store.release(claims[20:])
        await put(store, request(at + 100 * number + 50))
        keyed = request(at + 100 * number + 60, idempotency_key=f"key {number}")
        await apply(store, Put(keyed, idempotency_until=100.0), now=1.0)
        await store.next_due("app.f", now=9.0)
        await store.release_expired(now=1.0)
        await store.held_back(flow="app.f", function="app.f", limits=limits, now=1.0)
        await store.counters()
    work = plans(postgres_server.log(lines=100_000))
    assert len(work) > 15, sorted(work)
    scans = [(text, plan, *scan) for text, plan in work.items() for scan in _SCAN.findall(plan)]
    assert len({text for text, *_ in scans}) > 5, sorted(work)
    for text, plan, how, table in scans:
        assert table == "invocation_live", f"{text}\n{plan}"
        assert how != "Seq Scan", f"{text}\n{plan}"

    await store.expire(succeeded_before=20.0, dead_before=20.0, keep=10**9, limit=10)
    retention = plans(postgres_server.log(lines=100_000))
    for text in retention.keys() - work.keys():
        assert "Seq Scan on invocation" not in retention[text], f"{text}\n{retention[text]}"
