"""`GET /v1/verify` and what `/metrics` tells of it, on the test's own loop."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App
from headrace.runtime.api.access import Token
from tests.inline_node import InlineNode

shop = App("shop")


@shop.function
def echo(event: Any) -> Any:
    return event


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    tokens = [Token("reader", "r", ["read"]), Token("caller", "i", ["invoke"])]
    async with InlineNode(tmp_path, shop, tokens=tokens) as found:
        yield found


async def test_the_answer_has_books_problems_and_objects(node: InlineNode) -> None:
    await node.drive(await node.put("shop.echo", 1))
    found = (await node.request("GET", "/v1/verify", token="r")).json

    assert sorted(found) == [
        "at", "balanced", "checked_rows", "found", "functions", "objects", "problems", "seconds", "total",
    ]  # fmt: skip
    assert (found["balanced"], found["problems"], found["found"], found["checked_rows"]) == (True, [], {}, 1)
    assert found["total"] == found["functions"]["shop.echo"]
    assert found["total"] == {
        "accepted": 1, "waiting": 0, "running": 0, "succeeded": 1, "dead": 0, "cancelled": 0,
        "deduplicated": 0, "missing": 0, "removed": {"succeeded": 0, "dead": 0, "cancelled": 0},
        "rows": {"waiting": 0, "running": 0, "succeeded": 1, "dead": 0, "cancelled": 0},
    }  # fmt: skip
    assert found["objects"]["checked"] == 0


async def test_objects_can_be_left_out_and_one_function_looked_at(node: InlineNode) -> None:
    await node.drive(await node.put("shop.echo", 1))
    assert (await node.request("GET", "/v1/verify", query={"objects": "false"})).json["objects"] is None
    one = (await node.request("GET", "/v1/verify", query={"function": "shop.none"})).json
    assert (one["functions"], one["checked_rows"], one["balanced"]) == ({}, 0, True)


async def test_a_wrong_question_and_a_wrong_scope_are_refused(node: InlineNode) -> None:
    for query in ({"objects": "maybe"}, {"limit": "0"}, {"limit": "x"}, {"limit": "10001"}):
        reply = await node.request("GET", "/v1/verify", query=query)
        assert (reply.status, reply.error["code"]) == (400, "bad_request")
    assert (await node.request("GET", "/v1/verify", token="i")).status == 403


async def test_the_metrics_tell_of_the_last_verdict(node: InlineNode) -> None:
    before = (await node.request("GET", "/metrics")).body.decode()
    assert "headrace_books" not in before
    await node.request("GET", "/v1/verify", query={"function": "shop.echo"})
    assert "headrace_books" not in (await node.request("GET", "/metrics")).body.decode()
    await node.request("GET", "/v1/verify")
    after = (await node.request("GET", "/metrics")).body.decode()

    assert "headrace_books_balanced 1.0" in after
    assert "headrace_books_checked_timestamp_seconds 1.8e+09" in after
    assert "headrace_books_problems 0.0" in after
    assert 'headrace_invocations_removed_total{function="shop.echo",status="dead"} 0.0' in after
