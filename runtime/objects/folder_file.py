"""The file of one object: its description, and a reader that never mixes two states of it.

Imports the floor and the protocol.
"""

import functools
import io
import mimetypes
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from headrace.runtime.errors import PreconditionFailed
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.trail import NAME as TRAIL
from headrace.runtime.objects.trail import Trail

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CONTENT_TYPE_ATTRIBUTE = b"user.headrace.content_type"
_TRAIL_ATTRIBUTE = b"user.headrace.trail"
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,255}")
_READ_ALL_BYTES = 8 << 20


def describe(bucket: str, key: str, status: os.stat_result, *, descriptor: int | None = None) -> ObjectInfo:
    """The object of a file; with what was given along with it when it is open as `descriptor`."""
    return ObjectInfo(
        bucket,
        key,
        status.st_size,
        etag_of(status),
        status.st_mtime_ns / 1e9,
        f"{max(status.st_mtime_ns, 0):016x}",
        None if descriptor is None else content_type_of(descriptor, key),
        None,
        None if descriptor is None else metadata_of(descriptor),
    )


def etag_of(status: os.stat_result) -> str:
    """The ETag of a file in one state: a write changes its size or time, a replacement its inode."""
    return f"{status.st_size:x}-{max(status.st_mtime_ns, 0):x}-{status.st_ino:x}"


def content_type_of(descriptor: int, key: str) -> str | None:
    """The type given with the object, or else what its name suggests."""
    if hasattr(os, "getxattr"):
        with suppress(OSError, UnicodeDecodeError):
            stored = os.getxattr(descriptor, _CONTENT_TYPE_ATTRIBUTE).decode("ascii")
            if _CONTENT_TYPE.fullmatch(stored):
                return stored
    return type_of_name(key)


def type_of_name(key: str) -> str | None:
    """The content type that a key's ending suggests."""
    return _types().get(os.path.splitext(key)[1].lower())


def metadata_of(descriptor: int) -> dict[str, str]:
    """What was given along with the object; of that, a folder keeps the trail only."""
    if hasattr(os, "getxattr"):
        with suppress(OSError, UnicodeDecodeError):
            return {TRAIL: os.getxattr(descriptor, _TRAIL_ATTRIBUTE).decode()}
    return {}


def remember_trail(descriptor: int, trail: Trail) -> None:
    """Store the trail with the file, on file systems with extended attributes; on others it is lost."""
    if hasattr(os, "setxattr"):
        with suppress(OSError):
            os.setxattr(descriptor, _TRAIL_ATTRIBUTE, str(trail).encode())


def check_content_type(content_type: str | None) -> str | None:
    """The content type, if it may be stored. Raises: ValueError."""
    if content_type is not None and not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError("content_type must be 1 to 255 printable ASCII characters")
    return content_type


def remember_content_type(descriptor: int, content_type: str) -> None:
    """Store the type with the file, on file systems with extended attributes; on others it stays guessed."""
    if hasattr(os, "setxattr"):
        with suppress(OSError):
            os.setxattr(descriptor, _CONTENT_TYPE_ATTRIBUTE, content_type.encode())


@functools.cache
def _types() -> dict[str, str]:
    # Only the table that comes with Python: the machine's own would give one key different types on different
    # nodes.
    return dict(mimetypes.MimeTypes().types_map[True])


class UnchangedFile(io.RawIOBase):
    """Reads a range of an open file, and fails once the file is not in the state in which it was opened."""

    def __init__(self, descriptor: int, bucket: str, key: str, status: os.stat_result, *, left: int) -> None:
        self._file = io.FileIO(descriptor, "rb")
        self._bucket, self._key, self._etag, self._left = bucket, key, etag_of(status), left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with memoryview(buffer).cast("B") as view, view[: self._left] as piece:
            count = self._file.readinto(piece)
        self._check()
        self._left -= count
        return count

    def readall(self) -> bytes:
        pieces = []
        while self._left:
            pieces.append(self._file.read(min(self._left, _READ_ALL_BYTES)))
            self._check()
            self._left -= len(pieces[-1])
        return b"".join(pieces)

    def _check(self) -> None:
        # Looked at after a read, so that a change is seen if any byte of it was. A file that became shorter
        # is a changed one, so what passes here has all the bytes it had.
        found = etag_of(os.fstat(self._file.fileno()))
        if found != self._etag:
            raise PreconditionFailed(self._bucket, self._key, self._etag, found)

    def close(self) -> None:
        self._file.close()
        super().close()
