"""Chunks: what a job's function receives.

Imports this room's pure code. A chunk of quoted CSV that was cut by counting proves its own end: it begins at
a record's start, so its parse is the file's parse, and if that ends inside a record the cut was wrong.
`BadCut` then stops the reader before it sees a record that is none.
"""

import builtins
import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any, cast

import msgspec

from headrace.runtime.jobs.bad_input import BadCut, BadEncoding, BadRecord
from headrace.runtime.jobs.charset import Charset, charset
from headrace.runtime.jobs.csv_cut import Records, allow_long_fields, ends_outside_quotes
from headrace.runtime.jobs.plan import QUOTING_HINT, Plan, locate
from headrace.runtime.jobs.source import ByteSource, blocks, text_lines
from headrace.runtime.jobs.split import Csv, JsonLines, Lines, TextSplit, split_from_dict

BATCH_ROWS = 64
"""Rows parsed ahead of the function that reads them."""


@dataclass(frozen=True, slots=True)
class IrregularRow:
    """A row with more or fewer columns than the header.

    Attributes:
        offset: of its first byte, in bytes from the object's start.
        record: its number in the chunk, from 0, blank lines included.
        columns, expected: how many it has, and the header has.
    """

    offset: int
    record: int
    columns: int
    expected: int


class Chunk:
    """One piece of an object: whole records, read by streaming, as often as wished.

    Attributes:
        index: which chunk of the job this is, from 0.
        start, end: its bytes `[start, end)` in the object.
        bucket, key, etag: the object; reading raises if it was replaced meanwhile.
        header: the columns' names, for CSV that has some; otherwise None.
        short_rows, long_rows: rows with too few and too many columns that the last `records()` met so far.
    """

    def __init__(
        self,
        spec: TextSplit,
        source: ByteSource,
        *,
        index: int,
        start: int,
        end: int,
        size: int,
        encoding: str,
        header: Sequence[str] | None = None,
        bucket: str = "",
        key: str = "",
        etag: str = "",
        proven: bool = False,
    ) -> None:
        self.index, self.start, self.end = index, start, end
        self.bucket, self.key, self.etag = bucket, key, etag
        self.header = list(header) if header is not None else None
        self.short_rows = self.long_rows = 0
        self._spec, self._source, self._size, self._encoding = spec, source, size, encoding
        counted = isinstance(spec, Csv) and spec.quoting and not spec.sequential
        self._proven = proven or not counted or end == size
        self._irregular: tuple[int, int] | None = None  # record number, columns

    def __repr__(self) -> str:
        return f"Chunk({self.index}, s3://{self.bucket}/{self.key}, {self.start}-{self.end})"

    # ---- reading ----

    def records(self) -> Iterator[Any]:
        """The chunk's records.

        CSV with a header: dicts, as `csv.DictReader` makes them. Blank lines are skipped, a missing column is
        None, and columns beyond the header are a list under the key None. Such rows are counted in
        `short_rows` and `long_rows`, which the job reports with the place of the first. CSV without header:
        lists, blank lines skipped. JSON lines: the parsed values. Lines: texts without their ends.

        Raises: BadCut where a wrong cut ends the chunk (leave it to the job); BadEncoding; BadRecord.
        """
        if isinstance(self._spec, JsonLines):
            return self._json()
        if isinstance(self._spec, Lines):
            return self.lines()
        self.short_rows = self.long_rows = 0
        self._irregular = None
        if self.header is None:
            return filter(None, self.rows())
        return chain.from_iterable(self._dict_batches(self.header))

    def rows(self) -> Iterator[list[str]]:
        """CSV's rows as lists, exactly as `csv.reader` gives them: a blank line is an empty list.

        Raises: as `records`; TypeError at once for a split other than Csv.
        """
        if not isinstance(self._spec, Csv):
            raise TypeError(f"rows() is for Csv; a chunk of {type(self._spec).__name__} has records()")
        return chain.from_iterable(self._row_batches())

    def lines(self) -> Iterator[str]:
        """The chunk's text in lines without their ends (LF or CR LF), also where a quoted field spans
        several.

        Raises: BadEncoding.
        """
        with self._text("\n") as text, _Faults(self):
            for line in text:
                if line.endswith("\n"):
                    yield line[:-2] if line.endswith("\r\n") else line[:-1]
                else:
                    yield line

    def bytes(self) -> builtins.bytes:
        """The chunk's bytes, undecoded; all in memory."""
        return b"".join(blocks(self._source, self.start, end=self.end))

    def text(self) -> str:
        """The chunk's text with its line ends as they are; all in memory. Raises: BadEncoding."""
        with self._text("") as text, _Faults(self):
            return text.read()

    # ---- what the job asks after the function ----

    def verify(self) -> None:
        """Prove that the chunk ends where a record does, unless that is known already.

        Needed after functions that read `bytes()`, or not all records. It costs a read at memory speed where
        quotes stand as RFC 4180 has them, and a parse elsewhere. Raises: BadCut; BadEncoding or BadRecord if
        it must parse.
        """
        if self._proven:
            return
        clean = ends_outside_quotes(cast(Csv, self._spec), blocks(self._source, self.start, end=self.end))
        if clean is None:
            deque(self.rows(), maxlen=0)
        elif not clean:
            raise BadCut(self.bucket, self.key, self.index, self.start)
        self._proven = True

    def first_irregular(self) -> IrregularRow | None:
        """The first row counted in `short_rows` or `long_rows`; its place is found by reading the chunk
        again.
        """
        if self._irregular is None or self.header is None:
            return None
        record, columns = self._irregular
        parse = self._parse()
        deque(islice(parse, record), maxlen=0)
        return IrregularRow(parse.consumed, record, columns, len(self.header))

    def to_dict(self) -> dict[str, Any]:
        """The chunk as a JSON object, for `chunk_from_dict` on the side that reads it."""
        return {
            "split": self._spec.to_dict(),
            "index": self.index,
            "start": self.start,
            "end": self.end,
            "size": self._size,
            "encoding": self._encoding,
            "header": self.header,
            "bucket": self.bucket,
            "key": self.key,
            "etag": self.etag,
            "proven": self._proven,
        }

    # ---- inside ----

    def _row_batches(self) -> Iterator[list[list[str]]]:
        """Rows by the batch, so that what is done with each needs no Python frame.

        The reader is given one empty line behind the text. Between records that is a row of its own, an empty
        one; inside a record it is not, whatever the file holds. Either way the row that comes of it is not
        the file's.
        """
        allow_long_fields()
        over: list[bool] = []

        def behind() -> Iterator[str]:
            over.append(True)
            yield ""

        with self._text("") as text, _Faults(self):
            lines = text if self._proven else chain(text, behind())
            reader = csv.reader(lines, **cast(Csv, self._spec).dialect())
            while batch := list(islice(reader, BATCH_ROWS)):
                if not over:
                    yield batch
                    continue
                last = batch.pop()
                yield batch
                if last:
                    raise BadCut(self.bucket, self.key, self.index, self.start)
                self._proven = True
                return

    def _dict_batches(self, header: list[str]) -> Iterator[Iterable[dict[str | None, Any]]]:
        right, before = {len(header)}, 0
        for batch in self._row_batches():
            if set(map(len, batch)) <= right:
                yield map(dict, map(zip, repeat(header), batch))
            else:
                yield self._uneven(header, batch, before)
            before += len(batch)

    def _uneven(
        self, header: list[str], batch: list[list[str]], before: int
    ) -> Iterator[dict[str | None, Any]]:
        """The records of a batch that has blank, short or long rows, with `before` rows ahead of it in the
        chunk.
        """
        width = len(header)
        for number, row in enumerate(batch, before):
            if not row:
                continue
            record: dict[str | None, Any] = dict(zip(header, row, strict=False))
            if len(row) != width:
                if self._irregular is None:
                    self._irregular = number, len(row)
                if len(row) < width:
                    self.short_rows += 1
                    record.update(dict.fromkeys(header[len(row) :]))
                else:
                    self.long_rows += 1
                    record[None] = row[width:]
            yield record

    def _json(self) -> Iterator[Any]:
        decode = msgspec.json.Decoder().decode
        offset, record = self.start, 0
        for block in _line_blocks(blocks(self._source, self.start, end=self.end)):
            lines = block.split(b"\n")
            try:
                values = [decode(line) for line in lines if line and not line.isspace()]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield from self._json_slowly(lines, offset, record)
                raise AssertionError("a block failed whose lines did not") from None
            yield from values
            offset += len(block)
            record += len(values)

    def _json_slowly(self, lines: "list[builtins.bytes]", offset: int, record: int) -> Iterator[Any]:
        """The values before the bad line, then the error that names it."""
        for line in lines:
            if line and not line.isspace():
                try:
                    value = msgspec.json.decode(line)
                except (msgspec.DecodeError, RecursionError) as e:
                    hint = "JsonLines wants one whole JSON document a line; for one JSON array use Items."
                    raise BadRecord(self.bucket, self.key, offset, record, str(e), hint) from e
                except UnicodeDecodeError as e:
                    at = locate(self._source, offset, end=offset + len(line), encoding="utf-8")
                    raise BadEncoding(self.bucket, self.key, at, "utf-8", e.reason) from e
                yield value
                record += 1
            offset += len(line) + 1

    def _text(self, newline: str) -> io.TextIOWrapper:
        return text_lines(self._source, self.start, end=self.end, encoding=self._encoding, newline=newline)

    def _parse(self) -> Records:
        settled = Charset(self._encoding, charset(self._spec.encoding).kind)
        return Records(cast(Csv, self._spec), self._source, charset=settled, start=self.start, end=self.end)

    def _explain(self, error: csv.Error | UnicodeDecodeError) -> BadRecord | BadEncoding:
        """The same error with its place, found by reading the chunk again."""
        if isinstance(error, UnicodeDecodeError):
            at = locate(self._source, self.start, end=self.end, encoding=self._encoding)
            return BadEncoding(self.bucket, self.key, at, self._encoding, error.reason)
        parse = self._parse()
        record, offset = 0, self.start
        try:
            for _ in parse:
                record, offset = record + 1, parse.consumed
        except (csv.Error, UnicodeDecodeError):
            pass  # the place is what was looked for, and it is where this parse stopped as well
        return BadRecord(self.bucket, self.key, offset, record, str(error), QUOTING_HINT)


class _Faults:
    """Turns what the text and csv readers raise into errors that name the object and the place.

    A class, since an exception thrown into the reading generator by its consumer must pass through untouched.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, csv.Error | UnicodeDecodeError):
            raise self._chunk._explain(error) from error


class ItemsChunk:
    """A batch of items, with the parts of `Chunk` that make sense for it.

    Attributes:
        index: which chunk of the job this is, from 0.
        start, end: the items' positions in the whole list.
        items: the values.
        bucket, key, etag: the object that held the list; empty if a request did.
    """

    header = None
    short_rows = long_rows = 0

    def __init__(
        self, items: Sequence[Any], *, index: int, start: int, bucket: str = "", key: str = "", etag: str = ""
    ) -> None:
        self.items = list(items)
        self.index, self.start, self.end = index, start, start + len(self.items)
        self.bucket, self.key, self.etag = bucket, key, etag

    def __repr__(self) -> str:
        return f"ItemsChunk({self.index}, items {self.start}-{self.end})"

    def records(self) -> Iterator[Any]:
        """The items, one by one."""
        return iter(self.items)

    def verify(self) -> None:
        """Nothing to prove: items are never cut."""


def chunk_from_dict(data: Mapping[str, Any], source: ByteSource) -> Chunk:
    """The chunk that `Chunk.to_dict` wrote, reading from `source`. Raises InvalidSplit if its split is none
    of text.
    """
    settings = dict(data)
    spec = split_from_dict(settings.pop("split"))
    return Chunk(cast(TextSplit, spec), source, **settings)


def chunks_of(
    found: Plan,
    spec: TextSplit,
    source: ByteSource,
    *,
    first_index: int = 0,
    bucket: str = "",
    key: str = "",
    etag: str = "",
) -> Iterator[Chunk]:
    """The chunks of a plan, numbered from `first_index`."""
    for index, part in enumerate(found.ranges, first_index):
        yield Chunk(
            spec,
            source,
            index=index,
            start=part.start,
            end=part.end,
            size=found.size,
            encoding=found.encoding,
            header=found.header,
            bucket=bucket,
            key=key,
            etag=etag,
            proven=found.proven(part),
        )


def _line_blocks(data: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end with a newline, the last one perhaps without."""
    held: list[bytes] = []
    for block in data:
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, block[:cut]])
            held = []
            block = block[cut:]
        if block:
            held.append(block)
    if held:
        yield b"".join(held)
