"""Endings: what becomes of an invocation when an attempt has ended. Pure: values in, values out.

Imports the floor only.
"""

from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec

from headrace.runtime.model.destination import CALLBACK_SETTING, DELIVER, kind_of
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Claim, Outcome, Status
from headrace.runtime.model.limits import key_of
from headrace.runtime.model.policy import retry_delay
from headrace.runtime.model.route import CALLBACK_HEADER
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Closed, Retry, Settle

CLOSED_MIN_S = 0.01
"""The shortest closure: a function that asks for none is not to be run without a pause."""

REASON_CHARS_MAX = 500


def ending_of(
    claim: Claim, spec: FunctionSpec, outcome: Outcome, *, now: float, chance: Random
) -> Settle | Retry:
    """The write for an attempt that was begun: success, another attempt, the dead-letter queue, or the end
    that somebody asked for.
    """
    if outcome.kind == "ok":
        return Settle(claim, Status.SUCCEEDED, outcome.value, outcome.result_ref, None, outcome.started_at)
    error = outcome.error or {"code": outcome.kind, "message": outcome.kind}
    if outcome.kind == "retry_after":
        due = until_of(outcome, now=now)
        if due <= claim.invocation.expires_at:
            return Retry(claim, due, False, error)
        return _too_late(claim, spec, outcome, error)
    if outcome.kind == "out_of_memory" and spec.memory_max_bytes is not None:
        limit = claim.invocation.memory_bytes or spec.memory_bytes
        if limit < spec.memory_max_bytes and now <= claim.invocation.expires_at:
            more = min(2 * limit, spec.memory_max_bytes)
            return Retry(claim, now, False, {**error, "limit": limit, "next_limit": more}, more)
    if outcome.kind == "cancelled":
        return Settle(claim, Status.CANCELLED, b"", None, error, outcome.started_at)
    final = error.get("final") is True or outcome.kind == "invalid_event"
    if claim.attempt < spec.retry.attempts_max and not final:
        due = now + retry_delay(claim.attempt, spec.retry, chance)
        if due <= claim.invocation.expires_at:
            return Retry(claim, due, True, error)
        return _too_late(claim, spec, outcome, error)
    return Settle(claim, Status.DEAD, b"", None, error, outcome.started_at)


def _too_late(claim: Claim, spec: FunctionSpec, outcome: Outcome, error: dict[str, Any]) -> Settle:
    late = f"its next attempt would come after max_age, {spec.max_age_s:g} s"
    error = {"code": "expired", "message": f"{late}; attempt {claim.attempt} failed", "cause": error}
    return Settle(claim, Status.DEAD, b"", None, error, outcome.started_at)


def until_of(outcome: Outcome, *, now: float) -> float:
    """When a function that raised RetryAfter wants to be tried again."""
    seconds = (outcome.error or {}).get("seconds", 0.0)
    return now + max(float(seconds), CLOSED_MIN_S)


def closure_of(spec: FunctionSpec, outcome: Outcome, claim: Claim | None, *, now: float) -> Closed:
    """What a function that raised RetryAfter has closed: the key that it named, else the invocation's own,
    else the function.
    """
    error = outcome.error or {}
    key = error.get("key") or (key_of(claim.invocation.flow) if claim is not None else None)
    name = f"key:{key}" if key is not None else f"function:{spec.name}"
    who = f" (invocation {show_id(claim.invocation.id)})" if claim is not None else ""
    reason = f"{spec.name}{who} raised RetryAfter: {error.get('message', '')}"
    return Closed(name, until_of(outcome, now=now), reason[:REASON_CHARS_MAX])


def stillborn(claim: Claim, spec: FunctionSpec, *, now: float) -> Settle | None:
    """The end of a claim that must not run: its event is too old, or its node was lost in every attempt."""
    invocation = claim.invocation
    if invocation.expires_at < now:
        late = now - invocation.accepted_at
        message = f"not succeeded {late:.0f} s after acceptance; max_age is {spec.max_age_s:g} s"
        return Settle(claim, Status.DEAD, error={"code": "expired", "message": message}, begun=False)
    if claim.attempt > spec.retry.attempts_max:
        message = f"its node was lost during each of {claim.attempt - 1} attempts"
        return Settle(claim, Status.DEAD, error={"code": "node_lost", "message": message}, begun=False)
    return None


def destination_of(settle: Settle, spec: FunctionSpec) -> str | None:
    """Where this end is told, if the spec says so: a function's name, a bucket or a webhook."""
    if settle.status is Status.SUCCEEDED:
        return spec.on_success
    return spec.on_failure if settle.status is Status.DEAD else None


def destination_call(settle: Settle, spec: FunctionSpec, *, now: float) -> tuple[str, bytes] | None:
    """The function that tells of this end, and its event: the destination itself, or what delivers to a
    bucket or a webhook. None when nobody is told.
    """
    target = destination_of(settle, spec)
    if target is None:
        return None
    record = destination_event(settle, spec, now=now)
    if kind_of(target) == "function":
        return target, record
    setting = "on_success" if settle.status is Status.SUCCEEDED else "on_failure"
    event = {"function": spec.name, "setting": setting, "record": msgspec.Raw(record)}
    return DELIVER, msgspec.json.encode(event)


def callback_call(settle: Settle, spec: FunctionSpec, *, now: float) -> tuple[str, bytes] | None:
    """The function that tells the caller's own URL of this end, and its event; None when it named none.

    A large event is not here: what delivers looks for the URL in it. The stack, and what else is only for the
    function's owner, is left out.
    """
    invocation = settle.claim.invocation
    if invocation.source != "http" or settle.status not in (Status.SUCCEEDED, Status.DEAD):
        return None
    url = callback_url(invocation.payload) if invocation.payload_ref is None else None
    if url is None and invocation.payload_ref is None:
        return None
    succeeded = settle.status is Status.SUCCEEDED
    data: dict[str, Any] = {
        "invocation_id": show_id(invocation.id),
        "status": "succeeded" if succeeded else "dead",
        "attempts": settle.attempts,
    }
    if succeeded:
        data["result"] = msgspec.Raw(settle.result or b"null")
        if settle.result_ref is not None:  # too large to be told: the status URL has it
            data["result"], data["too_large"] = None, True
    else:
        error = settle.error or {}
        data["error"] = {"code": error.get("code", ""), "message": error.get("message", "")}
    moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = {"type": f"invocation.{data['status']}", "timestamp": moment, "data": data}
    event = {"function": spec.name, "setting": CALLBACK_SETTING, "message": message}
    where = {"url": url} if url is not None else {"payload_ref": invocation.payload_ref}
    return DELIVER, msgspec.json.encode({**event, **where})


class _Called(msgspec.Struct):
    """As much of an HTTP event as tells where its caller wants to be told."""

    headers: dict[str, str] = {}


def callback_url(payload: bytes) -> str | None:
    """The URL in an HTTP event that is to be told of its end."""
    try:
        return msgspec.json.decode(payload, type=_Called).headers.get(CALLBACK_HEADER)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def destination_event(settle: Settle, spec: FunctionSpec, *, now: float) -> bytes:
    """The event for a destination, in the shape of Lambda's invocation record, as JSON.

    Source: "Capturing records of Lambda asynchronous invocations", AWS Lambda Developer Guide.
    """
    claim = settle.claim
    succeeded = settle.status is Status.SUCCEEDED
    expired = (settle.error or {}).get("code") == "expired"
    record: dict[str, Any] = {
        "version": "1.0",
        "timestamp": now,
        "requestContext": {
            "requestId": show_id(claim.invocation.id),
            "functionArn": spec.name,
            "condition": "Success" if succeeded else "EventAgeExceeded" if expired else "RetriesExhausted",
            "approximateInvokeCount": settle.attempts,
        },
        "requestPayload": msgspec.Raw(claim.invocation.payload or b"null"),
        "responseContext": {"statusCode": 200 if succeeded else 500},
        "responsePayload": msgspec.Raw(settle.result or b"null") if succeeded else settle.error,
    }
    # What is too large for the record is named by its address, beside Lambda's fields.
    if claim.invocation.payload_ref is not None:
        record["requestPayloadRef"] = claim.invocation.payload_ref
    if settle.result_ref is not None:
        record["responsePayloadRef"] = settle.result_ref
    return msgspec.json.encode(record)
