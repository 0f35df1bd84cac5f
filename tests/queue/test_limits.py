"""Limits on a node whose clock the test moves: rates, keys, closures, pauses, and what costs an attempt."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import App, Items, RetryAfter, RetryPolicy
from headrace.runtime.errors import BadRequest, Throttled
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.model.limits import KEY_BYTES_MAX, flow_of, key_at
from headrace.runtime.queue import metering
from tests.inline_node import InlineNode

MIB = 1 << 20


class Diary:
    """What began, when, of which key."""

    def __init__(self) -> None:
        self.node: InlineNode | None = None
        self.began: list[tuple[float, Any]] = []

    def note(self, what: Any) -> None:
        assert self.node is not None
        self.began.append((self.node.clock.now(), what))

    @property
    def order(self) -> list[Any]:
        return [what for _, what in self.began]


def limited(diary: Diary) -> App:
    app = App("mill")

    @app.function(rate="2/s:3")
    def paced(event: Any) -> None:
        diary.note(event)

    @app.function(concurrency_key="customer.id")
    def keyed(event: Any) -> None:
        diary.note(event["customer"]["id"])

    @app.function(concurrency_key="id", key_concurrency=2, rate="1000/s")
    def pairs(event: Any) -> None:
        diary.note(event)

    @app.function
    def plain(event: Any) -> None:
        diary.note(event)

    @app.function(retries=0, concurrency_key="key")
    def polite(event: Any) -> None:
        diary.note(event)
        if event.get("wait"):
            event_key = event.get("close")
            raise RetryAfter(event["wait"], event_key) if event_key else RetryAfter(event["wait"])

    @app.function(retries=0, max_age=100)
    def busy(event: Any, context: Any) -> Any:
        diary.note(event)
        if event["until"] > diary.node.clock.now():  # type: ignore[union-attr]
            raise RetryAfter(event["wait"])
        return context.attempt

    @app.function(memory="64 MiB", memory_max="200 MiB", retries=RetryPolicy(retries=1, base_s=1, max_s=1))
    def hungry(event: Any) -> None:
        diary.note(event)

    @app.function(memory="64 MiB", retries=RetryPolicy(retries=1, base_s=1, max_s=1))
    def modest(event: Any) -> None:
        diary.note(event)

    return app


class Mill(InlineNode):
    """A node with the functions above, and their diary."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.diary = Diary()
        self.diary.node = self
        super().__init__(folder, limited(self.diary), **options)


def windows(began: list[float], rate: float, burst: float) -> None:
    """No window of time has more than the burst and the rate allow."""
    for first, last in itertools.combinations(range(len(began)), 2):
        assert last - first + 1 <= burst + rate * (began[last] - began[first]) + 0.01, (first, last)


# ---- rates ----


async def test_a_rate_lets_its_burst_begin_and_then_so_many_a_second(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=4) as node:
        ids = await node.put_many("mill.paced", range(11))
        await node.quiet()
        assert len(node.diary.began) == 3
        for _ in range(90):
            await node.clock.advance(0.05)
            await node.quiet(3)
        began = [at for at, _ in node.diary.began]
        records = await node.store.ended(ids)

    assert node.diary.order == list(range(11))
    assert len(records) == 11
    windows(began, 2, 3)
    assert began[-1] - began[0] <= 4.5


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 6), st.floats(0.0, 2.0)), min_size=1, max_size=10),
    workers=st.integers(1, 5),
    crash=st.integers(0, 9),
)
async def test_no_window_of_time_has_more_starts_than_the_rate_allows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float]], workers: int, crash: int
) -> None:
    node = Mill(tmp_path_factory.mktemp("rate"), workers=workers)
    await node.start()
    for at, (count, wait) in enumerate(steps):
        if at == crash:
            await node.crash()
            await node.start()
        if count:
            await node.put_many("mill.paced", range(count))
        await node.quiet(4)
        for _ in range(4):
            await node.clock.advance(wait / 4)
            await node.quiet(3)
    await node.stop()
    windows([at for at, _ in node.diary.began], 2, 3)


async def test_what_waited_for_a_worker_does_not_begin_in_a_heap(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1, held=True) as node:
        await node.put("mill.plain", "blocks the worker")
        await node.quiet()
        await node.put_many("mill.paced", range(30))
        await node.clock.advance(60)
        await node.quiet()
        [blocking] = node.pool.attempts
        node.pool.workers = 10
        node.pool.run(blocking.token)
        await node.quiet()
        assert len(node.pool.attempts) == 3
        node.pool.run()
        await node.quiet()
        assert node.pool.attempts == []
        await node.clock.advance(0.5)
        await node.quiet()
        assert len(node.pool.attempts) == 1


async def test_synchronous_calls_draw_on_the_same_rate(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=4) as node:
        calls = [node.dispatcher.call("mill.paced", b"1") for _ in range(4)]
        await node.quiet()
        assert [call.done() for call in calls] == [True, True, True, False]
        await node.clock.advance(0.5)
        await node.quiet()
        assert (await calls[3]).kind == "ok"


async def test_other_functions_are_not_held_up_by_a_rate(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1) as node:
        await node.put_many("mill.paced", range(50))
        await node.put_many("mill.plain", ["p"] * 50)
        await node.until(lambda: node.diary.order.count("p") == 50)
        assert len(node.diary.order) == 53


# ---- keys ----


def order_of(customer: Any) -> dict[str, Any]:
    return {"customer": {"id": customer}}


async def test_never_two_of_one_key_run_at_once_and_other_keys_do(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=8, held=True) as node:
        ids = await node.put_many("mill.keyed", [order_of(n % 3) for n in range(12)] + [order_of("x")])
        await node.quiet()
        ran: list[Any] = []
        while node.pool.attempts:
            running = [record.invocation.flow for record in await running_records(node)]
            assert len(running) == len(set(running))
            if not ran:
                assert sorted(running) == [flow_of("mill.keyed", key) for key in ("0", "1", "2", "x")]
            attempt = node.pool.attempts[-1]
            ran.append(attempt.invocation_id)
            node.pool.run(attempt.token)
            await node.quiet()
        await node.drive(*ids)
    assert sorted(ran) == sorted(ids)
    by_key = [[id for id in ran if ids.index(id) % 3 == n and ids.index(id) < 12] for n in range(3)]
    assert by_key == [sorted(each) for each in by_key]  # a key's own are in order


async def running_records(node: InlineNode) -> list[Any]:
    return [await node.record(attempt.invocation_id) for attempt in node.pool.attempts]


async def test_a_key_may_have_more_than_one_at_once(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=8, held=True) as node:
        await node.put_many("mill.pairs", [{"id": "a"}] * 5 + [{"id": "b"}])
        await node.quiet()
        keys = Counter(record.invocation.flow for record in await running_records(node))
        assert keys == {flow_of("mill.pairs", "a"): 2, flow_of("mill.pairs", "b"): 1}


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ({"a": {"b": "x"}}, "x"),
        ({"a": {"b": 7}}, "7"),
        ({"a": {"b": True}}, "true"),
        ({"a": {"b": 1.5}}, "1.5"),
        ({"a": {"b": None}}, None),
        ({"a": {"b": ""}}, None),
        ({"a": {"b": {"c": 1}}}, None),
        ({"a": {}}, None),
        ({"a": [1, 2]}, None),
        ([1], None),
        ("text", None),
        (None, None),
    ],
)
def test_the_key_is_found_at_its_path(event: Any, key: str | None) -> None:
    assert key_at(event, ("a", "b")) == key


def test_a_list_is_stepped_into_by_its_index() -> None:
    assert key_at({"Records": [{"k": "x"}]}, ("Records", "0", "k")) == "x"
    assert key_at({"Records": []}, ("Records", "0", "k")) is None


@given(st.text(min_size=200, max_size=600), st.text(min_size=200, max_size=600))
def test_a_long_key_stays_a_key_of_its_own(one: str, other: str) -> None:
    first, second = key_at({"k": one}, ("k",)), key_at({"k": other}, ("k",))
    assert first is not None
    assert len(first.encode()) <= KEY_BYTES_MAX
    assert "\0" not in first
    assert (first == second) == (one == other)


async def test_a_key_may_be_given_instead(tmp_path: Path) -> None:
    async with Mill(tmp_path) as node:
        a = await node.put("mill.keyed", order_of("found"), concurrency_key="given")
        b = await node.put("mill.plain", None, concurrency_key="given too")
        c = await node.put("mill.keyed", order_of(None))
        await node.drive(a, b, c)
        flows = [(await node.record(id)).invocation.flow for id in (a, b, c)]
    assert flows == [flow_of("mill.keyed", "given"), flow_of("mill.plain", "given too"), "mill.keyed"]


@pytest.mark.parametrize("key", ["", "x" * 257, "é" * 129, "a\0b", "\ud800"])
async def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path, key: str) -> None:
    async with Mill(tmp_path) as node:
        with pytest.raises(BadRequest, match="concurrency key"):
            node.dispatcher.prepare("mill.plain", b"1", concurrency_key=key)


async def keys_run_through(folder: Path, count: int) -> None:
    app = App("wide")
    seen = Counter[str]()

    @app.function(concurrency_key="k")
    def once(event: Any) -> None:
        seen[event["k"]] += 1

    node = InlineNode(folder, app, workers=8)
    await node.start(load=False)
    node.use(workers=1)  # nothing is loaded: all of it waits
    node._apps = (app,)
    store, now = node.store, node.clock.now()
    from headrace.runtime.model.invocation import Invocation
    from headrace.runtime.model.write import Put

    for first in range(0, count, 1000):
        puts = [
            Put(
                Invocation(
                    node.ids.next(),
                    "wide.once",
                    flow_of("wide.once", str(n)),
                    b'{"k":"%d"}' % n,
                    now,
                    now,
                    9e9,
                )
            )
            for n in range(first, min(first + 1000, count))
        ]
        await store.apply(puts, now=now)
    await node.crash()
    await node.start()
    most = flows = 0
    meter = node.dispatcher._window.gate("wide.once").meter
    assert meter is not None
    while len(seen) < count:
        await node.quiet(1)
        most = max(most, len(meter.wanting) + len(meter.asking) + len(meter.due))
        flows = max(flows, len(node.dispatcher._window.flows))
    await node.idle()
    books = await node.books()
    await node.stop()
    assert set(seen.values()) == {1}
    assert (books.accepted, books.succeeded) == (count, count)
    assert most <= metering.FLOWS_KNOWN_MAX + metering.PORTION + metering.READY
    assert flows <= 3


async def test_many_keys_with_one_invocation_each_are_worked_through_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "FLOWS_KNOWN_MAX", 200)
    monkeypatch.setattr(metering, "PORTION", 50)
    await keys_run_through(tmp_path, 2_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_hundred_thousand_keys_are_worked_through(tmp_path: Path) -> None:
    await keys_run_through(tmp_path, 100_000)


async def test_more_keys_accepted_than_are_remembered_all_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "FLOWS_KNOWN_MAX", 20)
    monkeypatch.setattr(metering, "PORTION", 7)
    monkeypatch.setattr(metering, "DUE_MAX", 10)
    async with Mill(tmp_path, workers=3) as node:
        ids = await node.put_many("mill.keyed", [order_of(n) for n in range(300)])
        ids += await node.put_many("mill.keyed", [order_of(n) for n in range(100)], delay_s=30.0)
        await node.until(lambda: len(node.diary.began) == 300)
        await node.drive(*ids, step_s=5.0, within_s=200)
    assert Counter(node.diary.order) == {n: 2 if n < 100 else 1 for n in range(300)}


async def test_the_keys_of_a_function_share_its_turns(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1, held=True) as node:
        await node.put_many("mill.keyed", [order_of(n) for n in range(40)])
        await node.put_many("mill.plain", ["p"] * 40)
        await node.quiet()
        for _ in range(40):
            node.pool.run()
            await node.quiet()
        plain = node.diary.order.count("p")
    assert 15 <= plain <= 25


async def test_a_jobs_chunks_keep_to_its_rate(tmp_path: Path) -> None:
    app, began, nodes = App("mine"), list[float](), list[InlineNode]()

    @app.job(split=Items(), rate="1/s:2")
    def dig(chunk: Any) -> int:
        began.append(nodes[0].clock.now())
        return 1

    async with InlineNode(tmp_path, app, workers=4) as node:
        nodes.append(node)
        job = await node.coordinator.submit("mine.dig", {"items": list(range(6))})
        for _ in range(60):
            await node.quiet(6)
            await node.clock.advance(0.25)
        found = await node.coordinator.job(job)
    assert found.status == "succeeded"
    assert len(began) == 6
    windows(began, 1, 2)


# ---- RetryAfter ----


async def test_retry_after_closes_the_invocations_own_key_and_costs_nothing(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=4) as node:
        first = await node.put("mill.polite", {"key": "a", "wait": 10})
        await node.quiet()
        rest = await node.put_many("mill.polite", [{"key": "a"}] * 5)
        other = await node.put_many("mill.polite", [{"key": "b"}] * 5)
        await node.until(lambda: len(node.diary.began) == 6)
        record = await node.record(first)
        assert (record.status, record.attempts, record.error["code"]) == (Status.WAITING, 0, "retry_after")  # type: ignore[index]
        assert [event["key"] for event in node.diary.order] == ["a"] + ["b"] * 5
        [closure] = await node.store.closures(now=node.clock.now())
        assert (closure.name, closure.until_at) == ("key:a", node.clock.now() + 10)
        assert "mill.polite" in closure.reason
        await node.clock.advance(9.9)
        await node.quiet()
        assert len(node.diary.began) == 6

        await node.clock.advance(0.2)
        await node.quiet(30)
        assert len(await node.store.ended([*rest, *other])) >= 5
        again = await node.record(first)
        assert (again.status, again.attempts) == (Status.WAITING, 0)


async def test_without_a_key_the_function_is_closed_and_all_goes_on_after_it(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=2) as node:
        until = node.clock.now() + 30
        ids = await node.put_many("mill.busy", [{"until": until, "wait": 20}] * 8)
        other = await node.put("mill.plain", 1)
        await node.quiet()
        begun = node.diary.order.count({"until": until, "wait": 20})
        assert begun <= 2  # those that ran beside each other
        await node.drive(other)
        for _ in range(19):
            await node.clock.advance(1)
            await node.quiet(2)
        assert node.diary.order.count({"until": until, "wait": 20}) == begun
        assert node.dispatcher.counts()[:2] == (0, 0)
        records = await node.drive(*ids, step_s=1.0, within_s=60)
    assert {record.status for record in records.values()} == {Status.SUCCEEDED}
    assert {record.result for record in records.values()} == {b"1"}
    assert {record.attempts for record in records.values()} == {1}


async def test_a_named_key_is_closed_in_every_function(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1) as node:
        await node.put("mill.polite", {"key": "mine", "wait": 10, "close": "api"})
        await node.quiet()
        held = await node.put("mill.plain", "held", concurrency_key="api")
        free = await node.put("mill.polite", {"key": "mine"})
        await node.drive(free, step_s=0.0, within_s=1)
        assert (await node.record(held)).status is Status.WAITING
        await node.dispatcher.open("key:api")
        await node.quiet()
        assert (await node.record(held)).status is Status.SUCCEEDED
        assert await node.store.closures(now=node.clock.now()) == []


async def test_what_is_ready_goes_back_when_its_key_is_closed(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1, held=True) as node:
        await node.put("mill.plain", "blocks")
        await node.put_many("mill.pairs", [{"id": "a"}] * 6 + [{"id": "b"}])
        await node.quiet()
        assert node.dispatcher.counts()[1] > 0
        node.dispatcher._close("key:a", node.clock.now() + 50)
        await node.quiet()
        node.pool.workers = 5
        node.pool.run()
        await node.quiet()
        assert [record.invocation.flow for record in await running_records(node)] == [
            flow_of("mill.pairs", "b")
        ]


async def test_a_closure_survives_a_restart(tmp_path: Path) -> None:
    node = Mill(tmp_path, workers=2)
    await node.start()
    await node.put("mill.busy", {"until": node.clock.now() + 1, "wait": 40})
    await node.put("mill.polite", {"key": "k", "wait": 40})
    await node.quiet()
    ids = await node.put_many("mill.busy", [{"until": 0, "wait": 1}] * 3)
    ids += await node.put_many("mill.polite", [{"key": "k"}] * 3)
    await node.crash()
    await node.start()
    await node.quiet()
    await node.clock.advance(39)
    await node.quiet()
    assert len(node.diary.began) == 2
    await node.drive(*ids, step_s=1.0, within_s=10)
    await node.stop()


async def test_an_event_that_would_be_too_old_when_its_closure_ends_is_expired(tmp_path: Path) -> None:
    async with Mill(tmp_path) as node:
        first = await node.put("mill.busy", {"until": node.clock.now() + 1e6, "wait": 60})
        second = await node.put("mill.busy", {"until": node.clock.now() + 1e6, "wait": 60})
        records = await node.drive(first, second, step_s=10.0)
    assert [record.status for record in records.values()] == [Status.DEAD] * 2
    errors = [record.error for record in records.values()]
    assert {error["code"] for error in errors if error} == {"expired"}


async def test_a_synchronous_call_is_answered_with_retry_after_and_closes_too(tmp_path: Path) -> None:
    async with Mill(tmp_path) as node:
        path = "/v1/functions/mill.busy/invoke"
        body = {"until": node.clock.now() + 100, "wait": 12.5}
        answer = await node.request("POST", path, body)
        assert (answer.status, answer.headers["retry-after"]) == (429, "13")
        assert answer.error["code"] == "retry_after"
        again = await node.request("POST", path, body)
        assert (again.status, again.error["code"]) == (429, "retry_after")
        assert len(node.diary.began) == 1
        await node.quiet()
        listed = await node.request("GET", "/v1/closures")
        assert [item["name"] for item in listed.json["items"]] == ["function:mill.busy"]
        assert (await node.request("DELETE", "/v1/closures/function:mill.busy")).status == 200
        assert (await node.request("POST", path, {"until": 0})).status == 200
        wrong = await node.request("POST", "/v1/closures/mill.busy/open")
        assert (wrong.status, wrong.error["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("seconds", "key"), [(-1, None), (float("nan"), None), (1, ""), (1, "x" * 257), (1e9, None)]
)
def test_a_retry_after_that_makes_no_sense_is_an_error_of_the_function(
    seconds: float, key: str | None
) -> None:
    with pytest.raises(ValueError, match="RetryAfter"):
        RetryAfter(seconds, key)


async def test_a_node_takes_over_what_another_has_closed_and_paused(tmp_path: Path) -> None:
    from headrace.runtime.model.write import Closed, FunctionPaused, Opened

    async with Mill(tmp_path) as node:
        now = node.clock.now()
        closed = [Closed("function:mill.plain", now + 50), FunctionPaused("mill.paced", True)]
        await node.store.apply(closed, now=now)
        await node.dispatcher.refresh()
        ids = [await node.put("mill.plain", 1), await node.put("mill.paced", 1)]
        await node.quiet()
        assert node.diary.began == []
        await node.store.apply([Opened("function:mill.plain"), FunctionPaused("mill.paced", False)], now=now)
        await node.dispatcher.refresh()
        await node.drive(*ids, step_s=0.0, within_s=1)


# ---- pauses ----


@pytest.mark.parametrize("function", ["mill.plain", "mill.pairs"])
async def test_a_pause_hands_back_what_is_ready_lets_end_what_runs_and_survives_a_restart(
    tmp_path: Path, function: str
) -> None:
    node = Mill(tmp_path, workers=1, held=True)
    await node.start()
    ids = await node.put_many(function, [{"id": n} for n in range(6)])
    await node.quiet()
    await node.dispatcher.pause(function, paused=True)
    await node.quiet()
    assert node.dispatcher.counts()[:2] == (1, 0)
    more = await node.put(function, {"id": 9})
    node.pool.run()
    await node.quiet()
    assert node.dispatcher.counts()[:2] == (0, 0)
    assert (await node.record(ids[0])).status is Status.SUCCEEDED
    await node.crash()
    await node.start()
    await node.quiet()
    assert node.pool.attempts == []
    await node.dispatcher.pause(function, paused=False)
    while len(node.diary.began) < 7:
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
    await node.drive(*ids, more)
    await node.stop()


# ---- what costs an attempt ----


@pytest.mark.parametrize(
    ("outcome", "attempts", "status"),
    [
        (Outcome("returned"), 0, Status.WAITING),
        (
            Outcome("retry_after", error={"code": "retry_after", "seconds": 5.0, "key": None}),
            0,
            Status.WAITING,
        ),
        (Outcome("error", error={"code": "function_error"}), 1, Status.WAITING),
        (Outcome("timeout", error={"code": "timeout"}), 1, Status.WAITING),
        (Outcome("crashed", error={"code": "worker_crashed"}), 1, Status.WAITING),
        (Outcome("out_of_memory", error={"code": "out_of_memory"}), 1, Status.WAITING),
        (Outcome("invalid_event", error={"code": "invalid_event"}), 1, Status.DEAD),
        (Outcome("cancelled", error={"code": "cancelled"}), 1, Status.CANCELLED),
    ],
)
async def test_only_what_the_function_did_costs_an_attempt(
    tmp_path: Path, outcome: Outcome, attempts: int, status: Status
) -> None:
    async with Mill(tmp_path, held=True) as node:
        id = await node.put("mill.modest", 1)
        await node.quiet()
        [attempt] = node.pool.attempts
        node.pool.workers = 0
        node.pool.end(attempt.token, outcome)
        await node.quiet()
        record = await node.record(id)
    assert (record.attempts, record.status) == (attempts, status)


async def test_throttled_callers_cost_the_queued_nothing(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1, held=True) as node:
        id = await node.put("mill.paced", 1)
        calls = [node.dispatcher.call("mill.paced", b"1") for _ in range(3)]
        await node.clock.advance(2.0)
        await node.quiet()
        assert any(isinstance(call.exception(), Throttled) for call in calls if call.done())
        node.pool.workers = 5
        while node.pool.attempts:
            node.pool.run()
            await node.clock.advance(1)
            await node.quiet()
        record = (await node.drive(id))[id]
    assert (record.status, record.attempts) == (Status.SUCCEEDED, 1)


async def test_running_out_of_memory_is_tried_with_twice_as_much_and_costs_nothing_until_the_maximum(
    tmp_path: Path,
) -> None:
    out = Outcome("out_of_memory", error={"code": "out_of_memory", "message": "no"})
    async with Mill(tmp_path, held=True) as node:
        id = await node.put("mill.hungry", 1)
        seen = []
        for _ in range(4):
            await node.until(lambda: node.pool.attempts)
            [attempt] = node.pool.attempts
            seen.append((attempt.attempt, attempt.memory_bytes // MIB))
            node.pool.end(attempt.token, out)
            await node.quiet()
            if len(seen) == 2:
                shown = (await node.request("GET", f"/v1/invocations/{id:016x}")).json
                assert (shown["memory_bytes"], shown["attempts"]) == (200 * MIB, 0)
                assert shown["error"]["next_limit"] == 200 * MIB
            await node.clock.advance(1.1)
            await node.quiet()
        record = await node.record(id)
    assert seen == [(1, 64), (1, 128), (1, 200), (2, 200)]
    assert (record.status, record.attempts) == (Status.DEAD, 2)


# ---- delays and priorities ----


async def test_a_delay_and_a_priority_hold_from_the_api_to_the_start(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1) as node:
        path = "/v1/functions/mill.{}/invoke"
        for name, body in (("plain", "late"), ("paced", "late"), ("keyed", order_of("late"))):
            query = {"mode": "async", "delay_s": "10"}
            assert (await node.request("POST", path.format(name), body, query=query)).status == 202
        await node.quiet()
        await node.clock.advance(9.9)
        await node.quiet()
        assert node.diary.order == []
        await node.clock.advance(0.2)
        await node.quiet()
        assert node.diary.order == ["late"] * 3


@pytest.mark.parametrize("function", ["plain", "paced"])
async def test_what_is_more_urgent_begins_first(tmp_path: Path, function: str) -> None:
    async with Mill(tmp_path, workers=1, held=True) as node:
        await node.put("mill.modest", "blocks the worker")
        await node.quiet()
        await node.dispatcher.pause(f"mill.{function}", paused=True)
        for n, priority in ((1, "-5"), (2, "0"), (3, "50")):
            query = {"mode": "async", "priority": priority}
            answer = await node.request("POST", f"/v1/functions/mill.{function}/invoke", n, query=query)
            assert answer.status == 202
        await node.dispatcher.pause(f"mill.{function}", paused=False)
        await node.quiet()
        while node.pool.attempts:
            node.pool.run()
            await node.quiet()
        assert node.diary.order == ["blocks the worker", 3, 2, 1]


async def test_a_key_comes_from_the_query_or_a_header(tmp_path: Path) -> None:
    async with Mill(tmp_path, workers=1) as node:
        path = "/v1/functions/mill.plain/invoke"
        by_query = await node.request("POST", path, 1, query={"mode": "async", "key": "käse"})
        by_header = await node.request(
            "POST", path, 1, query={"mode": "async"}, headers={"headrace-key": "b"}
        )
        many = await node.request("POST", path + "-many", [1, 2], query={"key": "c"})
        too_long = await node.request("POST", path, 1, query={"mode": "async", "key": "x" * 300})
        ids = [by_query.json["invocation_id"], by_header.json["invocation_id"], *many.json["invocation_ids"]]
        keys = [(await node.request("GET", f"/v1/invocations/{id}")).json["key"] for id in ids]
    assert keys == ["käse", "b", "c", "c"]
    assert (too_long.status, too_long.error["code"]) == (400, "bad_request")
