"""S3Reader: the bytes of one state of an object, read on over broken connections.

Imports the floor and this room.
"""

import io
from typing import TYPE_CHECKING

import urllib3
from urllib3.exceptions import HTTPError

from headrace.runtime.errors import PreconditionFailed
from headrace.runtime.objects.s3_connection import Answer, S3Connection
from headrace.runtime.objects.s3_errors import ObjectServerUnavailable
from headrace.runtime.objects.s3_object import etag_in

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BREAKS_MAX = 5
_PIECE_BYTES = 512 << 10
_AT_ONCE_BYTES = 32 << 20

_DRAIN_BYTES_MAX = 64 << 10


class S3Reader(io.RawIOBase):
    """Reads what an answered GET began.

    When the connection breaks, it asks for the rest of the same state: `If-Match` with the ETag of the first
    answer, so that two states are never mixed. Raises PreconditionFailed when that state is gone, and
    ObjectServerUnavailable when five answers in a row broke before a byte came.

    Args:
        answer: with a stream.
        start: the offset of the stream's first byte in the object.
        left: bytes to deliver.
    """

    def __init__(
        self,
        connection: S3Connection,
        answer: Answer,
        *,
        bucket: str,
        key: str,
        query: dict[str, str],
        start: int,
        left: int,
    ) -> None:
        assert answer.stream is not None
        self._connection, self._stream = connection, answer.stream
        self._bucket, self._key, self._query = bucket, key, query
        self._etag = etag_in(answer.headers)
        self._at, self._left = start, left
        self._breaks, self._broken = 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with memoryview(buffer).cast("B") as view:
            # Larger ones beside the caller's own go back to the system each time, and come as new pages.
            piece = self._piece(min(len(view), _PIECE_BYTES))
            view[: len(piece)] = piece
            return len(piece)

    def readall(self) -> bytes:
        first = self._piece(min(self._left, _AT_ONCE_BYTES))
        if not self._left:
            return first
        # Grows in place, and gives away what it holds without a copy: less than joining pieces costs.
        whole = io.BytesIO()
        whole.write(first)
        while self._left:
            whole.write(self._piece(_PIECE_BYTES))
        return whole.getvalue()

    def close(self) -> None:
        if not self.closed:
            if 0 < (self._stream.length_remaining or 0) <= _DRAIN_BYTES_MAX:
                # Reading a little is cheaper than a new connection. Failing is no reader's concern any more.
                self._stream.drain_conn()
            self._stream.close()
        super().close()

    def _piece(self, wanted: int) -> bytes:
        """Up to `wanted` bytes, none only at the end."""
        while wanted and self._left:
            try:
                # What a broken read had got is lost, so a way that broke once is gone in small steps.
                most = _PIECE_BYTES if self._broken else wanted
                piece = self._stream.read(min(most, wanted, self._left), decode_content=False)
                if not piece:
                    raise urllib3.exceptions.ProtocolError("the answer ended early")
            except (HTTPError, OSError) as error:
                self._go_on(error)
                continue
            self._breaks = 0
            self._at += len(piece)
            self._left -= len(piece)
            return piece
        return b""

    def _go_on(self, error: Exception) -> None:
        self._stream.close()
        self._breaks, self._broken = self._breaks + 1, True
        if self._breaks > _BREAKS_MAX:
            raise ObjectServerUnavailable(self._connection.endpoint.base, str(error)) from error
        answer = self._connection.open(
            f"/{self._bucket}/{self._key}",
            query=self._query,
            headers={"range": f"bytes={self._at}-{self._at + self._left - 1}", "if-match": f'"{self._etag}"'},
        )
        if answer.stream is None or answer.status != 206:
            if answer.stream is not None:
                answer.stream.close()
            raise PreconditionFailed(self._bucket, self._key, self._etag, None) from error
        self._stream = answer.stream
