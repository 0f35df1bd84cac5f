"""Streamed results: what a function streams, as the caller of `Client.stream` reads it.

Imports the errors, the model and the client's own values. It is read from one thread; the function waits
while its caller does not read.
"""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from headrace.runtime.client.backend import Stream
from headrace.runtime.errors import PayloadTooLarge, StreamBroken, Unreachable
from headrace.runtime.model.stream import Sse

READ_BYTES = 256 << 10
LINE_BYTES_MAX = 64 << 20


class Streamed:
    """A function's answer as it comes. Use it in a `with` statement, or `close` it: leaving early ends the
    function. Read it in one way only: iterate it for bytes, or take `lines`, `items` or `events`.

    Each way of reading raises StreamBroken when the answer breaks off before its end.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ended = False
        self.status = stream.status
        self.headers: Mapping[str, str] = stream.headers
        """Their names are in lower case."""

    @property
    def invocation_id(self) -> str:
        """The id under which its output is kept."""
        return self.headers.get("headrace-invocation-id", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more; twice is harmless."""
        self._ended = True
        self._stream.close()

    def __iter__(self) -> Iterator[bytes]:
        """The bytes as they come, in pieces of no particular size."""
        while not self._ended:
            try:
                piece = self._stream.read(READ_BYTES)
            except (Unreachable, StreamBroken) as error:
                detail: dict[str, object] = {
                    "code": StreamBroken.code, "message": str(error), "invocation_id": self.invocation_id,
                }  # fmt: skip
                raise StreamBroken(f"the stream broke off: {error}", detail) from None
            if not piece:
                self._ended = True
                return
            yield piece

    def lines(self) -> Iterator[str]:
        """The lines of text, without their ends. Raises PayloadTooLarge for one above 64 MiB."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        parts: list[str] = []
        held = 0
        for piece in self:
            text = decoder.decode(piece)
            held += len(text)
            *whole, rest = text.split("\n")
            for line in whole:
                parts.append(line)
                yield "".join(parts).removesuffix("\r")
                parts, held = [], len(rest)
            parts.append(rest)
            if held > LINE_BYTES_MAX:
                raise PayloadTooLarge(held, LINE_BYTES_MAX)
        parts.append(decoder.decode(b"", True))
        if last := "".join(parts):
            yield last

    def items(self) -> Iterator[Any]:
        """The values of lines of JSON."""
        for line in self.lines():
            if line.strip():
                yield json.loads(line)

    def events(self) -> Iterator[Sse]:
        """The server-sent events; `data` is text.

        Source: "Interpreting an event stream", HTML Living Standard, section 9.2.6; lines must end in a line
        feed, with or without a carriage return before it, which is how a node sends them.
        """
        data: list[str] = []
        event: str | None = None
        id: str | None = None
        retry_s: float | None = None
        for line in self.lines():
            if not line:
                if data:
                    yield Sse("\n".join(data), event, id, retry_s)
                data, event, retry_s = [], None, None
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                event = value
            elif name == "id" and "\0" not in value:
                id = value
            elif name == "retry" and value.isdecimal():
                retry_s = int(value) / 1000
