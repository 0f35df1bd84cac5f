"""Idempotency keys over the API: how long they hold, and what a repeat is told at each state of the first."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App, Http
from headrace.runtime.api.services import Limits
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome
from tests.inline_node import InlineNode, Reply

shop = App("shop")
DAY = 86_400.0


@shop.on(Http("POST", "/later", asynchronous=True))
@shop.on(Http("POST", "/now"))
@shop.function
def echo(body: Any) -> Any:
    return body


@shop.function(idempotency_ttl="90 s", retries=0)
def brief(event: Any) -> Any:
    if event == "bad":
        raise ValueError("bad")
    return event


@shop.function(retries=2)
def slow(event: Any) -> Any:
    return event


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    async with InlineNode(tmp_path, shop, workers=4) as found:
        yield found


async def invoke(
    node: InlineNode, name: str, body: Any, *, key: str = "k", ttl: str | None = None, **query: str
) -> Reply:
    headers = {"idempotency-key": key} | ({"idempotency-ttl": ttl} if ttl is not None else {})
    return await node.request("POST", f"/v1/functions/shop.{name}/invoke", body, query=query, headers=headers)


def id_of(reply: Reply) -> str:
    return reply.headers["headrace-invocation-id"]


async def test_a_key_holds_for_as_long_as_the_call_the_function_or_the_default_says(
    node: InlineNode,
) -> None:
    for name, ttl, query, seconds in (
        ("echo", None, {}, DAY),
        ("brief", None, {}, 90.0),
        ("brief", "1", {}, 1.0),
        ("echo", None, {"idempotency_ttl_s": "5.5"}, 5.5),
        ("echo", "60", {"idempotency_ttl_s": "7"}, 7.0),
        ("echo", None, {"mode": "async", "idempotency_ttl_s": str(30 * DAY)}, 30 * DAY),
    ):
        key = f"{name} {ttl} {query}"
        first = await invoke(node, name, {"n": 1}, key=key, ttl=ttl, **query)
        await node.idle()
        node.clock.jump(seconds - 0.01)
        inside = await invoke(node, name, {"n": 1}, key=key, ttl=ttl, **query)
        node.clock.jump(0.02)
        outside = await invoke(node, name, {"n": 1}, key=key, ttl=ttl, **query)
        await node.idle()
        assert id_of(first) == id_of(inside) != id_of(outside), key
        told = [reply.headers.get("headrace-repeated") for reply in (first, inside, outside)]
        assert told == [None, "true", None], key


async def test_a_time_out_of_range_or_without_a_key_is_refused(node: InlineNode) -> None:
    async def refused(reply: Reply) -> bool:
        return (reply.status, reply.error["code"]) == (400, "bad_request")

    for wrong in ("0.5", "2592001", "soon", "nan", "-1"):
        assert await refused(await invoke(node, "echo", 1, ttl=wrong)), wrong
        assert await refused(await invoke(node, "echo", 1, idempotency_ttl_s=wrong)), wrong
    path = "/v1/functions/shop.echo/invoke"
    for query in ({"idempotency_ttl_s": "5"}, {"idempotency_ttl_s": "5", "mode": "async"}):
        assert await refused(await node.request("POST", path, 1, query=query))
    assert await refused(await node.request("POST", path, 1, headers={"idempotency-ttl": "5"}))
    assert await refused(await invoke(node, "echo", 1, key="x" * 1001))
    many = await node.request("POST", f"{path}-many", [1], query={"idempotency_ttl_s": "5"})
    assert await refused(many)
    assert (await node.books()).accepted == 0


async def test_a_route_takes_the_time_as_a_header_and_tells_of_a_repeat(node: InlineNode) -> None:
    for path, status in (("/now", 200), ("/later", 202)):

        async def post(path: str = path) -> Reply:
            headers = {"idempotency-key": path, "idempotency-ttl": "10"}
            return await node.request("POST", path, {"n": 1}, headers=headers, token=None)

        first, second = await post(), await post()
        await node.idle()
        await node.clock.advance(10.01)
        third = await post()
        await node.idle()
        assert [reply.status for reply in (first, second, third)] == [status] * 3
        told = ["headrace-repeated" in reply.headers for reply in (first, second, third)]
        assert told == [False, True, False]


async def test_a_repeat_of_a_dead_call_gets_its_death_until_it_is_redriven(node: InlineNode) -> None:
    first = await invoke(node, "brief", "bad")
    again = await invoke(node, "brief", "bad")
    queued = await invoke(node, "brief", "bad", mode="async")
    for reply in (first, again):
        assert (reply.status, reply.error["message"]) == (500, "bad")
    assert id_of(first) == id_of(again) == id_of(queued)
    assert queued.status == 202
    assert queued.headers["headrace-repeated"] == again.headers["headrace-repeated"] == "true"

    await node.request("POST", f"/v1/dead-letters/{id_of(first)}/redrive", {"payload": "good"})
    after = await invoke(node, "brief", "bad")

    assert (after.status, after.json, id_of(after)) == (200, "good", id_of(first))
    assert (await invoke(node, "brief", "good")).status == 422
    assert node.pool.begun == 2
    await node.clock.advance(91)
    fresh = await invoke(node, "brief", "good")
    assert (fresh.json, id_of(fresh) != id_of(first)) == ("good", True)


async def test_a_call_that_timed_out_and_has_retries_left_is_unfinished(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, limits=Limits(wait_s=0.2)) as node:
        first = await invoke(node, "slow", 1, mode="async")
        await node.until(lambda: node.pool.attempts)
        timeout = Outcome("timeout", error={"code": "timeout", "message": "too long"})
        node.pool.end(node.pool.attempts[0].token, timeout)
        await node.quiet()

        repeat = await invoke(node, "slow", 1)
        assert (repeat.status, repeat.error["code"]) == (409, "in_progress")
        assert id_of(repeat) == id_of(first)
        assert repeat.headers["headrace-repeated"] == "true"
        queued = await invoke(node, "slow", 1, mode="async")
        assert (queued.status, id_of(queued)) == (202, id_of(first))
        assert (await invoke(node, "slow", 2)).status == 422

        await node.clock.advance(301)
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
        await node.quiet()
        assert (await invoke(node, "slow", 1)).json == 1


async def test_a_delayed_call_outlasts_the_time_of_its_key(node: InlineNode) -> None:
    first = await invoke(node, "brief", 5, mode="async", delay_s="3600")
    node.clock.jump(3000)
    assert await node.store.expire_keys(before=node.clock.now(), limit=10) == 1
    again = await invoke(node, "brief", 5, mode="async", delay_s="3600")
    assert id_of(again) == id_of(first)
    [id] = [int(id_of(first), 16)]
    await node.drive(id)
    assert (await node.books()).accepted == 1


async def test_an_outcome_that_is_not_kept_any_more_is_told_and_not_made_again(node: InlineNode) -> None:
    first = await invoke(node, "echo", 1)
    await node.store.expire(succeeded_before=node.clock.now() + 1, dead_before=0.0, keep=0, limit=10)
    again = await invoke(node, "echo", 1)
    assert (again.status, again.error["code"]) == (404, "unknown_invocation")
    assert id_of(again) == id_of(first)
    assert node.pool.begun == 1


async def test_a_large_payload_that_came_again_leaves_no_second_object(node: InlineNode) -> None:
    big = "x" * 300_000
    first = await invoke(node, "echo", big, mode="async")
    again = await invoke(node, "echo", big, mode="async")
    await node.idle()
    assert id_of(first) == id_of(again)
    assert len(node.objects.list("headrace-system", prefix="payloads/")) == 1
    assert (await node.record(int(show_id(int(id_of(first), 16)), 16))).status.name == "SUCCEEDED"
