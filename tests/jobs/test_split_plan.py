"""Cutting: that ranges tile the object, hold whole records, and come out as Python's csv has them."""

import csv
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.runtime.jobs.bad_input import BadCut, BadEncoding, BadRecord, InvalidSplit
from headrace.runtime.jobs.chunk import Chunk, ItemsChunk, chunk_from_dict, chunks_of
from headrace.runtime.jobs.csv_cut import FIELD_CHARS_MAX, byte_lines
from headrace.runtime.jobs.plan import Plan, Range, plan, plan_items, read_items
from headrace.runtime.jobs.source import ByteSource, BytesSource, ObjectSource
from headrace.runtime.jobs.split import Csv, Items, JsonLines, Lines, Split, TextSplit, split_from_dict

REVIEWS = Path(__file__).parents[2].parent / "shared" / "data" / "reviews" / "amazon_review_snippets.tsv"


class TrickleSource(BytesSource):
    """A network's stream: reads give at most seven bytes."""

    def open(self, start: int, end: int) -> Any:
        inner = super().open(start, end)

        class Trickle:
            def read(self, size: int = -1) -> bytes:
                return inner.read(7 if size < 0 else min(size, 7))

            def close(self) -> None:
                inner.close()

        return Trickle()


def whole_rows(data: bytes, spec: Csv, *, encoding: str | None = None) -> list[list[str]]:
    """The rows of Python's csv over the whole file: the truth that every split is held against."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding=encoding or spec.encoding, newline="")
    return list(csv.reader(text, **spec.dialect()))


def job_rows(spec: Csv, source: ByteSource) -> tuple[list[list[str]], int]:
    """All rows as a job reads them, planned again from a bad cut on, and how many chunks there were."""
    rows: list[list[str]] = []
    found = plan(spec, source)
    pending = list(chunks_of(found, spec, source))
    assert_tiles(found, found.body_start)
    count = replans = 0
    while pending:
        chunk = pending.pop(0)
        mine: list[list[str]] = []
        try:
            mine.extend(chunk.rows())
        except BadCut as cut:
            replans += 1
            with pytest.raises(BadCut):
                chunk.verify()
            again = plan(spec, source, start=cut.start, sequential=True)
            assert again.header == found.header
            assert_tiles(again, cut.start)
            pending = list(chunks_of(again, spec, source, first_index=chunk.index))
            continue
        chunk.verify()
        rows += mine
        count += 1
    assert replans <= 1
    return rows, count


def assert_tiles(found: Plan, start: int) -> None:
    at = start
    for part in found.ranges:
        assert part.start == at < part.end
        at = part.end
    assert at == found.size


pieces = [*'a,"\n\ré😀 \x0b\u2028\\', "bc", '""', "\r\n", ',"x\ny",']
text_pieces = st.lists(st.sampled_from(pieces), max_size=60).map("".join)


# ---- quoted csv ----


@given(text_pieces, st.integers(1, 40), st.booleans())
@example('a"b,\n"c\nd",e\nf\n', 1, False)
@example('"a\r\nb",c\r\n\r\nd,e', 2, False)
@example('a\rb\rc"\n"\rd', 1, False)
@example('"never closed\na,b\n', 3, False)
@example('x"\n"y\nz\n', 1, False)
@settings(max_examples=600, deadline=None)
def test_any_text_gives_the_rows_of_pythons_csv(text: str, chunk: int, trickle: bool) -> None:
    data = text.encode()
    spec = Csv(chunk, header=False, encoding="utf-8-sig")

    rows, _ = job_rows(spec, TrickleSource(data) if trickle else BytesSource(data))

    assert rows == whole_rows(data, spec)


@given(
    text_pieces,
    st.integers(1, 40),
    st.sampled_from(["utf-16", "utf-16-be", "utf-32", "utf-8"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_sequential_cuts_are_exact_in_every_encoding(
    text: str, chunk: int, encoding: str, escape: bool
) -> None:
    data = text.encode(encoding)
    spec = Csv(chunk, header=False, encoding=encoding, escapechar="\\" if escape else None)
    source = BytesSource(data)

    found = plan(spec, source, sequential=True)
    rows = [row for part in chunks_of(found, spec, source) for row in part.rows()]

    assert_tiles(found, found.body_start)
    assert rows == whole_rows(data, spec)


@given(
    st.lists(st.lists(text_pieces, min_size=2, max_size=3), max_size=12),
    st.integers(1, 60),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=300, deadline=None)
def test_what_csv_writer_wrote_needs_no_second_plan(rows: list[list[str]], chunk: int, end: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    spec = Csv(chunk, header=False)
    source = BytesSource(out.getvalue().encode())

    found = plan(spec, source)
    chunks = list(chunks_of(found, spec, source))

    for part in chunks:
        part.verify()
    assert [row for part in chunks for row in part.rows()] == rows
    assert not found.sequential
    assert found.ranges == plan(spec, source, sequential=True).ranges


@given(text_pieces, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_unquoted_text_gives_the_rows_of_pythons_csv(text: str, chunk: int) -> None:
    spec = Csv(chunk, quoting=False, header=False)
    source = BytesSource(text.encode())

    rows, _ = job_rows(spec, source)

    assert rows == whole_rows(text.encode(), spec)


@given(text_pieces, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_verify_agrees_with_the_parse(text: str, chunk: int) -> None:
    spec, source = Csv(chunk, header=False), BytesSource(text.encode())
    found = plan(spec, source)

    def outcome(read: Any) -> str:
        try:
            read()
        except BadCut:
            return "bad"
        return "good"

    for parsed, checked in zip(chunks_of(found, spec, source), chunks_of(found, spec, source), strict=True):
        by_parse = outcome(lambda part=parsed: list(part.rows()))
        assert outcome(checked.verify) == by_parse
        if by_parse == "bad":
            break  # what follows does not begin at a record


def test_verify_follows_quotes_over_blocks() -> None:
    row = 'id,"' + 'long ""quoted"" text\n' * 9 + '"\n'
    data = (row * 9000).encode()
    spec, source = Csv("600 KiB", header=False), BytesSource(data)
    found = plan(spec, source)
    assert len(found.ranges) > 1
    for part in chunks_of(found, spec, source):
        part.verify()
    wrong = Chunk(spec, source, index=0, start=0, end=len(row) * 4000 + 30, size=len(data), encoding="utf-8")
    with pytest.raises(BadCut):
        wrong.verify()


def test_the_last_good_records_before_a_bad_cut_come_out() -> None:
    data = b'a,b\n1,2\nx"y,"3\n4"\n5,6\n7,8\n'
    spec = Csv(8, header=False)
    source = BytesSource(data)
    wrong = Chunk(
        spec, source, index=3, start=0, end=data.index(b'4"'), size=len(data), encoding="utf-8", key="k"
    )
    seen: list[list[str]] = []

    with pytest.raises(BadCut) as caught:
        seen.extend(wrong.rows())

    assert seen == [["a", "b"], ["1", "2"]]
    assert (caught.value.index, caught.value.start, caught.value.key) == (3, 0, "k")


@pytest.mark.parametrize("chunk", [1, 100, 1024, 1 << 16])
def test_text_with_lone_carriage_returns_is_cut_sequentially(chunk: int) -> None:
    data = b"a,b\r1,2\r3,4\r" * 20_000
    for spec in (Csv(chunk * 8, header=False), Csv(chunk * 8, header=False, quoting=False)):
        source = BytesSource(data)
        found = plan(spec, source)
        parts = list(chunks_of(found, spec, source))
        assert found.sequential is (len(data) > max(64 * chunk, 1 << 18))
        if chunk > 1:
            assert sum(len(list(part.rows())) for part in parts) == 60_000


def test_counting_gives_up_in_the_middle_and_parsing_goes_on_from_there() -> None:
    data = b"a,b\n" * 50_000 + b'"' + b"long\n" * 200_000 + b'",x\n' + b"c,d\n" * 50_000
    spec = Csv("16 KiB", header=False)
    found = plan(spec, BytesSource(data))
    assert found.sequential_from is not None
    assert 0 < found.sequential_from <= 200_000
    assert not found.proven(found.ranges[0])
    assert found.proven(found.ranges[-1])
    rows, count = job_rows(spec, BytesSource(data))
    assert rows == whole_rows(data, spec)
    assert count > 20


def test_chunk_sizes_are_about_what_was_asked() -> None:
    data = b"12345,abcde\n" * 200_000
    for size in (1 << 10, 1 << 16, 1 << 20):
        for split in (
            Csv(size, header=False),
            Csv(size, header=False, quoting=False),
            JsonLines(size),
            Lines(size),
        ):
            *full, _ = plan(split, BytesSource(data)).ranges
            assert {part.end - part.start - size for part in full} <= set(range(12))


def test_large_and_small_chunks_are_cut_by_one_rule() -> None:
    data = b"".join(b"%d\n" % pow(7, n, 10**9) for n in range(400_000))
    spec = Lines("1 MiB")
    leaping = plan(spec, BytesSource(data)).ranges
    assert len(leaping) == 4
    for part in leaping[:-1]:
        assert data[part.end - 1 : part.end] == b"\n"
        assert b"\n" not in data[part.start + (1 << 20) - 1 : part.end - 1]


def test_a_record_longer_than_a_chunk_makes_a_longer_chunk() -> None:
    long = "x" * 200_000
    data = f'a,b\n"{long}",2\n3,4\n'.encode()
    found = plan(Csv("64 KiB"), BytesSource(data))
    assert [list(c.records()) for c in chunks_of(found, Csv("64 KiB"), BytesSource(data))] == [
        [{"a": long, "b": "2"}],
        [{"a": "3", "b": "4"}],
    ]


def test_a_file_cannot_make_a_million_chunks() -> None:
    with pytest.raises(InvalidSplit, match="1,000,000"):
        plan(Lines(1), BytesSource(b"\n" * 1_000_003))


# ---- headers, marks, empty files ----


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_mark_and_header_are_no_part_of_the_body(mark: bytes, end: bytes) -> None:
    data = mark + end + b'"first\nname",b' + end + b"1,2" + end + b"3,4"
    found = plan(Csv(1), BytesSource(data))
    assert (found.header, found.bom) == (("first\nname", "b"), len(mark))
    rows = [row for part in chunks_of(found, Csv(1), BytesSource(data)) for row in part.records()]
    assert rows == [{"first\nname": "1", "b": "2"}, {"first\nname": "3", "b": "4"}]


@pytest.mark.parametrize("split", [Csv(), Csv(header=False), Csv(header=["a"]), Lines(), JsonLines()])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_chunks(split: TextSplit, data: bytes) -> None:
    assert plan(split, BytesSource(data)).ranges == ()


@pytest.mark.parametrize("data", [b"a,b", b"a,b\n", b"a,b\r\n"])
def test_a_file_of_a_header_only_has_no_chunks(data: bytes) -> None:
    found = plan(Csv(), BytesSource(data))
    assert (found.header, found.body_start, found.ranges) == (("a", "b"), len(data), ())


def test_names_given_are_the_header_and_the_first_line_is_data() -> None:
    found = plan(Csv(header=["x", "y"]), BytesSource(b"1,2\n"))
    assert (found.header, found.body_start, found.ranges) == (("x", "y"), 0, (Range(0, 4),))


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-32-be", "cp037", "shift_jis", "cp1252", "gb18030"]
)
def test_other_encodings_are_cut_and_read_right(encoding: str) -> None:
    wide = "" if encoding in ("cp037", "cp1252") else "表ソ"
    text = "naam,täxt\r\n".replace("ä", "a") + "".join(f'{n},"{wide}|\n{n}"\r\n' for n in range(50))
    source = BytesSource(text.encode(encoding))
    spec = Csv(32, encoding=encoding)
    found = plan(spec, source)
    assert found.header == ("naam", "taxt")
    assert len(found.ranges) > 10
    assert [r["taxt"] for c in chunks_of(found, spec, source) for r in c.records()] == [
        f"{wide}|\n{n}" for n in range(50)
    ]
    lines = Lines(32, encoding=encoding)
    cut = plan(lines, source)
    assert len(cut.ranges) > 10
    assert [r for c in chunks_of(cut, lines, source) for r in c.records()] == text.replace("\r", "").split(
        "\n"
    )[:-1]


def test_a_header_in_another_encoding_is_named() -> None:
    with pytest.raises(BadEncoding) as caught:
        plan(Csv(), BytesSource("a,grö\n1,2\n".encode("latin-1")), bucket="in", key="x.csv")
    assert (caught.value.offset, caught.value.encoding, caught.value.key) == (4, "utf-8", "x.csv")


def test_a_header_that_never_ends_is_refused() -> None:
    with pytest.raises(BadRecord, match="header") as caught:
        plan(Csv(), BytesSource(b'"' + b"a" * 1_100_000))
    assert "quoting=False" in caught.value.hint


# ---- the reviews ----


@pytest.fixture(scope="module")
def reviews() -> bytes:
    if not REVIEWS.exists():
        pytest.skip("the reviews file is not beside this repository")
    return REVIEWS.read_bytes()


@pytest.mark.parametrize("chunk", ["1 KiB", "4 KiB", "64 KiB", "1 MiB"])
def test_the_reviews_have_one_record_a_line_when_quotes_mean_nothing(reviews: bytes, chunk: str) -> None:
    spec = Csv(chunk, delimiter="\t", quoting=False, header=["id", "rating", "text"])
    source = BytesSource(reviews)
    parts = list(chunks_of(plan(spec, source), spec, source))
    records = [record for part in parts for record in part.records()]
    assert len(records) == 3708
    assert sum(part.short_rows + part.long_rows for part in parts) == 0
    assert [list(record.values()) for record in records] == whole_rows(reviews, spec)


@pytest.mark.parametrize("chunk", ["1 KiB", "4 KiB", "64 KiB", "1 MiB"])
def test_the_reviews_stray_quotes_end_in_the_records_of_pythons_csv(reviews: bytes, chunk: str) -> None:
    spec = Csv(chunk, delimiter="\t", header=False)
    rows, _ = job_rows(spec, BytesSource(reviews))
    assert len(rows) == 3546
    assert rows == whole_rows(reviews, spec)


# ---- items and settings ----


def test_items_are_batched_in_order() -> None:
    assert plan_items(Items(3), 7) == (Range(0, 3), Range(3, 6), Range(6, 7))
    assert plan_items(Items(), 0) == ()
    items = read_items(BytesSource(b'\xef\xbb\xbf[1, {"a": [2]}, "\xc3\xa9"]'))
    assert [msgspec.json.decode(item) for item in items] == [1, {"a": [2]}, "é"]
    chunk = ItemsChunk([5, 6], index=1, start=2)
    chunk.verify()
    assert (list(chunk.records()), chunk.start, chunk.end) == ([5, 6], 2, 4)


@pytest.mark.parametrize("data", [b"{}", b"[1,", b"", b"[" * 100_000])
def test_an_object_that_is_no_array_is_refused(data: bytes) -> None:
    with pytest.raises(BadRecord, match=r"s3://in/a\.json"):
        read_items(BytesSource(data), bucket="in", key="a.json")


def test_an_array_in_another_encoding_is_refused() -> None:
    with pytest.raises(BadEncoding, match="byte 2"):
        read_items(BytesSource(b'["\xff"]'), bucket="in", key="a.json")


@pytest.mark.parametrize(
    "split",
    [
        Csv(),
        Csv("64 KiB", delimiter="\t", quoting=False, header=["a", "b"], encoding="latin-1"),
        Csv(1, quotechar="'", escapechar="\\", header=False),
        JsonLines("1MB"),
        Lines(10, encoding="utf-16"),
        Items(100),
    ],
)
def test_a_split_travels_as_json(split: Split) -> None:
    data = msgspec.json.decode(msgspec.json.encode(split.to_dict()))
    assert split_from_dict(data) == split
    assert hash(split_from_dict(data)) == hash(split)


def test_sizes_are_bytes_or_text() -> None:
    assert [Csv(c).chunk_bytes for c in ("4 MiB", "64 KiB", "1MB", 7)] == [4 << 20, 65536, 10**6, 7]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Csv("4 apples"), "Csv(chunk=)"),
        (lambda: Csv(0), "Csv(chunk=)"),
        (lambda: JsonLines(True), "JsonLines(chunk=)"),
        (lambda: Lines(1.5), "Lines(chunk=)"),  # type: ignore[arg-type]
        (lambda: Csv(delimiter=",,"), "Csv(delimiter=)"),
        (lambda: Csv(delimiter="\n"), "Csv(delimiter=)"),
        (lambda: Csv(quotechar=","), "Csv"),
        (lambda: Csv(escapechar=""), "Csv(escapechar=)"),
        (lambda: Csv(header="a,b"), "Csv(header=)"),
        (lambda: Csv(header=["a", "a"]), "Csv(header=)"),
        (lambda: Csv(header=[]), "Csv(header=)"),
        (lambda: Csv(encoding="utf-9"), "encoding"),
        (lambda: Csv(encoding="utf-7"), "encoding"),
        (lambda: Lines(encoding="iso2022_jp"), "encoding"),
        (lambda: Csv(encoding="rot13"), "encoding"),
        (lambda: Items(0), "Items(batch=)"),
        (lambda: split_from_dict({"kind": "xml"}), "kind"),
        (lambda: split_from_dict({"kind": "csv", "delimeter": ";"}), "Csv"),
    ],
)
def test_a_wrong_setting_is_named(make: Any, field: str) -> None:
    with pytest.raises(InvalidSplit) as caught:
        make()
    assert caught.value.args[0] == field
    assert str(caught.value).startswith(field)


def test_errors_travel_between_processes() -> None:
    for error in (
        InvalidSplit("f", "w", "h"),
        BadEncoding("b", "k", 1, "utf-8", "r"),
        BadRecord("b", "k", 1, 2, "r", "h"),
        BadCut("b", "k", 1, 2),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args, str(again), again.hint) == (
            type(error),
            error.args,
            str(error),
            error.hint,
        )


# ---- reading from a store ----


def test_an_object_source_reads_its_range_at_its_etag() -> None:
    calls: list[tuple[Any, ...]] = []

    class OneObject:
        def head(self, bucket: str, key: str) -> Any:
            return msgspec.defstruct("Info", ["size", "etag"])(10, "e1")

        def open(
            self,
            bucket: str,
            key: str,
            *,
            start: int = 0,
            end: int | None = None,
            if_match: str | None = None,
        ) -> Any:
            calls.append((bucket, key, start, end, if_match))
            return io.BytesIO(b"0123\n5678\n"[start:end])

    source = ObjectSource(OneObject(), "in", key="a", etag="e1")
    found = plan(Lines(5), source)
    [first, second] = chunks_of(found, Lines(5), source, bucket="in", key="a", etag="e1")
    assert list(chunk_from_dict(second.to_dict(), source).records()) == ["5678"]
    assert first.bytes() == b"0123\n"
    assert {call[4] for call in calls} == {"e1"}


def test_a_source_that_ends_early_is_noticed() -> None:
    class Shrunk(BytesSource):
        @property
        def size(self) -> int:
            return super().size + 5

    with pytest.raises(EOFError):
        plan(Csv(header=False), Shrunk(b"a,b\n"))


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b""]), max_size=40), st.integers(1, 5))
def test_byte_lines_are_those_of_universal_newlines(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)

    def in_steps() -> Iterator[bytes]:
        for at in range(0, len(data), step):
            yield data[at : at + step]

    assert list(byte_lines(in_steps())) == data.splitlines(keepends=True)


def test_fields_may_be_longer_than_pythons_own_limit() -> None:
    data = b"a,b\n1," + b"x" * 200_000 + b"\n"
    [chunk] = chunks_of(plan(Csv(), BytesSource(data)), Csv(), BytesSource(data))
    assert [len(r["b"]) for r in chunk.records()] == [200_000]
    assert csv.field_size_limit() >= FIELD_CHARS_MAX
