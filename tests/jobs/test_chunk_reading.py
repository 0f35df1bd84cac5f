"""Chunks as a user's function reads them: records, irregular rows, and errors that name the place."""

import csv
import io
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.jobs.bad_input import BadEncoding, BadRecord
from headrace.runtime.jobs.chunk import Chunk, IrregularRow, chunk_from_dict, chunks_of
from headrace.runtime.jobs.plan import plan
from headrace.runtime.jobs.source import BytesSource
from headrace.runtime.jobs.split import Csv, JsonLines, Lines, TextSplit


def chunks(spec: TextSplit, data: bytes) -> list[Chunk]:
    source = BytesSource(data)
    return list(chunks_of(plan(spec, source), spec, source, bucket="in", key="a.txt", etag="e"))


def records(spec: TextSplit, data: bytes) -> list[Any]:
    return [record for chunk in chunks(spec, data) for record in chunk.records()]


def test_csv_records_are_dicts_by_header() -> None:
    assert records(Csv(8), b"id,text\n1,one\n2,two\n3,three\n") == [
        {"id": "1", "text": "one"},
        {"id": "2", "text": "two"},
        {"id": "3", "text": "three"},
    ]


def test_csv_without_header_gives_lists_without_blank_lines_and_rows_keep_them() -> None:
    [chunk] = chunks(Csv(header=False), b"1,2\n\n3\n")
    assert list(chunk.records()) == [["1", "2"], ["3"]]
    assert list(chunk.rows()) == [["1", "2"], [], ["3"]]


@given(
    st.lists(st.lists(st.sampled_from(["", "a", "b c", 'q"q', "x\ny"]), max_size=4), max_size=150),
    st.integers(1, 200),
)
@settings(max_examples=150, deadline=None)
def test_records_are_those_of_dict_reader_and_uneven_rows_are_counted(
    rows: list[list[str]], chunk: int
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["p", "q"], *rows])
    found = chunks(Csv(chunk), out.getvalue().encode())

    assert [r for c in found for r in c.records()] == list(
        csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    )
    assert sum(c.short_rows for c in found) == sum(len(row) == 1 for row in rows)
    assert sum(c.long_rows for c in found) == sum(len(row) > 2 for row in rows)


def test_the_first_uneven_row_is_found_again() -> None:
    data = b"a,b\n" + b'"1\n1",2\n' * 100 + b"\n3\n4,5,6\n" + b"7,8\n"
    [chunk] = chunks(Csv(), data)

    assert chunk.first_irregular() is None
    for _ in range(2):
        assert list(chunk.records())[100:] == [
            {"a": "3", "b": None},
            {"a": "4", "b": "5", None: ["6"]},
            {"a": "7", "b": "8"},
        ]
        assert (chunk.short_rows, chunk.long_rows) == (1, 1)
        assert chunk.first_irregular() == IrregularRow(
            offset=data.index(b"3\n4"), record=101, columns=1, expected=2
        )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_lose_their_ends_and_nothing_else(size: int) -> None:
    text = "one\r\n\n  two \rstill two\x0b\u2028\nlast"
    assert records(Lines(size), b"\xef\xbb\xbf" + text.encode()) == [
        "one",
        "",
        "  two \rstill two\x0b\u2028",
        "last",
    ]


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_json_lines_are_parsed_and_blank_ones_skipped(size: int) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[1, 2]\n"\xc3\xa9\xe2\x80\xa8"\nnull'
    assert records(JsonLines(size), data) == [{"a": 1}, [1, 2], "é\u2028", None]


@given(
    st.lists(
        st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=5), st.lists, max_leaves=4),
        max_size=30,
    )
)
@settings(max_examples=100, deadline=None)
def test_json_lines_come_back_as_they_were_written(values: list[Any]) -> None:
    data = b"\n".join(msgspec.json.encode(value) for value in values)
    assert records(JsonLines(11), data) == values


@pytest.mark.parametrize("bad", [b"{", b"1 2", b'{"a":1}{"b":2}', b"NaN", b"[" * 100_000])
def test_a_bad_json_line_is_named_after_the_good_ones(bad: bytes) -> None:
    [chunk] = chunks(JsonLines(), b'1\n\n{"a":2}\n' + bad + b"\n3\n")
    seen: list[Any] = []

    with pytest.raises(BadRecord) as caught:
        seen.extend(chunk.records())

    assert seen == [1, {"a": 2}]
    assert (caught.value.key, caught.value.offset, caught.value.record) == ("a.txt", 11, 2)
    assert "JsonLines" in caught.value.hint


@pytest.mark.parametrize("spec", [Csv(header=False), Csv(header=False, quoting=False), Lines(), JsonLines()])
def test_bytes_of_another_encoding_are_named(spec: TextSplit) -> None:
    data = b'"good"\n' * 30_000 + b'"gr\xf6\xdfer"\n' + b'"good"\n'
    [chunk] = chunks(spec, data)

    with pytest.raises(BadEncoding) as caught:
        list(chunk.records())

    error = caught.value
    assert (error.bucket, error.key, error.offset, error.encoding) == ("in", "a.txt", 210_003, "utf-8")
    assert "cp1252" in error.hint


def test_a_truncated_last_character_is_named() -> None:
    [chunk] = chunks(Csv(header=False), b"a\nb\xc3")
    with pytest.raises(BadEncoding, match="byte 3"):
        list(chunk.rows())
    with pytest.raises(BadEncoding, match="byte 3"):
        chunk.text()


def test_a_field_above_the_limit_is_a_bad_record(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"1,2\n3,4\n" + b"x" * 300 + b"\n"
    [chunk] = chunks(Csv(header=False), data)
    before = csv.field_size_limit()
    monkeypatch.setattr("headrace.runtime.jobs.csv_cut.FIELD_CHARS_MAX", 100)
    csv.field_size_limit(100)
    try:
        with pytest.raises(BadRecord, match="field larger") as caught:
            list(chunk.rows())
    finally:
        csv.field_size_limit(before)
    assert (caught.value.offset, caught.value.record) == (8, 2)


def test_nul_bytes_are_characters_or_bad_records_as_pythons_csv_has_them() -> None:
    [chunk] = chunks(Csv(header=False), b"a,b\n\0,c\n")
    try:
        expected = list(csv.reader(["a,b\n", "\0,c\n"]))
    except csv.Error:
        with pytest.raises(BadRecord, match="NUL"):
            list(chunk.rows())
    else:
        assert list(chunk.rows()) == expected


def test_an_error_of_the_reading_function_stays_its_own() -> None:
    [chunk] = chunks(Csv(header=False), b"1\n2\n")

    def function() -> None:
        for _ in chunk.rows():
            raise csv.Error("mine")

    with pytest.raises(csv.Error, match="mine"):
        function()


def test_a_chunk_has_bytes_text_lines_and_a_place() -> None:
    data = 'h\n"é\r\n1"\n2\n'.encode()
    [chunk] = chunks(Csv(), data)
    assert (chunk.index, chunk.start, chunk.end, chunk.bucket, chunk.key, chunk.etag) == (
        0,
        2,
        12,
        "in",
        "a.txt",
        "e",
    )
    assert chunk.header == ["h"]
    assert chunk.bytes() == data[2:]
    assert chunk.text() == '"é\r\n1"\n2\n'
    assert list(chunk.lines()) == ['"é', '1"', "2"]
    assert repr(chunk) == "Chunk(0, s3://in/a.txt, 2-12)"


def test_rows_are_for_csv_only() -> None:
    [chunk] = chunks(Lines(), b"a\n")
    with pytest.raises(TypeError, match="records"):
        chunk.rows()


def test_a_chunk_travels_as_json() -> None:
    data = b"a,b\n1,2\n3,4\n"
    for chunk in chunks(Csv(1), data):
        again = chunk_from_dict(msgspec.json.decode(msgspec.json.encode(chunk.to_dict())), BytesSource(data))
        assert list(again.records()) == list(chunk.records())
        assert again.to_dict() == chunk.to_dict()


@pytest.mark.parametrize("spec", [Csv(header=False), Lines(), JsonLines()])
def test_a_chunk_cut_short_on_its_way_is_noticed(spec: TextSplit) -> None:
    chunk = Chunk(spec, BytesSource(b"1\n2\n"), index=0, start=0, end=6, size=6, encoding="utf-8")
    for read in (chunk.records, chunk.lines, chunk.bytes, chunk.text):
        with pytest.raises(EOFError):
            list(read())


def test_a_partly_read_chunk_closes_its_stream() -> None:
    opened: list[io.BytesIO] = []

    class Watched(BytesSource):
        def open(self, start: int, end: int) -> io.BytesIO:
            stream = io.BytesIO(b"a\n" * 500_000)
            opened.append(stream)
            return stream

    chunk = Chunk(Csv(header=False), Watched(b""), index=0, start=0, end=10**6, size=10**6, encoding="utf-8")
    reading = chunk.rows()
    next(reading)
    assert not opened[0].closed
    del reading
    assert opened[0].closed
