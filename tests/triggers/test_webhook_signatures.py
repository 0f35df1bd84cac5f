"""Webhooks: signatures of GitHub, Stripe and Standard Webhooks, made by others than the code under test."""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Signer

from headrace import Http, Webhook
from headrace.runtime.errors import InvalidFunction, Unauthorized
from headrace.runtime.trigger import HttpCall

NOW = 1_800_000_000.0
STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
# "Validating webhook deliveries", GitHub Docs, "Testing the webhook payload validation".
GITHUB_SECRET, GITHUB_BODY = "It's a Secret to Everybody", b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def call(body: bytes = b"{}", *, now: float = NOW, **headers: str) -> HttpCall:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return HttpCall("POST", "/hook", "", named, body, {}, "10.0.0.1", "r", now)


def stripe(body: bytes, *, secret: str = "whsec_stripe", second: int = int(NOW)) -> str:
    signed = hmac.new(secret.encode(), f"{second}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={second},v1={signed},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"


def standard(
    body: bytes, *, secret: str = STANDARD, second: int = int(NOW), id: str = "msg_1"
) -> dict[str, str]:
    signature = Signer(secret).sign(id, datetime.fromtimestamp(second, UTC), body.decode())
    return {"webhook_id": id, "webhook_timestamp": str(second), "webhook_signature": f"v1a,x {signature}"}


def test_githubs_own_example_is_right() -> None:
    hook = Webhook("github", "X")
    hook.check(call(GITHUB_BODY, x_hub_signature_256=GITHUB_SIGNATURE), ["other", GITHUB_SECRET])
    for wrong in (GITHUB_SIGNATURE[:-1] + "0", "", "sha1=" + GITHUB_SIGNATURE[7:], "é"):
        with pytest.raises(Unauthorized):
            hook.check(call(GITHUB_BODY, x_hub_signature_256=wrong), [GITHUB_SECRET])
    with pytest.raises(Unauthorized):
        hook.check(call(GITHUB_BODY), [GITHUB_SECRET])


def test_stripe_signs_the_moment_with_the_body() -> None:
    hook, body = Webhook("stripe", "X"), b'{"id": "evt_1"}'
    hook.check(call(body, stripe_signature=stripe(body)), ["whsec_stripe"])
    for wrong in (
        stripe(b"other"),
        stripe(body, secret="whsec_other"),
        stripe(body, second=int(NOW) - 301),
        stripe(body, second=int(NOW) + 301),
        stripe(body).replace("t=", "t=x"),
        stripe(body).replace("v1=", "v2="),
        "t=,v1=",
        "",
    ):
        with pytest.raises(Unauthorized):
            hook.check(call(body, stripe_signature=wrong), ["whsec_stripe"])
    Webhook("stripe", "X", 400).check(
        call(body, stripe_signature=stripe(body, second=int(NOW) - 399)), ["whsec_stripe"]
    )


def test_standard_webhooks_are_as_their_library_signs_them() -> None:
    hook, body = Webhook("standard", "X"), '{"test": "ä"}'.encode()
    hook.check(call(body, **standard(body)), [STANDARD])
    for wrong in (
        {**standard(body), "webhook_id": "msg_2"},
        {**standard(body), "webhook_timestamp": str(int(NOW) + 1)},
        standard(body, second=int(NOW) - 301),
        standard(b"{}"),
        standard(body, secret="whsec_" + "B" * 32),
        {},
    ):
        with pytest.raises(Unauthorized):
            hook.check(call(body, **wrong), [STANDARD])
    with pytest.raises(Unauthorized):
        hook.check(call(b"\xff", **standard(b"{}")), [STANDARD])


@given(
    body=st.binary(max_size=64),
    signature=st.text(max_size=64),
    scheme=st.sampled_from(["github", "stripe", "standard"]),
)
def test_no_garbage_is_right_and_none_breaks_the_check(body: bytes, signature: str, scheme: Any) -> None:
    headers = dict.fromkeys(
        ("x_hub_signature_256", "stripe_signature", "webhook_id", "webhook_timestamp", "webhook_signature"),
        signature,
    )
    with pytest.raises(Unauthorized):
        Webhook(scheme, "X").check(call(body, **headers), [STANDARD])


@pytest.mark.parametrize(
    ("scheme", "body", "headers", "found"),
    [
        ("github", b"{}", {"x_github_delivery": "72d3162e"}, "github:72d3162e"),
        ("stripe", b'{"id": "evt_1"}', {}, "stripe:evt_1"),
        ("standard", b"{}", {"webhook_id": "msg_1"}, "standard:msg_1"),
        ("stripe", b'{"id": 1}', {}, None),
        ("stripe", b"[]", {}, None),
        ("stripe", b"no JSON", {}, None),
        ("github", b"{}", {}, None),
        ("github", b"{}", {"x_github_delivery": "x" * 201}, None),
    ],
)
def test_the_services_own_id_is_the_idempotency_key(
    scheme: Any, body: bytes, headers: dict[str, str], found: str | None
) -> None:
    assert Webhook(scheme, "X").delivery_id(call(body, **headers)) == found


def test_secrets_come_from_the_environment_and_may_be_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", f"old {GITHUB_SECRET.replace(' ', '')}")
    assert Webhook.github("HOOK_SECRET").secrets() == ["old", "It'saSecrettoEverybody"]
    with pytest.raises(InvalidFunction, match="no secret of Standard Webhooks"):
        Webhook.standard("HOOK_SECRET").secrets()
    with pytest.raises(InvalidFunction, match="has no ABSENT_SECRET"):
        Webhook.stripe("ABSENT_SECRET").secrets()


@pytest.mark.parametrize("secret", ["whsec_secret+it/self", "", 3])
def test_the_secret_itself_is_refused_where_its_variable_is_asked_for(secret: Any) -> None:
    with pytest.raises(InvalidFunction, match="not the name of an environment variable"):
        Webhook.standard(secret)


@pytest.mark.parametrize("tolerance", [0, -1, 100_000])
def test_a_tolerance_that_lets_everything_or_nothing_through_is_refused(tolerance: float) -> None:
    with pytest.raises(InvalidFunction, match="tolerance"):
        Webhook.stripe("S", tolerance=tolerance)


def test_a_route_refuses_what_is_not_signed_before_it_makes_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s")
    fields = Http("POST", "/hook", webhook=Webhook.github("HOOK_SECRET")).fields()
    [route] = Http.from_fields(fields).routes()
    signed = "sha256=" + hmac.new(b"s", b"{}", hashlib.sha256).hexdigest()

    assert b'"body":"{}"' in route.event(call(x_hub_signature_256=signed))
    with pytest.raises(Unauthorized):
        route.event(call(x_hub_signature_256=signed[:-1]))
    assert "HOOK_SECRET" in str(fields)
