"""Streams of functions under test: piece by piece, as their readers take them."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from headrace import App, Http, Sse, Stream
from headrace.runtime.errors import StreamBroken
from headrace.testing import AppUnderTest

app = App("streams")
ended: list[str] = []

pytestmark = pytest.mark.headrace(app)


@app.on(Http("GET", "/lines"))
@app.function
def lines(n: int = 3) -> Iterator[str]:
    try:
        for number in range(n):
            yield f"{number}\n"
    finally:
        ended.append("lines")


@app.on(Http("GET", "/items"))
@app.function
async def items(n: int = 2) -> AsyncIterator[dict[str, int]]:
    for number in range(n):
        yield {"n": number}


@app.on(Http("GET", "/ticks"))
@app.function
def ticks() -> Iterator[Sse]:
    try:
        for number in itertools.count():
            yield Sse(number)
    finally:
        ended.append("ticks")


@app.on(Http("GET", "/report"))
@app.function
def report() -> Stream:
    return Stream([b"a" * 100_000, b"b" * 500_000], status=201, content_type="text/csv", headers={"x-a": "1"})


@app.function
def breaks() -> Iterator[str]:
    yield "one"
    print("about to break")
    raise RuntimeError("in the middle")


def test_a_route_streams_what_a_generator_yields(headrace_app: AppUnderTest) -> None:
    found = headrace_app.http("GET", "/lines?n=4")
    assert (found.status, found.text) == (200, "0\n1\n2\n3\n")
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert headrace_app.http("GET", "/items").text == '{"n":0}\n{"n":1}\n'
    assert headrace_app.http("GET", "/lines?n=0").body == b""


def test_a_stream_may_say_its_status_and_be_long(headrace_app: AppUnderTest) -> None:
    found = headrace_app.http("GET", "/report")

    assert (found.status, found.headers["content-type"], found.headers["x-a"]) == (201, "text/csv", "1")
    assert found.body == b"a" * 100_000 + b"b" * 500_000


def test_a_stream_without_end_goes_as_far_as_it_is_read(headrace_app: AppUnderTest) -> None:
    ended.clear()
    with headrace_app.client.stream("streams.ticks") as stream:
        first = next(iter(stream))
    headrace_app.run_until_idle()

    assert first.startswith(b"data: 0\n\ndata: 1\n\n")
    assert ended == ["ticks"]


def test_a_call_that_is_no_stream_gets_all_of_it(headrace_app: AppUnderTest) -> None:
    assert headrace_app.invoke("streams.lines", {"n": 2}) == ["0\n", "1\n"]
    headrace_app.submit("streams.items", {"n": 1})
    headrace_app.run_until_idle()
    assert headrace_app.results("streams.items") == [[{"n": 0}]]


def test_a_stream_that_breaks_off_is_no_end(headrace_app: AppUnderTest) -> None:
    with (
        pytest.raises(StreamBroken, match="broke off"),
        headrace_app.client.stream("streams.breaks") as stream,
    ):
        b"".join(stream)
    assert "about to break" in headrace_app.output("streams.breaks")
