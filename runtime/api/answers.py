"""Answers: the one error model, and small ASGI responses that cost little.

Imports the floor only.
"""

import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from headrace.runtime.errors import (
    BadRequest,
    HeadraceError,
    InvalidEvent,
    InvalidPayload,
    InvocationFailed,
    NodeStopping,
    PayloadTooLarge,
    RetryAfter,
    Throttled,
    UnsupportedMediaType,
    failure,
)
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome, Record, Status
from headrace.runtime.model.limits import key_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_BY_NAME = "headrace.headers"
"""Where a request's headers are kept by name: each is asked for several."""
MORE_HEADERS = "headrace.answer"
"""Where what every answer to a request has as well is kept, whoever answers it."""
REQUEST_ID = "headrace.request_id"

encode = msgspec.json.encode
JSON_TYPE = (b"content-type", b"application/json")
REPEATED = (b"headrace-repeated", b"true")
"""Says that an idempotency key came again, and that the answer is the first call's."""


async def send(reply: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    """Answer with a whole body."""
    out: Headers = [
        (b"content-length", str(len(body)).encode()),
        *(headers if headers is not None else [JSON_TYPE]),
    ]
    await reply({"type": "http.response.start", "status": status, "headers": out})
    await reply({"type": "http.response.body", "body": body})


async def send_json(reply: Send, value: Any, *, status: int = 200, headers: Headers | None = None) -> None:
    """Answer with JSON."""
    await send(reply, status, encode(value), [JSON_TYPE, *(headers or [])])


async def send_error(
    reply: Send, error: HeadraceError, *, invocation_id: str | None = None, repeated: bool = False
) -> None:
    """Answer with the error model: `{"error": {"code", "message", "hint", "invocation_id"}}`."""
    body: dict[str, Any] = {"code": error.code, "message": str(error), "hint": error.hint}
    if isinstance(error, InvocationFailed):
        for name in ("type", "stack", "signal", "exit_code"):
            if name in error.detail:
                body[name] = error.detail[name]
        if isinstance(error.detail.get("message"), str):
            body["message"] = error.detail["message"]
    if isinstance(error, InvalidEvent):
        body["fields"] = error.fields
    headers: Headers = [JSON_TYPE]
    if isinstance(error, UnsupportedMediaType):
        headers.append((b"accept-encoding", b"identity"))
    if isinstance(error, NodeStopping):
        headers.append((b"retry-after", b"1"))
    if isinstance(error, Throttled):
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if invocation_id is not None:
        body["invocation_id"] = invocation_id
        headers.append((b"headrace-invocation-id", invocation_id.encode()))
    if repeated:
        headers.append(REPEATED)
    await send(reply, error.http_status, encode({"error": body}), headers)


def outcome_error(outcome: Outcome, function: str) -> HeadraceError:
    """The error that an attempt's outcome stands for."""
    return recorded_error(outcome.error or {"code": outcome.kind, "message": outcome.kind}, function)


def recorded_error(detail: dict[str, Any], function: str) -> HeadraceError:
    """The error that was recorded of a function's invocation."""
    if detail.get("code") == InvalidEvent.code:
        fields = detail.get("fields")
        return InvalidEvent(function, fields if isinstance(fields, list) else [])
    if detail.get("code") == RetryAfter.code:
        return RetryAfter(float(detail.get("seconds", 1.0)), detail.get("key"))
    return failure(detail)


async def read_body(receive: Receive, scope: Scope, limit: int) -> bytes:
    """The request's whole body. Raises PayloadTooLarge beyond `limit` bytes, without reading the rest."""
    declared = headers_of(scope).get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise PayloadTooLarge(int(declared), limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise BadRequest("the caller went away before its body was complete")
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise PayloadTooLarge(len(body), limit)
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the caller went away before its body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise PayloadTooLarge(size, limit)
    return b"".join(parts)


def check_json(body: bytes) -> bytes:
    """The body, when it is JSON; `null` when it is empty. Raises InvalidPayload."""
    if not body:
        return b"null"
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPayload(str(error)) from None
    return body


def header(scope: Scope, name: bytes) -> str | None:
    """A request header's first value; `name` in lower case."""
    value = headers_of(scope).get(name)
    return value.decode("latin-1") if value is not None else None


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by lower-case name, of each the first."""
    found: dict[bytes, bytes] | None = scope.get(_BY_NAME)
    if found is None:
        found = scope[_BY_NAME] = dict(reversed(scope["headers"]))
    return found


def shown_record(record: Record, *, running: bool = False) -> dict[str, Any]:
    """An invocation as the API shows it."""
    invocation = record.invocation
    status = record.status
    if status is Status.WAITING and running:
        status = Status.RUNNING
    error = record.error
    if error is not None and status in (Status.WAITING, Status.RUNNING):
        error = {**error, "retrying": True}
    return {
        "invocation_id": show_id(invocation.id),
        "function": invocation.function,
        "status": status.name.lower(),
        "attempts": record.attempts,
        "accepted_at": invocation.accepted_at,
        "due_at": invocation.due_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "result": msgspec.Raw(record.result) if record.result else None,
        "result_ref": record.result_ref,
        "error": error,
        "priority": invocation.priority,
        "key": key_of(invocation.flow),
        "memory_bytes": invocation.memory_bytes,
        "tags": invocation.tags.split(",") if invocation.tags else [],
        "source": invocation.source,
        "job_id": show_id(invocation.job) if invocation.job is not None else None,
    }
