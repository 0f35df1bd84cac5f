"""Forms: what a form holds comes out as it went in, and nothing unbounded is read."""

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3 import encode_multipart_formdata

from headrace.runtime.model.form import (
    FIELD_BYTES_MAX,
    PART_HEADER_BYTES_MAX,
    PARTS_MAX,
    FormFile,
    InvalidForm,
    read_form,
)

URLENCODED = "application/x-www-form-urlencoded"
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=20
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


def multipart(fields: dict[str, Any]) -> tuple[bytes, str]:
    """A body as urllib3 encodes it, and its content type."""
    parts = [
        (
            name,
            (value.filename, value.data, value.content_type)
            if isinstance(value, FormFile)
            else value.encode(),
        )
        for name, value in fields.items()
    ]
    return encode_multipart_formdata(parts, boundary="b-0d3")  # type: ignore[arg-type]


@given(
    st.dictionaries(
        NAMES, TEXTS | st.builds(FormFile, NAMES, st.just("image/png"), st.binary(max_size=200)), max_size=6
    )
)
def test_what_another_encoder_wrote_comes_out(fields: dict[str, Any]) -> None:
    body, kind = multipart(fields)
    assert read_form(body, kind) == fields


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_read_but_breaks_nothing(body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=b", URLENCODED):
        for data in (body, b"--b\r\n" + body + b"\r\n--b--\r\n"):
            try:
                found = read_form(data, kind)
            except InvalidForm:
                continue
            assert isinstance(found, dict)


def test_a_name_that_occurs_several_times_is_a_list() -> None:
    assert read_form(b"a=1&b=&a=2&a=3", URLENCODED) == {"a": ["1", "2", "3"], "b": ""}
    assert read_form(b"a=1", URLENCODED, lists=frozenset({"a", "b"})) == {"a": ["1"]}
    assert read_form(b"a=1&a=2", URLENCODED, lists=frozenset({"a"})) == {"a": ["1", "2"]}


def test_a_form_of_too_many_parts_is_refused() -> None:
    body, kind = multipart({uuid.UUID(int=n).hex: "" for n in range(PARTS_MAX)})
    assert len(read_form(body, kind)) == PARTS_MAX
    body, kind = multipart({uuid.UUID(int=n).hex: "" for n in range(PARTS_MAX + 1)})
    with pytest.raises(InvalidForm, match="more than 1,000 parts"):
        read_form(body, kind)
    with pytest.raises(InvalidForm, match="more than 1,000 fields"):
        read_form(b"a=&" * (PARTS_MAX + 1) + b"a=", URLENCODED)


def test_a_field_is_bounded_and_a_file_is_not() -> None:
    size = FIELD_BYTES_MAX + 1
    body, kind = multipart({"a": "x" * size})
    with pytest.raises(InvalidForm, match="is larger than"):
        read_form(body, kind)
    body, kind = multipart({"a": FormFile("f", "text/plain", b"x" * size)})
    assert len(read_form(body, kind)["a"].data) == size


def test_the_headers_of_a_part_are_bounded() -> None:
    line = b"x-header: " + b"x" * 4000 + b"\r\n"
    few, many = line * 2, line * (PART_HEADER_BYTES_MAX // 4000 + 1)
    head = b'--b\r\ncontent-disposition: form-data; name="a"\r\n'
    kind = "multipart/form-data; boundary=b"
    assert read_form(head + few + b"\r\n1\r\n--b--\r\n", kind) == {"a": "1"}
    with pytest.raises(InvalidForm):
        read_form(head + many + b"\r\n1\r\n--b--\r\n", kind)


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        (b"", "multipart/form-data", "names no boundary"),
        (b"", "multipart/form-data; boundary=" + "x" * 300, "names no boundary"),
        (b"--b\r\n", "multipart/form-data; boundary=b", "ends before its last boundary"),
        (b"nothing", "multipart/form-data; boundary=b", "is not multipart"),
        (b"--b\r\nx: y\r\n\r\n1\r\n--b--\r\n", "multipart/form-data; boundary=b", "has no name"),
        (b"a=%ff", URLENCODED, "not UTF-8|more than"),
        (b"\xff", URLENCODED, "not UTF-8"),
    ],
)
def test_what_is_no_form_is_refused_with_the_reason(body: bytes, kind: str, why: str) -> None:
    with pytest.raises(InvalidForm, match=why):
        read_form(body, kind)
