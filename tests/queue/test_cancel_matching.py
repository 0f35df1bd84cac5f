"""Cancelling by function, tag and job: what waits, what is ready and what runs, and who hears of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App, Items
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.queue.matching import Matching
from headrace.runtime.queue.watchers import Ended
from tests.inline_node import InlineNode

shop = App("shop")


@shop.function(retries=5)
def echo(event: Any) -> Any:
    return event


@shop.function
def other(event: Any) -> Any:
    return event


@shop.job(split=Items(batch=1), reduce=lambda a, b: a + b)
def summed(chunk: Any) -> int:
    return sum(chunk.items)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[InlineNode]:
    """A node with a small window, whose attempts end when the test says so."""
    async with InlineNode(tmp_path, shop, held=True, workers=4, window=10) as found:
        yield found


async def test_all_of_a_function_end_wherever_they_are_and_others_stay(held: InlineNode) -> None:
    ids = await held.put_many("shop.echo", range(60))
    late = await held.put("shop.echo", "late", delay_s=500)
    kept = await held.put_many("shop.other", range(3))
    await held.until(lambda: len(held.pool.attempts) == 4)
    told: list[Ended] = []
    for id in [*ids, late]:
        held.dispatcher.watchers.watch(id, told.append)

    cancelled, stopping = await held.dispatcher.cancelling.cancel_matching(function="shop.echo")
    running = stopping
    records = await held.drive(*ids, late, step_s=0.0)

    assert cancelled + running == 61
    assert 1 <= running <= 4
    assert {record.status for record in records.values()} == {Status.CANCELLED}
    assert {(record.error or {})["code"] for record in records.values()} == {"cancelled"}
    assert sorted(ended.id for ended in told) == sorted([*ids, late])
    assert {ended.status for ended in told} == {Status.CANCELLED}
    assert not held.dispatcher.watchers
    assert held.pool.begun == 0
    await held.until(lambda: held.pool.attempts)
    held.pool.run()
    ends = await held.drive(*kept, step_s=0.0)
    assert {record.status for record in ends.values()} == {Status.SUCCEEDED}
    assert (await held.books()).cancelled == 61
    assert await held.dispatcher.cancelling.cancel_matching(function="shop.echo") == (0, 0)


async def test_a_tag_is_cancelled_over_functions_and_with_a_function_only_there(held: InlineNode) -> None:
    await held.dispatcher.pause("shop.echo", paused=True)
    await held.dispatcher.pause("shop.other", paused=True)
    one = await held.put_many("shop.echo", range(30), tags="red,blue")
    two = await held.put_many("shop.other", range(30), tags="red")
    free = await held.put_many("shop.echo", range(30), tags="blue")

    assert await held.dispatcher.cancelling.cancel_matching(function="shop.other", tag="red") == (30, 0)
    assert {(await held.record(id)).status for id in two} == {Status.CANCELLED}
    assert await held.dispatcher.cancelling.cancel_matching(tag="red") == (30, 0)
    assert {(await held.record(id)).status for id in one} == {Status.CANCELLED}
    assert {(await held.record(id)).status for id in free} == {Status.WAITING}


async def test_what_is_accepted_after_the_request_is_not_meant(held: InlineNode) -> None:
    ids = await held.put_many("shop.echo", range(50))
    cancelling = asyncio.create_task(held.dispatcher.cancelling.cancel_matching(function="shop.echo"))
    await asyncio.sleep(0)
    later = await held.put_many("shop.echo", range(5))

    assert sum(await cancelling) == 50
    records = await held.drive(*ids, step_s=0.0)
    assert {record.status for record in records.values()} == {Status.CANCELLED}
    await held.until(lambda: len(held.pool.attempts) == 4)
    held.pool.run()
    await held.until(lambda: held.pool.attempts)
    held.pool.run()
    ends = await held.drive(*later, step_s=0.0)
    assert {record.status for record in ends.values()} == {Status.SUCCEEDED}


async def test_one_that_fails_while_it_is_told_to_stop_is_not_tried_again(held: InlineNode) -> None:
    id = await held.put("shop.echo", 1)
    await held.until(lambda: held.pool.attempts)
    [attempt] = held.pool.attempts
    error = {"code": "function_error", "message": "no"}
    held.pool.kill = lambda token: False  # type: ignore[method-assign]  # it has just ended by itself

    assert await held.dispatcher.cancelling.cancel_matching(function="shop.echo") == (0, 1)
    held.pool.end(attempt.token, Outcome("error", error=error))

    record = (await held.drive(id, step_s=0.0))[id]
    assert (record.status, record.attempts) == (Status.CANCELLED, 1)
    assert (record.error or {})["message"] == "cancelled by request"


async def test_one_that_succeeds_while_it_is_told_to_stop_has_succeeded(held: InlineNode) -> None:
    id = await held.put("shop.echo", 1)
    await held.until(lambda: held.pool.attempts)
    held.pool.kill = lambda token: False  # type: ignore[method-assign]
    assert await held.dispatcher.cancelling.cancel(id) is False
    held.pool.run()
    assert (await held.drive(id, step_s=0.0))[id].status is Status.SUCCEEDED


async def test_a_backlog_is_cancelled_in_batches_while_others_are_served(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, workers=2) as node:
        await node.dispatcher.pause("shop.echo", paused=True)
        for _ in range(4):
            await node.put_many("shop.echo", range(3_000))
        cancelling = asyncio.create_task(node.dispatcher.cancelling.cancel_matching(function="shop.echo"))
        served = 0
        while not cancelling.done():
            outcome = await node.dispatcher.call("shop.other", b"1")
            assert outcome.ok
            served += 1
            await asyncio.sleep(0)
        assert await cancelling == (12_000, 0)
        assert served > 3
        books = await node.books()
        assert (books.cancelled, books.waiting) == (12_000, 0)


async def test_what_matches_is_cancelled_over_the_api(held: InlineNode) -> None:
    ids = await held.put_many("shop.echo", range(20), tags="x")

    async def cancel(body: Any) -> Any:
        return await held.request("POST", "/v1/invocations/cancel", body)

    for wrong in ({}, {"fnuction": "x"}, [1], b"{", {"tag": ""}, {"tag": "a,b"}, {"function": 3}):
        reply = await cancel(wrong)
        assert (reply.status, reply.error["code"]) == (400, "bad_request"), wrong
    unknown = await cancel({"function": "shop.ecko"})
    assert (unknown.status, unknown.error["hint"]) == (404, "Did you mean shop.echo?")
    assert (await cancel({"job": "00ff"})).error["code"] == "unknown_job"
    done = await cancel({"function": "shop.echo", "tag": "x"})
    assert done.status == 202
    assert done.json["cancelled"] + done.json["stopping"] == 20
    records = await held.drive(*ids, step_s=0.0)
    assert {record.status for record in records.values()} == {Status.CANCELLED}
    asked = {"ids": [show_id(id) for id in ids], "wait_s": 5}
    ended = (await held.request("POST", "/v1/invocations/wait", asked)).json["ended"]
    assert {one["status"] for one in ended} == {"cancelled"}


@pytest.mark.parametrize("by", ["job", "function", "tag"])
async def test_a_job_is_cancelled_by_its_id_its_function_and_its_tag(held: InlineNode, by: str) -> None:
    body = {"function": "shop.summed", "input": list(range(6)), "tags": ["night"]}
    id = (await held.request("POST", "/v1/jobs", body)).json["job_id"]
    spared = {"function": "shop.summed", "input": [1], "tags": ["day"]}
    other_id = (await held.request("POST", "/v1/jobs", spared)).json["job_id"] if by != "function" else ""
    asked = {"job": {"job": id, "tag": "night"}, "function": {"function": "shop.summed"}}
    mismatch = await held.request("POST", "/v1/invocations/cancel", {"job": id, "tag": "day"})
    assert mismatch.json == {"cancelled": 0, "stopping": 0}

    done = await held.request("POST", "/v1/invocations/cancel", asked.get(by, {"tag": "night"}))

    assert done.status == 202
    assert done.json["cancelled"] + done.json["stopping"] >= 1
    assert (await held.request("GET", f"/v1/jobs/{id}")).json["status"] == "cancelled"
    if other_id:
        assert (await held.request("GET", f"/v1/jobs/{other_id}")).json["status"] == "planning"
    again = await held.request("POST", "/v1/invocations/cancel", {"job": id})
    assert (again.status, again.error["code"]) == (409, "wrong_state")


async def test_what_another_node_cancels_ends_here_too(held: InlineNode) -> None:
    ids = await held.put_many("shop.echo", range(8), tags="x")
    await held.until(lambda: len(held.pool.attempts) == 4)
    there = Matching("shop.echo", "x", held.ids.next())

    held.dispatcher.cancelling.heard(there.text)

    records = await held.drive(*ids, step_s=0.0)
    assert {record.status for record in records.values()} == {Status.CANCELLED}
