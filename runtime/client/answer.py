"""Answers: what the node said, as results and as errors of the one tree.

Imports `errors` only. An error that came over HTTP is an instance of the class that the node raised, with the
node's own message and hint, so that the same `except` works over HTTP and in one process.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NoReturn
from urllib.parse import quote

from headrace.runtime.errors import (
    BY_CODE,
    BadRequest,
    Conflict,
    Forbidden,
    HeadraceError,
    Invalid,
    InvocationFailed,
    PayloadTooLarge,
    Retryable,
    Throttled,
    Unauthorized,
    Unknown,
    failure,
)


def segment(name: str) -> str:
    """An id or a name as one segment of a path. Raises BadRequest for one that cannot be a segment."""
    if name in ("", ".", ".."):
        raise BadRequest(f"{name!r} is no id and no name", "Give the id or the name that a listing shows.")
    return quote(name, safe="")


class WaitTimeout(Retryable, TimeoutError):
    """What was waited for had not ended in time: (what, seconds waited). It goes on all the same."""

    code = "wait_timeout"
    hint = "It goes on; ask again, or wait longer."

    def __str__(self) -> str:
        return f"{self.args[0]} had not ended after {self.args[1]:g} s"


class ClientClosed(Invalid):
    """A call through a client that was closed: (what became of it)."""

    code = "client_closed"
    hint = "Make a new Client, or close this one later."


class _Answered:
    """What an error has when it came as an answer: the node's words instead of its own."""

    args: tuple[Any, ...]
    hint: str

    def __init__(self, message: str, hint: str, detail: Mapping[str, Any]) -> None:
        self.args = (message, hint, detail)
        self.hint = hint
        self.detail = dict(detail)
        for name in ("retry_after_s", "fields"):
            if name in detail:
                setattr(self, name, detail[name])

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so that it cannot be named in a pickle; what made it can.
        return _answered, (type(self).code, self.http_status, *self.args)  # type: ignore[attr-defined]


_BY_STATUS: dict[int, type[HeadraceError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: Unknown,
    409: Conflict,
    413: PayloadTooLarge,
    429: Throttled,
}


def _kinds(kind: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    yield kind
    for narrower in kind.__subclasses__():
        if not issubclass(narrower, _Answered):
            yield from _kinds(narrower)


@cache
def _answered_class(code: str, status: int) -> type[HeadraceError]:
    for kind in _kinds(HeadraceError):
        if kind.__dict__.get("code") == code:
            break
    else:
        kind = _BY_STATUS.get(status) or (
            Retryable if status >= 502 else Invalid if status < 500 else HeadraceError
        )
    return type(
        kind.__name__,
        (_Answered, kind),
        {"code": code, "http_status": status, "__doc__": kind.__doc__, "__module__": kind.__module__},
    )


def _answered(code: str, status: int, message: str, hint: str, detail: Mapping[str, Any]) -> HeadraceError:
    return _answered_class(code, status)(message, hint, detail)


def recorded_error(detail: Mapping[str, Any]) -> HeadraceError:
    """The error that an invocation's record holds: `{"code", "type", "message", "stack", …}`."""
    code = str(detail.get("code", ""))
    if code in BY_CODE or "type" in detail or not code:
        return failure(dict(detail))
    return _answered(
        code, 422 if code == "invalid_event" else 500, str(detail.get("message", code)), "", detail
    )


def answered_error(status: int, headers: Mapping[str, str], body: bytes) -> HeadraceError:
    """The error that an answer with a status of 400 or above stands for."""
    try:
        detail = json.loads(body)["error"]
        code, message = str(detail["code"]), str(detail.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        said = body[:200].decode("utf-8", "replace").strip().replace("\n", " ")
        code = (_BY_STATUS.get(status) or (Retryable if status >= 502 else HeadraceError)).code
        hint = "Is this address that of a Headrace node?" if status < 500 else "The node's log has more."
        return _answered(code, status, f"HTTP {status}{': ' if said else ''}{said}", hint, {"code": code})
    if code in BY_CODE:
        return failure(detail)
    if status == 429:
        try:
            detail.setdefault("retry_after_s", float(headers.get("retry-after", "1")))
        except ValueError:
            detail["retry_after_s"] = 1.0
    return _answered(code, status, message or code, str(detail.get("hint") or ""), detail)


def raise_for(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raise the error of an answer, if it is one."""
    if status >= 400:
        refuse(status, headers, body)


def refuse(status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
    """Raise the error of an answer whose status is 400 or above."""
    error = answered_error(status, headers, body)
    if isinstance(error, InvocationFailed) and (id := headers.get("headrace-invocation-id")):
        error.detail.setdefault("invocation_id", id)
    raise error
