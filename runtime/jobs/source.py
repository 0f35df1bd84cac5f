"""Byte sources: what a plan and a chunk read from.

Imports the error tree only. A source is opened for a range and read forward; nothing here holds a whole
object.
"""

import io
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO, Protocol, cast

from headrace.runtime.errors import PreconditionFailed
from headrace.runtime.jobs.bad_input import InputChanged

BLOCK_BYTES = 1 << 18
"""How much is searched at a time: small enough to stay in a core's cache between being read and being
searched.
"""
TEXT_BYTES = 1 << 15
"""How much is decoded at a time."""


class ByteSource(Protocol):
    """Bytes that can be read from any offset. They must not change while they are planned or read."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def open(self, start: int, end: int) -> BinaryIO:
        """A stream over `[start, end)`, with `0 <= start < end <= size`. The caller closes it."""
        ...


class Objects(Protocol):
    """What an `ObjectSource` asks of an object store."""

    def head(self, bucket: str, key: str) -> Any:
        """The object's `size` in bytes and `etag`, as attributes."""
        ...

    def open(
        self, bucket: str, key: str, *, start: int = 0, end: int | None = None, if_match: str | None = None
    ) -> BinaryIO:
        """A stream over `[start, end)` of the object; raises when its ETag is not `if_match`."""
        ...


class ObjectSource:
    """An object of a store, pinned to one ETag: a read raises InputChanged when it was replaced
    meanwhile.

    Args:
        size: bytes, when the caller knows them; otherwise asked of the store at the first use.
    """

    def __init__(
        self, store: Objects, bucket: str, *, key: str, etag: str | None = None, size: int | None = None
    ) -> None:
        self.bucket, self.key, self.etag = bucket, key, etag
        self._store, self._size = store, size

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = int(self._store.head(self.bucket, self.key).size)
        return self._size

    def open(self, start: int, end: int) -> BinaryIO:
        try:
            return self._store.open(self.bucket, self.key, start=start, end=end, if_match=self.etag)
        except PreconditionFailed as error:
            raise InputChanged(*error.args) from None


class BytesSource:
    """Bytes already in memory, for tests and for inputs that came inside a request."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def open(self, start: int, end: int) -> BinaryIO:
        return io.BytesIO(self._data[start:end])


def blocks(source: ByteSource, start: int, *, end: int, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The range in blocks of exactly `block_bytes`, the last one shorter.

    A network stream gives what has arrived; blocks are filled up so that a plan never depends on timing.
    Raises EOFError when the source ends before `end`.
    """
    if start >= end:
        return
    with closing(source.open(start, end)) as stream:
        left = end - start
        while left:
            wanted = min(block_bytes, left)
            block = stream.read(wanted)
            while len(block) < wanted:
                more = stream.read(wanted - len(block))
                if not more:
                    raise EOFError(f"the input ended {left - len(block):,} bytes early, before byte {end:,}")
                block += more
            left -= wanted
            yield block


def text_lines(
    source: ByteSource, start: int, *, end: int, encoding: str, newline: str = ""
) -> io.TextIOWrapper:
    """The range as text. Iterating gives lines with their ends kept, as `open(newline=newline)` does.

    The caller closes it. Its reads raise UnicodeDecodeError at bytes of another encoding, and EOFError when
    the source ends before `end`.
    """
    stream: BinaryIO = source.open(start, end) if start < end else io.BytesIO()
    return io.TextIOWrapper(
        cast(BinaryIO, _Readable(stream, end - start)), encoding=encoding, newline=newline
    )


class _Readable(io.BufferedIOBase):
    """A store's stream below Python's text reader: stores promise `read` and `close` only.

    The text reader asks for 8 KiB at a time and takes what it is given; larger pieces save it calls.
    """

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream, self._left = stream, left

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        data = self._stream.read(TEXT_BYTES)
        self._left -= len(data)
        if not data and self._left > 0:
            raise EOFError(f"the input ended {self._left:,} bytes early")
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        return b"".join(iter(self.read1, b""))

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
