"""The HTTP API as callers see it, on the test's own loop: the real application over a real store and real
buckets.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from headrace import App, Http, Items, Lines
from headrace.runtime.api.access import Token
from headrace.runtime.api.services import Limits
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome
from tests.inline_node import InlineNode, Reply

shop = App("shop")
UNSAFE = "ffffffffffffffff"


class Review(pydantic.BaseModel):
    """What a customer says."""

    stars: int
    text: str = ""


@shop.function
def echo(event: Any) -> Any:
    """Gives back what it gets."""
    print("echoing")
    return event


@shop.function(retries=0)
def fail(event: Any) -> None:
    raise ValueError(f"no {event}")


@shop.on(Http("POST", "/reviews/{product}"))
@shop.function
def rate(product: str, body: Review, limit: int = 5) -> dict[str, Any]:
    """Rates a product.

    At length.
    """
    return {"product": product, "stars": body.stars, "limit": limit}


@shop.on(Http("GET", "/whole/{id}/{rest:path}"))
@shop.on(Http("GET", "/other/{id}"))
@shop.function
def whole(event: Any) -> Any:
    return {
        "statusCode": 201,
        "headers": {"x-id": event.path_parameters["id"]},
        "body": event.get("rawQueryString", ""),
    }


@shop.on(Http("POST", "/later", asynchronous=True))
@shop.function
def later(body: Any) -> Any:
    return body


@shop.on(Http("POST", "/broken"))
@shop.function(retries=0)
def broken(body: Any) -> Any:
    raise RuntimeError("a secret")


@shop.on(Http("GET", "/v10/ping"))
@shop.function
def ping() -> str:
    return "pong"


@shop.on(Http("POST", "/total"))
@shop.job(split=Items(batch=2), reduce=lambda a, b: a + b, initial=0)
def total(chunk: Any) -> int:
    return sum(chunk.items)


@shop.job(split=Lines(chunk=50), output="results")
def lines(chunk: Any) -> int:
    return len(list(chunk.lines()))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    tokens = [Token("reader", "r", ["read"]), Token("caller", "i", ["invoke"])]
    limits = Limits(
        sync_body_bytes=700_000, async_body_bytes=600_000, object_bytes=5_000_000, wait_s=10, sse_s=0.01
    )
    async with InlineNode(
        tmp_path, shop, workers=4, tokens=tokens, hosts=["node.example"], limits=limits
    ) as found:
        yield found


def refused(reply: Reply, status: int, code: str) -> dict[str, Any]:
    assert reply.status == status, reply.body
    error = reply.error
    assert error["code"] == code
    assert error["message"]
    return error


# ---- invoke
# ------------------------------------------------------------------------------------------------------


async def test_a_call_gets_the_result_and_the_invocations_id(node: InlineNode) -> None:
    reply = await node.request("POST", "/v1/functions/shop.echo/invoke", {"a": [1, None, "ü"]})
    assert (reply.status, reply.json) == (200, {"a": [1, None, "ü"]})
    assert reply.headers["content-type"] == "application/json"
    id = reply.headers["headrace-invocation-id"]
    logs = await node.request("GET", f"/v1/invocations/{id}/logs")
    assert [entry["text"] for entry in logs.json["entries"]] == ["echoing\n"]
    assert (await node.request("POST", "/v1/functions/shop.echo/invoke", b"")).json is None
    stats = (await node.request("GET", "/v1/stats")).json
    assert stats["functions"]["shop.echo"]["sync"] == {
        "invoked": 2,
        "succeeded": 2,
        "failed": 0,
        "throttled": 0,
    }
    assert stats["total"]["accepted"] == 0


async def test_a_functions_error_has_type_message_and_stack(node: InlineNode) -> None:
    reply = await node.request("POST", "/v1/functions/shop.fail/invoke", 7)
    error = refused(reply, 500, "function_error")
    assert (error["type"], error["message"]) == ("ValueError", "no 7")
    assert "in fail" in error["stack"]
    assert error["invocation_id"] == reply.headers["headrace-invocation-id"]


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("timeout", "timeout", 504),
        ("out_of_memory", "out_of_memory", 500),
        ("crashed", "worker_crashed", 500),
    ],
)
async def test_an_attempts_limits_have_a_status_each(
    tmp_path: Path, kind: str, code: str, status: int
) -> None:
    async with InlineNode(tmp_path, shop, held=True) as node:
        asked = asyncio.create_task(node.request("POST", "/v1/functions/shop.echo/invoke", 1))
        await node.until(lambda: node.pool.attempts)
        node.pool.end(node.pool.attempts[0].token, Outcome(kind, error={"code": code, "message": "over"}))
        refused(await asked, status, code)


async def test_calls_that_find_no_worker_are_throttled(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True) as node:
        first = asyncio.create_task(node.request("POST", "/v1/functions/shop.echo/invoke", 1))
        await node.until(lambda: node.pool.attempts)
        second = asyncio.create_task(node.request("POST", "/v1/functions/shop.echo/invoke", 2))
        await node.until(lambda: node.dispatcher.counts()[2] == 1)
        await node.clock.advance(1.1)
        reply = await second
        refused(reply, 429, "throttled")
        assert int(reply.headers["retry-after"]) >= 1
        node.pool.run()
        assert (await first).json == 1


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/v1/functions/shop.ecko/invoke", b"1", {}, 404, "unknown_function"),
        ("/v1/functions/shop.ecko/invoke?mode=async", b"1", {}, 404, "unknown_function"),
        ("/v1/functions/shop.ecko/invoke-many", b"[1]", {}, 404, "unknown_function"),
        ("/v1/functions/shop.echo/invoke", b"{", {}, 400, "invalid_payload"),
        ("/v1/functions/shop.echo/invoke", b"\xff", {}, 400, "invalid_payload"),
        ("/v1/functions/shop.echo/invoke", b"[" * 100_000, {}, 400, "invalid_payload"),
        ("/v1/functions/shop.echo/invoke", b'"' + b"x" * 700_000 + b'"', {}, 413, "payload_too_large"),
        (
            "/v1/functions/shop.echo/invoke?mode=async",
            b'"' + b"x" * 600_000 + b'"',
            {},
            413,
            "payload_too_large",
        ),
        ("/v1/functions/shop.echo/invoke-many", b'["' + b"x" * 600_000 + b'"]', {}, 413, "payload_too_large"),
        ("/v1/functions/shop.echo/invoke-many", b"{}", {}, 400, "invalid_payload"),
        (
            "/v1/functions/shop.echo/invoke-many",
            b"1\n{\n",
            {"content-type": "application/x-ndjson"},
            400,
            "invalid_payload",
        ),
        ("/v1/functions/shop.echo/invoke", b"1", {"content-type": "text/plain"}, 400, "bad_request"),
        ("/v1/functions/shop.echo/invoke?mode=maybe", b"1", {}, 400, "bad_request"),
        ("/v1/functions/shop.echo/invoke?mode=async&delay_s=-1", b"1", {}, 400, "bad_request"),
        ("/v1/functions/shop.echo/invoke?mode=async&delay_s=nan", b"1", {}, 400, "bad_request"),
        ("/v1/functions/shop.echo/invoke?mode=async&priority=101", b"1", {}, 400, "bad_request"),
        ("/v1/functions/shop.echo/invoke?colour=red", b"1", {}, 400, "bad_request"),
        ("/v1/functions/shop.total/invoke", b"[1]", {}, 400, "invalid_function"),
        ("/v1/functions/shop.total/invoke?mode=async", b"[1]", {}, 400, "invalid_function"),
        (
            "/v1/functions/shop.rate/invoke",
            b'{"product": "p", "body": {"stars": "x"}}',
            {},
            422,
            "invalid_event",
        ),
    ],
)
async def test_a_wrong_call_is_refused_and_nothing_is_accepted(
    node: InlineNode, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    bare, _, query = path.partition("?")
    asked = dict(part.split("=") for part in query.split("&")) if query else {}
    reply = await node.request("POST", bare, body, query=asked, headers=headers)
    error = refused(reply, status, code)
    if code == "unknown_function":
        assert error["hint"] == "Did you mean shop.echo?"
    if code == "invalid_event":
        assert error["fields"] == [{"loc": "body.stars", "msg": error["fields"][0]["msg"]}]
    assert (await node.books()).accepted == 0


async def test_an_asynchronous_call_is_accepted_and_can_be_asked_for(node: InlineNode) -> None:
    reply = await node.request(
        "POST",
        "/v1/functions/shop.echo/invoke",
        {"n": 1},
        query={"mode": "async", "priority": "3", "tags": "a,b"},
    )
    assert reply.status == 202
    id = reply.json["invocation_id"]
    assert reply.headers["headrace-invocation-id"] == id
    shown = (
        await node.request("GET", f"/v1/invocations/{id}", query={"wait_s": "5", "payload": "true"})
    ).json
    assert (shown["status"], shown["result"], shown["attempts"], shown["error"]) == (
        "succeeded",
        {"n": 1},
        1,
        None,
    )
    assert (shown["function"], shown["tags"], shown["priority"], shown["payload"]) == (
        "shop.echo",
        ["a", "b"],
        3,
        {"n": 1},
    )
    assert shown["accepted_at"] <= shown["started_at"] <= shown["ended_at"]


async def test_a_large_payload_goes_by_the_object_store(node: InlineNode) -> None:
    big = "x" * 500_000
    reply = await node.request("POST", "/v1/functions/shop.echo/invoke", big, query={"mode": "async"})
    id = int(reply.json["invocation_id"], 16)
    record = (await node.drive(id))[id]
    assert record.invocation.payload == b""
    assert record.invocation.payload_ref is not None
    shown = await node.request("GET", f"/v1/invocations/{reply.json['invocation_id']}")
    assert shown.json["result"] == big


async def test_many_are_accepted_all_or_none(node: InlineNode) -> None:
    many = await node.request("POST", "/v1/functions/shop.echo/invoke-many", list(range(50)))
    assert many.status == 202
    ids = many.json["invocation_ids"]
    assert (many.json["accepted"], len(set(ids))) == (50, 50)
    more = await node.request(
        "POST",
        "/v1/functions/shop.echo/invoke-many",
        b'{"a": 1}\n\n"b"\n',
        headers={"content-type": "application/x-ndjson"},
    )
    assert more.json["accepted"] == 2
    assert (await node.request("POST", "/v1/functions/shop.echo/invoke-many", [])).json == {
        "accepted": 0,
        "invocation_ids": [],
    }
    records = await node.drive(*[int(id, 16) for id in ids])
    assert [records[int(id, 16)].result for id in ids] == [b"%d" % n for n in range(50)]


async def test_waiting_for_many_answers_with_those_that_have_ended(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, workers=2) as node:
        many = await node.request("POST", "/v1/functions/shop.echo/invoke-many", [1, 2, 3])
        ids = many.json["invocation_ids"]
        nothing = await node.request("POST", "/v1/invocations/wait", {"ids": ids})
        assert nothing.json == {"ended": [], "pending": ids}
        asked = asyncio.create_task(node.request("POST", "/v1/invocations/wait", {"ids": ids, "wait_s": 9}))
        await node.quiet()
        node.pool.run()
        for _ in range(5):
            await node.quiet()
            await node.clock.advance(0.05)
        found = (await asked).json
        assert [item["result"] for item in found["ended"]] == [1, 2]
        assert found["pending"] == [ids[2]]
        node.pool.run()
        await node.idle()
        assert not node.dispatcher.watchers
        for wrong in ({"ids": ["xyz"]}, {"ids": 3}, {}, [], {"ids": [UNSAFE]}, {"ids": ["-1"]}):
            refused(await node.request("POST", "/v1/invocations/wait", wrong), 400, "bad_request")


async def test_a_wait_ends_with_what_is_known_when_its_time_is_over(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, limits=Limits(wait_s=0.02)) as node:
        id = show_id(await node.put("shop.echo", 1))
        shown = await node.request("GET", f"/v1/invocations/{id}", query={"wait_s": "100"})
        assert shown.json["status"] == "running"
        assert shown.json["result"] is None
        assert not node.dispatcher.watchers
        node.pool.run()
        await node.idle()


@pytest.mark.parametrize("id", ["0000000000000abc", "xyz", UNSAFE, "-1", "0" * 17])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/logs")],
)
async def test_an_unknown_invocation_is_404(node: InlineNode, id: str, method: str, path: str) -> None:
    refused(await node.request(method, f"/v1/invocations/{id}{path}"), 404, "unknown_invocation")


async def test_invocations_are_listed_newest_first_in_pages(node: InlineNode) -> None:
    ids = await node.put_many("shop.echo", range(25), tags="batch")
    other = await node.put("shop.fail", 1)
    await node.drive(*ids, other)
    found: list[str] = []
    cursor = ""
    while True:
        query = {"function": "shop.echo", "limit": "10", **({"cursor": cursor} if cursor else {})}
        page = (await node.request("GET", "/v1/invocations", query=query)).json
        found += [item["invocation_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert found == [show_id(id) for id in reversed(ids)]
    tagged = (
        await node.request("GET", "/v1/invocations", query={"tag": "batch", "status": "succeeded"})
    ).json
    assert len(tagged["items"]) == 25
    dead = (await node.request("GET", "/v1/invocations", query={"status": "dead"})).json["items"]
    assert [item["error"]["message"] for item in dead] == ["no 1"]
    for query in (
        {"limit": "0"},
        {"limit": "x"},
        {"limit": "1001"},
        {"status": "odd"},
        {"cursor": "!"},
        {"cursor": UNSAFE},
    ):
        refused(await node.request("GET", "/v1/invocations", query=query), 400, "bad_request")


async def test_a_waiting_invocation_is_cancelled_and_an_ended_one_is_not(node: InlineNode) -> None:
    id = show_id(await node.put("shop.echo", 1, delay_s=100))
    reply = await node.request("POST", f"/v1/invocations/{id}/cancel")
    assert reply.status == 202
    shown = (await node.request("GET", f"/v1/invocations/{id}", query={"wait_s": "5"})).json
    assert shown["status"] == "cancelled"
    refused(await node.request("POST", f"/v1/invocations/{id}/cancel"), 409, "wrong_state")


# ---- idempotency
# -------------------------------------------------------------------------------------------------


async def test_a_repeated_key_gives_the_same_id_and_outcome_and_another_payload_is_refused(
    node: InlineNode,
) -> None:
    async def invoke(body: Any, key: str = "k", **query: str) -> Reply:
        return await node.request(
            "POST", "/v1/functions/shop.echo/invoke", body, query=query, headers={"idempotency-key": key}
        )

    first = await invoke({"n": 1}, mode="async")
    again = await invoke({"n": 1}, mode="async")
    assert first.json == again.json
    sync = await invoke({"n": 1})
    assert (sync.status, sync.json) == (200, {"n": 1})
    assert sync.headers["headrace-invocation-id"] == first.json["invocation_id"]
    refused(await invoke({"n": 2}), 422, "idempotency_mismatch")
    refused(await invoke({"n": 2}, mode="async"), 422, "idempotency_mismatch")
    assert (await invoke({"n": 2}, "other")).json == {"n": 2}
    big = "y" * 400_000
    assert (await invoke(big, "big", mode="async")).json == (await invoke(big, "big", mode="async")).json
    refused(await invoke(big + "z", "big", mode="async"), 422, "idempotency_mismatch")
    stats = (await node.request("GET", "/v1/stats")).json["functions"]["shop.echo"]
    assert (stats["accepted"], stats["deduplicated"]) == (3, 3)


async def test_a_repeat_while_the_first_runs_waits_and_is_409_at_its_deadline(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, limits=Limits(wait_s=0.3)) as node:

        async def invoke() -> Reply:
            return await node.request(
                "POST", "/v1/functions/shop.echo/invoke", 5, headers={"idempotency-key": "k"}
            )

        first, second = asyncio.create_task(invoke()), asyncio.create_task(invoke())
        await node.until(lambda: node.pool.attempts)
        for reply in (await first, await second):
            error = refused(reply, 409, "in_progress")
            assert "has not ended" in error["message"]
        third = asyncio.create_task(invoke())
        await node.quiet()
        node.pool.run()
        assert (await third).json == 5
        assert node.pool.begun == 1
        assert not node.dispatcher.watchers


async def test_a_failed_first_call_is_repeated_as_the_same_failure(node: InlineNode) -> None:
    replies = [
        await node.request("POST", "/v1/functions/shop.fail/invoke", 3, headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    for reply in replies:
        assert refused(reply, 500, "function_error")["message"] == "no 3"
    assert len({reply.headers["headrace-invocation-id"] for reply in replies}) == 1
    assert node.pool.begun == 1


async def test_a_routes_call_is_idempotent_by_what_the_caller_sent(node: InlineNode) -> None:
    async def send(path: str, body: Any, **headers: str) -> Reply:
        return await node.request("POST", path, body, headers={"idempotency-key": "k", **headers}, token=None)

    first = await send("/later", {"n": 1}, date="Monday")
    await node.clock.advance(1)
    again = await send("/later", {"n": 1}, date="Tuesday")
    assert (first.status, first.json) == (202, again.json)
    refused(await send("/later", {"n": 2}), 422, "idempotency_mismatch")
    one, two = await send("/reviews/p", {"stars": 1}), await send("/reviews/p", {"stars": 1})
    assert (one.status, one.json) == (200, {"product": "p", "stars": 1, "limit": 5})
    assert (two.status, two.body) == (200, one.body)
    refused(await send("/reviews/other", {"stars": 1}), 422, "idempotency_mismatch")
    invalid = await node.request(
        "POST", "/reviews/p", {"stars": "x"}, headers={"idempotency-key": "i"}, token=None
    )
    assert refused(invalid, 422, "invalid_event")["fields"][0]["loc"] == "body.stars"
    shaped = await node.request("GET", "/other/7", headers={"idempotency-key": "s"}, token=None)
    assert (shaped.status, shaped.headers["x-id"]) == (201, "7")


# ---- routes
# ------------------------------------------------------------------------------------------------------


async def test_a_route_binds_path_query_and_body_and_needs_no_token(node: InlineNode) -> None:
    reply = await node.request("POST", "/reviews/a%2Fb%20c", {"stars": "4"}, query={"limit": "9"}, token=None)
    assert (reply.status, reply.json) == (200, {"product": "a/b c", "stars": 4, "limit": 9})


async def test_a_routes_answer_may_say_its_own_status_and_head_has_no_body(node: InlineNode) -> None:
    reply = await node.request("GET", "/whole/7/a/b", query={"q": "1"}, token=None)
    assert (reply.status, reply.headers["x-id"], reply.body) == (201, "7", b"q=1")
    head = await node.request("HEAD", "/whole/7/a/b", token=None)
    assert (head.status, head.body) == (201, b"")


async def test_routes_name_the_fields_that_do_not_fit_and_show_no_stack(node: InlineNode) -> None:
    error = refused(
        await node.request("POST", "/reviews/p", {"stars": "x"}, token=None), 422, "invalid_event"
    )
    assert [field["loc"] for field in error["fields"]] == ["body.stars"]
    error = refused(await node.request("POST", "/broken", 1, token=None), 500, "function_error")
    assert "stack" not in error
    durable = await node.request("POST", "/broken", 1, headers={"idempotency-key": "k"}, token=None)
    assert "stack" not in refused(durable, 500, "function_error")


async def test_a_path_beside_the_reserved_one_is_the_users(node: InlineNode) -> None:
    assert (await node.request("GET", "/v10/ping", token=None)).json == "pong"
    refused(await node.request("GET", "/v1", token=None), 404, "not_found")


async def test_what_no_route_answers_is_404_and_another_method_is_405(node: InlineNode) -> None:
    refused(await node.request("GET", "/nowhere", token=None), 404, "not_found")
    reply = await node.request("DELETE", "/reviews/p", token=None)
    refused(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    refused(await node.request("GET", "/v1/nowhere"), 404, "not_found")
    refused(await node.request("PATCH", "/v1/stats"), 405, "method_not_allowed")


async def test_an_asynchronous_route_answers_with_an_id(node: InlineNode) -> None:
    reply = await node.request("POST", "/later", {"n": 1}, token=None)
    assert reply.status == 202
    id = int(reply.json["invocation_id"], 16)
    assert (await node.drive(id))[id].result == b'{"n":1}'


async def test_a_route_of_a_job_submits_it(node: InlineNode) -> None:
    for body in ([1, 2, 3], {"input": [1, 2, 3]}):
        reply = await node.request("POST", "/total", body, token=None)
        assert reply.status == 202
        job = (await node.request("GET", f"/v1/jobs/{reply.json['job_id']}", query={"wait_s": "5"})).json
        assert (job["status"], job["result"]) == ("succeeded", 6)
    refused(await node.request("POST", "/total", {"x": 1}, token=None), 400, "bad_request")
    refused(await node.request("POST", "/total", b"{", token=None), 400, "invalid_payload")


# ---- who may call
# ------------------------------------------------------------------------------------------------


async def test_v1_needs_a_token_with_the_scope(node: InlineNode) -> None:
    for method, path in (
        ("GET", "/v1/stats"),
        ("POST", "/v1/functions/shop.echo/invoke"),
        ("GET", "/metrics"),
    ):
        reply = await node.request(method, path, 1 if method == "POST" else None, token=None)
        refused(reply, 401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
        refused(
            await node.request(method, path, 1 if method == "POST" else None, token="wrong"),
            401,
            "unauthorized",
        )
    assert (await node.request("GET", "/v1/stats", token="r")).status == 200
    refused(await node.request("POST", "/v1/functions/shop.echo/invoke", 1, token="r"), 403, "forbidden")
    assert (await node.request("POST", "/v1/functions/shop.echo/invoke", 1, token="i")).status == 200
    refused(await node.request("POST", "/v1/functions/headrace.call/invoke", {}, token="i"), 403, "forbidden")
    refused(
        await node.request("POST", "/v1/functions/headrace%2Ecall/invoke", {}, token="i"), 403, "forbidden"
    )
    refused(
        await node.request("POST", "/v1/functions/headrace%252Ecall/invoke-many", [], token="i"),
        404,
        "unknown_function",
    )
    for method, path in (
        ("POST", "/v1/functions/shop.echo/pause"),
        ("POST", "/v1/dead-letters/redrive"),
        ("PUT", "/v1/buckets/abc"),
        ("PUT", "/v1/objects/abc/k"),
        ("DELETE", "/v1/objects/abc/k"),
        ("POST", "/v1/invocations/00/cancel"),
        ("POST", "/v1/jobs/00/cancel"),
        ("POST", "/v1/jobs/00/redrive"),
        ("POST", "/v1/jobs"),
    ):
        refused(await node.request(method, path, token="r"), 403, "forbidden")


async def test_health_needs_no_token(node: InlineNode) -> None:
    assert (await node.request("GET", "/healthz", token=None)).json == {"status": "ok"}
    assert (await node.request("GET", "/readyz", token=None)).json == {"status": "ready"}
    node.services.ready = lambda: "starting"
    reply = await node.request("GET", "/readyz", token=None)
    assert (reply.status, reply.json["reason"]) == (503, "starting")


async def test_another_host_name_or_origin_is_refused(node: InlineNode) -> None:
    refused(await node.request("GET", "/healthz", headers={"host": "evil.example"}), 403, "forbidden")
    refused(await node.request("POST", "/later", 1, headers={"host": "evil.example"}), 403, "forbidden")
    assert (await node.request("GET", "/healthz", headers={"host": "node.example:80"})).status == 200
    page = {"origin": "http://evil.example"}
    refused(await node.request("GET", "/v1/stats", headers=page), 403, "forbidden")
    assert (await node.request("GET", "/v1/stats", headers={"origin": "http://localhost"})).status == 200


async def test_only_http_is_spoken(node: InlineNode) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    await node.application({"type": "websocket", "path": "/"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# ---- functions, stats, dead letters
# ------------------------------------------------------------------------------


async def test_functions_are_listed_with_settings_and_triggers(node: InlineNode) -> None:
    found = (await node.request("GET", "/v1/functions")).json
    by_name = {item["name"]: item for item in found["functions"]}
    assert by_name.keys() == {
        f"shop.{name}"
        for name in ("echo", "fail", "rate", "whole", "later", "broken", "ping", "total", "lines")
    }
    assert found["version"] == "v1"
    assert by_name["shop.fail"]["retries"] == 0
    assert by_name["shop.total"]["kind"] == "job"
    one = (await node.request("GET", "/v1/functions/shop.rate")).json
    assert one["triggers"][0]["path"] == "/reviews/{product}"
    assert one["parameters"]["limit"]["required"] is False
    refused(await node.request("GET", "/v1/functions/shop.nobody"), 404, "unknown_function")


async def test_a_function_is_paused_and_resumed(node: InlineNode) -> None:
    assert (await node.request("POST", "/v1/functions/shop.echo/pause")).json["paused"] is True
    assert (await node.request("GET", "/v1/functions/shop.echo")).json["paused"] is True
    id = await node.put("shop.echo", 1)
    await node.quiet()
    assert node.pool.begun == 0
    await node.request("POST", "/v1/functions/shop.echo/resume")
    await node.drive(id)
    refused(await node.request("POST", "/v1/functions/shop.nobody/pause"), 404, "unknown_function")


async def test_the_books_balance_while_things_run(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, workers=3) as node:
        await node.put_many("shop.echo", range(10))
        for running, waiting in ((3, 7), (3, 4), (3, 1), (1, 0), (0, 0)):
            await node.until(lambda running=running: len(node.pool.attempts) == running)
            stats = (await node.request("GET", "/v1/stats")).json
            for entry in (stats["total"], stats["functions"]["shop.echo"]):
                assert (entry["running"], entry["waiting"]) == (running, waiting)
                parts = ("waiting", "running", "succeeded", "dead", "cancelled")
                assert entry["accepted"] == sum(entry[part] for part in parts) == 10
            await node.clock.advance(0.5)
            await node.quiet()
            assert (await node.request("GET", "/v1/stats")).json["total"]["running"] == running
            node.pool.run()
            await node.quiet()


async def test_the_oldest_waiting_is_shown_by_its_age(node: InlineNode) -> None:
    await node.put("shop.echo", 1, delay_s=1000)
    await node.clock.advance(7)
    stats = (await node.request("GET", "/v1/stats")).json
    assert 6.9 < stats["total"]["oldest_waiting_s"] < 7.2


async def test_dead_letters_are_listed_with_their_payload_and_redriven(node: InlineNode) -> None:
    ids = await node.put_many("shop.fail", ["a", "b", "c"])
    await node.drive(*ids)
    page = (await node.request("GET", "/v1/dead-letters", query={"function": "shop.fail"})).json
    assert [item["payload"] for item in page["items"]] == ["c", "b", "a"]
    one = show_id(ids[0])
    assert (await node.request("POST", f"/v1/dead-letters/{one}/redrive")).json == {
        "invocation_id": one,
        "status": "waiting",
    }
    await node.drive(ids[0])
    done = await node.request("POST", "/v1/dead-letters/redrive", {"ids": [show_id(ids[1])]})
    assert done.json == {"redriven": 1}
    await node.drive(*ids)
    assert (await node.request("POST", "/v1/dead-letters/redrive", {"function": "shop.echo"})).json == {
        "redriven": 0
    }
    assert (await node.request("POST", "/v1/dead-letters/redrive", {"limit": 2})).json == {"redriven": 2}
    await node.drive(*ids)
    assert (await node.request("POST", "/v1/dead-letters/redrive")).json == {"redriven": 3}
    await node.drive(*ids)
    assert node.pool.begun == 3 + 1 + 1 + 2 + 3
    for wrong in (b"{", b"[]", b'{"limit": "x"}', b'{"ids": 3}', b'{"colour": 1}'):
        refused(await node.request("POST", "/v1/dead-letters/redrive", wrong), 400, "bad_request")
    refused(await node.request("POST", "/v1/dead-letters/00ff/redrive"), 404, "unknown_invocation")
    ok = await node.put("shop.echo", 1)
    await node.drive(ok)
    refused(await node.request("POST", f"/v1/dead-letters/{show_id(ok)}/redrive"), 409, "wrong_state")


async def test_metrics_count_what_the_books_count(node: InlineNode) -> None:
    id = await node.put("shop.echo", 1)
    await node.drive(id)
    reply = await node.request("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    assert 'headrace_invocations_accepted_total{function="shop.echo"} 1.0' in text
    assert 'headrace_invocations_succeeded_total{function="shop.echo"} 1.0' in text
    assert 'headrace_invocations_oldest_waiting_seconds{function="shop.echo"} 0.0' in text


async def test_logs_are_read_and_followed_by_position(node: InlineNode) -> None:
    first = await node.put("shop.echo", 1)
    await node.drive(first)
    page = (await node.request("GET", "/v1/logs")).json
    assert [entry["invocation_id"] for entry in page["entries"]] == [show_id(first)]
    second = await node.put("shop.echo", 2)
    await node.drive(second)
    page = (
        await node.request("GET", "/v1/logs", query={"after": page["next"], "function": "shop.echo"})
    ).json
    assert [entry["text"] for entry in page["entries"]] == ["echoing\n"]
    assert [entry["invocation_id"] for entry in page["entries"]] == [show_id(second)]
    for query in ({"after": "x"}, {"wait_s": "-1"}, {"wait_s": "nan"}, {"limit": "x"}):
        refused(await node.request("GET", "/v1/logs", query=query), 400, "bad_request")


# ---- jobs
# --------------------------------------------------------------------------------------------------------


async def test_a_job_is_submitted_followed_and_listed(node: InlineNode) -> None:
    reply = await node.request(
        "POST", "/v1/jobs", {"function": "shop.total", "input": [1, 2, 3], "tags": ["a", "b"]}
    )
    assert reply.status == 202
    id = reply.json["job_id"]
    job = (await node.request("GET", f"/v1/jobs/{id}", query={"wait_s": "9"})).json
    assert (job["status"], job["result"], job["chunks"], job["done"], job["failed"]) == (
        "succeeded",
        6,
        2,
        2,
        0,
    )
    listed = (await node.request("GET", "/v1/jobs", query={"function": "shop.total"})).json
    assert [item["job_id"] for item in listed["items"]] == [id]
    chunks = (await node.request("GET", f"/v1/jobs/{id}/chunks")).json["items"]
    assert [(chunk["index"], chunk["start"], chunk["end"], chunk["status"]) for chunk in chunks] == [
        (0, 0, 2, "succeeded"),
        (1, 2, 3, "succeeded"),
    ]
    events = (await node.request("GET", f"/v1/jobs/{id}/events")).body.decode()
    assert events.startswith("event: progress\ndata: {")
    assert events.endswith("event: end\ndata: {}\n\n")
    refused(await node.request("POST", f"/v1/jobs/{id}/cancel"), 409, "wrong_state")
    refused(await node.request("POST", f"/v1/jobs/{id}/redrive"), 409, "wrong_state")
    for query in ({"stage": "x"}, {"cursor": "x"}, {"status": "x"}, {"limit": "0"}):
        refused(await node.request("GET", f"/v1/jobs/{id}/chunks", query=query), 400, "bad_request")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_request"),
        (b"[]", 400, "bad_request"),
        (b"{}", 400, "bad_request"),
        (b'{"function": 3}', 400, "bad_request"),
        (b'{"function": "shop.total"}', 400, "bad_request"),
        (b'{"function": "shop.total", "input": [], "colour": 1}', 400, "bad_request"),
        (b'{"function": "shop.total", "input": [], "tags": 3}', 400, "bad_request"),
        (b'{"function": "shop.totl", "input": []}', 404, "unknown_function"),
        (b'{"function": "shop.echo", "input": []}', 400, "invalid_function"),
        (b'{"function": "shop.lines", "input": []}', 400, "invalid_function"),
        (b'{"function": "shop.lines", "input": "s3://nowhere/x"}', 404, "no_such_bucket"),
        (b'{"function": "shop.lines", "input": "nonsense"}', 400, "invalid_object_url"),
    ],
)
async def test_a_wrong_job_is_refused(node: InlineNode, body: bytes, status: int, code: str) -> None:
    refused(await node.request("POST", "/v1/jobs", body), status, code)
    assert (await node.store.jobs()) == []


@pytest.mark.parametrize("id", ["0000000000000abc", "xyz", UNSAFE])
async def test_an_unknown_job_is_404(node: InlineNode, id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("GET", "/chunks"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/redrive"),
    ):
        refused(await node.request(method, f"/v1/jobs/{id}{path}"), 404, "unknown_job")


# ---- objects
# -----------------------------------------------------------------------------------------------------


async def test_an_object_is_written_read_listed_and_removed(node: InlineNode) -> None:
    assert (await node.request("PUT", "/v1/buckets/inbox")).status == 201
    put = await node.request(
        "PUT", "/v1/objects/inbox/a%20b/%C3%BC.txt", b"hello", headers={"content-type": "text/plain"}
    )
    assert (put.status, put.json["key"], put.json["size"]) == (201, "a b/ü.txt", 5)
    got = await node.request("GET", "/v1/objects/inbox/a%20b/%C3%BC.txt")
    assert (got.status, got.body) == (200, b"hello")
    assert (got.headers["content-type"], got.headers["content-length"]) == ("text/plain", "5")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"].startswith("attachment")
    head = await node.request("HEAD", "/v1/objects/inbox/a%20b/%C3%BC.txt")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "5")
    assert head.headers["etag"].strip('"') == put.json["etag"]
    listed = (await node.request("GET", "/v1/objects/inbox", query={"prefix": "a "})).json
    assert [item["key"] for item in listed["items"]] == ["a b/ü.txt"]
    assert (await node.request("GET", "/v1/buckets")).json == {"buckets": ["inbox"]}
    assert (await node.request("DELETE", "/v1/objects/inbox/a%20b/%C3%BC.txt")).status == 204
    refused(await node.request("GET", "/v1/objects/inbox/a%20b/%C3%BC.txt"), 404, "no_such_object")


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=0-99", 206, b"0123456789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=9-9", 206, b"9"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
        ("lines=0-3", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=--5", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=99-100", 416, None),
        ("bytes=-0", 416, None),
    ],
)
async def test_ranges_are_those_of_http(
    node: InlineNode, header: str, status: int, body: bytes | None
) -> None:
    node.objects.make_bucket("inbox")
    node.objects.put("inbox", "x", b"0123456789")
    reply = await node.request("GET", "/v1/objects/inbox/x", headers={"range": header})
    assert reply.status == status
    if body is None:
        assert reply.error["code"] == "range_not_satisfiable"
        return
    assert reply.body == body
    assert reply.headers["content-length"] == str(len(body))
    if status == 206:
        start = b"0123456789".index(body)
        assert reply.headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/10"
    else:
        assert "content-range" not in reply.headers


async def test_a_large_object_arrives_whole(node: InlineNode) -> None:
    node.objects.make_bucket("inbox")
    data = bytes(range(256)) * 16_000
    assert (await node.request("PUT", "/v1/objects/inbox/big", data)).status == 201
    assert (await node.request("GET", "/v1/objects/inbox/big")).body == data
    refused(await node.request("PUT", "/v1/objects/inbox/bigger", b"x" * 5_000_001), 413, "payload_too_large")
    refused(
        await node.request(
            "PUT", "/v1/objects/inbox/bigger", b"x" * 5_000_001, headers={"content-length": ""}
        ),
        413,
        "payload_too_large",
    )
    refused(await node.request("GET", "/v1/objects/inbox/bigger"), 404, "no_such_object")


async def test_objects_are_put_on_conditions(node: InlineNode) -> None:
    node.objects.make_bucket("inbox")
    first = await node.request("PUT", "/v1/objects/inbox/x", b"1", headers={"if-none-match": "*"})
    assert first.status == 201
    refused(
        await node.request("PUT", "/v1/objects/inbox/x", b"2", headers={"if-none-match": "*"}),
        412,
        "precondition_failed",
    )
    etag = first.json["etag"]
    assert (
        await node.request("PUT", "/v1/objects/inbox/x", b"33", headers={"if-match": f'"{etag}"'})
    ).status == 201
    refused(
        await node.request("PUT", "/v1/objects/inbox/x", b"4", headers={"if-match": etag}),
        412,
        "precondition_failed",
    )
    assert node.objects.get("inbox", "x") == b"33"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/objects/headrace-system/x", 403, "forbidden"),
        ("PUT", "/v1/objects/headrace-system/x", 403, "forbidden"),
        ("GET", "/v1/objects/headrace-system", 403, "forbidden"),
        ("DELETE", "/v1/objects/headrace-system/x", 403, "forbidden"),
        ("PUT", "/v1/buckets/headrace-system", 403, "forbidden"),
        ("PUT", "/v1/buckets/No", 400, "invalid_bucket"),
        ("GET", "/v1/objects/nowhere", 404, "no_such_bucket"),
        ("GET", "/v1/objects/nowhere/x", 404, "no_such_bucket"),
        ("GET", "/v1/objects/inbox/../../../x", 404, "no_such_object"),
        ("GET", "/v1/objects/inbox/%00", 404, "no_such_object"),
    ],
)
async def test_no_key_leaves_its_bucket_and_no_bucket_is_the_nodes(
    node: InlineNode, method: str, path: str, status: int, code: str
) -> None:
    node.objects.make_bucket("inbox")
    refused(await node.request(method, path, b"x" if method == "PUT" else None), status, code)


@pytest.mark.parametrize("path", ["../../../x", "a/%2E%2E/%2E%2E/%2E%2E/x", "..", "./x", "%2F/etc/x"])
async def test_a_key_that_climbs_is_an_ordinary_key_inside_its_bucket(
    node: InlineNode, tmp_path: Path, path: str
) -> None:
    node.objects.make_bucket("inbox")
    before = {item for item in tmp_path.parent.rglob("*") if item.name == "x"}
    put = await node.request("PUT", f"/v1/objects/inbox/{path}", b"mine")
    if put.status == 201:
        assert (await node.request("GET", f"/v1/objects/inbox/{path}")).body == b"mine"
        assert any(item.is_file() for item in (tmp_path / "buckets" / "inbox").rglob("*"))
    else:
        refused(put, 400, "invalid_key")
    after = {item for item in tmp_path.parent.rglob("*") if item.name == "x"} - before
    assert all(item.is_relative_to(tmp_path / "buckets" / "inbox") for item in after)


# ---- documents
# ---------------------------------------------------------------------------------------------------


async def test_the_openapi_document_is_valid_and_holds_every_route(node: InlineNode) -> None:
    document = (await node.request("GET", "/openapi.json", token=None)).json
    assert document["openapi"].startswith("3.1")
    own = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}
    assert {path for path in document["paths"] if not path.startswith("/v1/")} - own == {
        "/reviews/{product}",
        "/whole/{id}/{rest}",
        "/other/{id}",
        "/later",
        "/broken",
        "/v10/ping",
        "/total",
    }
    ids: list[str] = []
    references: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                references.append(value["$ref"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    for path, operations in document["paths"].items():
        wanted = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in operations.values():
            ids.append(operation["operationId"])
            assert operation["responses"]
            found = [(item["in"], item["name"]) for item in operation.get("parameters", [])]
            assert len(found) == len(set(found))
            assert {name for place, name in found if place == "path"} == wanted
            assert all(item["required"] for item in operation.get("parameters", []) if item["in"] == "path")
    assert len(ids) == len(set(ids))
    for reference in references:
        _, _, kind, name = reference.split("/")
        assert name in document["components"][kind]
    rated = document["paths"]["/reviews/{product}"]["post"]
    assert rated["summary"] == "Rates a product."
    assert rated["responses"].keys() >= {"200", "422"}
    assert rated["requestBody"]["required"] is True
    assert "202" in document["paths"]["/later"]["post"]["responses"]
    assert "202" in document["paths"]["/total"]["post"]["responses"]


async def test_a_failure_of_the_node_itself_is_answered_without_its_inside(node: InlineNode) -> None:
    def stats() -> Any:
        raise RuntimeError("inside")

    node.store.counters = stats  # type: ignore[method-assign,assignment]
    reply = await node.request("GET", "/v1/stats")
    assert reply.status == 500
    assert reply.error["code"] == "internal_error"
    assert "inside" not in reply.body.decode()
    assert any("inside" in str(details) for _, details in node.said)


async def test_every_answer_of_v1_is_json(node: InlineNode) -> None:
    for path in (
        "/v1/stats",
        "/v1/functions",
        "/v1/node",
        "/v1/schedules",
        "/v1/jobs",
        "/v1/buckets",
        "/v1/dead-letters",
    ):
        reply = await node.request("GET", path)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert isinstance(msgspec.json.decode(reply.body), dict)
