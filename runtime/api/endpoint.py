"""What the endpoints of `/v1` are made of: their table, and how their requests are read and answered.

Imports this room and the rooms below.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.runtime.api.answers import send_error
from headrace.runtime.errors import BadRequest, HeadraceError, PayloadTooLarge
from headrace.runtime.model.ids import read_id
from headrace.runtime.model.invocation import Status

PIECE_BYTES = 1 << 20


class Endpoint(NamedTuple):
    """One line of the table of `/v1`: `scope` is what the caller's token must have, empty when none is asked
    for; with `takes_json` a body of another content type is refused.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    scope: str
    takes_json: bool = False


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def error_answer(error: HeadraceError) -> Response:
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    # The error's form has one home; running it to its end needs no event loop, since it never waits.
    work = send_error(collect, error)
    try:
        work.send(None)
    except StopIteration:
        pass
    start, body = messages
    headers = {key.decode(): value.decode() for key, value in start["headers"]}
    return Response(body["body"], status_code=start["status"], headers=headers)


async def read_body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(size, limit)
        parts.append(piece)
    return b"".join(parts)


def read_status(text: str | None) -> Status | None:
    if not text:
        return None
    try:
        return Status[text.upper()]
    except KeyError:
        known = ", ".join(status.name.lower() for status in Status)
        raise BadRequest(f"there is no status {text!r}", f"Known: {known}.") from None


def read_limit(text: str | None) -> int:
    if not text:
        return 100
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise BadRequest(f"limit is {text!r}", "It must be a whole number from 1 to 1000.")
    return int(text)


def read_cursor(text: str | None) -> int | None:
    if not text:
        return None
    found = read_id(text)
    if found is None:
        raise BadRequest(f"the cursor {text!r} is wrong", "Use the next_cursor of the page before.")
    return found


def read_whole(text: str | None, name: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} is {text!r}", "It must be a whole number, 0 or more.")
    return int(text)


def read_number(text: str | None, name: str, *, below: float = 1e9) -> float:
    if not text:
        return 0.0
    try:
        value = float(text)
        if not 0 <= value < below:
            raise ValueError
        return value
    except ValueError:
        raise BadRequest(f"{name} is {text!r}", "It must be a number of seconds, 0 or more.") from None


async def pieces(reader: Any, in_thread: Callable[..., Awaitable[Any]]) -> AsyncIterator[bytes]:
    """What a blocking reader gives, read in threads; it is closed at the end."""
    try:
        while piece := await in_thread(reader.read, PIECE_BYTES):
            yield piece
    finally:
        await in_thread(reader.close)
