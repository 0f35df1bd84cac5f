"""Frames: messages over a stream socket, each four bytes of length and then msgpack.

Imports nothing of Headrace. A frame larger than FRAME_BYTES_MAX is refused by whoever reads it, so that a
damaged length cannot make a reader allocate without bound.
"""

from typing import Any

import msgspec

FRAME_BYTES_MAX = 96 << 20
HEADER_BYTES = 4

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class FrameTooLarge(ValueError):
    """A length above FRAME_BYTES_MAX: (bytes)."""


def pack(message: Any) -> bytes:
    """The message as one frame. Raises: FrameTooLarge; TypeError for what msgpack cannot hold."""
    return wrap(encode(message))


def wrap(body: bytes) -> bytes:
    """A frame around an encoded body. Raises: FrameTooLarge."""
    if len(body) > FRAME_BYTES_MAX:
        raise FrameTooLarge(len(body))
    return len(body).to_bytes(HEADER_BYTES, "little") + body


class FrameReader:
    """Cuts a stream, given in pieces of any size, into the messages that it holds."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[Any]:
        """The messages that `piece` completes, in order, decoded.

        Raises: FrameTooLarge; msgspec.DecodeError when a body is not msgpack. The stream is of no use after
        either.
        """
        data: bytes | bytearray
        if self._rest:
            self._rest += piece
            data = self._rest
        else:
            data = piece
        have = len(data)
        at = 0
        messages = []
        while have - at >= HEADER_BYTES:
            size = int.from_bytes(data[at : at + HEADER_BYTES], "little")
            if size > FRAME_BYTES_MAX:
                raise FrameTooLarge(size)
            end = at + HEADER_BYTES + size
            if end > have:
                break
            messages.append(decode(data[at + HEADER_BYTES : end]))
            at = end
        if data is self._rest:
            if at:
                del self._rest[:at]
        elif at < have:
            self._rest += data[at:]
        return messages
