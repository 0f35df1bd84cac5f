"""Destinations: where the end of an invocation is told: a function, a bucket, or a webhook.

Imports the floor only. A webhook's URL may hold a secret in its path, query or user part: whatever shows a
destination to somebody shows `shown_destination`.
"""

from typing import Literal
from urllib.parse import urlsplit

from headrace.runtime.model.policy import RetryPolicy
from headrace.runtime.model.spec import FunctionSpec

DELIVER = "headrace.deliver"
"""The node's own function that writes records into buckets and posts them to webhooks."""

CALLBACK_SETTING = "callback"
"""What stands in a delivery's event for a URL that a caller has named."""

_TIMEOUT_S = 20.0
# About an hour of attempts; then the record is a dead letter, which may be redriven.
_RETRY = RetryPolicy(retries=20, base_s=1.0, max_s=600.0)
_MAX_AGE_S = 24 * 3600.0
_AT_ONCE = 4

Kind = Literal["function", "bucket", "webhook"]

_SCHEMES: dict[str, Kind] = {"s3": "bucket", "http": "webhook", "https": "webhook"}


def deliver_spec() -> FunctionSpec:
    """The function as the dispatcher sees it: few at once, so that a slow webhook leaves others workers."""
    return FunctionSpec(
        name=DELIVER,
        module="headrace",
        file="",
        line=0,
        doc="Take the record of an ended invocation to its bucket or webhook.",
        timeout_s=_TIMEOUT_S,
        retry=_RETRY,
        max_age_s=_MAX_AGE_S,
        reserved_concurrency=_AT_ONCE,
    )


def kind_of(destination: str) -> Kind:
    """What a destination is, by its scheme. Raises ValueError for a scheme that leads nowhere."""
    scheme, separator, _ = destination.partition("://")
    if not separator:
        return "function"
    kind = _SCHEMES.get(scheme.lower())
    if kind is None:
        raise ValueError(f"nothing is delivered by {scheme[:20]}://")
    return kind


def bucket_and_prefix(destination: str) -> tuple[str, str]:
    """The bucket and prefix of `s3://BUCKET/PREFIX`; the prefix without slashes at its ends, maybe empty."""
    bucket, _, prefix = destination.partition("://")[2].partition("/")
    return bucket, prefix.strip("/")


def check_webhook(url: str) -> None:
    """Raises ValueError, without the URL, when nothing can be posted to it."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("a webhook's URL names no host")
    if parts.port == 0:  # `port` itself raises ValueError beyond 65,535
        raise ValueError("a webhook's URL names port 0")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("a webhook's URL holds a blank or a control character")
    if parts.fragment:
        raise ValueError("a webhook's URL has a fragment, which is never sent")


def shown_destination(destination: str) -> str:
    """The destination without what may be secret: of a webhook only scheme, host and port."""
    scheme, separator, _ = destination.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return destination
    host = urlsplit(destination).netloc.rpartition("@")[2]
    return f"{scheme}://{host}/…"
