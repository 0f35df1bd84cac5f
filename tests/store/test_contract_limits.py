"""What claims keep to, on every store: concurrency, keys, rates, closures."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_values import apply, ok, put, put_claimed, request

from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import Held, Limits, flow_of
from headrace.runtime.model.write import Closed, FunctionPaused, Opened, Retry
from headrace.runtime.store.protocol import Closure, Store

F = "app.f"
numbers = itertools.count(1)


async def take(
    store: Store,
    limits: Limits,
    *,
    flow: str = F,
    limit: int = 99,
    now: float = 0.0,
    node: str = "node-1",
    function: str = F,
) -> list[Claim]:
    return await store.claim(node, flow=flow, limit=limit, now=now, function=function, limits=limits)


async def why(store: Store, limits: Limits, *, flow: str = F, now: float = 0.0) -> Held | None:
    return await store.held_back(flow=flow, function=F, limits=limits, now=now)


async def test_no_more_of_a_function_is_claimed_than_its_concurrency_over_all_nodes_and_flows(
    store: Store,
) -> None:
    limits = Limits(concurrency=3)
    await put(store, *[request(n) for n in range(1, 6)], request(6, flow=flow_of(F, "a")))

    assert await why(store, limits) is None
    first = await take(store, limits, limit=2)
    second = await take(store, limits, flow=flow_of(F, "a"), node="node-2")
    assert (len(first), len(second)) == (2, 1)
    assert await take(store, limits, node="node-2") == []
    assert await why(store, limits) == Held("concurrency")

    await apply(store, ok(first[0]))
    assert await why(store, limits) is None
    assert len(await take(store, limits)) == 1

    await store.release([first[1], *second])
    assert len(await take(store, limits)) == 2
    assert await why(store, limits) == Held("concurrency")


async def test_other_functions_claims_and_plain_claims_count_as_they_should(store: Store) -> None:
    limits = Limits(concurrency=2)
    await put_claimed(store, request(1), request(2, function="app.g"))  # claimed with their acceptance
    await put(store, request(3), request(4))

    assert [claim.invocation.id for claim in await take(store, limits)] == [3]
    assert await take(store, limits) == []


async def test_a_retry_gives_its_place_to_others(store: Store) -> None:
    limits = Limits(concurrency=1)
    await put(store, request(1), request(2))
    [first] = await take(store, limits)

    await apply(store, Retry(first, due_at=5.0))

    assert [claim.invocation.id for claim in await take(store, limits)] == [2]


async def test_a_key_has_its_own_limit(store: Store) -> None:
    limits = Limits(key_concurrency=2)
    a, b = flow_of(F, "a"), flow_of(F, "b")
    await put(store, *[request(n, flow=a) for n in (1, 2, 3)], request(4, flow=b))

    first = await take(store, limits, flow=a)
    assert [claim.invocation.id for claim in first] == [1, 2]
    assert await take(store, limits, flow=a, node="node-2") == []
    assert await why(store, limits, flow=a) == Held("key_concurrency")
    assert [claim.invocation.id for claim in await take(store, limits, flow=b)] == [4]

    await apply(store, ok(first[1]))
    assert [claim.invocation.id for claim in await take(store, limits, flow=a)] == [3]


async def test_the_claims_of_a_lost_node_no_longer_count(store: Store) -> None:
    limits = Limits(concurrency=1)
    await store.join("node-1", until=10.0, now=0.0)
    await store.join("node-2", until=99.0, now=0.0)
    await put(store, request(1), request(2))
    await take(store, limits)
    assert await take(store, limits, node="node-2", now=9.0) == []

    await store.release_expired(now=11.0)

    [claim] = await take(store, limits, node="node-2", now=11.0)
    assert claim.invocation.id == 1


async def test_a_rate_gives_its_burst_and_then_one_at_a_time(store: Store) -> None:
    limits = Limits(rate=0.5, burst=3)
    await put(store, *[request(n) for n in range(1, 10)])

    assert len(await take(store, limits, now=100.0)) == 3
    assert await take(store, limits, now=101.0) == []
    held = await why(store, limits, now=101.0)
    assert held is not None
    assert (held.by, held.until) == ("rate", pytest.approx(102.0))
    assert len(await take(store, limits, now=102.0)) == 1
    assert await take(store, limits, now=103.9) == []
    assert len(await take(store, limits, limit=1, now=106.0)) == 1
    assert len(await take(store, limits, now=106.0)) == 1
    assert len(await take(store, limits, now=1e6)) == 3


async def test_a_claim_that_finds_nothing_spends_nothing_of_a_rate(store: Store) -> None:
    limits = Limits(rate=0.001, burst=1)
    assert await take(store, limits, now=1.0) == []
    await put(store, request(1))

    assert len(await take(store, limits, now=1.0)) == 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)), min_size=1, max_size=20),
    rate=st.floats(0.1, 20),
    burst=st.integers(1, 6),
)
async def test_no_window_of_time_has_more_claims_than_the_burst_and_the_rate(
    store: Store, steps: list[tuple[float, int]], rate: float, burst: int
) -> None:
    begin = next(numbers) * 1000
    function, limits = f"app.f{begin}", Limits(rate=rate, burst=burst)
    await put(store, *[request(begin + n, function=function) for n in range(200)])
    now, claimed = 1000.0, list[tuple[float, int]]()
    for wait, limit in steps:
        now += wait
        got = await take(store, limits, flow=function, function=function, limit=limit, now=now)
        claimed.append((now, len(got)))

    for at, (since, _) in enumerate(claimed):
        total = 0
        for until, count in claimed[at:]:
            total += count
            assert total <= burst + rate * (until - since) + 1e-3


@pytest.mark.parametrize("name", ["function:app.f", "key:a"])
async def test_nothing_of_what_is_closed_is_claimed_until_its_moment(store: Store, name: str) -> None:
    a = flow_of(F, "a")
    await put(store, request(1, flow=a), request(2, flow=flow_of(F, "b")), request(3, function="app.g"))
    await apply(store, Closed(name, 10.0, "busy"))

    assert await take(store, Limits(), flow=a, now=9.9) == []
    assert await take(store, Limits(key_concurrency=1), flow=a, now=9.9) == []
    assert await why(store, Limits(), flow=a, now=9.9) == Held("closed", 10.0, "busy")
    assert len(await take(store, Limits(), flow="app.g", function="app.g", now=9.9)) == 1
    assert len(await take(store, Limits(), flow=flow_of(F, "b"), now=9.9)) == (name != "function:app.f")
    assert await why(store, Limits(), flow=a, now=10.0) is None
    assert len(await take(store, Limits(), flow=a, now=10.0)) == 1


async def test_a_key_is_closed_in_every_function(store: Store) -> None:
    await apply(store, Closed("key:a", 10.0))
    await put(store, request(1, function="app.g", flow=flow_of("app.g", "a")))

    assert await take(store, Limits(), flow=flow_of("app.g", "a"), function="app.g") == []


async def test_a_closure_is_extended_and_never_shortened_but_by_opening_it(store: Store) -> None:
    await apply(store, Closed("key:a", 10.0, "first"))
    await apply(store, Closed("key:a", 5.0, "shorter"))
    await apply(store, Closed("key:b", 4.0), Closed("key:a", 20.0, "longer"))
    assert await store.closures(now=3.0) == [
        Closure(name="key:a", until_at=20.0, reason="longer"),
        Closure(name="key:b", until_at=4.0),
    ]
    assert [closure.name for closure in await store.closures(now=4.0)] == ["key:a"]

    await apply(store, Opened("key:a"))
    await put(store, request(1, flow=flow_of(F, "a")))

    assert await store.closures(now=3.0) == [Closure(name="key:b", until_at=4.0)]
    assert len(await take(store, Limits(), flow=flow_of(F, "a"), now=3.0)) == 1


async def test_a_pause_is_named_as_what_holds_back(store: Store) -> None:
    await put(store, request(1))
    await apply(store, FunctionPaused(F, True))

    assert await why(store, Limits()) == Held("paused")


async def test_flows_come_in_portions(store: Store) -> None:
    names = sorted([flow_of(F, f"{n:03}") for n in range(25)] + [F, "app.g"])
    await put(store, *[request(n + 1, flow=name) for n, name in enumerate(names)])

    assert await store.flows() == names
    assert await store.flows(limit=10) == names[:10]
    assert await store.flows(after=names[9], limit=10) == names[10:20]
    assert await store.flows(after=names[19], limit=10) == names[20:]
    assert await store.flows(after=names[-1], limit=10) == []


async def test_a_retry_can_raise_the_memory_of_the_attempts_to_come(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    await apply(store, Retry(claim, due_at=1.0, spent=False, memory_bytes=64 << 20))
    [again] = await store.claim("node-1", flow=F, limit=1, now=1.0)
    await apply(store, Retry(again, due_at=2.0))
    [third] = await store.claim("node-1", flow=F, limit=1, now=2.0)

    assert (again.attempt, again.invocation.memory_bytes) == (1, 64 << 20)
    assert (third.attempt, third.invocation.memory_bytes) == (2, 64 << 20)
