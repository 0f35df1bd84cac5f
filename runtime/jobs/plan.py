"""Plans: an input cut into byte ranges that hold whole records.

Imports this room's pure code. A plan of quoted CSV made by counting is a good guess that its chunks prove or
refute; see `Chunk.verify` for the other half of the promise.
"""

import codecs
import csv
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from headrace.runtime.jobs.bad_input import BadEncoding, BadRecord, InvalidSplit
from headrace.runtime.jobs.charset import MARK_BYTES_MAX, Charset, Kind, settle
from headrace.runtime.jobs.csv_cut import NoCut, Records, bounded_lines, quoted_cuts, search_bytes
from headrace.runtime.jobs.source import BLOCK_BYTES, ByteSource, blocks, text_lines
from headrace.runtime.jobs.split import Csv, Items, TextSplit

RANGES_MAX = 1_000_000
HEADER_BYTES_MAX = 1 << 20
LEAP_BYTES_MIN = 1 << 20
"""From this chunk size on, opening a source at each cut beats reading what lies between."""
WINDOW_BYTES = 1 << 15
"""What is read first where a line is expected to end."""
ITEMS_BYTES_MAX = 1 << 28
"""A JSON array is decoded whole, so its object has this limit: 256 MiB."""

QUOTING_HINT = (
    "A quote that nothing closes swallows the rest of the file; if quotes mean nothing, set quoting=False."
)


class Range(NamedTuple):
    """Bytes `[start, end)` of an object, or positions in a list of items; never empty."""

    start: int
    end: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one object is cut.

    Attributes:
        header: the columns' names, from the file or the split; None if there are none.
        body_start: where records begin, after byte order mark and header record; in bytes.
        bom: bytes of the byte order mark, 0 to 4.
        encoding: the codec that decodes from any record on (the byte order is settled, marks are not
            expected).
        size: bytes of the object.
        ranges: in order and without gaps from the plan's start to `size`; none if nothing is left.
        sequential_from: the offset from which ranges were found by parsing and need no check; None if
            nowhere.
    """

    header: tuple[str, ...] | None
    body_start: int
    bom: int
    encoding: str
    size: int
    ranges: tuple[Range, ...]
    sequential_from: int | None = None

    @property
    def sequential(self) -> bool:
        """Whether some of the ranges were found by parsing."""
        return self.sequential_from is not None

    def proven(self, part: Range) -> bool:
        """Whether the range's end needs no check by its chunk."""
        return self.sequential_from is not None and part.start >= self.sequential_from


def plan(
    spec: TextSplit,
    source: ByteSource,
    *,
    start: int = 0,
    sequential: bool = False,
    bucket: str = "",
    key: str = "",
) -> Plan:
    """Cut `[start, size)` of an object into ranges of about `spec.chunk` bytes, each of whole records.

    Args:
        start: 0, or a record's start (the start of a chunk that raised `BadCut`).
        sequential: find records by parsing. Slower (tens of MB/s instead of about 2 GB/s), and right for any
            file.
        bucket, key: for error messages.

    The same arguments and bytes always give the same plan. Memory: one block and the list of ranges.

    Raises: InvalidSplit if there would be more than `RANGES_MAX` ranges; BadRecord for a header above 1 MiB
    or a field above 64 MiB; BadEncoding if the header, or text of a wide encoding, cannot be decoded; what
    the source raises.
    """
    size = source.size
    head = b"".join(blocks(source, 0, end=min(MARK_BYTES_MAX, size)))
    charset, bom = settle(spec.encoding, head)
    header, body_start = None, bom
    if isinstance(spec, Csv):
        header, body_start = _header(spec, source, charset=charset, bom=bom, bucket=bucket, key=key)
    begin = max(start, body_start)

    ranges: list[Range] = []
    sequential_from: int | None = None
    if sequential or spec.sequential:
        sequential_from = begin
    else:
        cuts = _counted(spec, source, start=begin)
        try:
            begin = _collect(cuts, ranges, begin)
        except NoCut as gave_up:
            begin = sequential_from = gave_up.start
    if sequential_from is not None:
        begin = _collect(
            _parsed(spec, source, charset=charset, start=begin, bucket=bucket, key=key), ranges, begin
        )
    if begin < size:
        ranges.append(Range(begin, size))
    return Plan(
        header=header,
        body_start=body_start,
        bom=bom,
        encoding=charset.codec,
        size=size,
        ranges=tuple(ranges),
        sequential_from=sequential_from,
    )


def plan_items(spec: Items, count: int) -> tuple[Range, ...]:
    """Cut `count` items into ranges of `spec.batch` positions. Raises InvalidSplit above `RANGES_MAX`
    ranges.
    """
    if -(-count // spec.batch) > RANGES_MAX:
        raise _too_many("Items(batch=)")
    return tuple(Range(at, min(at + spec.batch, count)) for at in range(0, count, spec.batch))


def read_items(source: ByteSource, *, bucket: str = "", key: str = "") -> list[msgspec.Raw]:
    """The items of an object that holds a JSON array, each as undecoded JSON.

    Raises: BadRecord if it is no JSON array, or above `ITEMS_BYTES_MAX`; BadEncoding if it is not UTF-8.
    """
    if source.size > ITEMS_BYTES_MAX:
        why = f"a JSON array is read whole, and {source.size:,} bytes are above {ITEMS_BYTES_MAX:,}"
        raise BadRecord(bucket, key, 0, 0, why, "Write one item a line and split by JsonLines.")
    data = b"".join(blocks(source, 0, end=source.size))
    try:
        str(data, "utf-8")  # msgspec takes the text inside raw items on trust
    except UnicodeDecodeError as e:
        raise BadEncoding(bucket, key, e.start, "utf-8", e.reason) from e
    try:
        return msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8), type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as e:
        hint = "Items needs one JSON array; for one value a line use JsonLines."
        raise BadRecord(bucket, key, 0, 0, str(e), hint) from e


def _collect(cuts: Iterator[int], ranges: list[Range], begin: int) -> int:
    """Append the ranges between the cuts as they come, and return where the last one ends."""
    for cut in cuts:
        ranges.append(Range(begin, cut))
        begin = cut
        if len(ranges) > RANGES_MAX:
            raise _too_many("chunk")
    return begin


def _too_many(field: str) -> InvalidSplit:
    return InvalidSplit(
        field, f"this input would make more than {RANGES_MAX:,} chunks", "Choose larger chunks."
    )


def _header(
    spec: Csv, source: ByteSource, *, charset: Charset, bom: int, bucket: str, key: str
) -> tuple[tuple[str, ...] | None, int]:
    if not isinstance(spec.header, bool):
        return tuple(spec.header), bom
    if not spec.header:
        return None, bom
    # What follows the limit may be cut inside a record or a character; a header that ends before it is not
    # touched.
    end = min(source.size, bom + HEADER_BYTES_MAX)
    records = Records(spec, source, charset=charset, start=bom, end=end)
    try:
        found = next((row for row in records if row), None)
    except csv.Error as e:
        raise BadRecord(bucket, key, bom, 0, str(e), QUOTING_HINT) from e
    except UnicodeDecodeError as e:
        raise BadEncoding(
            bucket, key, locate(source, bom, end=end, encoding=charset.codec), charset.codec, e.reason
        ) from e
    if found is None:
        return None, source.size
    body_start = records.consumed
    if body_start == end and end < source.size:
        raise BadRecord(
            bucket, key, bom, 0, f"the header record is above {HEADER_BYTES_MAX:,} bytes", QUOTING_HINT
        )
    with text_lines(source, bom, end=body_start, encoding=charset.codec) as lines:
        try:
            return next(tuple(row) for row in csv.reader(lines, **spec.dialect()) if row), body_start
        except UnicodeDecodeError as e:
            at = locate(source, bom, end=body_start, encoding=charset.codec)
            raise BadEncoding(bucket, key, at, charset.codec, e.reason) from e


def _counted(spec: TextSplit, source: ByteSource, *, start: int) -> Iterator[int]:
    if isinstance(spec, Csv) and spec.quoting:
        return quoted_cuts(spec, source, start=start)
    # Lines may be as long as they like, but CSV whose records end with CR alone shows only by having no LF.
    limit = search_bytes(spec.chunk_bytes) if isinstance(spec, Csv) else None
    return newline_cuts(source, start=start, chunk_bytes=spec.chunk_bytes, limit=limit)


def newline_cuts(
    source: ByteSource, *, start: int, chunk_bytes: int, limit: int | None = None
) -> Iterator[int]:
    """Where chunks end that may be cut after any LF: behind the first that completes a chunk.

    Large chunks are leapt over and only the bytes around the cuts are read. Raises NoCut when none was found
    over `limit` bytes from a chunk's start; without a limit the chunk grows until there is one.
    """
    if chunk_bytes >= LEAP_BYTES_MIN:
        begin = start
        while begin + chunk_bytes < source.size:
            begin = _line_end(source, begin, skip=chunk_bytes - 1, limit=limit)
            if begin < source.size:
                yield begin
        return
    size, begin, base = source.size, start, start
    goal = begin + chunk_bytes - 1
    for block in blocks(source, start, end=size):
        while (at := max(goal - base, 0)) < len(block):
            newline = block.find(b"\n", at)
            if newline < 0:
                break
            begin = base + newline + 1
            goal = begin + chunk_bytes - 1
            if begin < size:
                yield begin
        base += len(block)
        if limit is not None and base - begin > limit and base < size:
            raise NoCut(begin)


def _line_end(source: ByteSource, begin: int, *, skip: int, limit: int | None) -> int:
    """The offset behind the first LF at or after `begin + skip`, or the source's size. Raises NoCut beyond
    `limit`.
    """
    at, window = begin + skip, WINDOW_BYTES
    while at < source.size:
        for block in blocks(source, at, end=min(at + window, source.size)):
            newline = block.find(b"\n")
            if newline >= 0:
                return at + newline + 1
            at += len(block)
        if limit is not None and at - begin > limit and at < source.size:
            raise NoCut(begin)
        window = 8 * BLOCK_BYTES
    return source.size


def _parsed(
    spec: TextSplit, source: ByteSource, *, charset: Charset, start: int, bucket: str, key: str
) -> Iterator[int]:
    """Where chunks end, by parsing: after the first record that completes a chunk."""
    size, goal, at = source.size, start + spec.chunk_bytes, start
    try:
        if isinstance(spec, Csv):
            records = Records(spec, source, charset=charset, start=start, end=size)
            for _ in records:
                at = records.consumed
                if goal <= at < size:
                    yield at
                    goal = at + spec.chunk_bytes
        elif charset.kind is not Kind.WIDE:
            yield from newline_cuts(source, start=start, chunk_bytes=spec.chunk_bytes)
        else:
            with text_lines(source, start, end=size, encoding=charset.codec, newline="\n") as lines:
                for line in bounded_lines(lines):
                    at += charset.byte_count(line)
                    if goal <= at < size:
                        yield at
                        goal = at + spec.chunk_bytes
    except csv.Error as e:
        raise BadRecord(bucket, key, at, 0, str(e), QUOTING_HINT) from e
    except UnicodeDecodeError as e:
        at = locate(source, start, end=size, encoding=charset.codec)
        raise BadEncoding(bucket, key, at, charset.codec, e.reason) from e


def locate(source: ByteSource, start: int, *, end: int, encoding: str) -> int:
    """The offset of the first byte in the range that the encoding cannot decode; `end` if all can."""
    decoder = codecs.getincrementaldecoder(encoding)()
    at = start
    try:
        for block in blocks(source, start, end=end):
            at += len(block)
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as e:
        return (
            at - len(e.object) + e.start
        )  # `object` is what was left of earlier blocks and the block itself
    return end
