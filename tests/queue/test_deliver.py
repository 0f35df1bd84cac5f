"""Deliveries: what is recorded with an end, where it goes, and what its errors do not say."""

import socket
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from headrace import App
from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.destination import (
    DELIVER,
    bucket_and_prefix,
    check_webhook,
    kind_of,
    shown_destination,
)
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.queue.deliver import DeliveryFailed, NoDestination, deliver, post_record
from tests.inline_node import InlineNode

RECORD = {"timestamp": 1_800_000_000.5, "requestContext": {"requestId": "0" * 16}, "responsePayload": [1]}
shop = App("shop")


@shop.function(retries=0, on_failure="https://hooks.example/secret", on_success="s3://records/a/b/")
def sell(event: Any) -> Any:
    if event == "bad":
        raise ValueError("bad")
    return event


def spec(**settings: Any) -> dict[str, FunctionSpec]:
    return {"shop.f": FunctionSpec(name="shop.f", module="", file="", line=0, **settings)}


def event(setting: str = "on_failure", function: str = "shop.f") -> dict[str, Any]:
    return {"function": function, "setting": setting, "record": RECORD}


@pytest.mark.parametrize("prefix", ["", "/", "/in/side", "/in/side/"])
def test_a_bucket_gets_the_record_under_its_day_and_id(tmp_path: Path, prefix: str) -> None:
    objects = FolderStore(tmp_path, fsync=False)
    context = SimpleNamespace(objects=objects, invocation_id="1")

    for _ in range(2):
        done = deliver(event(), context, spec(on_failure=f"s3://records{prefix}"))

    key = f"{prefix.strip('/')}/2027/01/15/{'0' * 16}.json".lstrip("/")
    assert done == {"delivered": f"s3://records/{key}"}
    [info] = objects.list("records")
    assert (info.key, msgspec.json.decode(objects.get("records", key))) == (key, RECORD)


@pytest.mark.parametrize(
    ("specs", "asked"),
    [
        ({}, event()),
        (spec(), event()),
        (spec(on_failure="shop.g"), event()),
        (spec(on_failure="https://x.example/"), event("on_success")),
        (spec(on_failure="https://x.example/"), event("file")),
    ],
)
def test_a_destination_that_is_gone_is_final(specs: dict[str, FunctionSpec], asked: Any) -> None:
    with pytest.raises(NoDestination) as caught:
        deliver(asked, SimpleNamespace(), specs)
    assert caught.value.final
    assert "shop.f" in str(caught.value)


def test_the_errors_of_a_webhook_show_nothing_of_its_path() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound and not listening: refused
        place = f"127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(DeliveryFailed) as caught:
            post_record(f"http://user:pw@{place}/secret?token=secret", b"{}", delivery_id="1")
    shown = "".join(traceback.format_exception(caught.value))
    said = str(caught.value)
    assert said.startswith(f"the webhook at http://{place}/… cannot be reached: ")
    assert "secret" not in said
    assert "pw" not in shown.replace(str(Path(__file__)), "").split("DeliveryFailed")[-1]


def test_a_destination_is_told_apart_by_its_scheme_and_shown_without_secrets() -> None:
    kinds = {"shop.f": "function", "s3://b/x": "bucket", "https://h": "webhook", "HTTP://h/": "webhook"}
    assert {text: kind_of(text) for text in kinds} == kinds
    assert bucket_and_prefix("s3://b") == ("b", "")
    for text in ("shop.f", "s3://bucket/prefix"):
        assert shown_destination(text) == text
    assert shown_destination("https://u:p@h.example:8443/t/secret?x=1") == "https://h.example:8443/…"
    for wrong in ("https://", "https://h:0/", "https://h:99999/", "https://h/a b", "https://h/#x"):
        with pytest.raises(ValueError, match=r".") as caught:
            check_webhook(wrong)
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["ftp://h/secret", "file:///etc/secret", "s3://X/secret", "s3://", "s3://headrace-system/secret",
     "https:///secret", "http://h/ secret", "s3://bucket/" + "x" * 1100],
)  # fmt: skip
def test_a_destination_that_cannot_be_delivered_to_is_refused_when_declared(wrong: str) -> None:
    app = App("shop")
    with pytest.raises(HeadraceError) as caught:
        app.function(on_failure=wrong)(_named)
    assert "on_failure" in str(caught.value)
    if "http" in wrong:
        assert "secret" not in str(caught.value)


def _named(event: Any) -> None: ...


async def test_the_delivery_is_recorded_with_the_end_even_while_the_node_stops(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, held=True, workers=2) as node:
        good = await node.put("shop.sell", {"n": 1})
        bad = await node.put("shop.sell", "bad")
        await node.until(lambda: len(node.pool.attempts) == 2)
        node.dispatcher.stop_accepting()
        node.pool.run()
        await node.quiet()

        ends = {record.invocation.id: record.status for record in await node.store.ended([good, bad])}
        assert ends == {good: Status.SUCCEEDED, bad: Status.DEAD}
        waiting = await node.store.find(function=DELIVER)
        told = {
            one["setting"]: one
            for one in (msgspec.json.decode(record.invocation.payload) for record in waiting)
        }
        assert {record.invocation.source for record in waiting} == {"shop.sell"}
        assert told["on_failure"]["record"]["requestPayload"] == "bad"
        assert told["on_success"]["record"]["responsePayload"] == {"n": 1}
        assert b"secret" not in b"".join(record.invocation.payload for record in waiting)
