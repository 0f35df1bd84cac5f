"""Who runs next: priorities, weights, limits, and the bounded window over a backlog of any size."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import App
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.queue.lane import Flow, FunctionGate, Lane, Rotation
from tests.inline_node import InlineNode


def claims(flow: str, count: int) -> list[Claim]:
    return [Claim(Invocation(n, flow, flow, b"", 0.0, 0.0, 1e9), 1, "node") for n in range(count)]


def lane_of(name: str, count: int, *, weight: int = 1, priority: int = 0, limit: int | None = None) -> Lane:
    flow = Flow(name, FunctionGate(name, weight=weight, limit=limit))
    lane = flow.lanes[priority] = Lane(flow, priority)
    lane.ready.extend(claims(name, count))
    return lane


def served(rotation: Rotation, count: int) -> list[str]:
    out = []
    while len(out) < count and (lane := rotation.peek()) is not None:
        out.append(rotation.take(lane).invocation.flow)
    return out


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1), st.integers(1, 300))
@settings(max_examples=100)
def test_backlogged_flows_are_served_in_proportion_to_their_weights(
    weights: dict[str, int], count: int
) -> None:
    rotation = Rotation()
    for name, weight in weights.items():
        rotation.offer(lane_of(name, 400 * weight, weight=weight))
    found = Counter(served(rotation, count))

    assert sum(found.values()) == count
    for a, weight_a in weights.items():
        for b, weight_b in weights.items():
            # At no moment is a flow more than one turn ahead of another.
            assert abs(found[a] / weight_a - found[b] / weight_b) <= 1


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), min_size=1, max_size=30),
    st.integers(1, 4),
)
@settings(max_examples=100)
def test_nothing_is_lost_or_reordered_within_a_flow_whatever_comes_when(
    arrivals: list[tuple[str, int]], serve: int
) -> None:
    rotation, lanes, sent, got = Rotation(), {name: lane_of(name, 0) for name in "abcd"}, Counter[str](), []
    for name, count in arrivals:
        for _ in range(count):
            sent[name] += 1
            lanes[name].ready.append(Claim(Invocation(sent[name], name, name, b"", 0, 0, 1), 1, "n"))
        rotation.offer(lanes[name])
        rotation.offer(lanes[name])
        for _ in range(serve):
            if (lane := rotation.peek()) is not None:
                got.append(rotation.take(lane).invocation)
    while (lane := rotation.peek()) is not None:
        got.append(rotation.take(lane).invocation)

    for name, count in sent.items():
        assert [item.id for item in got if item.flow == name] == list(range(1, count + 1))


def test_a_higher_class_goes_first_and_an_empty_one_gives_way() -> None:
    rotation = Rotation()
    low, high = lane_of("low", 5, priority=0), lane_of("high", 2, priority=5)
    rotation.offer(low)
    assert served(rotation, 2) == ["low", "low"]
    rotation.offer(high)
    assert served(rotation, 10) == ["high", "high", "low", "low", "low"]
    assert rotation.peek() is None


def test_a_closed_flow_is_passed_over_and_comes_back_when_it_is_offered_again() -> None:
    rotation = Rotation()
    one, two = lane_of("one", 3, limit=1), lane_of("two", 3)
    rotation.offer(one)
    rotation.offer(two)
    assert served(rotation, 1) == ["one"]
    one.flow.gate.running = 1
    assert served(rotation, 9) == ["two"] * 3
    one.flow.gate.running = 0
    rotation.offer(one)
    assert served(rotation, 9) == ["one"] * 2


# ---- through the dispatcher
# --------------------------------------------------------------------------------------


def counting_app(order: list[tuple[str, Any]]) -> App:
    app = App("mill")

    def add(name: str, **settings: Any) -> None:
        def run(event: Any) -> None:
            order.append((name, event))

        app.function(name=name, **settings)(run)

    add("plain")
    add("other")
    add("heavy", weight=3)
    add("first", priority=10)
    add("last", priority=-10)
    add("two", reserved_concurrency=2)
    return app


async def test_urgent_functions_run_before_the_backlog_of_others(tmp_path: Path) -> None:
    order: list[tuple[str, Any]] = []
    async with InlineNode(tmp_path, counting_app(order), held=True) as node:
        ids = await node.put_many("mill.last", range(3))
        ids += await node.put_many("mill.plain", range(3))
        ids += await node.put_many("mill.first", range(3))
        ids += await node.put_many("mill.plain", [9], priority=50)
        while node.pool.attempts:
            node.pool.run()
        await node.drive(*ids)
    # The first was begun while nothing else was there.
    assert [name for name, _ in order] == ["last", "plain", *["first"] * 3, *["plain"] * 3, *["last"] * 2]
    assert order[1] == ("plain", 9)


async def test_functions_share_the_workers_by_weight(tmp_path: Path) -> None:
    order: list[tuple[str, Any]] = []
    async with InlineNode(tmp_path, counting_app(order), held=True) as node:
        ids = await node.put_many("mill.plain", range(200))
        ids += await node.put_many("mill.heavy", range(200))
        ids += await node.put_many("mill.other", range(5))
        while node.pool.attempts:
            node.pool.run()
        await node.drive(*ids)
    first = Counter(name for name, _ in order[:101])
    assert first["other"] == 5
    assert 70 <= first["heavy"] <= 73
    assert [event for name, event in order if name == "plain"] == list(range(200))


@pytest.mark.parametrize("workers", [1, 3, 7])
async def test_reserved_concurrency_is_never_exceeded_and_never_left_unused(
    tmp_path: Path, workers: int
) -> None:
    order: list[tuple[str, Any]] = []
    async with InlineNode(tmp_path, counting_app(order), held=True, workers=workers) as node:
        ids = await node.put_many("mill.two", range(25))
        ids += await node.put_many("mill.plain", range(5))
        calls = [node.dispatcher.call("mill.two", b"-1") for _ in range(3)]
        while node.pool.attempts:
            running = Counter(attempt.function for attempt in node.pool.attempts)
            assert running["mill.two"] <= 2
            if workers == 7 and len(order) < 20:
                assert running["mill.two"] == 2
            node.pool.run(node.pool.attempts[0].token)
        await node.drive(*ids)
        assert all(call.done() for call in calls)
        assert (await node.books()).succeeded == 30
    assert len(order) == 33


@pytest.mark.parametrize("window", [1, 2, 64])
async def test_a_backlog_runs_through_a_small_window_in_order_and_in_bounded_memory(
    tmp_path: Path, window: int
) -> None:
    order: list[tuple[str, Any]] = []
    count = 20_000 if window == 64 else 200
    async with InlineNode(tmp_path, counting_app(order), held=True, window=window, workers=16) as node:
        ids: list[int] = []
        for first in range(0, count, 1000):
            ids += await node.put_many("mill.plain", range(first, min(first + 1000, count)))
        most = 0
        while len(order) < count:
            _, ready, _ = node.dispatcher.counts()
            most = max(most, ready)
            if node.pool.attempts:
                node.pool.run()
            else:
                await node.until(lambda: node.pool.attempts)
        await node.idle()
        assert most <= max(window, 1)
        books = await node.books()
    assert (books.accepted, books.succeeded) == (count, count)
    assert [event for _, event in order] == list(range(count))


async def test_the_window_is_kept_while_many_callers_submit_at_once(tmp_path: Path) -> None:
    order: list[tuple[str, Any]] = []
    async with InlineNode(tmp_path, counting_app(order), held=True, window=64) as node:
        done: list[Any] = []
        for n in range(2000):
            node.dispatcher.submit([node.dispatcher.prepare("mill.plain", b"%d" % n)], done.append)
        await node.until(lambda: len(done) == 2000)
        await node.quiet()
        assert node.dispatcher.counts()[1] <= 64
        while len(order) < 2000:
            node.pool.run()
            await node.until(lambda: node.pool.attempts or len(order) == 2000)
        await node.idle()
    assert [event for _, event in order] == list(range(2000))


async def test_an_urgent_invocation_is_not_held_up_by_its_own_functions_backlog(tmp_path: Path) -> None:
    order: list[tuple[str, Any]] = []
    async with InlineNode(tmp_path, counting_app(order), held=True, window=64) as node:
        for first in range(0, 1000, 100):
            await node.put_many("mill.plain", range(first, first + 100))
        await node.put("mill.plain", "urgent", priority=50)
        await node.quiet()
        for _ in range(4):
            node.pool.run()
            await node.until(lambda: node.pool.attempts)
        assert "urgent" in [event for _, event in order]


async def test_many_functions_with_backlogs_all_get_on(tmp_path: Path) -> None:
    app, seen = App("many"), Counter[int]()

    def declare(number: int) -> None:
        @app.function(name=f"f{number}")
        def run(event: Any) -> None:
            seen[number] += 1

    for number in range(50):
        declare(number)
    async with InlineNode(tmp_path, app, window=8, workers=4) as node:
        ids: list[int] = []
        for number in range(50):
            ids += await node.put_many(f"many.f{number}", range(20))
        await node.until(lambda: seen.total() == 1000)
        await node.idle()
        records = await node.store.ended(ids)
    assert set(seen.values()) == {20}
    assert {record.status for record in records} == {Status.SUCCEEDED}
