"""Functions that stream, for tests of a running node."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from headrace import App, Http, Sse, Stream

app = App("flow")
PIECE = bytes(range(256)) * 4096  # a MiB


def mark(folder: str, name: str) -> None:
    Path(folder, name).touch()


@app.on(Http("GET", "/rows"))
@app.function
def rows(n: int) -> Iterator[dict[str, int]]:
    for number in range(n):
        yield {"n": number}


@app.on(Http("GET", "/text"))
@app.function
def text() -> Iterator[str]:
    yield "one, "
    yield "zwö"


@app.on(Http("GET", "/bytes"))
@app.function(timeout=120)
def octets(mib: int) -> Iterator[bytes]:
    for _ in range(mib):
        yield PIECE


@app.on(Http("GET", "/async-bytes"))
@app.function(timeout=120)
async def async_octets(mib: int) -> AsyncIterator[bytes]:
    for _ in range(mib):
        yield PIECE


@app.on(Http("GET", "/events"))
@app.function
async def events() -> AsyncIterator[Sse]:
    yield Sse("first\nline two", event="greeting", id="1", retry_s=1.5)
    await asyncio.sleep(0.01)
    yield Sse({"n": 2})


@app.on(Http("GET", "/shaped"))
@app.function
def shaped(name: str) -> Stream:
    return Stream(
        (f"{name},{n}\n" for n in range(3)),
        status=203,
        content_type="text/csv",
        headers={"Content-Disposition": "attachment"},
    )


@app.on(Http("GET", "/split"))
@app.function
def split_header(value: str) -> Stream:
    return Stream(["x"], headers={"x-value": value})


@app.on(Http("GET", "/nothing"))
@app.function
def nothing() -> Iterator[str]:
    yield from ()


@app.on(Http("GET", "/fails-at-once"))
@app.function
def fails_at_once() -> Iterator[str]:
    raise RuntimeError("before anything")
    yield "never"


@app.on(Http("GET", "/fails"))
@app.function
def fails() -> Iterator[str]:
    yield "some"
    raise RuntimeError("the pump has run dry")


@app.on(Http("GET", "/unserialisable"))
@app.function
def unserialisable() -> Iterator[Any]:
    yield {"a": 1}
    yield {"b": object()}


@app.on(Http("GET", "/dies"))
@app.function
def dies() -> Iterator[str]:
    yield "some"
    os._exit(3)


@app.on(Http("GET", "/slow-pieces"))
@app.function(timeout=0.5)
def too_long(folder: str) -> Iterator[str]:
    try:
        while True:
            yield "."
            time.sleep(0.05)
    finally:
        mark(folder, "too-long-ended")


@app.on(Http("GET", "/ticks"))
@app.function
def ticks(folder: str, name: str) -> Iterator[str]:
    """Go on for ever; say when it has begun and when it is ended."""
    try:
        while True:
            yield "tick\n"
            Path(folder, f"{name}-begun").write_text(str(os.getpid()))
            time.sleep(0.01)
    finally:
        mark(folder, f"{name}-ended")


@app.on(Http("GET", "/stuck"))
@app.function
def stuck(folder: str, name: str) -> Iterator[str]:
    """Give one piece and no more."""
    try:
        yield "one\n"
        mark(folder, f"{name}-begun")
        time.sleep(60)
        yield "two\n"
    finally:
        mark(folder, f"{name}-ended")


@app.on(Http("GET", "/async-stuck"))
@app.function
async def async_stuck(folder: str, name: str) -> AsyncIterator[Sse]:
    try:
        yield Sse("one")
        mark(folder, f"{name}-begun")
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        mark(folder, f"{name}-ended")


@app.on(Http("GET", "/flood"))
@app.function(timeout=60)
def flood(folder: str, name: str) -> Iterator[bytes]:
    """Give without end, and say after each MiB how much was taken."""
    given = 0
    try:
        while True:
            yield PIECE
            given += 1
            Path(folder, f"{name}-given").write_text(str(given))
    finally:
        mark(folder, f"{name}-ended")


@app.on(Http("GET", "/finish"))
@app.function(timeout=60)
def finish(folder: str, name: str) -> Iterator[str]:
    """Give one piece, and another when it is told to."""
    yield "one\n"
    mark(folder, f"{name}-begun")
    while not Path(folder, f"{name}-go").exists():
        time.sleep(0.005)
    yield "two\n"


@app.function
def plain(n: int) -> int:
    return n + 1


@app.function
def where() -> int:
    return os.getpid()
