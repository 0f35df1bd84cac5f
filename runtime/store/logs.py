"""Logs: what each attempt printed, in append-only segment files beside the database.

Imports the floor and its own room. A segment that is full is sealed with an index of (invocation, offset)
pairs sorted by invocation, which is searched on disk; only the segment being written has an index in memory,
so that memory does not grow with what is kept. Indexes are made again by scanning where they are missing.
Nothing here is synced: a power cut may lose the last seconds of output, never an outcome, which is the
database's.
"""

import bisect
import contextlib
import errno
import os
import struct
import threading
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headrace.runtime.errors import ReadOnlyStorage, StorageFull

SEGMENT_BYTES = 8 << 20
"""A segment is sealed when it has grown to this size; its last record may pass it."""

BUFFER_BYTES_MAX = 1 << 20
"""Output held back between flushes; beyond it `append` writes at once."""

_FRAME = struct.Struct("<II")  # checksum of the body, bytes of the body
_HEAD = struct.Struct(
    "<qidQHB"
)  # invocation, attempt, at, total bytes, bytes of the function's name, of the outcome
_INDEX_HEAD = struct.Struct(
    "<4sIQd"
)  # magic, count, bytes of the segment that are sound, moment of its last record
_PAIR = struct.Struct("<qQ")  # invocation, offset
_MAGIC = b"HRX1"
_OFFSET_BITS = 40


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt printed: `output` of the `total_bytes` there were, head and tail when it was cut.

    `at` is when the attempt ended, in epoch seconds; `outcome` its kind.
    """

    invocation_id: int
    attempt: int
    function: str
    at: float
    output: bytes
    total_bytes: int
    outcome: str


class _Pairs:
    """The index of the segment being written: 16 bytes a record, in the order of their offsets."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._offsets = array("q")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: int, offset: int) -> None:
        self._ids.append(id)
        self._offsets.append(offset)

    def cut(self, offset: int) -> int:
        """Forget the records from an offset on. Returns how many there were."""
        kept = bisect.bisect_left(self._offsets, offset)
        gone = len(self) - kept
        del self._ids[kept:], self._offsets[kept:]
        return gone

    def of(self, id: int) -> list[int]:
        """The offsets of an invocation's records."""
        ids = self._ids
        return [self._offsets[at] for at in range(len(ids)) if ids[at] == id] if id in ids else []

    def sorted(self) -> list[tuple[int, int]]:
        """(invocation, offset) of each, by invocation."""
        return sorted(zip(self._ids, self._offsets, strict=True))

    def copy(self) -> "_Pairs":
        twin = _Pairs()
        twin._ids, twin._offsets = self._ids[:], self._offsets[:]
        return twin


class _Segment:
    """One file. `size` counts its sound bytes; the index's facts are filled in when it is sealed or first
    asked for.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.number = int(path.stem)
        self.size = size
        self.last_at = 0.0
        self.pairs: _Pairs | None = None  # of the segment being written only

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(".idx")


class LogStore:
    """The segments of one folder, which one process owns. Every method may be called from any thread.

    What `append` was given is found by every read at once, and is in the file after `flush`, which the caller
    calls every second or so. `dropped` counts entries that were lost because the disk was full.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._lock = threading.RLock()
        self._segments: list[_Segment] = []
        self._fd: int | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0
        self.dropped = 0

    def start(self) -> None:
        """Open the folder; a record that a crash tore is cut off. Raises ReadOnlyStorage."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(path for path in self._folder.glob("*.log") if path.stem.isdigit())
            self._segments = [_Segment(path, path.stat().st_size) for path in paths]
            if self._segments:
                self._resume(self._segments[-1])
            else:
                self._open(1)
        except OSError as error:
            raise ReadOnlyStorage(str(self._folder)) from error

    def stop(self) -> None:
        """Write what is held back and close. Twice is harmless."""
        with self._lock:
            if self._fd is not None:
                try:
                    self.flush()
                finally:
                    os.close(self._fd)
                    self._fd = None

    # ---- writing ----

    def append(
        self,
        invocation_id: int,
        attempt: int,
        function: str,
        at: float,
        output: bytes,
        total_bytes: int,
        outcome: str,
    ) -> None:
        """Add one attempt's output. Never raises for a full disk: the entry is dropped and counted."""
        name, kind = function.encode()[:65535], outcome.encode()[:255]
        body = b"".join(
            (_HEAD.pack(invocation_id, attempt, at, total_bytes, len(name), len(kind)), name, kind, output)
        )
        with self._lock:
            if self._fd is None:
                self.dropped += 1
                return
            segment = self._segments[-1]
            if segment.size and segment.size + len(body) > self._segment_bytes:
                with contextlib.suppress(StorageFull, ReadOnlyStorage):  # counted by `flush`
                    self._rotate()
                segment = self._segments[-1]
            assert segment.pairs is not None
            segment.pairs.add(invocation_id, segment.size)
            segment.size += _FRAME.size + len(body)
            segment.last_at = max(segment.last_at, at)
            self._buffer += (_FRAME.pack(zlib.crc32(body), len(body)), body)
            self._buffered += _FRAME.size + len(body)
            if self._buffered >= BUFFER_BYTES_MAX:
                with contextlib.suppress(StorageFull, ReadOnlyStorage):
                    self.flush()

    def flush(self) -> None:
        """Write what is held back. Raises StorageFull or ReadOnlyStorage, after dropping it."""
        with self._lock:
            if not self._buffer or self._fd is None:
                return
            segment = self._segments[-1]
            begin = segment.size - self._buffered
            data = memoryview(b"".join(self._buffer))
            self._buffer, self._buffered = [], 0
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as error:
                assert segment.pairs is not None
                self.dropped += segment.pairs.cut(begin)
                segment.size = begin
                with contextlib.suppress(OSError):  # a disk that became read-only
                    os.ftruncate(self._fd, begin)
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                raise (StorageFull if full else ReadOnlyStorage)(str(self._folder)) from error

    def expire(self, *, before: float, bytes_max: int) -> int:
        """Remove whole segments: those whose last entry is older than `before`, then the oldest above
        `bytes_max` in all.

        Returns the number of segments removed. The segment being written stays, unless all of it is too old.
        """
        with self._lock:
            current = self._segments[-1]
            if current.size and current.last_at < before:
                self._rotate()
            sealed, total = self._segments[:-1], sum(segment.size for segment in self._segments)
            gone: list[_Segment] = []
            for segment in sealed:
                self._index(segment)
                if segment.last_at >= before and total <= bytes_max:
                    break
                gone.append(segment)
                total -= segment.size
            self._segments = self._segments[len(gone) :]
        for segment in gone:
            segment.path.unlink(missing_ok=True)
            segment.index_path.unlink(missing_ok=True)
        return len(gone)

    # ---- reading ----

    def read(self, invocation_id: int) -> list[LogEntry]:
        """All attempts of one invocation, the oldest first."""
        found: list[LogEntry] = []
        for segment, pairs in self._settled():
            offsets = (
                _search(self._index(segment), invocation_id) if pairs is None else pairs.of(invocation_id)
            )
            if offsets:
                with _gone(), segment.path.open("rb") as file:
                    found += [
                        entry for offset in offsets if (entry := _at(file.fileno(), offset)) is not None
                    ]
        return found

    def tail(
        self, *, function: str | None = None, after_position: int | None = None, limit: int = 100
    ) -> tuple[list[LogEntry], int]:
        """Up to `limit` entries after a position, the oldest first, and the position to go on from.

        Without a position: the newest `limit`, and the end. Positions grow, and stay valid when segments are
        removed.
        """
        segments = [segment for segment, _ in self._settled()]
        if after_position is None:
            newest: list[LogEntry] = []
            for segment in reversed(segments):
                own = [entry for _, entry in _entries(segment) if function in (None, entry.function)]
                newest = own[-(limit - len(newest)) :] + newest if limit > len(newest) else newest
                if len(newest) >= limit:
                    break
            last = segments[-1]
            return newest, last.number << _OFFSET_BITS | last.size
        number, offset = after_position >> _OFFSET_BITS, after_position & ((1 << _OFFSET_BITS) - 1)
        entries: list[LogEntry] = []
        position = after_position
        for segment in segments:
            if segment.number < number:
                continue
            for end, entry in _entries(segment, offset if segment.number == number else 0):
                position = segment.number << _OFFSET_BITS | end
                if function in (None, entry.function):
                    entries.append(entry)
                    if len(entries) >= limit:
                        return entries, position
        return entries, position

    def search(self, text: str, *, function: str | None = None, limit: int = 100) -> list[LogEntry]:
        """Entries whose output holds `text`, the newest first. Reads segments until `limit` are found."""
        wanted, found = text.encode(), list[LogEntry]()
        for segment, _ in reversed(self._settled()):
            hits = [
                entry
                for _, entry in _entries(segment)
                if wanted in entry.output and function in (None, entry.function)
            ]
            found += reversed(hits)
            if len(found) >= limit:
                break
        return found[:limit]

    def health(self) -> dict[str, int]:
        """Segments, their bytes, and entries dropped."""
        with self._lock:
            return {
                "segments": len(self._segments),
                "bytes": sum(segment.size for segment in self._segments),
                "dropped": self.dropped,
            }

    # ---- within ----

    def _settled(self) -> list[tuple[_Segment, _Pairs | None]]:
        """The segments with everything written, to be read without the lock: what is in a file never changes.

        Each is a copy, since the last one grows meanwhile; beside it its pairs, where they are not on disk.
        """
        with self._lock:
            with contextlib.suppress(StorageFull, ReadOnlyStorage):
                self.flush()
            copies: list[tuple[_Segment, _Pairs | None]] = []
            for segment in self._segments:
                if segment.pairs is None:
                    copies.append((segment, None))
                else:
                    copies.append((_Segment(segment.path, segment.size), segment.pairs.copy()))
            return copies

    def _open(self, number: int) -> None:
        path = self._folder / f"{number:010d}.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
        segment = _Segment(path, 0)
        segment.pairs = _Pairs()
        self._segments.append(segment)

    def _resume(self, segment: _Segment) -> None:
        """Go on in the last segment, from its last sound record."""
        pairs, size, last_at = _scan(segment.path)
        segment.pairs, segment.size, segment.last_at = pairs, size, last_at
        segment.index_path.unlink(missing_ok=True)
        self._fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(self._fd, size)

    def _rotate(self) -> None:
        """Seal the segment being written and begin the next."""
        try:
            self.flush()
            segment = self._segments[-1]
            assert segment.pairs is not None
            _write_index(segment, segment.pairs)
            self._open(segment.number + 1)
            segment.pairs = None
        except OSError as error:
            raise StorageFull(str(self._folder)) from error

    def _index(self, segment: _Segment) -> Path:
        """The index of a sealed segment, made again when it is missing or does not fit."""
        try:
            with segment.index_path.open("rb") as file:
                magic, count, size, last_at = _INDEX_HEAD.unpack(file.read(_INDEX_HEAD.size))
                whole = os.fstat(file.fileno()).st_size == _INDEX_HEAD.size + count * _PAIR.size
            if magic == _MAGIC and whole:
                segment.size, segment.last_at = size, last_at
                return segment.index_path
        except (FileNotFoundError, struct.error):
            pass  # made below
        with _gone():
            pairs, segment.size, segment.last_at = _scan(segment.path)
            _write_index(segment, pairs)
        return segment.index_path


def _gone() -> contextlib.suppress:
    """Retention may remove a segment while it is read: then it has no entries."""
    return contextlib.suppress(FileNotFoundError)


def _write_index(segment: _Segment, pairs: _Pairs) -> None:
    part = segment.index_path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(_INDEX_HEAD.pack(_MAGIC, len(pairs), segment.size, segment.last_at))
        file.write(b"".join(_PAIR.pack(*pair) for pair in pairs.sorted()))
    part.replace(segment.index_path)


def _search(index: Path, invocation_id: int) -> list[int]:
    """Offsets of an invocation's records, by binary search in the file."""
    with _gone(), index.open("rb") as file:
        fd = file.fileno()
        count = _INDEX_HEAD.unpack(os.pread(fd, _INDEX_HEAD.size, 0))[1]

        def pair(place: int) -> tuple[int, int]:
            id, offset = _PAIR.unpack(os.pread(fd, _PAIR.size, _INDEX_HEAD.size + place * _PAIR.size))
            return id, offset

        begin = bisect.bisect_left(range(count), invocation_id, key=lambda place: pair(place)[0])
        offsets: list[int] = []
        while begin < count and pair(begin)[0] == invocation_id:
            offsets.append(pair(begin)[1])
            begin += 1
        return offsets
    return []


def _at(fd: int, offset: int) -> LogEntry | None:
    frame = os.pread(fd, _FRAME.size, offset)
    if len(frame) < _FRAME.size:
        return None
    checksum, length = _FRAME.unpack(frame)
    body = os.pread(fd, length, offset + _FRAME.size)
    return _decode(body) if len(body) == length and zlib.crc32(body) == checksum else None


def _entries(segment: _Segment, offset: int = 0) -> Iterator[tuple[int, LogEntry]]:
    """The sound records from an offset on, each with the offset of its end."""
    with _gone():
        data = memoryview(segment.path.read_bytes())[: segment.size]
        for begin, end in _frames(data, offset):
            yield end, _decode(bytes(data[begin:end]))


def _scan(path: Path) -> tuple[_Pairs, int, float]:
    """A segment's pairs, its sound bytes, and the moment of its last record."""
    data = memoryview(path.read_bytes())
    pairs = _Pairs()
    size, last_at = 0, 0.0
    for begin, end in _frames(data, 0):
        id, _, at, *_ = _HEAD.unpack_from(data, begin)
        pairs.add(id, begin - _FRAME.size)
        size, last_at = end, max(last_at, at)
    return pairs, size, last_at


def _frames(data: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """The bodies of the records from an offset on, up to the first that is torn."""
    while offset + _FRAME.size <= len(data):
        checksum, length = _FRAME.unpack_from(data, offset)
        begin = offset + _FRAME.size
        offset = begin + length
        if length < _HEAD.size or offset > len(data) or zlib.crc32(data[begin:offset]) != checksum:
            return
        yield begin, offset


def _decode(body: bytes) -> LogEntry:
    id, attempt, at, total_bytes, name_bytes, kind_bytes = _HEAD.unpack_from(body)
    name_end = _HEAD.size + name_bytes
    kind_end = name_end + kind_bytes
    return LogEntry(
        invocation_id=id,
        attempt=attempt,
        function=body[_HEAD.size : name_end].decode("utf-8", "replace"),
        at=at,
        output=body[kind_end:],
        total_bytes=total_bytes,
        outcome=body[name_end:kind_end].decode("utf-8", "replace"),
    )
