"""Dead letters over the API: found by what they are, edited, redriven and given up."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App, Items
from headrace.runtime.api.access import Token
from headrace.runtime.api.services import Limits
from headrace.runtime.model.ids import show_id
from tests.inline_node import InlineNode, Reply

shop = App("shop")
INLINE = 256 << 10


@shop.function(retries=0)
def pick(event: Any) -> Any:
    if event == "bad" or (isinstance(event, dict) and event.get("bad")):
        raise ValueError("bad")
    return len(event) if isinstance(event, str) else event


@shop.function(retries=0)
def counted(count: int) -> int:
    return count


@shop.job(split=Items(batch=1), retries=0)
def broken(chunk: Any) -> int:
    raise ValueError("bad chunk")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    limits = Limits(sync_body_bytes=2 << 20, async_body_bytes=1 << 20)
    tokens = [Token("reader", "r", ["read"])]
    async with InlineNode(tmp_path, shop, workers=4, limits=limits, tokens=tokens) as found:
        yield found


def refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.error["code"]) == (status, code), reply.body


async def letters(node: InlineNode, **query: str) -> list[str]:
    page = await node.request("GET", "/v1/dead-letters", query=query)
    assert page.status == 200, page.body
    return [item["invocation_id"] for item in page.json["items"]]


async def test_dead_letters_are_found_by_function_code_tag_and_time(node: InlineNode) -> None:
    early = await node.put("shop.pick", "bad", tags="red,blue")
    await node.drive(early)
    await node.clock.advance(100)
    moment = node.clock.now()
    invalid = await node.put("shop.counted", {"count": "x"})
    late = await node.put("shop.pick", "bad", tags="red")
    await node.drive(invalid, late)
    shown = [show_id(id) for id in (early, invalid, late)]

    assert await letters(node) == shown[::-1]
    assert await letters(node, function="shop.pick") == [shown[2], shown[0]]
    assert await letters(node, code="invalid_event") == [shown[1]]
    assert await letters(node, code="function_error", tag="blue") == [shown[0]]
    assert await letters(node, since=str(moment)) == shown[:0:-1]
    assert await letters(node, since=str(moment), code="timeout") == []
    first = await node.request("GET", "/v1/dead-letters", query={"code": "function_error", "limit": "1"})
    assert [item["invocation_id"] for item in first.json["items"]] == [shown[2]]
    rest = {"code": "function_error", "cursor": first.json["next_cursor"]}
    assert await letters(node, **rest) == [shown[0]]
    one = (await node.request("GET", f"/v1/dead-letters/{shown[0]}", token="r")).json
    assert (one["payload"], one["error"]["message"], one["tags"]) == ("bad", "bad", ["red", "blue"])
    refused(await node.request("GET", "/v1/dead-letters", query={"since": "monday"}), 400, "bad_request")
    refused(await node.request("GET", "/v1/dead-letters/00ff"), 404, "unknown_invocation")


async def test_an_edited_dead_letter_runs_under_its_id_with_the_new_event(node: InlineNode) -> None:
    id = await node.put("shop.pick", {"bad": True})
    await node.drive(id)
    path = f"/v1/dead-letters/{show_id(id)}/redrive"

    assert (await node.request("POST", path, {"payload": {"bad": False}})).status == 202
    record = (await node.drive(id))[id]
    assert (record.status.name, record.result, record.attempts) == ("SUCCEEDED", b'{"bad":false}', 1)
    assert record.invocation.payload == b'{"bad":false}'
    refused(await node.request("POST", path, {"payload": 1}), 409, "wrong_state")


@pytest.mark.parametrize("large_first", [False, True])
async def test_a_large_event_goes_through_the_object_store_and_a_replaced_one_leaves_it(
    node: InlineNode, large_first: bool
) -> None:
    id = await node.put("shop.pick", "bad")
    await node.drive(id)
    shown = show_id(id)
    big = "b" * (INLINE + 10)
    await node.request("POST", f"/v1/dead-letters/{shown}/redrive", {"payload": {"bad": big}})
    await node.drive(id)
    [item] = (await node.request("GET", "/v1/dead-letters")).json["items"]
    assert item["payload_ref"].startswith("s3://headrace-system/payloads/")
    assert len(node.objects.list("headrace-system", prefix="payloads/")) == 1

    edit = big if large_first else "small"
    await node.request("POST", f"/v1/dead-letters/{shown}/redrive", {"payload": edit})

    record = (await node.drive(id))[id]
    assert record.result == str(len(edit)).encode()
    assert len(node.objects.list("headrace-system", prefix="payloads/")) == (1 if large_first else 0)


async def test_a_wrong_edit_is_refused_and_changes_nothing(node: InlineNode) -> None:
    id = await node.put("shop.pick", "bad")
    await node.drive(id)
    path = f"/v1/dead-letters/{show_id(id)}/redrive"

    for wrong in (b"{", b"[1]", {"paylaod": 1}, b'{"payload": nope}'):
        refused(await node.request("POST", path, wrong), 400, "bad_request")
    refused(await node.request("POST", path, {"payload": "x" * (1 << 20)}), 413, "payload_too_large")
    refused(await node.request("POST", path, {"payload": 1}, token="r"), 403, "forbidden")
    assert await letters(node) == [show_id(id)]
    assert (await node.record(id)).invocation.payload == b'"bad"'


async def test_null_is_an_event_that_may_be_given(node: InlineNode) -> None:
    id = await node.put("shop.pick", "bad")
    await node.drive(id)
    await node.request("POST", f"/v1/dead-letters/{show_id(id)}/redrive", {"payload": None})
    assert (await node.drive(id))[id].result == b"null"


async def test_many_are_redriven_by_what_they_are(node: InlineNode) -> None:
    ids = await node.put_many("shop.pick", ["bad"] * 3, tags="red")
    ids += await node.put_many("shop.pick", ["bad"] * 2, tags="blue")
    other = await node.put("shop.counted", {"count": "x"})
    await node.drive(*ids, other)

    async def redrive(body: Any) -> Any:
        return (await node.request("POST", "/v1/dead-letters/redrive", body)).json

    assert await redrive({"tag": "blue"}) == {"redriven": 2}
    await node.drive(*ids)
    assert await redrive({"code": "invalid_event"}) == {"redriven": 1}
    await node.drive(other)
    assert await redrive({"since": node.clock.now() + 1}) == {"redriven": 0}
    assert await redrive({"tag": "red", "limit": 2}) == {"redriven": 2}
    await node.drive(*ids)
    assert await redrive({"ids": [show_id(ids[0]), show_id(other)], "function": "shop.pick"}) == {
        "redriven": 1
    }
    await node.drive(*ids)
    node.use(App("empty"))
    assert await redrive({}) == {"redriven": 0, "skipped": 6}
    assert (await node.books()).dead == 6


async def test_one_that_is_given_up_is_cancelled_and_counted(node: InlineNode) -> None:
    id = await node.put("shop.pick", "bad", idempotency_key="k")
    await node.drive(id)
    path = f"/v1/dead-letters/{show_id(id)}/discard"

    assert (await node.request("POST", path)).json == {"invocation_id": show_id(id), "status": "cancelled"}
    assert await letters(node) == []
    shown = (await node.request("GET", f"/v1/invocations/{show_id(id)}")).json
    assert (shown["status"], shown["error"]["cause"]["message"]) == ("cancelled", "bad")
    books = await node.books()
    assert (books.dead, books.cancelled) == (0, 1)
    refused(await node.request("POST", path), 409, "wrong_state")
    refused(await node.request("GET", f"/v1/dead-letters/{show_id(id)}"), 409, "wrong_state")
    key = {"idempotency-key": "k"}
    again = await node.request("POST", "/v1/functions/shop.pick/invoke", "bad", headers=key)
    refused(again, 409, "cancelled")
    assert again.headers["headrace-repeated"] == "true"


async def test_a_jobs_chunk_is_neither_redriven_nor_given_up_alone(node: InlineNode) -> None:
    job = (await node.request("POST", "/v1/jobs", {"function": "shop.broken", "input": [1]})).json["job_id"]

    async def ended() -> bool:
        return (await node.request("GET", f"/v1/jobs/{job}")).json["status"] == "failed"

    await node.until(ended)
    [chunk] = await letters(node)
    refused(
        await node.request("POST", f"/v1/dead-letters/{chunk}/redrive", {"payload": 1}), 409, "wrong_state"
    )
    refused(await node.request("POST", f"/v1/dead-letters/{chunk}/discard"), 409, "wrong_state")
    assert (await node.request("POST", "/v1/dead-letters/redrive", {})).json == {"redriven": 0}
