"""Deliver: the node's own function that takes the records of ended invocations to buckets and webhooks.

Imports the floor and the object stores. It runs in a worker like any function, so that a delivery is as
durable, retried and visible as what it tells of. An event names the function and the setting rather than the
destination itself, which the code that is loaded has: a webhook's URL may hold a secret, and is not recorded.
"""

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import Invalid, NoSuchBucket, Retryable
from headrace.runtime.model.destination import (
    CALLBACK_SETTING,
    bucket_and_prefix,
    kind_of,
    shown_destination,
)
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.ending import callback_url
from headrace.runtime.queue.outbound import Callbacks, signed_headers

WEBHOOK_S = 10.0
"""The most seconds that a webhook may let a connection, or an answer, wait."""

ANSWER_BYTES = 64 << 10


class NoDestination(Invalid):
    """A function has no such destination any more: (function, setting)."""

    code = "no_destination"
    http_status = 422
    final = True
    hint = "Redrive the record when the function names a bucket or a webhook again, or discard it."

    def __str__(self) -> str:
        return f"{self.args[0]} names no bucket or webhook as {self.args[1]} any more"


class DeliveryFailed(Retryable):
    """A webhook did not take a record: (the destination as it may be shown, why)."""

    code = "delivery_failed"
    hint = "It is tried again with growing pauses, then rests among the dead letters of headrace.deliver."

    def __str__(self) -> str:
        return f"the webhook at {self.args[0]} {self.args[1]}"


def deliver(event: Mapping[str, Any], context: Any, specs: Mapping[str, FunctionSpec]) -> dict[str, Any]:
    """Take one record to where `specs`, what is loaded, says. Returns where it went.

    Raises NoDestination, DeliveryFailed, or what the object store does.
    """
    function, setting = str(event["function"]), str(event["setting"])
    spec = specs.get(function)
    if setting == CALLBACK_SETTING:
        if spec is None or not spec.callbacks:
            raise NoDestination(function, setting)
        return call_back(event, context)
    target = getattr(spec, setting, None) if setting in ("on_failure", "on_success") else None
    if target is None or kind_of(target) == "function":
        raise NoDestination(function, setting)
    record = event["record"]
    body = json.dumps(record, separators=(",", ":")).encode()
    if kind_of(target) == "bucket":
        return {"delivered": put_record(context.objects, target, record, body)}
    post_record(target, body, delivery_id=context.invocation_id)
    return {"delivered": shown_destination(target)}


def put_record(objects: ObjectStore, target: str, record: Mapping[str, Any], body: bytes) -> str:
    """Write the record as `PREFIX/YYYY/MM/DD/INVOCATION_ID.json`, by the UTC day of the end; its address. A
    repeat writes the same object again.
    """
    bucket, prefix = bucket_and_prefix(target)
    day = datetime.fromtimestamp(float(record["timestamp"]), UTC).strftime("%Y/%m/%d")
    key = f"{day}/{record['requestContext']['requestId']}.json"
    if prefix:
        key = f"{prefix}/{key}"
    try:
        objects.put(bucket, key, body, content_type="application/json")
    except NoSuchBucket:
        objects.make_bucket(bucket)
        objects.put(bucket, key, body, content_type="application/json")
    return f"s3://{bucket}/{key}"


def post_record(url: str, body: bytes, *, delivery_id: str) -> None:
    """Post the record as JSON. Any answer but 2xx is a failure; a redirect is not followed, since it may lead
    into a network that only this machine reaches. Raises DeliveryFailed, which never shows the URL's path.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "headrace",
        "Headrace-Delivery-Id": delivery_id,
    }
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode("ascii")
    connection: http.client.HTTPConnection
    if parts.scheme.lower() == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=WEBHOOK_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WEBHOOK_S)
    _post(connection, url, body, headers)


def call_back(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Tell the URL that a caller has named of the end of its invocation, signed by Standard Webhooks.

    Raises InvalidCallback, which is final, for a URL that may not be called, DeliveryFailed for any answer
    but 2xx. The id of the message stays the same when it is told again.
    """
    config = context.config
    url = event.get("url")
    if url is None:
        url = callback_url(context.objects.get(*parse_object_url(str(event["payload_ref"]))))
    if url is None:
        return {"delivered": None}
    if not config.callback_secret:
        raise DeliveryFailed(shown_destination(url), "is not told, since the node has no callback_secret")
    callbacks = Callbacks(config.callback_secret, tuple(config.callback_hosts))
    callbacks.check(url)
    body = json.dumps(event["message"], separators=(",", ":")).encode()
    signed = signed_headers(
        config.callback_secret, f"msg_{context.invocation_id}", body, second=int(SystemClock().now())
    )
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = parts.scheme.lower() == "https"
    port = parts.port or (443 if secure else 80)
    try:
        address = callbacks.resolve(parts.hostname, port)
    except (OSError, UnicodeError):
        shown = shown_destination(url)
        raise DeliveryFailed(shown, "cannot be reached: its host name is not known") from None
    connection = (_PinnedTls if secure else _Pinned)(parts.hostname, port, timeout=WEBHOOK_S)
    connection.address = address
    headers = {"Content-Type": "application/json", "User-Agent": "headrace", **signed}
    _post(connection, url, body, headers)
    return {"delivered": shown_destination(url)}


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was found to be allowed, whatever its host's name means by now."""

    address = ""

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)


class _PinnedTls(_Pinned):
    """The same, encrypted: the certificate must be the host's."""

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _post(connection: http.client.HTTPConnection, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Post, and expect 2xx. Raises DeliveryFailed."""
    parts, shown = urlsplit(url), shown_destination(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body=body, headers=headers)
        answer = connection.getresponse()
        answer.read(ANSWER_BYTES)
        status = answer.status
    except TimeoutError:
        raise DeliveryFailed(shown, f"did not answer within {WEBHOOK_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryFailed(shown, f"cannot be reached: {_why(error)}") from None
    except UnicodeError:
        raise DeliveryFailed(shown, "has an address that is not ASCII; percent-encode it") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        told = "; redirects are not followed" if 300 <= status < 400 else ""
        raise DeliveryFailed(shown, f"answered {status}{told}")


def _why(error: Exception) -> str:
    """The cause in words that name neither path nor query, as the text of some errors does."""
    if isinstance(error, ssl.SSLError):
        return f"the encrypted connection failed ({error.reason})"
    if isinstance(error, socket.gaierror):
        return "its host name is not known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"the connection broke ({type(error).__name__})"
