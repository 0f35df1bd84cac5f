"""The dispatcher over a real store: what is accepted runs, is tried again, and ends somewhere visible."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import App
from headrace.runtime.errors import (
    IdempotencyMismatch,
    NodeStopping,
    Throttled,
    UnknownFunction,
    WrongState,
)
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.model.policy import RetryPolicy
from headrace.runtime.model.write import Redrive
from headrace.runtime.queue.watchers import Ended
from tests.inline_node import InlineNode

shop = App("shop")
attempts: list[tuple[str, int]] = []


@shop.function
def echo(event: Any) -> Any:
    return event


@shop.function(retries=3)
def flaky(event: Any, context: Any) -> Any:
    """Fails as often as it is told."""
    attempts.append((context.invocation_id, context.attempt))
    if context.attempt <= event["fail"]:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@shop.function(retries=1000, max_age=3600)
def hopeless(event: Any) -> None:
    raise RuntimeError("never")


@shop.function(retries=RetryPolicy(retries=8, base_s=10.0, max_s=60.0))
def slow_retry(event: Any) -> None:
    raise RuntimeError("never")


@shop.function(retries=0, on_failure="shop.caught", on_success="shop.pleased")
def reported(event: Any) -> Any:
    if event["fail"]:
        raise KeyError("missing")
    return {"fine": True}


@shop.function(max_age=10, on_failure="shop.caught")
def short_lived(event: Any) -> None: ...


received: list[tuple[str, Any]] = []


@shop.function
def caught(event: Any) -> None:
    received.append(("caught", event))


@shop.function
def pleased(event: Any) -> None:
    received.append(("pleased", event))


@shop.function(retries=5)
def typed(count: int) -> int:
    return count


@shop.function(reserved_concurrency=0)
def stopped(event: Any) -> None: ...


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    attempts.clear()
    received.clear()
    async with InlineNode(tmp_path, shop) as found:
        yield found


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[InlineNode]:
    """One whose attempts end when the test says so."""
    async with InlineNode(tmp_path, shop, held=True, workers=4) as found:
        yield found


async def test_what_is_accepted_runs_and_its_result_is_kept(node: InlineNode) -> None:
    id = await node.put("shop.echo", {"a": [1, None]}, tags="x", source="here")
    record = (await node.drive(id))[id]

    assert (record.status, record.attempts, record.result) == (Status.SUCCEEDED, 1, b'{"a":[1,null]}')
    assert record.started_at is not None
    assert record.ended_at is not None
    assert record.invocation.accepted_at <= record.started_at <= record.ended_at
    assert (await node.books()).succeeded == 1
    assert node.dispatcher.counts() == (0, 0, 0)


async def test_an_unknown_function_is_refused_with_the_nearest_name(node: InlineNode) -> None:
    with pytest.raises(UnknownFunction) as caught_error:
        node.dispatcher.prepare("shop.ecko", b"1")
    assert caught_error.value.hint == "Did you mean shop.echo?"
    assert (await node.books()).accepted == 0


async def test_watchers_learn_the_end_once_it_is_durable(node: InlineNode) -> None:
    told: list[tuple[Ended, bool]] = []
    put = node.dispatcher.prepare("shop.echo", b"7")
    unwanted: list[Ended] = []

    def watcher(ended: Ended) -> None:
        told.append((ended, True))

    node.dispatcher.watchers.watch(put.invocation.id, watcher)
    node.dispatcher.watchers.watch(put.invocation.id, unwanted.append)
    node.dispatcher.watchers.unwatch(put.invocation.id, unwanted.append)
    node.dispatcher.watchers.unwatch(put.invocation.id, unwanted.append)
    await node.dispatcher.accept([put])
    await node.until(lambda: told)

    [(ended, _)] = told
    assert (ended.id, ended.status, ended.result, ended.attempts) == (
        put.invocation.id,
        Status.SUCCEEDED,
        b"7",
        1,
    )
    assert (await node.record(put.invocation.id)).status is Status.SUCCEEDED
    assert not node.dispatcher.watchers


async def test_a_failed_attempt_is_made_again_under_the_same_id(node: InlineNode) -> None:
    id = await node.put("shop.flaky", {"fail": 3})
    record = (await node.drive(id))[id]

    assert (record.status, record.attempts, record.result) == (Status.SUCCEEDED, 4, b"4")
    assert attempts == [(show_id(id), number) for number in (1, 2, 3, 4)]


async def test_after_the_last_attempt_it_is_dead_with_the_last_error(node: InlineNode) -> None:
    id = await node.put("shop.flaky", {"fail": 99})
    record = (await node.drive(id))[id]

    assert (record.status, record.attempts) == (Status.DEAD, 4)
    assert record.error is not None
    assert (record.error["code"], record.error["type"], record.error["message"]) == (
        "function_error",
        "ValueError",
        "attempt 4",
    )
    assert "flaky" in record.error["stack"]


async def test_between_attempts_it_waits_with_its_error_and_a_moment_within_the_backoff(
    node: InlineNode,
) -> None:
    id = await node.put("shop.slow_retry", None)
    delays = []
    for attempt in range(1, 9):

        async def failed(attempt: int = attempt) -> bool:
            return (await node.record(id)).attempts == attempt

        await node.until(failed)
        record = await node.record(id)
        assert record.status is Status.WAITING
        assert record.error is not None
        assert record.error["message"] == "never"
        delay = record.invocation.due_at - node.clock.now()
        assert 0 <= delay <= min(60.0, 10.0 * 2 ** (attempt - 1))
        delays.append(delay)
        await node.clock.advance(delay + 0.01)
    record = (await node.drive(id))[id]

    assert (record.status, record.attempts) == (Status.DEAD, 9)
    assert len(set(delays)) == len(delays), "the jitter repeats"


async def test_an_hour_of_retries_takes_no_time_and_ends_expired(node: InlineNode) -> None:
    id = await node.put("shop.hopeless", None)
    record = (await node.drive(id))[id]

    assert record.status is Status.DEAD
    assert record.ended_at is not None
    assert 3600 - 300 <= record.ended_at - record.invocation.accepted_at <= 3600 + 60
    assert record.attempts > 10
    assert record.error is not None
    assert record.error["code"] == "expired"
    assert record.error["cause"]["message"] == "never"


async def test_what_waited_longer_than_its_age_is_dead_without_an_attempt(held: InlineNode) -> None:
    first = await held.put_many("shop.echo", [1] * 4)
    late = await held.put("shop.short_lived", None)
    await held.clock.advance(10.5)
    held.pool.run()
    await held.until(lambda: held.pool.attempts)
    [destination] = held.pool.attempts
    record = await held.record(late)

    assert record.status is Status.DEAD
    assert record.error is not None
    assert record.error["code"] == "expired"
    assert (record.started_at, record.attempts) == (None, 0)
    event = msgspec.json.decode(destination.payload)
    assert event["requestContext"]["condition"] == "EventAgeExceeded"
    assert event["requestContext"]["approximateInvokeCount"] == 0
    held.pool.run()
    await held.drive(*first)


async def test_an_event_that_the_types_refuse_is_dead_at_once(node: InlineNode) -> None:
    id = await node.put("shop.typed", {"count": "many"})
    record = (await node.drive(id))[id]

    assert (record.status, record.attempts) == (Status.DEAD, 1)
    assert record.error is not None
    assert (record.error["code"], record.error["fields"][0]["loc"]) == ("invalid_event", "count")


async def test_a_dead_invocation_is_redriven_under_its_id_with_all_attempts(node: InlineNode) -> None:
    id = await node.put("shop.flaky", {"fail": 4})
    await node.drive(id)
    now = node.clock.now()
    [applied] = await node.store.apply([Redrive(id, now, now + 3600)], now=now)
    assert applied.refused is None
    attempts.clear()
    assert (await node.books()).waiting == 1
    node.dispatcher.wake("shop.flaky", "shop.flaky")
    record = (await node.drive(id))[id]

    assert [number for _, number in attempts] == [1, 2, 3, 4]
    assert record.status is Status.DEAD
    books = await node.books()
    assert (books.accepted, books.dead) == (1, 1)


async def test_a_failure_reaches_its_destination_as_an_invocation_record(node: InlineNode) -> None:
    id = await node.put("shop.reported", {"fail": True})
    await node.drive(id)
    await node.until(lambda: received)

    [(where, event)] = received
    assert where == "caught"
    assert event["version"] == "1.0"
    assert event["requestContext"] == {
        "requestId": show_id(id),
        "functionArn": "shop.reported",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 1,
    }
    assert event["requestPayload"] == {"fail": True}
    assert event["responseContext"]["statusCode"] == 500
    assert event["responsePayload"]["type"] == "KeyError"
    assert isinstance(event["timestamp"], float)


async def test_a_success_reaches_its_destination_with_the_result(node: InlineNode) -> None:
    id = await node.put("shop.reported", {"fail": False})
    await node.drive(id)
    await node.until(lambda: received)

    [(where, event)] = received
    assert where == "pleased"
    assert event["requestContext"]["condition"] == "Success"
    assert event["responsePayload"] == {"fine": True}
    [sent] = await node.store.find(function="shop.pleased")
    assert sent.invocation.source == "shop.reported"


async def test_a_cancelled_invocation_has_no_destination(held: InlineNode) -> None:
    id = await held.put("shop.reported", {"fail": True})
    await held.until(lambda: held.pool.attempts)
    assert await held.dispatcher.cancelling.cancel(id)
    await held.drive(id)
    assert (await held.books()).accepted == 1


async def test_a_delayed_invocation_runs_when_it_is_due_and_not_before(node: InlineNode) -> None:
    late = await node.put("shop.echo", "late", delay_s=600)
    soon = await node.put("shop.echo", "soon", delay_s=60)
    now = await node.put("shop.echo", "now")
    await node.drive(now)
    assert node.pool.begun == 1
    await node.clock.advance(59)
    await node.quiet()
    assert node.pool.begun == 1
    await node.clock.advance(1.01)
    await node.until(lambda: node.pool.begun == 2)
    assert (await node.drive(soon))[soon].result == b'"soon"'
    await node.clock.advance(600)
    assert (await node.drive(late))[late].status is Status.SUCCEEDED


async def test_the_age_of_a_delayed_invocation_counts_from_its_due_moment(node: InlineNode) -> None:
    id = await node.put("shop.short_lived", None, delay_s=60)
    await node.clock.advance(60.01)
    record = (await node.drive(id, step_s=1))[id]
    assert record.status is Status.SUCCEEDED


async def test_a_repeated_key_gives_the_first_invocation_and_counts_as_deduplicated(node: InlineNode) -> None:
    first = await node.put("shop.echo", {"n": 1}, idempotency_key="k")
    assert await node.put("shop.echo", {"n": 1}, idempotency_key="k") == first
    await node.drive(first)
    assert await node.put("shop.echo", {"n": 1}, idempotency_key="k") == first
    with pytest.raises(IdempotencyMismatch):
        await node.put("shop.echo", {"n": 2}, idempotency_key="k")
    other = await node.put("shop.flaky", {"fail": 0}, idempotency_key="k")
    assert other != first
    await node.drive(other)
    books = await node.books()
    assert (books.accepted, books.deduplicated, node.pool.begun) == (2, 2, 2)

    node.clock.jump(24 * 3600 + 1)
    again = await node.put("shop.echo", {"n": 3}, idempotency_key="k")
    assert again != first
    assert (await node.drive(again))[again].result == b'{"n":3}'


async def test_a_waiting_invocation_is_cancelled_and_never_runs(held: InlineNode) -> None:
    id = await held.put("shop.echo", 1, delay_s=60)
    told: list[Ended] = []
    held.dispatcher.watchers.watch(id, told.append)
    assert await held.dispatcher.cancelling.cancel(id)
    assert (await held.record(id)).status is Status.CANCELLED
    assert [ended.status for ended in told] == [Status.CANCELLED]
    await held.clock.advance(61)
    await held.quiet()
    assert held.pool.begun == 0
    with pytest.raises(WrongState):
        await held.dispatcher.cancelling.cancel(id)


async def test_a_ready_invocation_is_cancelled_and_never_runs(held: InlineNode) -> None:
    ids = await held.put_many("shop.echo", range(6))
    await held.until(lambda: len(held.pool.attempts) == 4)
    assert held.dispatcher.counts()[:2] == (4, 2)
    told: list[Ended] = []
    held.dispatcher.watchers.watch(ids[5], told.append)
    assert await held.dispatcher.cancelling.cancel(ids[5])
    assert [ended.status for ended in told] == [Status.CANCELLED]
    held.pool.run()
    await held.until(lambda: held.pool.attempts)
    held.pool.run()
    records = await held.drive(*ids)
    assert [records[id].status for id in ids] == [Status.SUCCEEDED] * 5 + [Status.CANCELLED]
    assert records[ids[5]].attempts == 0
    assert held.pool.begun == 5


async def test_a_running_invocation_is_cancelled_by_ending_its_attempt(held: InlineNode) -> None:
    id = await held.put("shop.flaky", {"fail": 0})
    await held.until(lambda: held.pool.attempts)
    assert held.dispatcher.attempts.has(id)
    assert await held.dispatcher.cancelling.cancel(id)
    record = (await held.drive(id))[id]
    assert (record.status, held.pool.begun) == (Status.CANCELLED, 0)
    assert record.error is not None
    assert record.error["code"] == "cancelled"


async def test_what_was_handed_back_costs_no_attempt_and_runs_again(held: InlineNode) -> None:
    id = await held.put("shop.flaky", {"fail": 0})
    for _ in range(5):
        await held.until(lambda: held.pool.attempts)
        [attempt] = held.pool.attempts
        assert attempt.attempt == 1
        held.pool.end(attempt.token, Outcome("returned"))
    await held.until(lambda: held.pool.attempts)
    held.pool.run()
    record = (await held.drive(id))[id]
    assert (record.status, record.attempts, record.result) == (Status.SUCCEEDED, 1, b"1")


@pytest.mark.parametrize("kind", ["timeout", "out_of_memory", "crashed"])
async def test_a_limit_spends_an_attempt_like_an_error(held: InlineNode, kind: str) -> None:
    id = await held.put("shop.flaky", {"fail": 0})
    await held.until(lambda: held.pool.attempts)
    [attempt] = held.pool.attempts
    held.pool.end(attempt.token, Outcome(kind, error={"code": kind, "message": "limit"}))

    async def waits() -> bool:
        return (await held.record(id)).attempts == 1

    await held.until(waits)
    await held.clock.advance(301)
    await held.until(lambda: held.pool.attempts)
    assert held.pool.attempts[0].attempt == 2
    held.pool.run()
    assert (await held.drive(id))[id].status is Status.SUCCEEDED


async def test_a_paused_function_keeps_its_backlog_and_goes_on(node: InlineNode) -> None:
    await node.dispatcher.pause("shop.echo", paused=True)
    ids = await node.put_many("shop.echo", range(10))
    other = await node.put("shop.flaky", {"fail": 0})
    await node.drive(other)
    assert (await node.books()).waiting == 10
    assert await node.store.paused() == {"shop.echo"}
    await node.dispatcher.pause("shop.echo", paused=False)
    records = await node.drive(*ids)
    assert {record.status for record in records.values()} == {Status.SUCCEEDED}
    with pytest.raises(UnknownFunction):
        await node.dispatcher.pause("shop.nobody", paused=True)


async def test_a_pause_survives_a_restart(tmp_path: Path) -> None:
    node = await InlineNode(tmp_path, shop).start()
    await node.dispatcher.pause("shop.echo", paused=True)
    id = await node.put("shop.echo", 1)
    await node.crash()
    async with InlineNode(tmp_path, shop, clock=node.clock) as again:
        await again.quiet()
        assert (await again.record(id)).status is Status.WAITING
        await again.dispatcher.pause("shop.echo", paused=False)
        assert (await again.drive(id))[id].status is Status.SUCCEEDED


async def test_a_function_without_concurrency_starts_nothing(node: InlineNode) -> None:
    id = await node.put("shop.stopped", None)
    await node.quiet()
    assert node.pool.begun == 0
    assert (await node.record(id)).status is Status.WAITING


async def test_what_a_function_prints_goes_to_the_logs(node: InlineNode, tmp_path: Path) -> None:
    app = App("loud")

    @app.function
    def shout(event: Any, context: Any) -> None:
        print("hello")
        context.log.info("there", n=1)

    node.use(app)
    id = await node.put("loud.shout", None)
    await node.drive(id)
    assert node.outputs == [("loud.shout", id, "hello\nINFO there n=1\n")]


async def test_progress_is_known_while_it_runs(held: InlineNode) -> None:
    id = await held.put("shop.echo", 1)
    await held.until(lambda: held.pool.attempts)
    held.dispatcher.attempts.progress(held.pool.attempts[0].token, {"done": 3, "total": 9})
    assert held.dispatcher.attempts.progress_of(id) == {"done": 3, "total": 9}
    held.pool.run()
    await held.drive(id)
    assert held.dispatcher.attempts.progress_of(id) is None


# ---- stopping, losing the node, changing the code ----


async def test_stopping_hands_back_what_is_ready_and_what_ran(tmp_path: Path) -> None:
    node = await InlineNode(tmp_path, shop, held=True, workers=2).start()
    ids = await node.put_many("shop.flaky", [{"fail": 0}] * 10)
    await node.until(lambda: len(node.pool.attempts) == 2)
    await node.stop()
    with pytest.raises(NodeStopping):
        node.dispatcher.prepare("shop.echo", b"1")
    with pytest.raises(NodeStopping):
        node.dispatcher.call("shop.echo", b"1")

    async with InlineNode(tmp_path, shop, clock=node.clock) as again:
        assert again.lost == []
        records = await again.drive(*ids)
        assert {(record.status, record.attempts) for record in records.values()} == {(Status.SUCCEEDED, 1)}


async def test_a_killed_node_loses_nothing_and_short_attempts_cost_nothing(tmp_path: Path) -> None:
    node = await InlineNode(tmp_path, shop, held=True, workers=2).start()
    ids = await node.put_many("shop.flaky", [{"fail": 0}] * 10)
    await node.until(lambda: len(node.pool.attempts) == 2)
    await node.crash()

    async with InlineNode(tmp_path, shop, clock=node.clock) as again:
        records = await again.drive(*ids)
        assert {(record.status, record.attempts) for record in records.values()} == {(Status.SUCCEEDED, 1)}


async def test_an_event_that_takes_the_node_down_spends_its_attempts_and_dies(tmp_path: Path) -> None:
    node = await InlineNode(tmp_path, shop, held=True).start()
    id = await node.put("shop.flaky", {"fail": 0})
    for attempt in (1, 2, 3, 4):
        await node.until(lambda: node.pool.attempts)  # noqa: B023 - awaited within the loop
        assert node.pool.attempts[0].attempt == attempt
        await node.clock.advance(0.25)  # long enough to be recorded as running

        async def marked() -> bool:
            return (await node.record(id)).status is Status.RUNNING  # noqa: B023 - awaited within the loop

        await node.until(marked)
        await node.crash()
        node = await InlineNode(tmp_path, shop, held=True, clock=node.clock).start()
        assert [claim.invocation.id for claim in node.lost] == [id]
    record = (await node.drive(id))[id]

    assert record.status is Status.DEAD
    assert record.error is not None
    assert (record.error["code"], record.attempts) == ("node_lost", 4)
    assert node.pool.begun == 0
    await node.books()
    await node.stop()


async def test_what_no_loaded_code_can_run_waits_and_runs_once_it_is_there(tmp_path: Path) -> None:
    later = App("later")

    @later.function(retries=0)
    def run(event: Any) -> Any:
        return event

    node = await InlineNode(tmp_path, shop, later).start()
    node.pool.workers = 0
    ids = await node.put_many("later.run", range(5))
    node.use(shop, workers=2)
    other = await node.put("shop.echo", 1)
    await node.drive(other)
    assert (await node.books()).waiting == 5
    await node.crash()

    async with InlineNode(tmp_path, shop, clock=node.clock) as again:
        await again.quiet()
        assert (await again.books()).waiting == 5
        again.use(shop, later)
        records = await again.drive(*ids)
        assert [records[id].result for id in ids] == [b"0", b"1", b"2", b"3", b"4"]
        assert {record.attempts for record in records.values()} == {1}


async def test_after_a_reload_what_runs_ends_with_the_code_that_it_began_with(held: InlineNode) -> None:
    changed = App("shop")

    @changed.function(name="echo")
    def other(event: Any) -> str:
        return "new"

    first = await held.put("shop.echo", "old")
    await held.until(lambda: held.pool.attempts)
    old = held.pool
    held.use(changed)
    second = await held.put("shop.echo", "whatever")
    await held.until(lambda: held.pool.attempts)
    old.run()
    held.dispatcher.retire(old)
    held.pool.run()
    records = await held.drive(first, second)
    assert [records[id].result for id in (first, second)] == [b'"old"', b'"new"']


# ---- synchronous calls ----


async def test_a_call_goes_past_the_queue_without_a_row(held: InlineNode) -> None:
    await held.put_many("shop.echo", range(10))
    await held.until(lambda: len(held.pool.attempts) == 4)
    future = held.dispatcher.call("shop.echo", b'"urgent"')
    held.pool.run(held.pool.attempts[0].token)
    assert held.pool.attempts[-1].urgent
    held.pool.run(held.pool.attempts[-1].token)
    outcome = await future

    assert outcome.value == b'"urgent"'
    counters = held.dispatcher.sync["shop.echo"]
    assert (counters.invoked, counters.succeeded, counters.failed, counters.throttled) == (1, 1, 0, 0)
    assert (await held.books()).accepted == 10


async def test_a_failed_call_is_answered_and_counted_and_not_made_again(node: InlineNode) -> None:
    outcome = await node.dispatcher.call("shop.flaky", b'{"fail": 9}')
    assert outcome.kind == "error"
    assert outcome.error is not None
    assert outcome.error["type"] == "ValueError"
    assert node.dispatcher.sync["shop.flaky"].failed == 1
    assert len(attempts) == 1
    with pytest.raises(UnknownFunction):
        node.dispatcher.call("shop.nobody", b"1")


async def test_a_call_that_finds_no_worker_is_throttled_after_its_wait(held: InlineNode) -> None:
    await held.put_many("shop.echo", range(4))
    await held.until(lambda: len(held.pool.attempts) == 4)
    future = held.dispatcher.call("shop.echo", b"1")
    assert held.dispatcher.counts()[2] == 1
    await held.clock.advance(0.9)
    assert not future.done()
    await held.clock.advance(0.2)
    with pytest.raises(Throttled, match=r"no worker was free for shop\.echo in 1 s"):
        await future
    assert held.dispatcher.sync["shop.echo"].throttled == 1
    assert held.dispatcher.counts()[2] == 0
    held.pool.run()
    await held.idle()


async def test_calls_that_wait_are_served_in_order_and_each_has_its_own_time(held: InlineNode) -> None:
    await held.put_many("shop.echo", range(4))
    await held.until(lambda: len(held.pool.attempts) == 4)
    first = held.dispatcher.call("shop.echo", b'"first"')
    await held.clock.advance(0.6)
    second = held.dispatcher.call("shop.echo", b'"second"')
    third = held.dispatcher.call("shop.echo", b'"third"')
    await held.clock.advance(0.6)
    with pytest.raises(Throttled):
        await first
    third.cancel()
    held.pool.run()
    held.pool.run()
    assert (await second).value == b'"second"'
    assert held.dispatcher.sync["shop.echo"].throttled == 1


async def test_a_call_of_a_function_without_concurrency_is_throttled_at_once(node: InlineNode) -> None:
    with pytest.raises(Throttled):
        await node.dispatcher.call("shop.stopped", b"1")
    assert node.dispatcher.sync["shop.stopped"].throttled == 1


async def test_a_call_of_a_paused_function_says_so(node: InlineNode) -> None:
    await node.dispatcher.pause("shop.echo", paused=True)
    future = node.dispatcher.call("shop.echo", b"1")
    await node.clock.advance(1.1)
    with pytest.raises(Throttled, match="paused"):
        await future


async def test_calls_that_wait_when_the_node_stops_are_refused(held: InlineNode) -> None:
    await held.put_many("shop.echo", range(4))
    await held.until(lambda: len(held.pool.attempts) == 4)
    waiting = held.dispatcher.call("shop.echo", b"1")
    held.dispatcher.stop_accepting()
    with pytest.raises(NodeStopping):
        await waiting


async def test_a_thousand_calls_at_once_are_all_answered(node: InlineNode) -> None:
    outcomes = await asyncio.gather(*[node.dispatcher.call("shop.echo", b"%d" % n) for n in range(1000)])
    assert [outcome.value for outcome in outcomes] == [b"%d" % n for n in range(1000)]
    assert node.dispatcher.sync["shop.echo"].succeeded == 1000
