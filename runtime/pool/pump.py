"""The pump: what takes a function's stream piece by piece to the node.

Imports the floor and this room; it runs in workers. It sends no more than the node has given it credit for,
so that a caller who reads slowly holds the function up, and nothing is heaped up on the way.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable, Iterable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from headrace.runtime.model.stream import Sse, Stream, content_type_of
from headrace.runtime.pool.frame import pack
from headrace.runtime.pool.page import CLOSED, Page
from headrace.runtime.pool.result import encode_result

PIECE_BYTES = 64 << 10
"""The most that one message holds; what a function yields at once may be larger."""
PIECE_COST = 64
"""What a piece costs of the credit beside its bytes, so that tiny ones are bounded too."""

STREAMS = frozenset({GeneratorType, AsyncGeneratorType, Stream})


class Pump:
    """One stream on its way.

    Args:
        seq: the item's number.
        credit: how much may leave before the node has said more, in bytes with PIECE_COST for each piece.
        page: where the node says that nobody reads any more.
        send: takes whole frames.
        hear: reads what the node says; with True it waits for something.
        wire: the descriptor of what `hear` reads.
    """

    def __init__(
        self,
        seq: int,
        credit: int,
        *,
        page: Page,
        send: Callable[[bytes], None],
        hear: Callable[[bool], None],
        wire: int,
    ) -> None:
        self.credit = credit
        self._seq = seq
        self._words = page.words
        self._send_frame = send
        self._hear = hear
        self._wire = wire
        self._head: Stream | None = None
        self._kind = "application/x-ndjson"
        self._told = False

    @property
    def closed(self) -> bool:
        """Whether nobody reads any more."""
        return bool(self._words[CLOSED] == self._seq)

    def run(self, stream: Any) -> Any:
        """Send all of it, and end it when nobody reads any more. Returns what is to be awaited for that, or
        None when it is done.

        Raises: whatever the stream raises, and UnserialisableResult for a piece.
        """
        if isinstance(stream, Stream):
            self._head = stream
            if stream.content_type is not None:
                self._send_frame(self._opening())
            stream = stream.pieces
        if hasattr(stream, "__aiter__"):
            return self._run_async(stream)
        self._run(stream)
        return None

    def _run(self, stream: Iterable[Any]) -> None:
        pieces = iter(stream)
        try:
            for item in pieces:
                for piece in self._cut(item):
                    while self.credit <= 0 and not self.closed:
                        self._hear(True)
                    self._put(piece)
                if self.closed:
                    return
            self._end()
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    async def _run_async(self, stream: AsyncIterable[Any]) -> None:
        loop, me, more = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

        def readable() -> None:
            self._hear(False)
            more.set()
            if self.closed and me is not None:
                me.cancel()  # what the function waits for, nobody waits for any more

        pieces = aiter(stream)
        loop.add_reader(self._wire, readable)
        try:
            async for item in pieces:
                for piece in self._cut(item):
                    while self.credit <= 0 and not self.closed:
                        more.clear()
                        await more.wait()
                    self._put(piece)
                if self.closed:
                    return
            self._end()
        except asyncio.CancelledError:
            if not self.closed:
                raise
        finally:
            loop.remove_reader(self._wire)
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    def _put(self, piece: bytes) -> None:
        if self.closed:
            return
        self.credit -= len(piece) + PIECE_COST
        frame = pack({"seq": self._seq, "piece": piece}) if piece else b""
        self._send_frame(frame if self._told else self._opening() + frame)

    def _end(self) -> None:
        if not self._told:
            self._send_frame(self._opening())  # a stream of nothing is an answer as well

    def _opening(self) -> bytes:
        """The message that a stream begins, with its status and headers."""
        self._told = True
        head = self._head
        kind = self._kind if head is None or head.content_type is None else head.content_type
        headers = [] if head is None else head.headers
        told = [head.status if head is not None else 200, kind, headers]
        return pack({"seq": self._seq, "head": told})

    def _cut(self, item: Any) -> list[bytes]:
        """What one yielded value is on the wire, in pieces that a message can hold."""
        if not self._told:
            self._kind = content_type_of(type(item))
        data = encode_piece(item)
        if len(data) <= PIECE_BYTES:
            return [data] if data or not self._told else []
        view = memoryview(data)
        return [bytes(view[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]


def encode_piece(item: Any) -> bytes:
    """One yielded value's bytes. Raises: UnserialisableResult; ValueError for text that is not Unicode."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Sse):
        return _event(item)
    return encode_result(item) + b"\n"


def _event(sse: Sse) -> bytes:
    """An event's text. Source: "Interpreting an event stream", HTML Living Standard, section 9.2.6."""
    data = sse.data if isinstance(sse.data, str) else encode_result(sse.data).decode()
    lines = []
    if sse.id is not None:
        lines.append(f"id: {sse.id}")
    if sse.event is not None:
        lines.append(f"event: {sse.event}")
    if sse.retry_s is not None:
        lines.append(f"retry: {round(sse.retry_s * 1000)}")
    lines += [f"data: {line}" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return "\n".join([*lines, "", ""]).encode()


def pieces_of(stream: Any) -> Any:
    """All that a stream gives, for a caller who takes it as one result: a list, or what is to be awaited for
    one. Raises: whatever the stream raises.
    """
    found: Any = stream.pieces if isinstance(stream, Stream) else stream
    return _gather(found) if hasattr(found, "__aiter__") else list(found)


async def _gather(stream: AsyncIterable[Any]) -> list[Any]:
    pieces = aiter(stream)
    try:
        return [item async for item in pieces]
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):  # it was cancelled while it ran
                await close()
