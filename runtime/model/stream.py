"""Streams: results that leave piece by piece, as a function makes them.

Imports nothing of Headrace. A generator is a stream as it is; `Stream` says with which status and headers one
leaves, and `Sse` is a piece that browsers read with `EventSource`.
"""

import re
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, final

import msgspec

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# What would end a header, and so let a caller's input write others, is refused. Source: RFC 9110, 5.5.
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_SERVERS = ("connection", "content-length", "transfer-encoding")
"""Headers that only the server knows."""
EVENTS_TYPE = "text/event-stream"


class Sse(msgspec.Struct, frozen=True, omit_defaults=True):
    """One server-sent event.

    Args:
        data: text, of any number of lines; anything else is sent as JSON.
        event: its name, on which the reader can listen; `message` when None.
        id: what the reader sends as `Last-Event-ID` when it comes again.
        retry_s: after how many seconds the reader tries again when the connection breaks.

    Raises: ValueError for a name or id of more than one line, an id with a NUL, or a negative `retry_s`.
    Source: "Server-sent events", HTML Living Standard, section 9.2.
    """

    data: Any = ""
    event: str | None = None
    id: str | None = None
    retry_s: float | None = None

    def __post_init__(self) -> None:
        for name, text in (("event", self.event), ("id", self.id)):
            if text is not None and any(mark in text for mark in "\r\n\0"):
                raise ValueError(f"the {name} of a server-sent event must be one line: {text!r}")
        if self.retry_s is not None and not 0 <= self.retry_s < 1e9:
            raise ValueError(f"retry_s is {self.retry_s!r}")


@final
class Stream:
    """What a function returns to answer piece by piece, with a status and headers of its own.

    Args:
        pieces: an iterable or async iterable of bytes, text, `Sse`, or anything else that JSON can hold,
            each of which is one line of JSON. It is read as fast as the caller takes what it gives.
        status: 200 to 599, but neither 204 nor 304, which have no body.
        content_type: what the pieces are, told before the first one is there; None to tell it by the first
            one, once that is there.
        headers: more of them.

    Raises: TypeError when `pieces` cannot be iterated; ValueError for a status or header that HTTP has no
    place for, or that only the server knows.
    """

    __slots__ = ("content_type", "headers", "pieces", "status")

    def __init__(
        self,
        pieces: Iterable[Any] | AsyncIterable[Any],
        *,
        status: int = 200,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not hasattr(pieces, "__iter__") and not hasattr(pieces, "__aiter__"):
            raise TypeError(f"the pieces of a stream are a {type(pieces).__name__}, which cannot be iterated")
        if isinstance(status, bool) or not 200 <= status <= 599 or status in (204, 304):
            raise ValueError(f"the status of a stream is {status!r}")
        told = [(str(name).lower(), str(value)) for name, value in (headers or {}).items()]
        for name, value in [*told, ("content-type", content_type or "")]:
            if name in _SERVERS or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the header {name!r} of a stream is {value!r}")
            if name == "content-type" and value:
                content_type = value
        self.pieces = pieces
        self.status = int(status)
        self.content_type = content_type
        self.headers = tuple(item for item in told if item[0] != "content-type")


def content_type_of(kind: type) -> str:
    """The media type of a stream whose first piece is of this class."""
    if issubclass(kind, bytes | bytearray | memoryview):
        return "application/octet-stream"
    if issubclass(kind, str):
        return "text/plain; charset=utf-8"
    return EVENTS_TYPE if issubclass(kind, Sse) else "application/x-ndjson"
