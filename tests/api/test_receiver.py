"""`POST /v1/events/minio`, where an object store tells of its buckets, on the test's own loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace import App
from headrace.runtime.api.access import Token
from headrace.runtime.api.receiver import read_notifications
from headrace.runtime.errors import BadRequest, StorageFull
from headrace.runtime.trigger import Notification
from tests.inline_node import InlineNode, Reply

PATH = "/v1/events/minio"
shop = App("shop")


def message(key: str = "a+b%2F%C3%BC.csv", bucket: str = "inbox", **of_object: Any) -> dict[str, Any]:
    """As MinIO sends it."""
    found = {
        "key": key, "size": 5, "eTag": "5d41402abc4b2a76b9719d911017c592", "contentType": "text/csv",
        "userMetadata": {"X-Amz-Meta-Origin": "shop 3", "content-type": "text/csv"},
        "sequencer": "18EA81EF467E64E9",
    }  # fmt: skip
    record = {
        "eventVersion": "2.0", "eventSource": "minio:s3", "eventName": "s3:ObjectCreated:Put",
        "eventTime": "2026-11-22T23:31:06.141Z", "userIdentity": {"principalId": "headrace"},
        "s3": {
            "s3SchemaVersion": "1.0", "configurationId": "Config",
            "bucket": {"name": bucket, "ownerIdentity": {"principalId": "headrace"}},
            "object": {**found, **of_object},
        },
    }  # fmt: skip
    return {"EventName": "s3:ObjectCreated:Put", "Key": f"{bucket}/{key}", "Records": [record]}


class Hearer:
    """Notes what it is told, once it may go on."""

    def __init__(self) -> None:
        self.heard: list[Notification] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None

    async def __call__(self, notification: Notification) -> None:
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        self.heard.append(notification)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    tokens = [Token("minio", "m", ["events"]), Token("caller", "i", ["invoke", "read", "write", "code"])]
    async with InlineNode(tmp_path, shop, tokens=tokens) as found:
        found.services.notifications.is_open = True
        yield found


@pytest.fixture
def hearer(node: InlineNode) -> Hearer:
    hearer = Hearer()
    node.services.notifications.subscribe("inbox", hearer)
    return hearer


async def send(node: InlineNode, body: Any, *, token: str | None = "m") -> Reply:
    return await node.request("POST", PATH, body, token=token)


async def test_a_message_is_told_in_the_objects_own_terms(node: InlineNode, hearer: Hearer) -> None:
    assert (await send(node, message())).status == 200
    [heard] = hearer.heard

    assert (heard.name, heard.source) == ("ObjectCreated:Put", "minio:s3")
    assert heard.info.key == "a b/ü.csv"
    assert (heard.info.size, heard.info.content_type) == (5, "text/csv")
    assert heard.info.sequencer == "18ea81ef467e64e9"
    assert heard.info.modified_at == 1795390266.140
    assert heard.info.metadata == {"origin": "shop 3"}


async def test_the_answer_waits_until_all_is_durable(node: InlineNode, hearer: Hearer) -> None:
    hearer.go_on.clear()
    answer = asyncio.create_task(send(node, [message(f"{number}") for number in range(3)]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not answer.done()
    hearer.go_on.set()

    assert (await answer).status == 200
    assert [heard.info.key for heard in hearer.heard] == ["0", "1", "2"]


@pytest.mark.parametrize("token", [None, "wrong", "i"])
async def test_without_a_token_for_events_nothing_is_told(
    node: InlineNode, hearer: Hearer, token: str | None
) -> None:
    reply = await send(node, message(), token=token)

    assert reply.status == (403 if token == "i" else 401)
    assert hearer.heard == []


async def test_the_token_for_events_opens_nothing_else(node: InlineNode) -> None:
    for method, path in (
        ("GET", "/v1/stats"),
        ("POST", "/v1/functions/shop.x/invoke"),
        ("GET", "/v1/objects/a"),
    ):
        assert (await node.request(method, path, {}, token="m")).status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"5", b'"text"', b"\xff\xfe", b'{"Records": 5}', b'{"Records": [5]}', b'{"Records": [{}]}',
        b'{"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {}, "object": {"key": "a"}}}]}',
        json.dumps(message(sequencer="no hex")).encode(), json.dumps(message(size="5")).encode(),
        json.dumps(message(key="")).encode(), json.dumps(message(bucket="")).encode(),
        b'{"Records": []}\n{"Records": 5}',
    ],
)  # fmt: skip
async def test_a_malformed_body_is_refused_with_400(node: InlineNode, hearer: Hearer, body: bytes) -> None:
    reply = await send(node, body)

    assert (reply.status, reply.error["code"]) == (400, "bad_request")
    assert reply.error["hint"]
    assert hearer.heard == []


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@example(json.dumps(message(sequencer="F" * 400)).encode())
@example(b"[" * 5000)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(read_notifications(body), list)


async def test_a_body_that_is_too_large_is_refused(node: InlineNode) -> None:
    body = json.dumps(message(contentType="x" * (2 << 20))).encode()
    assert (await send(node, body)).status == 413


@pytest.mark.parametrize("body", [b"", b"{}", b'{"Records": []}', b"[]", b'{"Records": null}'])
async def test_an_empty_message_is_answered(node: InlineNode, body: bytes) -> None:
    assert (await send(node, body)).status == 200


async def test_messages_may_come_in_a_row(node: InlineNode, hearer: Hearer) -> None:
    rows = b"\n".join(json.dumps(message(f"{number}")).encode() for number in range(3))
    assert (await send(node, rows)).status == 200

    assert len(hearer.heard) == 3


async def test_events_of_a_bucket_without_triggers_are_answered_and_reported_once(
    node: InlineNode, hearer: Hearer
) -> None:
    for _ in range(3):
        assert (await send(node, message(bucket="other"))).status == 200

    assert hearer.heard == []
    assert [facts["bucket"] for text, facts in node.said if "without triggers" in text] == ["other"]


async def test_before_the_triggers_are_ready_everything_is_to_come_again(
    node: InlineNode, hearer: Hearer
) -> None:
    node.services.notifications.is_open = False
    assert (await send(node, message())).status == 503
    node.services.notifications.is_open = True
    node.services.ready = lambda: "starting"
    assert (await send(node, message())).status == 503

    assert hearer.heard == []


async def test_what_could_not_be_made_durable_is_to_come_again(node: InlineNode, hearer: Hearer) -> None:
    hearer.error = StorageFull("/data")
    assert (await send(node, message())).status == 507
    assert (await send(node, [message("1"), message("2")])).status == 507
    hearer.error = None
    assert (await send(node, message())).status == 200


async def test_nobody_hears_after_leaving(node: InlineNode) -> None:
    hearers = [Hearer(), Hearer()]
    leave = [node.services.notifications.subscribe("inbox", hearer) for hearer in hearers]
    await send(node, message("1"))
    leave[0]()
    leave[0]()
    await send(node, message("2"))
    leave[1]()
    await send(node, message("3"))

    assert [len(hearer.heard) for hearer in hearers] == [1, 2]


async def test_a_probe_is_told_to_nobody_but_who_expects_it(node: InlineNode, hearer: Hearer) -> None:
    probe = node.services.notifications.expect(".headrace-probe/1")
    for target in ("now", ""):
        query = {"target": target} if target else None
        reply = await node.request("POST", PATH, message(".headrace-probe/1"), token="m", query=query)
        assert reply.status == 200
        await probe.wait_next()
    await send(node, message(".headrace-probe/2"))
    probe.close()
    await send(node, message(".headrace-probe/1"))

    assert list(probe.deliveries) == ["now", ""]
    assert hearer.heard == []
