"""Where CSV may be cut: by counting quotes at the speed of memory, or by parsing at the speed of `csv`.

Imports this room's sources, splits and charsets. Counting is right for RFC 4180 only; on other files it cuts
inside records without noticing, which is why each chunk checks its own end (`chunk`) and the parse here is
the last word.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from functools import partial
from operator import itemgetter

from headrace.runtime.jobs.charset import Charset, Kind
from headrace.runtime.jobs.source import ByteSource, blocks, text_lines
from headrace.runtime.jobs.split import Csv

FIELD_CHARS_MAX = 1 << 26
"""The longest field: 64 Mi characters (bytes, while planning). Python's own default is 131,072."""
LINE_BYTES_MAX = 1 << 27
"""The longest line of a sequential pass, which holds one line at a time."""
SEARCH_CHUNKS_MAX = 8
SEARCH_BYTES_MIN = 1 << 16
"""A cut is searched for over 8 chunk sizes, and over 64 KiB if chunks are tiny, before a file is taken for
irregular.
"""

_last_byte = itemgetter(slice(-1, None))


def allow_long_fields() -> None:
    """Raise this process's `csv` field limit to `FIELD_CHARS_MAX`; a higher one stays."""
    if csv.field_size_limit() < FIELD_CHARS_MAX:
        csv.field_size_limit(FIELD_CHARS_MAX)


def search_bytes(chunk_bytes: int) -> int:
    """How far from a chunk's start its end is searched for before counting gives up."""
    return max(SEARCH_CHUNKS_MAX * chunk_bytes, SEARCH_BYTES_MIN)


class NoCut(Exception):
    """Counting found no end for the chunk that begins at `start`."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


def quoted_cuts(spec: Csv, source: ByteSource, *, start: int) -> Iterator[int]:
    """Where chunks end, by the parity of quotes: after the first newline outside quotes that completes a
    chunk.

    One forward pass; `start` must be a record's start. The end of the source is not among the cuts. Raises
    NoCut.
    Source: Ge et al., "Speculative Distributed CSV Data Parsing for Big Data Analytics", SIGMOD 2019.
    """
    quote, size, limit = spec.quotechar.encode("ascii"), source.size, search_bytes(spec.chunk_bytes)
    inside = False
    begin = base = start
    goal = begin + spec.chunk_bytes - 1  # the first byte which, as a newline, completes the chunk
    for block in blocks(source, start, end=size):
        at, stop = 0, len(block)
        while at < stop:
            if base + at < goal:
                upto = min(stop, goal - base)
                inside ^= bool(block.count(quote, at, upto) & 1)
                at = upto
            elif inside:
                closing = block.find(quote, at)
                if closing < 0:
                    break
                inside, at = False, closing + 1
            else:
                newline = block.find(b"\n", at)
                odd = block.count(quote, at, stop if newline < 0 else newline) & 1
                if newline < 0:
                    inside = bool(odd)
                    break
                at = newline + 1
                if odd:
                    inside = True
                else:
                    begin = base + at
                    goal = begin + spec.chunk_bytes - 1
                    if begin < size:
                        yield begin
        base += stop
        if base - begin > limit and base < size:
            raise NoCut(begin)


class Records:
    """A parse from a record's start that knows where each record ends; the same records as `csv` finds in the
    file.

    Iterating gives rows, and after each of them `consumed` is the byte offset at which the next record
    starts. With an ASCII charset the rows are for counting columns only: their text is the bytes taken for
    Latin-1, which is quicker, parses alike because only ASCII has a meaning in CSV, and never fails on a
    wrong encoding.

    Raises: csv.Error for a field above `FIELD_CHARS_MAX` or a line above `LINE_BYTES_MAX`;
    UnicodeDecodeError, in other charsets, with an offset that means nothing to the caller.
    """

    def __init__(self, spec: Csv, source: ByteSource, *, charset: Charset, start: int, end: int) -> None:
        allow_long_fields()
        self.consumed = start
        self._source, self._charset, self._start, self._end = source, charset, start, end
        plain = all(char.isascii() for char in (spec.delimiter, spec.quotechar, spec.escapechar or ""))
        self._codec = "latin-1" if plain and charset.kind is Kind.ASCII else charset.codec
        self._reader = csv.reader(self._lines(), **spec.dialect())

    def __iter__(self) -> Iterator[list[str]]:
        return self._reader

    @property
    def line_num(self) -> int:
        """Lines read so far, as `csv.reader` counts them."""
        return self._reader.line_num

    def _lines(self) -> Iterator[str]:
        if self._charset.kind is Kind.WIDE:
            with text_lines(self._source, self._start, end=self._end, encoding=self._codec) as lines:
                for text in bounded_lines(lines):
                    self.consumed += self._charset.byte_count(text)
                    yield text
            return
        codec = self._codec
        for line in byte_lines(blocks(self._source, self._start, end=self._end)):
            self.consumed += len(line)
            yield str(line, codec)


def byte_lines(data: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends (LF, CR LF, CR), as `open(newline="")` splits them. Raises csv.Error above the
    limit.
    """
    held: list[bytes] = []
    held_bytes = 0
    for block in data:
        if held and held[-1].endswith(b"\r"):
            if block.startswith(b"\n"):
                yield b"".join(held) + b"\n"
                block = block[1:]
            else:
                yield b"".join(held)
            held, held_bytes = [], 0
        lines = block.splitlines(keepends=True)
        if not lines:
            continue
        tail = (
            b"" if lines[-1].endswith(b"\n") else lines.pop()
        )  # may go on, or be a CR whose LF is still to come
        if lines and held:
            lines[0] = b"".join([*held, lines[0]])
            held, held_bytes = [], 0
        yield from lines
        if tail:
            held.append(tail)
            held_bytes += len(tail)
            if held_bytes > LINE_BYTES_MAX:
                raise csv.Error(f"a line is longer than {LINE_BYTES_MAX:,} bytes")
    if held:
        yield b"".join(held)


def bounded_lines(lines: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a text reader. Raises csv.Error for one above `LINE_BYTES_MAX` characters."""
    for line in iter(partial(lines.readline, LINE_BYTES_MAX), ""):
        if len(line) == LINE_BYTES_MAX:
            raise csv.Error(f"a line is longer than {LINE_BYTES_MAX:,} characters")
        yield line


def ends_outside_quotes(spec: Csv, data: Iterable[bytes]) -> bool | None:
    """Whether a parse of `data`, from a record's start and up to a newline, ends between records.

    None: quotes stand where RFC 4180 allows none, so only a full parse can tell. The state of `csv.reader`
    equals the parity of quotes as long as each quote that opens (by parity) stands where a field starts, or
    directly behind the one that just closed, which it then doubles. That is all there is to check: splitting
    at quotes leaves the text outside them at every second place, and only its last byte matters.
    """
    if not (spec.quotechar.isascii() and spec.delimiter.isascii()):
        return None
    quote = spec.quotechar.encode("ascii")
    allowed = {spec.delimiter.encode("ascii"), b"\n", b"\r", quote}
    inside, before = False, b"\n"
    for block in data:
        parts = block.split(quote)
        quotes = len(parts) - 1
        if quotes:
            ends = set(map(_last_byte, parts[int(inside) : quotes : 2]))
            if not inside and not parts[0]:
                ends.add(before)
            # An empty place between two quotes of this block is a doubled quote; one before the first is
            # `before`.
            ends.discard(b"")
            if not ends <= allowed:
                return None
            inside ^= bool(quotes & 1)
        before = block[-1:]
    return not inside
