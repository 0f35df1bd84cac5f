"""Several nodes on one PostgreSQL database: what two of them do at once is as if one had come first."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from store_values import apply, balance, dead, ok, part, put, put_job, refusal, request, statuses

from headrace.runtime.errors import Duplicate, LeaseLost
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.limits import Held, Limits
from headrace.runtime.model.write import (
    Applied,
    Closed,
    FunctionPaused,
    JobMoved,
    JobPlanned,
    MarkRunning,
    Opened,
    Put,
    Retry,
)
from headrace.runtime.store.postgres.store import PostgresStore

WAIT_S = 20.0


class Wakes:
    """The names that a store was woken with."""

    def __init__(self) -> None:
        self.names: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, name: str) -> None:
        self.names.put_nowait(name)

    async def until(self, wanted: str) -> list[str]:
        """All names up to the wanted one."""
        seen: list[str] = []
        async with asyncio.timeout(WAIT_S):
            while not seen or seen[-1] != wanted:
                seen.append(await self.names.get())
        return seen


@pytest.fixture
async def node(postgres_url: str) -> AsyncIterator[Callable[..., object]]:
    """Makes started stores on the test's database, and stops them."""
    opened: list[PostgresStore] = []

    async def start(wakes: Wakes | None = None) -> PostgresStore:
        store = PostgresStore(postgres_url)
        if wakes is not None:
            store.listen(wakes)
        await store.start()
        opened.append(store)
        return store

    yield start
    for store in opened:
        await store.stop()


async def test_claims_of_two_nodes_are_disjoint_and_leave_nothing(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    await put(north, *[request(id, due_at=float(id % 7), priority=id % 3) for id in range(1, 1501)])
    taken: dict[str, list[int]] = {"north": [], "south": []}

    async def drain(store: PostgresStore, name: str) -> None:
        while claims := await store.claim(name, flow="app.f", limit=50, now=10):
            taken[name] += [claim.invocation.id for claim in claims]

    await asyncio.gather(drain(north, "north"), drain(south, "south"), drain(north, "north"))

    assert sorted(taken["north"] + taken["south"]) == list(range(1, 1501))
    assert min(len(ids) for ids in taken.values()) > 0


async def test_what_one_node_accepts_the_other_reads_claims_and_ends(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    await put(north, request(1))
    [claim] = await south.claim("south", flow="app.f", limit=1, now=0)
    assert await north.claim("north", flow="app.f", limit=1, now=0) == []
    await apply(south, ok(claim), now=3)

    record = await north.get(1)
    assert record is not None
    assert (record.status, record.node, record.ended_at) == (Status.SUCCEEDED, "south", 3.0)
    balance(await north.counters())


async def test_the_node_that_takes_back_hears_of_it_as_all_others_do(node) -> None:  # type: ignore[no-untyped-def]
    wakes = [Wakes(), Wakes()]
    near, far = await node(wakes[0]), await node(wakes[1])
    for heard in wakes:
        await heard.until("*")
    await near.join("lost", until=30, now=0)
    await apply(near, Put(request(1), "lost"))  # claimed as it is accepted: nobody is told of it
    assert await far.release_expired(now=29) == []
    assert await far.release_expired(now=31) == []
    for heard in wakes:
        await heard.until("app.f")


async def test_an_attempt_that_was_taken_back_cannot_be_ended_by_the_node_that_lost_it(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    await north.join("north", until=30, now=0)
    await put(north, request(1), request(2), request(3))
    lost = await north.claim("north", flow="app.f", limit=3, now=0)
    await apply(north, MarkRunning(lost[0], started_at=1.0))

    assert await south.release_expired(now=31) == [lost[0]]
    again = await south.claim("south", flow="app.f", limit=3, now=31)

    assert [claim.attempt for claim in again] == [2, 1, 1]
    for late in (ok(lost[0]), Retry(lost[1], 40.0), MarkRunning(lost[2], 32.0)):
        assert isinstance(await refusal(north, late), LeaseLost)
    await apply(south, *[ok(claim) for claim in again])
    assert isinstance(await refusal(north, dead(lost[1])), LeaseLost)
    assert await statuses(north, [1, 2, 3]) == [Status.SUCCEEDED] * 3
    balance(await north.counters())


async def test_one_stale_end_among_many_refuses_its_own_list_only(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    answers = await north.apply([Put(request(id), "north") for id in range(1, 101)], now=0)
    claims = [answer.claim for answer in answers if answer.claim is not None]
    await south.release([claims[40], claims[70]])

    ends = await asyncio.gather(
        *[north.apply([ok(claim), Put(request(1000 + claim.invocation.id))], now=1) for claim in claims]
    )

    refused = [place for place, end in enumerate(ends) if end[0].refused is not None]
    assert refused == [40, 70]
    assert all(isinstance(end[1].refused, LeaseLost) for end in (ends[40], ends[70]))
    assert await statuses(north, [41, 1041, 42, 1042]) == [
        Status.WAITING, None, Status.SUCCEEDED, Status.WAITING,
    ]  # fmt: skip
    balance(await north.counters())


async def test_very_many_at_once_are_recorded_and_one_bad_list_among_them_is_not(node) -> None:  # type: ignore[no-untyped-def]
    north = await node()
    await put(north, request(1))
    lists = [[Put(request(100 * n + i), "north") for i in range(100)] for n in range(1, 41)]
    lists[7].append(Put(request(1)))
    lists[9].append(Put(request(50, function="\ud800")))

    answers = await asyncio.gather(*[north.apply(list, now=0) for list in lists], return_exceptions=True)

    assert isinstance(answers[9], UnicodeEncodeError)
    assert [isinstance(answer[-1].refused, Duplicate) for answer in answers if isinstance(answer, list)] == [
        place == 7 for place in range(39)
    ]
    assert len(await north.known(range(100, 4100))) == 3800
    ends = [
        north.apply([ok(answer.claim) for answer in each], now=1)
        for each in answers
        if isinstance(each, list) and each[0].refused is None
    ]
    assert {answer.refused for end in await asyncio.gather(*ends) for answer in end} == {None}
    book = (await north.counters())["app.f"]
    assert (book.accepted, book.succeeded, book.waiting) == (3801, 3800, 1)


async def test_the_same_claim_ended_twice_at_once_ends_once(node) -> None:  # type: ignore[no-untyped-def]
    north = await node()
    [answer] = await north.apply([Put(request(1), "north")], now=0)
    claim = answer.claim

    first, second, third = await asyncio.gather(
        north.apply([Retry(claim, 5.0)], now=1), north.apply([ok(claim)], now=1), refusal(north, ok(claim))
    )

    assert first[0].refused is None
    assert isinstance(second[0].refused, LeaseLost)
    assert isinstance(third, LeaseLost)
    assert await statuses(north, [1]) == [Status.WAITING]
    balance(await north.counters())


async def test_a_claim_that_is_ended_by_its_node_and_taken_back_by_another_goes_one_way(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    for round in range(20):
        await north.join("north", until=round + 0.5, now=round)
        answers = await north.apply([Put(request(round * 10 + n), "north") for n in range(10)], now=round)
        claims = [answer.claim for answer in answers if answer.claim is not None]
        ends, _ = await asyncio.gather(
            asyncio.gather(*[north.apply([ok(claim)], now=round) for claim in claims]),
            south.release_expired(now=round + 1),
        )
        for claim, [end] in zip(claims, ends, strict=True):
            record = await south.get(claim.invocation.id)
            assert record is not None
            stood = Status.WAITING if end.refused is not None else Status.SUCCEEDED
            assert (record.status, record.attempts) == (stood, int(end.refused is None))
    balance(await south.counters())


async def test_renewing_a_lease_that_others_ended_fails_until_the_node_joins_anew(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    first = await north.join("north", until=30, now=0)
    assert await south.join("south", until=100, now=0) > first
    await north.renew("north", until=40)
    assert await south.release_expired(now=39) == []
    await north.renew("north", until=50)
    await south.release_expired(now=50)

    with pytest.raises(LeaseLost):
        await north.renew("north", until=60)

    assert await north.join("north", until=90, now=51) > first
    await north.renew("north", until=95)
    assert await south.release_expired(now=94) == []


async def test_what_a_node_without_a_lease_accepted_for_itself_is_taken_back(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    await north.join("north", until=10, now=0)
    await south.release_expired(now=20)
    await north.apply([Put(request(1), "north")], now=20)

    await south.release_expired(now=21)

    [claim] = await south.claim("south", flow="app.f", limit=1, now=21)
    assert (claim.invocation.id, claim.attempt) == (1, 1)


async def test_a_node_that_comes_back_under_its_name_begins_with_nothing(node) -> None:  # type: ignore[no-untyped-def]
    first, second = await node(), await node()
    await first.join("north", until=100, now=0)
    answers = await first.apply([Put(request(id), "north") for id in (1, 2)], now=0)
    running = answers[0].claim
    await apply(first, MarkRunning(running, started_at=1.0))

    await second.join("north", until=100, now=2)

    assert await second.release_expired(now=3) == [running]
    again = await second.claim("north", flow="app.f", limit=5, now=3)
    assert [(claim.invocation.id, claim.attempt) for claim in again] == [(1, 2), (2, 1)]
    assert isinstance(await refusal(first, ok(running)), LeaseLost)


async def test_a_function_never_has_more_claims_than_its_concurrency_over_all_nodes(node) -> None:  # type: ignore[no-untyped-def]
    stores = [await node() for _ in range(3)]
    limits = Limits(concurrency=7, key_concurrency=4)
    flows = ["app.f", "app.f#a", "app.f#b"]
    await put(stores[0], *[request(id, flow=flows[id % 3]) for id in range(1, 151)])
    held: dict[int, str] = {}
    most = 0
    ended: list[int] = []

    async def work(store: PostgresStore, name: str) -> None:
        nonlocal most
        idle = 0
        while len(ended) < 150:
            async with asyncio.timeout(WAIT_S):
                for flow in flows:
                    claims: list[Claim] = await store.claim(
                        name, flow=flow, limit=5, now=1, function="app.f", limits=limits
                    )
                    idle = 0 if claims else idle + 1
                    held.update({claim.invocation.id: flow for claim in claims})
                    most = max(most, len(held))
                    assert len(held) <= 7
                    assert list(held.values()).count(flow) <= 4
                    for claim in claims:
                        held.pop(claim.invocation.id)  # before the end is recorded: it may be claimed then
                        await apply(store, ok(claim))
                        ended.append(claim.invocation.id)
                await asyncio.sleep(0)

    await asyncio.gather(*[work(store, f"n{place}") for place, store in enumerate(stores)])

    assert sorted(ended) == list(range(1, 151))
    assert most > 1
    balance(await stores[0].counters())


async def test_a_rate_is_shared_by_all_nodes(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    limits = Limits(rate=2.0, burst=3)
    await put(north, *[request(id) for id in range(1, 31)])

    async def claimed(store: PostgresStore, now: float) -> int:
        return len(await store.claim("n", flow="app.f", limit=10, now=now, function="app.f", limits=limits))

    first = await asyncio.gather(claimed(north, 100.0), claimed(south, 100.0))
    held = await south.held_back(flow="app.f", function="app.f", limits=limits, now=100.0)
    later = await asyncio.gather(claimed(north, 101.0), claimed(south, 101.0))

    assert sorted(first) == [0, 3]
    assert held == Held("rate", 100.5)
    assert sum(later) == 2
    assert await claimed(north, 1000.0) == 3
    assert await claimed(south, 1000.5) == 1


async def test_nothing_of_a_closed_function_or_key_is_claimed_by_any_node(node) -> None:  # type: ignore[no-untyped-def]
    north, south = await node(), await node()
    await put(north, request(1), request(2, flow="app.f#k"), request(3, flow="app.g#k", function="app.g"))
    await apply(north, Closed("function:app.f", 50.0, "its service is down"), Closed("key:k", 70.0))

    async def claimed(flow: str, now: float) -> list[int]:
        claims = await south.claim("s", flow=flow, limit=5, now=now)
        return [claim.invocation.id for claim in claims]

    assert await claimed("app.f", 49) == []
    assert await claimed("app.f#k", 60) == []
    assert await claimed("app.g#k", 60) == []
    held = await south.held_back(flow="app.f", function="app.f", limits=Limits(), now=49)
    assert held == Held("closed", 50.0, "its service is down")
    assert await claimed("app.f", 50) == [1]
    await apply(north, Opened("key:k"))
    assert await claimed("app.f#k", 60) == [2]
    assert await claimed("app.g#k", 60) == [3]
    await apply(north, FunctionPaused("app.f", True))
    assert await south.held_back(flow="app.f", function="app.f", limits=Limits(), now=60) == Held("paused")


async def test_another_node_hears_of_what_it_may_claim_and_of_nothing_else(node) -> None:  # type: ignore[no-untyped-def]
    wakes, own = Wakes(), Wakes()
    north, south = await node(own), await node(wakes)
    await wakes.until("*")  # it listens
    await own.until("*")

    await north.apply([Put(request(1, flow="mine"), "north")], now=0)
    await put(north, request(2, flow="app.f#first"))
    assert await wakes.until("app.f#first") == ["app.f#first"]

    [claim] = await south.claim("south", flow="app.f#first", limit=1, now=0)
    await apply(south, Retry(claim, 5.0))
    assert await own.until("app.f#first") == ["app.f#first"]

    await apply(north, FunctionPaused("app.f", True))
    await apply(north, Closed("key:k", 9.0))
    assert await wakes.until("control") == ["control"]
    assert await wakes.until("control") == ["control"]

    await put(north, *[request(id, flow=f"flow-{id}") for id in range(10, 40)])
    assert await wakes.until("*") == ["*"]

    await north.join("north", until=10, now=0)
    assert await wakes.until("control") == ["control"]
    await put(north, request(50, flow="left"))
    await wakes.until("left")
    await north.claim("north", flow="left", limit=1, now=0)
    await north.leave("north")
    assert await wakes.until("left") == ["control", "left"]


async def test_another_node_hears_of_jobs_that_move_and_of_what_it_is_told(node) -> None:  # type: ignore[no-untyped-def]
    wakes = Wakes()
    north, _ = await node(), await node(wakes)
    await wakes.until("*")
    await put_job(north, 9)
    await apply(north, JobPlanned(9, 0, [part(1, 9, 0)], 1, {}, 1))
    assert await wakes.until("moved:9") == ["job:9", "moved:9"]

    await apply(north, JobMoved(9, "cancelled", ("running",), 5.0))
    assert await wakes.until("moved:9") == ["moved:9"]
    await north.tell("cancel:7")
    assert await wakes.until("cancel:7") == ["cancel:7"]
    await north.join("north", until=10, now=0)
    await north.join("south", until=20, now=0)
    assert await north.nodes(now=9) == ["north", "south"]
    assert await north.nodes(now=10) == ["south"]


async def test_the_books_of_all_nodes_add_up(node) -> None:  # type: ignore[no-untyped-def]
    stores = [await node() for _ in range(3)]
    for place, store in enumerate(stores):
        await store.join(f"n{place}", until=1e9, now=0)

    async def work(place: int) -> None:
        store = stores[place]
        for round in range(20):
            first = place * 1000 + round * 10
            answers: list[Applied] = await store.apply(
                [Put(request(first + n), f"n{place}") for n in range(10)], now=0
            )
            claims = [answer.claim for answer in answers if answer.claim is not None]
            await asyncio.gather(*[store.apply([(ok, dead)[n % 2](claims[n])], now=1) for n in range(10)])

    await asyncio.gather(*[work(place) for place in range(3)])

    book = (await stores[0].counters())["app.f"]
    assert (book.accepted, book.succeeded, book.dead, book.waiting) == (600, 300, 300, 0)
