"""Webhooks: whether a call comes from the service that it says, by the signature over its body.

Imports the trigger protocol and the floor. Sources: "Validating webhook deliveries", GitHub Docs; "Verify
webhook signatures manually", Stripe Docs; the Standard Webhooks specification 1.0, whose signatures the
library of its authors makes.
"""

import hashlib
import hmac
import os
import re
from datetime import UTC, datetime
from typing import Any, Literal, Self

import msgspec
from standardwebhooks.webhooks import Webhook as Signer

from headrace.runtime.errors import InvalidFunction, Unauthorized
from headrace.runtime.trigger import HttpCall

Scheme = Literal["github", "stripe", "standard"]
TOLERANCE_S = 300.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECOND = re.compile(r"[0-9]{1,12}")
_SIGNATURES_MAX = 16
_ID_CHARS_MAX = 200


class Webhook(msgspec.Struct, frozen=True):
    """A service that signs its calls: `Webhook.github("GITHUB_SECRET")`, `.stripe(…)`, `.standard(…)`.

    `secret` names the environment variable of the node that holds the secret, so that no code does; it may
    hold several, separated by blanks, while one replaces another. A call signed more than `tolerance`
    seconds ago, or ahead, is refused, as a repeat of an old one would be; GitHub does not say when it signed.
    """

    scheme: Scheme
    secret: str
    tolerance: float = TOLERANCE_S

    @classmethod
    def github(cls, secret: str) -> Self:
        """GitHub's, and of others that send `X-Hub-Signature-256`."""
        return cls._checked("github", secret, TOLERANCE_S)

    @classmethod
    def stripe(cls, secret: str, *, tolerance: float = TOLERANCE_S) -> Self:
        """Stripe's `Stripe-Signature`."""
        return cls._checked("stripe", secret, tolerance)

    @classmethod
    def standard(cls, secret: str, *, tolerance: float = TOLERANCE_S) -> Self:
        """Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`; the secret begins
        with `whsec_`.
        """
        return cls._checked("standard", secret, tolerance)

    @classmethod
    def _checked(cls, scheme: Scheme, secret: str, tolerance: float) -> Self:
        if not isinstance(secret, str) or not _VARIABLE.fullmatch(secret):
            raise InvalidFunction(
                f"Webhook.{scheme}(…)",
                "the secret is not the name of an environment variable",
                'Put the secret into the node\'s environment and name the variable: "WEBHOOK_SECRET".',
            )
        if not 1 <= tolerance <= 86_400:
            raise InvalidFunction(
                f"Webhook.{scheme}(…)", f"tolerance is {tolerance!r}", "It must be 1 to 86,400 s."
            )
        return cls(scheme, secret, float(tolerance))

    def secrets(self) -> list[str]:
        """The secrets that the environment has now. Raises InvalidFunction when there is none, or one that
        cannot be used.
        """
        found = os.environ.get(self.secret, "").split()
        if not found:
            raise InvalidFunction(
                f"Webhook.{self.scheme}({self.secret!r})",
                f"the environment of the node has no {self.secret}",
                "Set it to the webhook's secret, and start the node again.",
            )
        if self.scheme == "standard":
            for secret in found:
                try:
                    Signer(secret)
                except Exception:  # the library raises what base64 does, and classes of its own
                    raise InvalidFunction(
                        f"Webhook.standard({self.secret!r})",
                        f"{self.secret} holds no secret of Standard Webhooks",
                        "It is whsec_ and base64.",
                    ) from None
        return found

    def check(self, call: HttpCall, secrets: list[str]) -> None:
        """Raises Unauthorized when no signature of the call was made with one of the secrets."""
        headers = dict(call.headers)
        if self.scheme == "github":
            given = [headers.get("x-hub-signature-256", "").removeprefix("sha256=")]
            made = [_hex(secret, call.body) for secret in secrets]
        elif self.scheme == "stripe":
            parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
            moment = next((value for name, _, value in parts if name == "t"), "")
            self._check_moment(moment, call.received_at)
            given = [value for name, _, value in parts if name == "v1"]
            made = [_hex(secret, moment.encode() + b"." + call.body) for secret in secrets]
        else:
            moment = headers.get("webhook-timestamp", "")
            self._check_moment(moment, call.received_at)
            signed = headers.get("webhook-signature", "").split()
            given = [value for value in signed if value.startswith("v1,")]
            made = [
                _standard(secret, headers.get("webhook-id", ""), int(moment), call.body) for secret in secrets
            ]
        right = False
        for signature in given[:_SIGNATURES_MAX]:
            for own in made:
                right |= hmac.compare_digest(signature.encode(), own.encode())
        if not right:
            raise Unauthorized("the webhook's signature is missing or wrong")

    def delivery_id(self, call: HttpCall) -> str | None:
        """The service's own id of what it tells, which a repeat has again; None when it gives none."""
        name = {"github": "x-github-delivery", "standard": "webhook-id"}.get(self.scheme)
        if name is not None:
            found: Any = next((value for key, value in call.headers if key == name), None)
        else:
            try:
                found = msgspec.json.decode(call.body)["id"]
            except (msgspec.DecodeError, KeyError, TypeError, IndexError):
                found = None
        if not isinstance(found, str) or not 1 <= len(found) <= _ID_CHARS_MAX:
            return None
        return f"{self.scheme}:{found}"

    def _check_moment(self, moment: str, now: float) -> None:
        if not _SECOND.fullmatch(moment):
            raise Unauthorized("the webhook's signature is missing or wrong")
        if abs(now - int(moment)) > self.tolerance:
            raise Unauthorized("the webhook was signed too long ago, or the clocks differ")


def _hex(secret: str, data: bytes) -> str:
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def _standard(secret: str, id: str, second: int, body: bytes) -> str:
    try:
        text = body.decode()
        moment = datetime.fromtimestamp(second, UTC)
    except (UnicodeDecodeError, ValueError, OverflowError, OSError):
        raise Unauthorized("the webhook's signature is missing or wrong") from None
    return Signer(secret).sign(id, moment, text)
