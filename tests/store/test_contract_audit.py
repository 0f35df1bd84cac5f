"""What `headrace verify` relies on, of every store: each rule is broken by hand, and the row is named."""

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from store_values import apply, dead, ok, part, put, request

from headrace.runtime.model.audit import Problem
from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.spec import JobSpec
from headrace.runtime.model.write import (
    CancelWaiting,
    JobMoved,
    JobPlanned,
    JobPut,
    MarkRunning,
    Put,
    Retry,
    Seen,
    Settle,
)
from headrace.runtime.store import audit as rules
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Store

NOW = 1_800_000_000.0
NODE = "north"
Damage = Callable[..., None]
ERROR = '{"code":"function_error","message":"no"}'


@pytest.fixture
def made() -> Ids:
    return Ids(lambda: NOW, node=1)


@pytest.fixture
def damage(store: Store, request: pytest.FixtureRequest) -> Damage:
    """Runs a statement on the store's database behind its back."""

    def run(sql: str, *values: object) -> None:
        if isinstance(store, PostgresStore):
            url: str = request.getfixturevalue("postgres_url")
            text = sql.replace("?", "%s").replace("INDEX part", "INDEX live_part, ended_part")
            with psycopg.connect(url) as server:
                try:
                    server.execute(text, values)  # type: ignore[arg-type]
                except psycopg.errors.CheckViolation:
                    pytest.skip("PostgreSQL itself refuses such a row")
            return
        with sqlite3.connect(store.path) as db:  # type: ignore[attr-defined]
            db.execute(sql, values)
        db.close()

    return run


def times() -> dict[str, Any]:
    return {"accepted_at": NOW, "due_at": NOW, "expires_at": NOW + 100}


async def four(store: Store, made: Ids) -> dict[str, int]:
    """One invocation of each kind, and one of another function: their ids by what they are."""
    await store.join(NODE, until=NOW + 100, now=NOW)
    names = ("waiting", "running", "succeeded", "dead", "cancelled", "keyed")
    ids = {name: made.next() for name in names}
    await put(store, *(request(ids[name], **times()) for name in names[:5]), now=NOW)
    keyed = request(ids["keyed"], function="app.g", flow="app.g#a", idempotency_key="k", **times())
    await apply(store, Put(keyed, idempotency_until=NOW + 100), now=NOW)
    await apply(store, CancelWaiting(ids["cancelled"]), now=NOW)
    claims = await claims_of(store, "app.f")
    held = {claim.invocation.id: claim for claim in claims}
    await apply(
        store,
        Retry(held[ids["waiting"]], NOW, error={"code": "function_error", "message": "no"}),
        MarkRunning(held[ids["running"]], NOW),
        ok(held[ids["succeeded"]]),
        dead(held[ids["dead"]]),
        now=NOW,
    )
    return ids


async def claims_of(store: Store, flow: str) -> list[Claim]:
    return await store.claim(NODE, flow=flow, limit=100, now=NOW)


async def job_of_three(store: Store, made: Ids) -> tuple[int, list[int]]:
    job = made.next()
    spec = JobSpec(split={"kind": "lines"}, reduce="tree")
    pieces = [part(made.next(), job, index, function="app.job", **times()) for index in range(3)]
    await apply(
        store,
        JobPut(job, "app.job", spec, {"object": "s3://in/a"}, NOW),
        JobPlanned(job, 0, pieces, 1, {}, 1),
        now=NOW,
    )
    return job, [piece.id for piece in pieces]


async def problems(store: Store) -> list[Problem]:
    return (await store.audit()).problems


async def test_an_empty_store_balances(store: Store) -> None:
    found = await store.audit()

    assert (found.books, found.problems, found.found, found.checked_rows) == ({}, [], {}, 0)


async def test_the_books_and_the_rows_of_each_function_are_given(store: Store, made: Ids) -> None:
    await four(store, made)
    found = await store.audit()

    assert (found.problems, found.found, found.checked_rows) == ([], {}, 6)
    book = found.books["app.f"]
    assert (book.accepted, book.missing) == (5, 0)
    one_each = {"waiting": 1, "running": 1, "succeeded": 1, "dead": 1, "cancelled": 1}
    assert book.rows == one_each
    assert {name: getattr(book, name) for name in one_each} == one_each
    assert (found.books["app.g"].accepted, found.books["app.g"].waiting) == (1, 1)


async def test_what_retention_removed_stays_in_the_books(store: Store, made: Ids) -> None:
    await four(store, made)
    await store.expire(succeeded_before=NOW + 1, dead_before=NOW + 1, keep=100, limit=100)
    found = await store.audit()

    assert (found.problems, found.checked_rows) == ([], 3)
    book = found.books["app.f"]
    assert (book.accepted, book.succeeded, book.dead, book.cancelled, book.missing) == (5, 1, 1, 1, 0)
    assert book.removed == {"succeeded": 1, "dead": 1, "cancelled": 1}


async def test_one_function_is_audited_alone(store: Store, made: Ids, damage: Damage) -> None:
    ids = await four(store, made)
    damage("UPDATE invocation SET attempts = -1 WHERE id = ?", ids["dead"])
    alone = await store.audit(function="app.g")

    assert (list(alone.books), alone.problems, alone.checked_rows) == (["app.g"], [], 1)
    assert (await store.audit(function="app.f")).found == {"attempts": 1}


DAMAGES = [
    ("status", "waiting", "status = 7"),
    ("ended_without_moment", "dead", "ended_at = NULL"),
    ("unended_with_moment", "waiting", "ended_at = 1.0"),
    ("unended_with_result", "waiting", "result_ref = 's3://a/b'"),
    ("waiting_but_started", "waiting", "started_at = 1.0"),
    ("running_nowhere", "running", "node = NULL"),
    ("node_unknown", "running", "node = 'nobody'"),
    ("attempts", "waiting", "attempts = -1"),
    ("attempts", "succeeded", "attempts = 0"),
    ("succeeded_with_error", "dead", "status = 2"),
    ("ended_without_error", "succeeded", "status = 3"),
    ("ended_without_error", "dead", "error = NULL"),
    ("flow", "waiting", "flow = 'app.g'"),
    ("flow", "keyed", "flow = 'app.gx'"),
    ("place", "waiting", "idx = 3"),
    ("expires", "waiting", "expires_at = 1.0"),
    ("id_time", "waiting", "accepted_at = 0.5, expires_at = 1.0"),
    ("error", "dead", "error = '{\"code\":'"),
    ("error", "dead", "error = '[]'"),
    ("error", "cancelled", "status = 3"),
    ("idempotency", "keyed", "idempotency_key = 'other'"),
]


@pytest.mark.parametrize(("check", "which", "change"), DAMAGES)
async def test_a_row_that_breaks_a_rule_is_named(
    check: str, which: str, change: str, store: Store, made: Ids, damage: Damage
) -> None:
    ids = await four(store, made)
    damage(f"UPDATE invocation SET {change} WHERE id = ?", ids[which])
    found = await store.audit()

    [named] = [problem for problem in found.problems if problem.check == check]
    assert (named.id, named.function) == (show_id(ids[which]), "app.g" if which == "keyed" else "app.f")
    assert named.message
    assert named.hint
    assert found.found[check] == 1


def test_every_rule_on_rows_is_broken_above() -> None:
    assert {check.name for check in rules.ROW_CHECKS} <= {name for name, _, _ in DAMAGES}


async def test_a_deleted_row_is_missed_by_its_functions_books(
    store: Store, made: Ids, damage: Damage
) -> None:
    ids = await four(store, made)
    damage("DELETE FROM invocation WHERE id = ?", ids["waiting"])
    damage("DELETE FROM invocation WHERE id = ?", ids["succeeded"])
    found = await store.audit()

    assert [(problem.check, problem.function) for problem in found.problems] == [("books", "app.f")] * 2
    assert found.problems[0].message.endswith(": 1 missing")
    assert found.problems[1].message == "succeeded 1 is not 0 rows + 0 removed: 1 missing"
    assert found.books["app.f"].missing == 2


async def test_a_row_of_a_function_without_books_is_found(store: Store, made: Ids, damage: Damage) -> None:
    ids = await four(store, made)
    damage("UPDATE invocation SET function = 'app.h' WHERE id = ?", ids["succeeded"])
    found = await store.audit()

    assert found.found == {"flow": 1, "function_unknown": 1, "books": 2}
    assert {(problem.check, problem.id) for problem in found.problems} >= {
        ("flow", show_id(ids["succeeded"]))
    }
    assert {problem.function for problem in found.problems} == {"app.f", "app.h"}


async def test_all_problems_are_counted_and_some_named(
    store: Store, made: Ids, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RANGE", 7)
    ids = [made.next() for _ in range(25)]
    await put(store, *(request(id, **times()) for id in ids), now=NOW)
    damage("UPDATE invocation SET attempts = -1")
    found = await store.audit(limit=10)

    assert (found.found, found.checked_rows) == ({"attempts": 25}, 25)
    assert [problem.id for problem in found.problems] == [show_id(id) for id in ids[:10]]


async def test_a_job_and_its_parts_balance(store: Store, made: Ids) -> None:
    job, _ = await job_of_three(store, made)
    assert await problems(store) == []
    for claim in await claims_of(store, f"job:{job}"):
        await apply(store, ok(claim), now=NOW)
    await apply(store, JobMoved(job, "succeeded", ("running",), NOW), now=NOW)
    assert await problems(store) == []
    await store.expire(succeeded_before=NOW + 1, dead_before=NOW + 1, keep=0, limit=2)
    assert await problems(store) == [], "a job that is being removed is no problem"


async def test_a_part_of_a_job_that_is_there_twice_is_found(store: Store, made: Ids, damage: Damage) -> None:
    job, ids = await job_of_three(store, made)
    damage("DROP INDEX part")
    damage("UPDATE invocation SET idx = 0 WHERE id = ?", ids[1])

    [named] = await problems(store)
    assert (named.check, named.id, named.function) == ("job_part_twice", show_id(job), "app.job")


async def test_a_part_that_a_job_lacks_is_found(store: Store, made: Ids, damage: Damage) -> None:
    job, ids = await job_of_three(store, made)
    damage("DELETE FROM invocation WHERE id = ?", ids[2])
    assert [(p.check, p.id) for p in await problems(store)] == [("books", None), ("job_chunks", show_id(job))]
    damage("DELETE FROM invocation")
    assert [(p.check, p.id) for p in await problems(store)] == [("books", None), ("job_chunks", show_id(job))]


async def test_a_job_without_a_row_and_one_whose_row_is_wrong_are_found(
    store: Store, made: Ids, damage: Damage
) -> None:
    job, _ = await job_of_three(store, made)
    for change, said in (
        ("status = 'lost'", "its status is 'lost'"),
        ("status = 'failed'", "no moment of its end"),
        ("status = 'failed', ended_at = 5.0", "no error says why"),
        ("plan = '{'", "not readable"),
    ):
        damage(f"UPDATE job SET {change} WHERE id = ?", job)
        [named] = await problems(store)
        assert (named.check, named.id) == ("job", show_id(job))
        assert said in named.message
    damage("DELETE FROM job")
    [named] = await problems(store)
    assert (named.check, named.id) == ("job_missing", show_id(job))


async def test_a_key_and_a_ledger_row_that_make_no_sense_are_found(
    store: Store, made: Ids, damage: Damage
) -> None:
    ids = await four(store, made)
    await apply(store, Seen("app.f/upload/0", "inbox", "a.txt", "e", 5, "", NOW, True), now=NOW)
    assert await problems(store) == []
    damage("UPDATE ledger SET size = -5")
    damage("UPDATE idempotency SET invocation = ?", ids["dead"])

    assert [(p.check, p.id) for p in await problems(store)] == [
        ("idempotency", show_id(ids["dead"])),
        ("ledger", "s3://inbox/a.txt"),
    ]


async def test_references_come_in_pages_by_id(store: Store, made: Ids) -> None:
    def named(index: int) -> Invocation:
        return request(made.next(), payload=b"", payload_ref=f"s3://headrace-system/p/{index}", **times())

    invocations = [named(index) for index in range(5)]
    await store.join(NODE, until=NOW + 100, now=NOW)
    await put(store, *invocations, request(made.next(), **times()), now=NOW)
    [first, *_] = await claims_of(store, "app.f")
    await apply(store, Settle(first, Status.SUCCEEDED, b"", "s3://headrace-system/r/1"), now=NOW)

    pages, after = [], 0
    while page := await store.references(after=after, limit=2):
        pages.append(page)
        after = page[-1].id
    assert [len(page) for page in pages] == [2, 2, 1]
    found = [reference for page in pages for reference in page]
    assert [reference.id for reference in found] == [invocation.id for invocation in invocations]
    assert found[0].addresses == ["s3://headrace-system/p/0", "s3://headrace-system/r/1"]
    job, _ = await job_of_three(store, made)
    assert [(each.id, each.addresses) for each in await store.references(jobs=True)] == [(job, [])]
