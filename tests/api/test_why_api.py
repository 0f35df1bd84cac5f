"""`/v1/why`: what a node and its store know of a thing, gathered; and the payload of an invocation."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App, Lines, Schedule
from headrace.runtime.model.write import Closed
from tests.inline_node import InlineNode

shop = App("shop")


@shop.function(retries=1)
def fail(event: Any) -> None:
    print("about to fail")
    raise ValueError(f"no {event}")


@shop.function
def echo(event: Any) -> Any:
    return event


@shop.function(reserved_concurrency=0)
def never(event: Any) -> None: ...


@shop.job(split=Lines(chunk="1 KiB"), max_concurrency=1)
def broken(chunk: Any) -> None:
    raise ValueError("bad chunk")


hourly = Schedule("rate(1 hour)", name="hourly")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    async with InlineNode(tmp_path, shop) as found:
        [spec] = [spec for spec in found.specs if spec.name == "shop.echo"]
        found.services.schedules = lambda: {"shop.echo/schedule/hourly": (spec, hourly)}
        yield found


async def submitted(node: InlineNode, name: str, event: Any = 1, **query: str) -> str:
    reply = await node.request(
        "POST", f"/v1/functions/{name}/invoke", event, query={"mode": "async", **query}
    )
    assert reply.status == 202
    id: str = reply.json["invocation_id"]
    await node.quiet()
    return id


async def why(node: InlineNode, name: str) -> dict[str, Any]:
    reply = await node.request("GET", f"/v1/why/{name}")
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


def by(found: dict[str, Any]) -> list[str]:
    return [hold["by"] for hold in found["held_by"]]


async def test_an_ended_invocation_says_how_it_ended(node: InlineNode) -> None:
    found = await why(node, await submitted(node, "shop.echo"))

    assert (found["kind"], found["state"], found["held_by"]) == ("invocation", "succeeded", [])


async def test_a_failed_attempt_and_its_backoff_are_told(node: InlineNode) -> None:
    id = await submitted(node, "shop.fail")
    found = await why(node, id)

    assert by(found) == ["backoff"]
    assert found["held_by"][0]["until"] > node.clock.now()
    [attempt] = found["happened"]
    assert (attempt["attempt"], attempt["outcome"], attempt["error"]) == (1, "error", "ValueError: no 1")


async def test_a_pause_holds_an_invocation_and_its_function(node: InlineNode) -> None:
    await node.dispatcher.pause("shop.echo", paused=True)
    id = await submitted(node, "shop.echo")

    assert by(await why(node, id)) == ["paused"]
    found = await why(node, "shop.echo")
    assert (found["kind"], found["state"]) == ("function", "paused")
    assert "1 waiting" in found["summary"]


async def test_a_closure_of_the_function_holds_it(node: InlineNode) -> None:
    await node.dispatcher.pause("shop.echo", paused=True)
    id = await submitted(node, "shop.echo")
    now = node.clock.now()
    await node.store.apply([Closed("function:shop.echo", now + 30, "HTTP 429")], now=now)

    assert by(await why(node, id)) == ["paused", "closed"]


async def test_a_limit_and_the_queue_ahead_hold_an_invocation(node: InlineNode) -> None:
    await submitted(node, "shop.never")
    await submitted(node, "shop.never", priority="5")
    found = await why(node, await submitted(node, "shop.never"))

    assert by(found) == ["concurrency", "order"]
    assert found["held_by"][1]["detail"] == "2 others of shop.never go first"


async def test_a_delay_holds_an_invocation_until_it_is_due(node: InlineNode) -> None:
    now = node.clock.now()
    found = await why(node, await submitted(node, "shop.echo", delay_s="60"))

    assert by(found) == ["delay"]
    assert found["held_by"][0]["until"] == pytest.approx(now + 60)


async def test_code_that_is_not_loaded_any_more_holds_what_waits_for_it(node: InlineNode) -> None:
    id = await submitted(node, "shop.never")
    node.use(App("other"))

    assert by(await why(node, id)) == ["code"]
    assert (await why(node, "shop.never"))["state"] == "not loaded"


async def test_a_failed_job_names_the_chunk_that_failed_it(node: InlineNode) -> None:
    node.objects.make_bucket("inbox")
    node.objects.put("inbox", "a.txt", b"x\n" * 600)
    reply = await node.request("POST", "/v1/jobs", {"function": "shop.broken", "input": "s3://inbox/a.txt"})
    id = reply.json["job_id"]

    async def ended() -> Any:
        await node.clock.advance(30)
        await node.quiet()
        shown = (await node.request("GET", f"/v1/jobs/{id}")).json
        return shown["status"] == "failed"

    await node.until(ended)

    found = await why(node, id)
    assert (found["kind"], found["state"]) == ("job", "failed")
    assert "Because of chunk" in found["summary"]
    assert "ValueError: bad chunk" in found["summary"]


async def test_a_schedule_is_found_by_its_own_name_too(node: InlineNode) -> None:
    now = node.clock.now()
    await node.store.schedule("shop.echo/schedule/hourly", definition=hourly.definition, now=now)

    found = await why(node, "hourly")
    assert found == await why(node, "shop.echo/schedule/hourly")
    assert (found["kind"], by(found)) == ("schedule", ["not_due"])
    assert found["held_by"][0]["until"] == pytest.approx(now + 3600)


async def test_a_paused_schedule_and_one_of_other_code_say_so(node: InlineNode) -> None:
    now = node.clock.now()
    await node.store.schedule("shop.echo/schedule/hourly", definition=hourly.definition, now=now)
    await node.store.schedule("gone.f/schedule/0", definition=hourly.definition, now=now)
    await node.store.pause_schedule("shop.echo/schedule/hourly", paused=True, now=now)

    assert (await why(node, "hourly"))["state"] == "paused"
    assert (await why(node, "gone.f/schedule/0"))["state"] == "not loaded"


async def test_a_schedules_short_name_that_several_have_is_asked_back(node: InlineNode) -> None:
    now = node.clock.now()
    for name in ("a.f/schedule/0", "b.f/schedule/0"):
        await node.store.schedule(name, definition=hourly.definition, now=now)
    reply = await node.request("GET", "/v1/why/0")

    assert (reply.status, reply.error["code"]) == (404, "unknown_subject")
    assert "a.f/schedule/0, b.f/schedule/0" in reply.error["hint"]


async def test_an_unknown_name_is_an_error(node: InlineNode) -> None:
    for name in ("nobody", "00000000000000aa"):
        reply = await node.request("GET", f"/v1/why/{name}")
        assert (reply.status, reply.error["code"]) == (404, "unknown_subject")


# ---- payloads and code ----


async def test_the_payload_is_what_was_sent_small_or_large(node: InlineNode) -> None:
    small = await submitted(node, "shop.echo", {"a": "ü"})
    large = await submitted(node, "shop.echo", "x" * 300_000)

    assert (await node.request("GET", f"/v1/invocations/{small}/payload")).body == '{"a":"ü"}'.encode()
    reply = await node.request("GET", f"/v1/invocations/{large}/payload")
    assert reply.json == "x" * 300_000
    missing = await node.request("GET", "/v1/invocations/00000000000000aa/payload")
    assert missing.error["code"] == "unknown_invocation"


async def test_without_a_deployment_no_code_is_named(node: InlineNode) -> None:
    id = await submitted(node, "shop.echo")
    shown = (await node.request("GET", f"/v1/invocations/{id}/code")).json

    assert (shown["version"], shown["kept"]) == (None, False)
    reply = await node.request("GET", "/v1/code/abc")
    assert (reply.status, reply.error["code"]) == (404, "unknown_version")
