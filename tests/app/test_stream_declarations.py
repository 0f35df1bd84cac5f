"""What a function's declaration tells of its stream, and the values that streams are made of."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from headrace import App, Http, Sse, Stream
from headrace.runtime.api.openapi import describe
from headrace.runtime.api.routing import Endpoint, RouteTable
from headrace.runtime.errors import UnserialisableResult
from headrace.runtime.model.spec import Manifest
from headrace.runtime.pool.pump import encode_piece


def records() -> Iterator[dict[str, int]]:
    yield {"a": 1}


async def events() -> AsyncIterator[Sse]:
    yield Sse("a")


def text() -> Generator[str, None, None]:
    yield "a"


def octets() -> Iterator[bytes]:
    yield b"a"


def either() -> Iterator[bytes | str]:
    yield b"a"


def anything() -> Iterator[Any]:
    yield 1


def unsaid():
    yield 1


def shaped() -> Stream:
    return Stream([])


def plain() -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (records, "application/x-ndjson"),
        (events, "text/event-stream"),
        (text, "text/plain; charset=utf-8"),
        (octets, "application/octet-stream"),
        (either, "*/*"),
        (anything, "*/*"),
        (unsaid, "*/*"),
        (shaped, "*/*"),
        (plain, ""),
    ],
)
def test_a_description_has_the_media_type_of_a_stream(function: Callable[..., Any], told: str) -> None:
    app = App("shop")
    app.on(Http("GET", "/it"))(app.function(function))
    [spec] = [declared.spec for declared in app.declared.values()]
    assert spec.streams == told
    routes = RouteTable([Endpoint(Http("GET", "/it"), spec.name, is_job=False)])
    content = describe(Manifest(version="1", functions=(spec,)), routes)["paths"]["/it"]["get"]["responses"]
    assert list(content["200"]["content"]) == ([told, "application/json"] if told else ["application/json"])


@pytest.mark.parametrize(
    ("item", "wire"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        ("ü", b"\xc3\xbc"),
        ({"a": [1, None]}, b'{"a":[1,null]}\n'),
        (None, b"null\n"),
        (Sse(), b"data: \n\n"),
        (Sse("a\r\nb\rc\n"), b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (Sse([1, "x"], id="7", event="e", retry_s=0.25), b'id: 7\nevent: e\nretry: 250\ndata: [1,"x"]\n\n'),
    ],
)
def test_a_piece_has_its_form_on_the_wire(item: object, wire: bytes) -> None:
    assert encode_piece(item) == wire


def test_a_piece_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(UnserialisableResult, match=r"\$\.a is NaN"):
        encode_piece({"a": float("nan")})


@pytest.mark.parametrize(
    "fields", [{"event": "a\nb"}, {"id": "a\rb"}, {"id": "a\0b"}, {"retry_s": -1}, {"retry_s": float("nan")}]
)
def test_an_event_cannot_be_made_of_what_would_be_two(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one line|retry_s"):
        Sse("x", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 199},
        {"status": 204},
        {"status": True},
        {"content_type": "a\r\nb: c"},
        {"headers": {"x": "a\nb"}},
        {"headers": {"a b": "c"}},
        {"headers": {"Content-Length": "3"}},
    ],
)
def test_a_stream_refuses_a_head_that_http_cannot_have(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of a stream is"):
        Stream([], **fields)


def test_a_stream_refuses_pieces_that_cannot_be_iterated() -> None:
    with pytest.raises(TypeError, match="a int, which cannot be iterated"):
        Stream(3)  # type: ignore[arg-type]
