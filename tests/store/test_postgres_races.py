"""Two nodes on one PostgreSQL database do the same thing at the same moment: exactly one of them has done it.

Each race is run many times over; whoever wins, the books must balance with the rows.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from store_values import apply, balance, dead, ok, part, put, put_claimed, put_job, request

from headrace.runtime.errors import (
    Contended,
    Duplicate,
    IdempotencyMismatch,
    LeaseLost,
    UnknownInvocation,
    WrongState,
)
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.job import JobCounts
from headrace.runtime.model.write import (
    Applied,
    CancelWaiting,
    ChunkDone,
    Fired,
    JobMoved,
    JobPlanned,
    JobRedriven,
    MarkRunning,
    Put,
    Redrive,
    Seen,
    Write,
)
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Counters, Store

pytestmark = pytest.mark.timeout(120)

ROUNDS = 100
FAR = 1e9


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two nodes, `north` and `south`."""
    stores = PostgresStore(postgres_url), PostgresStore(postgres_url)
    for store, node in zip(stores, ("north", "south"), strict=True):
        await store.start()
        await store.join(node, until=FAR, now=0.0)
    yield stores
    for store in stores:
        await store.stop()


async def at_once(*doings: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*doings))


async def race(
    pair: tuple[Store, Store], one: list[Write], other: list[Write], *, now: float = 0.0
) -> list[list[Applied]]:
    """The answers to two lists that two nodes apply at once."""
    return await at_once(pair[0].apply(one, now=now), pair[1].apply(other, now=now))


def one_refusal(answers: list[list[Applied]], kind: type[Exception]) -> int:
    """That exactly one of two lists was refused, and why; the place of the other."""
    refused = [answer[0].refused for answer in answers]
    assert sorted(map(type, refused), key=str) == sorted((type(None), kind), key=str), refused
    return refused.index(None)


async def checked_books(store: Store) -> dict[str, Counters]:
    """The books, after they were compared with the rows that there are."""
    books = await store.counters()
    balance(books)
    records = await store.find(limit=100_000)
    rows = Counter((record.invocation.function, record.status) for record in records)
    for function, book in books.items():
        kept = (
            book.waiting,
            book.running,
            book.succeeded - book.removed_succeeded,
            book.dead - book.removed_dead,
            book.cancelled - book.removed_cancelled,
        )
        assert kept == tuple(rows[function, status] for status in Status), function
    return books


async def test_of_two_puts_with_one_key_the_second_gets_the_first_ones_id(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS):
        one, other = 2 * n + 1, 2 * n + 2
        first, second = await race(
            pair,
            [Put(request(one, idempotency_key=f"k{n}", payload=b"x"), "north", FAR)],
            [Put(request(other, idempotency_key=f"k{n}", payload=b"x"), "south", FAR)],
        )
        assert [first[0].refused, second[0].refused] == [None, None]
        assert first[0].id == second[0].id
        assert sorted([first[0].repeated, second[0].repeated]) == [False, True]
    book = (await checked_books(pair[0]))["app.f"]
    assert (book.accepted, book.deduplicated) == (ROUNDS, ROUNDS)


async def test_a_forgotten_key_is_taken_by_one_payload(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS):
        now = 10.0 * n
        answers = await race(
            pair,
            [Put(request(2 * n + 1, idempotency_key="k", payload=b"x"), "north", now + 5)],
            [Put(request(2 * n + 2, idempotency_key="k", payload=b"y"), "south", now + 5)],
            now=now,
        )
        claim = answers[one_refusal(answers, IdempotencyMismatch)][0].claim
        assert claim is not None
        await apply(pair[n % 2], ok(claim), now=now)
    assert (await checked_books(pair[0]))["app.f"].accepted == ROUNDS


async def test_keys_taken_in_opposite_orders_lose_no_list(pair: tuple[Store, Store]) -> None:
    rounds = 4  # the server looks for a deadlock after a second
    for n in range(rounds):
        ids, keys = range(100 * n + 1, 100 * n + 21), [f"{n}-{i}" for i in range(10)]
        writes = [
            Put(request(id, idempotency_key=key, payload=b"x"), None, FAR)
            for id, key in zip(ids, [*keys, *reversed(keys)], strict=True)
        ]
        answers = await race(pair, writes[:10], writes[10:])
        assert all(answer.refused is None for list in answers for answer in list)
        named = [[answer.id for answer in list] for list in answers]
        assert named[0] == named[1][::-1]
    assert (await checked_books(pair[0]))["app.f"].accepted == 10 * rounds


async def test_one_object_becomes_one_event(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS):

        def write(id: int, n: int = n) -> list[Write]:
            # A new key in every second round, otherwise a newer version of the last one.
            seen = Seen("t", "b", f"key{n // 2}", f"e{n}", 1, f"{n + 1:04}", float(n), listed=n % 3 == 0)
            return [seen, Put(request(id))]

        one_refusal(await race(pair, write(2 * n + 1), write(2 * n + 2)), Duplicate)
    assert len(await pair[0].ledger("t", "b")) == ROUNDS // 2
    assert (await checked_books(pair[1]))["app.f"].accepted == ROUNDS


async def test_a_schedule_fires_once_an_instant(pair: tuple[Store, Store]) -> None:
    states = await at_once(*[store.schedule("s", definition="every hour", now=1.0) for store in pair])
    assert [state.generation for state in states] == [1, 1]
    for n in range(ROUNDS):
        lists: list[list[Write]] = [
            [Fired("s", float(n), 1), Put(request(2 * n + 1))],
            [Fired("s", float(n), 1), Put(request(2 * n + 2))],
        ]
        answers = await race(pair, *lists)
        for place, answer in enumerate(answers):
            if isinstance(answer[0].refused, Contended):  # the other had not committed yet
                answers[place] = await pair[place].apply(lists[place], now=0)
        one_refusal(answers, Duplicate)
    assert (await checked_books(pair[0]))["app.f"].accepted == ROUNDS
    [state] = await pair[0].schedules()
    assert state.last_due_at == ROUNDS - 1


async def test_a_definition_that_all_nodes_bring_changes_a_schedule_once(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        states = await at_once(*[store.schedule("s", definition=f"d{n}", now=float(n)) for store in pair])
        assert [state.generation for state in states] == [n, n]


async def test_a_job_is_planned_once(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS):
        await put_job(pair[n % 2], 10 * n)
        plans: list[list[Write]] = [
            [JobPlanned(10 * n, 0, [part(100 * n + at + i, 10 * n, i) for i in range(3)], 1, {}, 1)]
            for at in (0, 50)
        ]
        one_refusal(await race(pair, *plans), WrongState)
        assert await pair[0].job_counts(10 * n) == {0: JobCounts(waiting=3)}
    assert (await checked_books(pair[0]))["app.f"].accepted == 3 * ROUNDS


async def test_a_place_in_a_job_is_filled_once(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS):
        await put_job(pair[n % 2], n + 1)
        answers = await race(pair, [Put(part(2 * n + 1, n + 1, 0, -1))], [Put(part(2 * n + 2, n + 1, 0, -1))])
        one_refusal(answers, Duplicate)
    assert (await checked_books(pair[0]))["app.f"].accepted == ROUNDS


async def chunks(store: Store, job: int, count: int) -> list[Claim]:
    """A planned job with all of its chunks claimed by the store's node, by index."""
    await put_job(store, job)
    await apply(store, JobPlanned(job, 0, [part(1000 * job + i, job, i) for i in range(count)], 1, {}, 1))
    claims = await store.claim("north", flow=f"job:{job}", limit=count, now=0)
    assert [claim.invocation.index for claim in claims] == list(range(count))
    return claims


def ends(claim: Claim, *, width: int, id: int) -> ChunkDone:
    """The end of a chunk whose group has `width` children, with the reduce above it."""
    invocation = claim.invocation
    assert invocation.job is not None
    group = invocation.index // width
    parent = part(id, invocation.job, group, 1, payload=b"{}")
    return ChunkDone(ok(claim), (group * width, group * width + width - 1), parent)


async def test_the_last_two_chunks_of_a_group_accept_one_reduce(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        first, second = await chunks(pair[0], n, 2)
        one, other = await race(
            pair, [ends(first, width=2, id=1000 * n + 500)], [ends(second, width=2, id=1000 * n + 501)]
        )
        parents = [answer.parent for answer in (one[0], other[0]) if answer.parent is not None]
        assert len(parents) == 1
        assert parents[0].payload == b'{"children":[1,1]}'
        assert await pair[0].job_counts(n) == {0: JobCounts(succeeded=2), 1: JobCounts(waiting=1)}
    await checked_books(pair[0])


async def test_many_groups_that_two_nodes_end_at_once_accept_a_reduce_each(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS // 5 + 1):
        claims = await chunks(pair[0], n, 64)
        doings = [
            pair[(claim.invocation.index + n) % 2].apply(
                [ends(claim, width=4, id=1000 * n + 500 + claim.invocation.index)], now=0.0
            )
            for claim in (claims if n % 2 else claims[::-1])
        ]
        answers = await at_once(*doings)
        assert all(answer[0].refused is None for answer in answers)
        reduces = [answer[0].parent.index for answer in answers if answer[0].parent is not None]
        assert sorted(reduces) == list(range(16))
        assert await pair[0].job_counts(n) == {0: JobCounts(succeeded=64), 1: JobCounts(waiting=16)}
    await checked_books(pair[1])


async def test_a_reduce_of_a_job_that_fails_meanwhile_does_not_run(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        [claim] = await chunks(pair[0], n, 1)
        answers = await race(
            pair, [ends(claim, width=1, id=1000 * n + 500)], [JobMoved(n, "failed", ("running",), 1.0)]
        )
        assert [answer[0].refused for answer in answers] == [None, None]
        assert await pair[0].job_counts(n) == {0: JobCounts(succeeded=1), 1: JobCounts(cancelled=1)}
    await checked_books(pair[0])


async def test_a_job_is_redriven_once(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        claims = await chunks(pair[0], n, 3)
        await apply(pair[0], *[dead(claim) for claim in claims], JobMoved(n, "failed", ("running",), 1.0))
        again: list[Write] = [JobRedriven(n, ("failed",), 2.0, FAR)]
        one_refusal(await race(pair, again, again), WrongState)
        assert await pair[0].job_counts(n) == {0: JobCounts(waiting=3)}
    assert (await checked_books(pair[0]))["app.f"].dead == 0


async def test_a_redriven_job_and_a_redriven_chunk_count_it_once(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        claims = await chunks(pair[0], n, 2)
        await apply(pair[0], *[dead(claim) for claim in claims], JobMoved(n, "failed", ("running",), 1.0))
        [job], [chunk] = await race(
            pair, [JobRedriven(n, ("failed",), 2.0, FAR)], [Redrive(1000 * n, 2.0, FAR)]
        )
        assert job.refused is None
        assert chunk.refused is None or isinstance(chunk.refused, WrongState)
        assert await pair[0].job_counts(n) == {0: JobCounts(waiting=2)}
    assert (await checked_books(pair[0]))["app.f"].dead == 0


async def test_a_dead_invocation_is_redriven_once(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        [claim] = await put_claimed(pair[0], request(n), node="north")
        await apply(pair[0], dead(claim))
        one_refusal(await race(pair, [Redrive(n, 1.0, FAR)], [Redrive(n, 1.0, FAR)]), WrongState)
    book = (await checked_books(pair[0]))["app.f"]
    assert (book.waiting, book.dead) == (ROUNDS, 0)


async def test_what_is_claimed_is_not_cancelled_and_the_other_way_round(pair: tuple[Store, Store]) -> None:
    cancelled = 0
    for n in range(1, ROUNDS + 1):
        await put(pair[0], request(n))
        claiming = pair[1].claim("south", flow="app.f", limit=1, now=0.0)
        claims, [answer] = await at_once(claiming, pair[0].apply([CancelWaiting(n)], now=0.0))
        if claims:
            assert isinstance(answer.refused, WrongState)
            await apply(pair[1], ok(claims[0]))
        else:
            assert answer.refused is None
            cancelled += 1
    book = (await checked_books(pair[0]))["app.f"]
    assert (book.waiting, book.cancelled, book.succeeded) == (0, cancelled, ROUNDS - cancelled)


async def test_every_waiting_invocation_is_claimed_by_one_node(pair: tuple[Store, Store]) -> None:
    for n in range(ROUNDS // 5):
        ids = range(100 * n + 1, 100 * n + 61)
        await put(pair[0], *[request(id) for id in ids])
        taken: list[int] = []
        while True:
            found = await at_once(
                *[
                    store.claim(node, flow="app.f", limit=7, now=0.0)
                    for store, node in zip(pair, ("north", "south"), strict=True)
                ]
            )
            claims = found[0] + found[1]
            if not claims:
                break
            taken += [claim.invocation.id for claim in claims]
            await race(pair, [ok(claim) for claim in found[0]], [ok(claim) for claim in found[1]])
        assert sorted(taken) == list(ids)
    await checked_books(pair[1])


async def test_an_end_and_the_loss_of_its_lease_exclude_each_other(pair: tuple[Store, Store]) -> None:
    for n in range(1, ROUNDS + 1):
        now = float(n)
        await pair[0].join("north", until=now, now=now - 0.5)
        [claim] = await put_claimed(pair[0], request(n, flow=f"f{n}"), node="north")
        await apply(pair[0], MarkRunning(claim, now))
        [answer], lost = await at_once(pair[0].apply([ok(claim)], now=now), pair[1].release_expired(now=now))
        record = await pair[0].get(n)
        assert record is not None
        if answer.refused is None:
            assert lost == []
            assert record.status is Status.SUCCEEDED
        else:
            assert isinstance(answer.refused, LeaseLost)
            assert [claim.invocation.id for claim in lost] == [n]
            assert (record.status, record.attempts) == (Status.WAITING, 1)
    await checked_books(pair[0])


async def test_retention_does_not_take_what_is_redriven(pair: tuple[Store, Store]) -> None:
    removed = 0
    for n in range(1, ROUNDS + 1):
        [claim] = await put_claimed(pair[0], request(n), node="north")
        await apply(pair[0], dead(claim), now=1.0)
        expiring = pair[1].expire(succeeded_before=0.0, dead_before=2.0, keep=1000, limit=10)
        _, [answer] = await at_once(expiring, pair[0].apply([Redrive(n, 3.0, FAR)], now=3.0))
        record = await pair[0].get(n)
        if answer.refused is None:
            assert record is not None
            assert record.status is Status.WAITING
        else:
            assert isinstance(answer.refused, UnknownInvocation)
            assert record is None
            removed += 1
    book = (await checked_books(pair[0]))["app.f"]
    assert (book.removed_dead, book.waiting) == (removed, ROUNDS - removed)


async def test_two_nodes_that_remove_at_once_leave_what_is_to_be_kept(pair: tuple[Store, Store]) -> None:
    keep, more = 20, 11
    for n in range(ROUNDS // 5):
        ids = range(100 * n + 1, 100 * n + (keep + more if n == 0 else more) + 1)
        claims = await put_claimed(pair[0], *[request(id) for id in ids], node="north")
        await apply(pair[n % 2], *[ok(claim) for claim in claims], now=float(n))
        for _ in range(3):
            await at_once(
                *[store.expire(succeeded_before=0.0, dead_before=0.0, keep=keep, limit=10) for store in pair]
            )
        assert len(await pair[0].find(limit=1000)) == keep
    removed = (await checked_books(pair[0]))["app.f"].removed_succeeded
    assert removed == more * (ROUNDS // 5)
