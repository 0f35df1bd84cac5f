"""MemoryStore: buckets in the memory of this process, for tests.

Imports the floor and this room. It keeps to the contract of every other store, and it tells of each object
that comes or goes, as a server's notifications do. A pickled one is found again in the process that made it,
and nowhere else.
"""

import builtins
import io
import itertools
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from headrace.runtime.clock import Clock, SystemClock
from headrace.runtime.errors import (
    InvalidSettings,
    NoSuchBucket,
    NoSuchObject,
    PreconditionFailed,
    StorageFull,
)
from headrace.runtime.objects.folder_file import check_content_type, type_of_name
from headrace.runtime.objects.key import SYSTEM_BUCKET, check_bucket, check_key
from headrace.runtime.objects.protocol import LIST_LIMIT_MAX, BucketNotEmpty, ObjectInfo

BYTES_MAX = 1 << 30
MOMENTS_MAX = 100_000
"""Keys whose last change is remembered, the latest ones."""

_APART_NS = 2_000_000
_PIECE_BYTES = 1 << 20
_WINDOW = 1_000

Told = Callable[[str, ObjectInfo], None]
"""Hears S3's name of what happened, and the object as it came, or as it was when it went."""


class MemoryStore:
    """An ObjectStore in this process.

    Args:
        clock: dates the objects; the system's by default.
        bytes_max: what all objects may hold together; beyond it a put raises StorageFull.
        told: told of each object, on the thread that put or deleted it.
    """

    def __init__(
        self, *, clock: Clock | None = None, bytes_max: int = BYTES_MAX, told: Told | None = None
    ) -> None:
        self.bytes_max = bytes_max
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._buckets: dict[str, _Bucket] = {}
        self._told = told
        self._bytes = 0
        self._moments: dict[tuple[str, str], int] = {}
        """When each key last changed, in ns; also of keys that have gone."""
        self._number = next(_numbers)
        _stores[self._number] = self

    def __reduce__(self) -> tuple[Callable[[int], "MemoryStore"], tuple[int]]:
        return _find, (self._number,)

    # ---- buckets ----

    def buckets(self) -> builtins.list[str]:
        with self._lock:
            return sorted(name for name in self._buckets if name != SYSTEM_BUCKET)

    def make_bucket(self, name: str) -> None:
        check_bucket(name)
        with self._lock:
            self._buckets.setdefault(name, _Bucket())

    def remove_bucket(self, name: str) -> None:
        with self._lock:
            if self._bucket(name).objects:
                raise BucketNotEmpty(name)
            del self._buckets[name]

    # ---- objects ----

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        return self._find(bucket, key, version_id)[0]

    def open(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        end: int | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> BinaryIO:
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no byte range: start {start}, end {end}")
        info, data = self._find(bucket, key, version_id)
        if if_match is not None and if_match != info.etag:
            raise PreconditionFailed(bucket, key, if_match, info.etag)
        return io.BytesIO(data[start:end])

    def get(self, bucket: str, key: str, *, version_id: str | None = None) -> bytes:
        return self._find(bucket, key, version_id)[1]

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes | BinaryIO | Iterable[bytes],
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> ObjectInfo:
        with self.writer(
            bucket, key, content_type=content_type, if_none_match=if_none_match, if_match=if_match
        ) as writer:
            for piece in _pieces(data):
                writer.write(piece)
        return writer.info

    def writer(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> "MemoryWriter":
        if if_none_match and if_match is not None:
            raise ValueError("if_none_match and if_match exclude each other")
        check_content_type(content_type)
        self._touch()
        self._at(bucket, key)

        def commit(data: bytes) -> ObjectInfo:
            return self._commit(bucket, key, data, content_type, if_none_match, if_match)

        return MemoryWriter(commit)

    def delete(self, bucket: str, key: str) -> None:
        self._touch()
        with self._lock:
            found = self._at(bucket, key)
            if key not in found.objects:
                return
            info, _ = found.objects.pop(key)
            found.order = None
            self._bytes -= info.size
            ns = self._moment(bucket, key)
        if self._told is not None:
            gone = msgspec.structs.replace(info, sequencer=f"{ns:016x}", modified_at=ns / 1e9)
            self._told("ObjectRemoved:Delete", gone)

    def list(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> builtins.list[ObjectInfo]:
        if not 1 <= limit <= LIST_LIMIT_MAX:
            raise ValueError(f"limit must be 1 to {LIST_LIMIT_MAX}, not {limit}")
        self._touch()
        with self._lock:
            found = self._bucket(bucket)
            return [_listed(found.objects[key][0]) for key in found.page(prefix, after, limit)]

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        while page := self.list(bucket, prefix=prefix, after=after, limit=_WINDOW):
            yield from page
            if len(page) < _WINDOW:
                return
            after = page[-1].key

    # ---- within ----

    def _moment(self, bucket: str, key: str) -> int:
        """When a key changes, in ns. The clock of a test may stand, but of two states of a key the later is
        the younger by more than the millisecond to which other stores list them.
        """
        now = int(self._clock.now() * 1e9)
        ns = max(now, self._moments.pop((bucket, key), 0) + _APART_NS)
        if len(self._moments) >= MOMENTS_MAX:
            del self._moments[next(iter(self._moments))]
        self._moments[bucket, key] = ns
        return ns

    def _bucket(self, name: str) -> "_Bucket":
        found = self._buckets.get(check_bucket(name))
        if found is None:
            raise NoSuchBucket(name)
        return found

    def _at(self, bucket: str, key: str) -> "_Bucket":
        check_bucket(bucket)
        check_key(key)
        return self._bucket(bucket)

    def _find(self, bucket: str, key: str, version_id: str | None) -> tuple[ObjectInfo, bytes]:
        self._touch()
        with self._lock:
            found = self._at(bucket, key).objects.get(key)
            if found is None or version_id is not None:  # no bucket here keeps versions
                raise NoSuchObject(bucket, key)
            return found

    def _commit(
        self,
        bucket: str,
        key: str,
        data: bytes,
        content_type: str | None,
        if_none_match: bool,
        if_match: str | None,
    ) -> ObjectInfo:
        with self._lock:
            found = self._bucket(bucket)
            before = found.objects.get(key)
            etag = None if before is None else before[0].etag
            if (if_none_match and etag is not None) or (if_match is not None and etag != if_match):
                raise PreconditionFailed(bucket, key, if_match, etag)
            more = len(data) - (0 if before is None else before[0].size)
            if self._bytes + more > self.bytes_max:
                raise StorageFull(f"memory for s3://{bucket}")
            ns = self._moment(bucket, key)
            info = ObjectInfo(
                bucket, key, len(data), f"{ns:x}", ns / 1e9, f"{ns:016x}", content_type or type_of_name(key)
            )
            self._bytes += more
            found.objects[key] = info, data
            if before is None:
                found.order = None
        if self._told is not None:
            self._told("ObjectCreated:Put", info)
        return info

    def _touch(self) -> None:
        """An object is about to be looked at, read, written, listed or deleted."""


class MemoryWriter:
    """See ObjectWriter."""

    def __init__(self, commit: Callable[[bytes], ObjectInfo]) -> None:
        self._commit = commit
        self._buffer: io.BytesIO | None = None
        self._info: ObjectInfo | None = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if self._buffer is None:
            raise ValueError("the writer is not open")
        return self._buffer.write(data)

    @property
    def info(self) -> ObjectInfo:
        if self._info is None:
            raise ValueError("nothing is committed yet")
        return self._info

    def __enter__(self) -> Self:
        if self._buffer is not None or self._info is not None:
            raise ValueError("a writer serves one with block")
        self._buffer = io.BytesIO()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        buffer, self._buffer = self._buffer, None
        if error is None and buffer is not None:
            self._info = self._commit(buffer.getvalue())


class _Bucket:
    """The objects of a bucket by key, and their keys in order, made when it is asked for."""

    __slots__ = ("objects", "order")

    def __init__(self) -> None:
        self.objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self.order: list[bytes] | None = None

    def page(self, prefix: str, after: str, limit: int) -> list[str]:
        """The keys with the prefix that follow `after` by their UTF-8 bytes."""
        if self.order is None:
            self.order = sorted(key.encode() for key in self.objects)
        wanted = prefix.encode()
        begin = max(bisect_left(self.order, wanted), bisect_right(self.order, after.encode()) if after else 0)
        page = itertools.takewhile(
            lambda key: key.startswith(wanted), itertools.islice(self.order, begin, begin + limit)
        )
        return [key.decode() for key in page]


_stores: "weakref.WeakValueDictionary[int, MemoryStore]" = weakref.WeakValueDictionary()
"""The stores of this process that live, by number: what a pickled one and a URL stand for."""

_numbers = itertools.count(1)


def _find(number: int) -> MemoryStore:
    found = _stores.get(number)
    if found is None:
        raise InvalidSettings(
            "objects in memory are reached in the process that holds them only", "Use a folder of buckets."
        )
    return found


def _listed(info: ObjectInfo) -> ObjectInfo:
    return msgspec.structs.replace(info, content_type=None)


def _pieces(data: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(data, bytes):
        return (data,)
    read = getattr(data, "read", None)
    return data if read is None else iter(lambda: read(_PIECE_BYTES), b"")
