"""What the dispatcher relies on, of every store."""

import asyncio
import threading

from store_values import apply, balance, dead, ok, put, put_claimed, refusal, request, statuses

from headrace.runtime.errors import Duplicate, IdempotencyMismatch, LeaseLost, UnknownInvocation, WrongState
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.write import Applied, CancelWaiting, CursorMoved, MarkRunning, Put, Redrive, Retry
from headrace.runtime.store.protocol import Item, Store


async def test_what_was_put_waits_and_is_claimed_as_it_was(store: Store) -> None:
    payload = b'{"a":"\\u00e9 \xc3\xa9"}'
    moments = {"accepted_at": 1_700_000_000.123456, "due_at": 1_700_000_000.7654321}
    rest = {"priority": 2, "tags": "x,y", "source": "upload", "payload_ref": "s3://b/p", "attempts": 1}
    first = request(1, payload=payload, **moments, **rest)
    await put(store, first)

    record = await store.get(1)
    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=1_800_000_000)

    assert record is not None
    assert (record.invocation, record.status, record.attempts) == (first, Status.WAITING, 1)
    assert claim == Claim(first, 2, "node-1")


async def test_a_put_for_a_node_is_claimed_at_once(store: Store) -> None:
    invocation = request(1)
    [answer] = await store.apply([Put(invocation, "node-1")], now=0)

    assert answer == Applied(1, False, Claim(invocation, 1, "node-1"))
    assert await store.claim("node-2", flow="app.f", limit=5, now=0) == []


async def test_claims_come_by_priority_then_due_time_then_id(store: Store) -> None:
    await put(
        store,
        request(1),
        request(2, due_at=-1.0),
        request(3, priority=5),
        request(4),
        request(5, priority=-1),
    )

    claims = await store.claim("node-1", flow="app.f", limit=4, now=0)
    rest = await store.claim("node-1", flow="app.f", limit=4, now=0)

    assert [claim.invocation.id for claim in claims] == [3, 2, 1, 4]
    assert [claim.invocation.id for claim in rest] == [5]


async def test_only_due_invocations_of_the_flow_are_claimed(store: Store) -> None:
    await put(store, request(1, due_at=10.0, priority=9), request(2, flow="other"), request(3))

    assert await store.flows() == ["app.f", "other"]
    assert [c.invocation.id for c in await store.claim("n", flow="app.f", limit=9, now=9.9)] == [3]
    assert await store.next_due("app.f", now=9.9) == 10.0
    assert [c.invocation.id for c in await store.claim("n", flow="app.f", limit=9, now=10)] == [1]
    assert await store.next_due("app.f", now=9.9) is None
    assert "other" in await store.flows()


async def test_a_long_backlog_is_claimed_once_and_in_order_page_by_page(store: Store) -> None:
    await put(store, *[request(id, due_at=float(id // 700)) for id in range(1, 3001)])
    seen: list[int] = []
    while claims := await store.claim("n", flow="app.f", limit=250, now=100):
        seen += [claim.invocation.id for claim in claims]
        if len(seen) == 1000:
            await put(store, request(5000, due_at=-5.0))
            await store.release(claims[:3])

    assert seen[1000:1004] == [5000, 751, 752, 753]
    assert sorted(set(seen)) == [*range(1, 3001), 5000]


async def test_a_settled_invocation_has_its_outcome_and_no_second_one(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))

    await apply(store, ok(claim, b'{"sum": 3}'), now=7)
    late = await refusal(store, dead(claim), now=8)

    record = await store.get(1)
    assert record is not None
    assert (record.status, record.attempts, record.result, record.started_at, record.ended_at) == (
        Status.SUCCEEDED, 1, b'{"sum": 3}', 1.0, 7.0,
    )  # fmt: skip
    assert isinstance(late, LeaseLost)
    assert await store.flows() == []


async def test_a_dead_invocation_keeps_its_error(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    await apply(store, dead(claim), now=7)

    record = await store.get(1)
    assert record is not None
    assert record.status is Status.DEAD
    assert record.error == {"code": "function_error", "message": "no"}


async def test_a_retry_waits_until_it_is_due_and_counts_only_a_spent_attempt(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    await apply(store, Retry(claim, due_at=5.0, error={"code": "x"}))
    assert await store.claim("n", flow="app.f", limit=1, now=4.9) == []
    [second] = await store.claim("n", flow="app.f", limit=1, now=5)
    await apply(store, Retry(second, due_at=6.0, spent=False))
    [third] = await store.claim("n", flow="app.f", limit=1, now=6)

    assert (second.attempt, third.attempt) == (2, 2)
    assert isinstance(await refusal(store, Retry(claim, due_at=0.0)), LeaseLost)


async def test_released_claims_wait_again_and_spend_nothing(store: Store) -> None:
    claims = await put_claimed(store, request(1), request(2))
    await store.release([*claims, claims[0]])
    await store.release(claims)

    again = await store.claim("node-2", flow="app.f", limit=5, now=0)

    assert [(claim.invocation.id, claim.attempt) for claim in again] == [(1, 1), (2, 1)]
    assert isinstance(await refusal(store, ok(claims[0])), LeaseLost)


async def test_a_node_that_stops_renewing_loses_its_claims(store: Store) -> None:
    await apply(store, Put(request(1)))
    await store.join("node-1", until=20, now=0)
    await store.renew("node-1", until=30)
    [first] = await store.claim("node-1", flow="app.f", limit=1, now=0)
    await apply(store, MarkRunning(first, started_at=1.0))

    assert await store.release_expired(now=29.9) == []
    assert await store.release_expired(now=30) == [first]
    await store.join("node-2", until=60, now=30)
    [second] = await store.claim("node-2", flow="app.f", limit=1, now=30)

    assert (second.invocation.id, second.attempt) == (1, 2)
    [late] = await store.apply([ok(first, b"late")], now=31)
    assert isinstance(late.refused, LeaseLost)


async def test_a_claim_that_never_ran_costs_its_lost_node_no_attempt(store: Store) -> None:
    await store.join("node-1", until=30, now=0)
    [first] = await put_claimed(store, request(1))

    assert await store.release_expired(now=31) == []

    [second] = await store.claim("node-2", flow="app.f", limit=1, now=31)
    assert second.attempt == 1
    assert isinstance(await refusal(store, ok(first)), LeaseLost)


async def test_a_node_that_leaves_hands_back_even_what_ran(store: Store) -> None:
    await store.join("node-1", until=30, now=0)
    claims = await put_claimed(store, request(1), request(2))
    await apply(store, MarkRunning(claims[0], started_at=1.0))
    await store.leave("node-1")

    again = await store.claim("node-2", flow="app.f", limit=5, now=0)
    assert sorted((claim.invocation.id, claim.attempt) for claim in again) == [(1, 1), (2, 1)]
    assert await store.release_expired(now=1e9) == []


async def test_a_marked_claim_is_running_until_it_ends(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    await apply(store, MarkRunning(claim, started_at=3.0))
    record, books = await store.get(1), await store.counters()
    await apply(store, ok(claim))

    assert record is not None
    assert (record.status, record.node, record.started_at) == (Status.RUNNING, "node-1", 3.0)
    assert (books["app.f"].running, books["app.f"].waiting) == (1, 0)
    assert isinstance(await refusal(store, MarkRunning(claim, started_at=4.0)), LeaseLost)
    assert await statuses(store, [1]) == [Status.SUCCEEDED]


async def test_node_numbers_grow(store: Store) -> None:
    first = await store.join("host#1", until=1, now=0)
    await store.leave("host#1")
    assert await store.join("host#2", until=1, now=0) > first


async def test_a_refusal_undoes_its_own_list_and_no_other(store: Store) -> None:
    stale, kept = await put_claimed(store, request(1), request(2))
    await apply(store, ok(stale))
    answers: list[list[Applied] | BaseException] = []
    arrived = asyncio.Event()

    def done(answer: list[Applied] | BaseException) -> None:
        answers.append(answer)
        if len(answers) == 4:
            arrived.set()

    store.submit([Put(request(10))], done, now=0)
    store.submit([Put(request(11), "node-1"), ok(kept), ok(stale), CursorMoved("c", "1")], done, now=0)
    store.submit([Put(request(12)), ok(stale)], done, now=0)
    store.submit([Put(request(13))], done, now=0)
    await arrived.wait()

    first, second, third, fourth = answers
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert isinstance(third, list)
    assert isinstance(fourth, list)
    assert (first[0].id, fourth[0].id) == (10, 13)
    assert len({id(answer.refused) for answer in second}) == 1
    assert [type(answer.refused) for answer in second + third] == [LeaseLost] * 6
    assert await statuses(store, [10, 11, 12, 13]) == [Status.WAITING, None, None, Status.WAITING]
    assert await store.cursor("c") is None
    assert await refusal(store, ok(kept)) is None
    balance(await store.counters())


async def test_an_id_that_is_taken_harms_only_its_own_list(store: Store) -> None:
    await put(store, request(1))
    answers = await asyncio.gather(
        *[
            store.apply([Put(request(id), "n"), CursorMoved(str(id), "x")][: 1 + id % 2], now=0)
            for id in (2, 1, 3, 1, 4)
        ]
    )

    assert [type(answer[0].refused) for answer in answers] == [
        type(None),
        Duplicate,
        type(None),
        Duplicate,
        type(None),
    ]
    assert await store.cursor("1") is None
    assert [c.invocation.id for c in await store.claim("n", flow="app.f", limit=9, now=0)] == [1]
    assert (await store.counters())["app.f"].accepted == 4


async def test_a_list_that_cannot_be_stored_harms_only_its_own_caller(store: Store) -> None:
    answers = await asyncio.gather(
        store.apply([Put(request(1))], now=0),
        store.apply([Put(request(2, tags="\ud800"))], now=0),
        store.apply([Put(request(3))], now=0),
        return_exceptions=True,
    )

    assert isinstance(answers[1], UnicodeEncodeError)
    assert await statuses(store, [1, 2, 3]) == [Status.WAITING, None, Status.WAITING]
    balance(await store.counters())


async def test_lists_are_recorded_in_the_order_of_the_calls(store: Store) -> None:
    await asyncio.gather(*[store.apply([CursorMoved("c", str(n))], now=0) for n in range(50)])
    assert await store.cursor("c") == "49"


async def test_a_claim_and_its_end_may_share_a_transaction(store: Store) -> None:
    invocation = request(1)
    put_answer, mark, end = await asyncio.gather(
        store.apply([Put(invocation, "n")], now=0),
        store.apply([MarkRunning(Claim(invocation, 1, "n"), 1.0)], now=0),
        store.apply([ok(Claim(invocation, 1, "n"))], now=0),
    )
    assert [put_answer[0].refused, mark[0].refused, end[0].refused] == [None, None, None]
    assert await statuses(store, [1]) == [Status.SUCCEEDED]


async def test_a_repeated_idempotency_key_answers_with_the_first_id(store: Store) -> None:
    first = Put(request(1, idempotency_key="k", payload=b"1"), None, 100.0)
    [one, two] = await apply(
        store, first, Put(request(2, idempotency_key="k", payload=b"1"), "n", 100.0), now=0
    )
    other = await refusal(store, Put(request(3, idempotency_key="k", payload=b"2"), None, 100.0), now=99)
    [function] = await apply(
        store, Put(request(4, idempotency_key="k", function="app.g"), None, 100.0), now=99
    )
    [claim] = await store.claim("n", flow="app.f", limit=5, now=99)
    await apply(store, ok(claim), now=99)
    [after] = await apply(store, Put(request(5, idempotency_key="k", payload=b"2"), None, 200.0), now=100)

    assert [(a.id, a.repeated, a.claim) for a in (one, two, function, after)] == [
        (1, False, None), (1, True, None), (4, False, None), (5, False, None),
    ]  # fmt: skip
    assert isinstance(other, IdempotencyMismatch)
    assert await statuses(store, [2, 3]) == [None, None]
    books = (await store.counters())["app.f"]
    assert (books.accepted, books.deduplicated) == (2, 1)


async def test_only_what_nobody_has_claimed_is_cancelled_as_waiting(store: Store) -> None:
    await put_claimed(store, request(1))
    await put(store, request(2))

    assert isinstance(await refusal(store, CancelWaiting(1)), WrongState)
    assert await refusal(store, CancelWaiting(2), now=4) is None
    assert isinstance(await refusal(store, CancelWaiting(2)), WrongState)
    assert isinstance(await refusal(store, CancelWaiting(77)), UnknownInvocation)
    assert await statuses(store, [1, 2]) == [Status.WAITING, Status.CANCELLED]
    assert await store.claim("n", flow="app.f", limit=5, now=0) == []
    balance(await store.counters())


async def test_a_redriven_invocation_starts_again_under_its_id(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    assert isinstance(await refusal(store, Redrive(1, 5.0, 500.0)), WrongState)
    await apply(store, dead(claim))

    await apply(store, Redrive(1, 5.0, 500.0))

    [again] = await store.claim("n", flow="app.f", limit=1, now=5)
    record = await store.get(1)
    assert (again.attempt, again.invocation.expires_at) == (1, 500.0)
    assert record is not None
    assert (record.error, record.ended_at) == (None, None)
    books = (await store.counters())["app.f"]
    assert (books.accepted, books.dead, books.waiting) == (1, 0, 1)


async def test_a_settle_that_is_submitted_keeps_its_claim_until_it_is_recorded(store: Store) -> None:
    claims = await put_claimed(store, *[request(id) for id in range(1, 200)])
    ends = [asyncio.ensure_future(store.apply([ok(claim)], now=1)) for claim in claims]
    taken = await store.claim("node-2", flow="app.f", limit=500, now=1)
    await asyncio.gather(*ends)

    assert taken == []


async def test_what_is_gathered_later_is_recorded_after_what_was_submitted_before(store: Store) -> None:
    answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    invocation, threads = request(1), []

    def gather() -> Item:
        threads.append(threading.get_ident())
        return [ok(Claim(invocation, 1, "node-1"))], answered.set_result, 1.0, None

    store.submit([Put(invocation, "node-1")], lambda _: None, now=0.0)
    await asyncio.to_thread(store.submit_later, gather)

    assert await answered == [Applied()]
    assert await statuses(store, [1]) == [Status.SUCCEEDED]
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_a_gathering_that_gives_nothing_or_fails_keeps_nobody_from_being_recorded(store: Store) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    wrong = ValueError("no")

    def fail() -> Item:
        raise wrong

    store.submit_later(lambda: None)
    store.submit_later(fail)
    await put(store, request(1))

    assert await statuses(store, [1]) == [Status.WAITING]
    assert told == [wrong]
