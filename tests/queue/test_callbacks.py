"""Callbacks: which URLs of callers are called, what they are told, and that receivers can verify it."""

import socket
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from headrace.runtime.errors import InvalidCallback
from headrace.runtime.model.destination import DELIVER
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Settle
from headrace.runtime.pool.context import WorkerConfig
from headrace.runtime.queue.deliver import DeliveryFailed, NoDestination, deliver
from headrace.runtime.queue.ending import callback_call
from headrace.runtime.queue.outbound import Callbacks, signed_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SPEC = FunctionSpec(name="shop.f", module="", file="", line=0, callbacks=True)
PUBLIC = Callbacks(SECRET)

PRIVATE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0",
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1", "224.0.0.1",
    "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]", "[fd00:ec2::254]",
    "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[ff02::1]",
    "localhost", "a.localhost", "printer.local", "metadata.google.internal",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_a_host_that_is_not_public_is_refused_by_its_form(host: str) -> None:
    with pytest.raises(InvalidCallback):
        PUBLIC.check(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user:secret@hooks.example/",
        "https://hooks.example/#fragment",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nHost: x",
        "https://hooks.example:99999/",
        "https://hooks.example/ä",
        "https://hooks.example/" + "x" * 2048,
        "hooks.example",
        "",
    ],
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidCallback) as caught:
        PUBLIC.check(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://hooks.example/a?b=c", "https://8.8.8.8/", "https://[2606:4700::1111]:8443/x"]
)
def test_a_public_https_url_is_taken(url: str) -> None:
    PUBLIC.check(url)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:169.254.169.254"]]
)
def test_a_name_that_means_an_address_which_is_not_public_is_refused(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    PUBLIC.check("https://rebound.example/")
    with pytest.raises(InvalidCallback, match="not public"):
        PUBLIC.resolve("rebound.example", 443)


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (("hooks.corp",), "http://hooks.corp/"),
        (("*.corp",), "http://a.b.corp/"),
        (("127.0.0.1",), "http://127.0.0.1:8000/"),
        (("10.0.0.0/8",), "https://10.1.2.3/"),
        (("fd00::/8",), "https://[fd00::1]/"),
    ],
)
def test_named_hosts_and_networks_are_exceptions(hosts: tuple[str, ...], url: str) -> None:
    Callbacks(SECRET, hosts).check(url)
    with pytest.raises(InvalidCallback):
        PUBLIC.check(url)


@pytest.mark.parametrize("url", ["http://10.1.2.3/", "https://127.0.0.1/", "http://xcorp/", "http://corp/"])
def test_an_exception_is_for_what_it_names_only(url: str) -> None:
    with pytest.raises(InvalidCallback):
        Callbacks(SECRET, ("10.0.0.0/8", "*.corp")).check(url)


def settle(
    status: Status = Status.SUCCEEDED, *, payload: Any = None, source: str = "http", **more: Any
) -> Settle:
    event = payload if payload is not None else {"headers": {"headrace-callback": "https://a.example/hook"}}
    invocation = Invocation(5, "shop.f", "shop.f", msgspec.json.encode(event), 0.0, 0.0, 9.0, source=source)
    return Settle(Claim(invocation, 2, "n"), status, **more)


def told(settled: Settle) -> dict[str, Any] | None:
    call = callback_call(settled, SPEC, now=1_800_000_000.5)
    if call is None:
        return None
    name, event = call
    assert name == DELIVER
    found: dict[str, Any] = msgspec.json.decode(event)
    return found


def test_a_success_is_told_with_its_result() -> None:
    event = told(settle(result=b'{"n":1}'))
    assert event is not None
    assert event["url"] == "https://a.example/hook"
    assert event["message"] == {
        "type": "invocation.succeeded",
        "timestamp": "2027-01-15T08:00:00.500Z",
        "data": {
            "invocation_id": "0000000000000005",
            "status": "succeeded",
            "attempts": 2,
            "result": {"n": 1},
        },
    }


def test_a_failure_is_told_without_its_stack() -> None:
    error = {"code": "function_error", "message": "no", "stack": "File secret.py", "type": "ValueError"}
    event = told(settle(Status.DEAD, error=error))
    assert event is not None
    assert event["message"]["data"]["error"] == {"code": "function_error", "message": "no"}
    assert "secret.py" not in str(event)


def test_a_large_result_is_left_to_the_status_url() -> None:
    event = told(settle(result_ref="s3://headrace-system/results/1.json"))
    assert event is not None
    assert (event["message"]["data"]["result"], event["message"]["data"]["too_large"]) == (None, True)


@pytest.mark.parametrize(
    "settled",
    [
        settle(source="upload"),
        settle(Status.CANCELLED),
        settle(payload={"headers": {}}),
        settle(payload={"headers": 3}),
        settle(payload=[1]),
        settle(payload="text"),
    ],
)
def test_nobody_is_told_when_no_caller_of_a_route_asked(settled: Settle) -> None:
    assert told(settled) is None


def test_a_signature_is_right_for_the_library_of_the_specification() -> None:
    from datetime import UTC, datetime

    body = '{"ä": 1}'.encode()
    second = int(datetime.now(UTC).timestamp())
    headers = signed_headers(SECRET, "msg_1", body, second=second)
    assert Webhook(SECRET).verify(body, headers) == {"ä": 1}


def context(**settings: Any) -> Any:
    return SimpleNamespace(config=WorkerConfig(**settings), invocation_id="1", objects=None)


def event(url: str) -> dict[str, Any]:
    return {"function": "shop.f", "setting": "callback", "url": url, "message": {"type": "x"}}


def test_a_delivery_to_what_is_not_public_is_final() -> None:
    with pytest.raises(InvalidCallback) as caught:
        deliver(event("https://127.0.0.1:9/"), context(callback_secret=SECRET), {"shop.f": SPEC})
    assert caught.value.final


def test_without_a_secret_or_a_route_that_calls_back_nothing_is_sent() -> None:
    with pytest.raises(DeliveryFailed, match="no callback_secret"):
        deliver(event("https://a.example/x?secret"), context(), {"shop.f": SPEC})
    plain = FunctionSpec(name="shop.f", module="", file="", line=0)
    with pytest.raises(NoDestination):
        deliver(event("https://a.example/"), context(callback_secret=SECRET), {"shop.f": plain})
