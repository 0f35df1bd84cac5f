"""HTTP as callers speak it, well and badly: the real protocol on a real socket, an application of the test's
own, and a clock moved by hand.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.runtime.api.connection import SWEEP_S, Bounds, Front
from headrace.runtime.testing import ManualClock

PATIENCE_S = 10.0
HOST = b"host: a\r\n"


class Place:
    """A listening front and what its application saw."""

    def __init__(self, **bounds: Any) -> None:
        self.clock = ManualClock()
        self.said: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, bytes]] = []
        self.gate = asyncio.Event()
        self.gone = asyncio.Event()
        self.front = Front(self.app, clock=self.clock, report=self._report, bounds=Bounds(**bounds))
        self.state = SimpleNamespace(connections=set(), tasks=set())
        self.server: Any = None
        self.callers: list[Caller] = []

    def _report(self, message: str, details: dict[str, Any]) -> None:
        self.said.append(details)

    async def start(self) -> None:
        make: Callable[[], Any] = lambda: self.front.protocol(server_state=self.state)  # noqa: E731  # a name for mypy
        self.server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for connection in list(self.front.open):
            connection.transport.abort()
        for caller in self.callers:
            caller.writer.transport.abort()
            with contextlib.suppress(OSError):
                await caller.writer.wait_closed()
        for task in list(self.state.tasks):
            task.cancel()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)

    async def later(self, seconds: float) -> None:
        """Let time pass, and have the connections looked at."""
        await self.clock.advance(seconds + SWEEP_S)
        self.front.step()

    async def until(self, look: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not look():  # noqa: ASYNC110  # what is looked at has no event of its own
                await asyncio.sleep(0.001)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.calls.append(("gone", scope["path"], body))
                return
            body += message["body"]
            if not message["more_body"] or scope["path"] == "/early":
                break
        self.calls.append((scope["method"], scope["path"], body))
        status, headers = 200, []
        match scope["path"]:
            case "/wait":
                await self.gate.wait()
            case "/none":
                return
            case "/raise":
                raise RuntimeError("a mistake")
            case "/early":
                status = 413
            case "/lines":
                headers = [(b"x-a", b"1\r\nx-b: 2")]
            case "/short":
                headers = [(b"content-length", b"100")]
            case "/204":
                status = 204
        if scope["path"] in ("/stream", "/broken", "/watch"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            if scope["path"] == "/broken":
                return
            if scope["path"] == "/watch":
                assert (await receive())["type"] == "http.disconnect"
                self.gone.set()
            await send({"type": "http.response.body", "body": b" more", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        answer = json.dumps([scope["path"], len(body)]).encode() if status != 204 else b""
        if scope["path"] == "/large":
            answer = b"x" * (32 << 20)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Caller:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """One whole answer. Raises IncompleteReadError when it breaks off."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split()[1])
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            if method == "HEAD" or status == 204:
                return status, headers, b""
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
                return status, headers, body
            if "content-length" in headers:
                return status, headers, await self.reader.readexactly(int(headers["content-length"]))
            return status, headers, await self.reader.read()

    async def ended(self) -> bytes:
        """What is left when the node closes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    def get(self, path: str, *more: bytes) -> None:
        self.say(f"GET {path} HTTP/1.1\r\n".encode(), HOST, *more, b"\r\n")

    def leave(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    found = Place()
    await found.start()
    yield found
    await found.stop()


async def connect(place: Place) -> Caller:
    caller = Caller(*await asyncio.open_connection("127.0.0.1", place.port, limit=1 << 20))
    place.callers.append(caller)
    return caller


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


# ---- spoken well ----


async def test_a_connection_is_used_again_and_an_answer_is_one_piece(place: Place) -> None:
    caller = await connect(place)
    for n in range(3):
        caller.say(b"POST /a%20b?c=d HTTP/1.1\r\n", HOST, b"content-length: 3\r\n\r\nab%d" % n)
        status, headers, body = await caller.answer()
        assert (status, json.loads(body)) == (200, ["/a b", 3])
        assert headers["content-length"] == str(len(body))
        assert headers["date"].endswith("gmt")
        assert "connection" not in headers
    assert [body for _, _, body in place.calls] == [b"ab0", b"ab1", b"ab2"]


async def test_a_request_may_come_byte_by_byte(place: Place) -> None:
    caller = await connect(place)
    for byte in b"POST /slow HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
        caller.say(bytes([byte]))
        await asyncio.sleep(0)
    assert json.loads((await caller.answer())[2]) == ["/slow", 3]


async def test_requests_that_come_together_are_answered_in_their_order(place: Place) -> None:
    caller = await connect(place)
    caller.say(*(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % n for n in range(50)))
    assert [json.loads((await caller.answer())[2])[0] for _ in range(50)] == [f"/{n}" for n in range(50)]


async def test_a_caller_who_expects_to_be_asked_is_asked(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"PUT / HTTP/1.1\r\n", HOST, b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.say(b"ab")
    assert json.loads((await caller.answer())[2]) == ["/", 2]


async def test_a_head_is_answered_without_a_body_and_204_without_its_length(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"HEAD / HTTP/1.1\r\n", HOST, b"\r\n")
    assert (await caller.answer("HEAD"))[0] == 200
    caller.get("/204")
    status, headers, _ = await caller.answer()
    assert (status, "content-length" in headers, "transfer-encoding" in headers) == (204, False, False)
    caller.get("/then")
    assert json.loads((await caller.answer())[2]) == ["/then", 0]


async def test_a_stream_is_chunked_and_the_connection_goes_on(place: Place) -> None:
    caller = await connect(place)
    for _ in range(2):
        caller.get("/stream")
        status, headers, body = await caller.answer()
        assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"some more")


async def test_a_caller_of_http_1_0_gets_a_stream_that_ends_with_the_connection(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"GET /stream HTTP/1.0\r\n\r\n")
    status, headers, body = await caller.answer()
    assert (status, headers["connection"], body) == (200, "close", b"some more")
    assert "transfer-encoding" not in headers


async def test_a_request_to_close_is_heeded(place: Place) -> None:
    caller = await connect(place)
    caller.get("/", b"connection: close\r\n")
    assert (await caller.answer())[1]["connection"] == "close"
    assert await caller.ended() == b""


async def test_an_offer_of_another_protocol_is_passed_over(place: Place) -> None:
    caller = await connect(place)
    caller.get("/", b"connection: upgrade\r\nupgrade: h2c\r\n")
    status, headers, _ = await caller.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await caller.ended() == b""


# ---- spoken badly ----


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400, "bad_request"),
        (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400, "bad_request"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            400,
            "bad_request",
        ),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414, "target_too_long"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 60_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 300 + b"\r\n", 431, "headers_too_large"),
    ],
)
async def test_a_request_that_is_none_is_refused_and_its_connection_closed(
    place: Place, said: bytes, status: int, code: str
) -> None:
    caller = await connect(place)
    caller.say(said)
    found, headers, body = await caller.answer()
    assert (found, code_of(body), headers["connection"]) == (status, code, "close")
    assert await caller.ended() == b""
    assert not [call for call in place.calls if call[0] != "gone"]


async def test_ten_thousand_bytes_of_headers_are_read(place: Place) -> None:
    caller = await connect(place)
    caller.get("/", b"x: " + b"a" * 10_000 + b"\r\n")
    assert (await caller.answer())[0] == 200


async def test_what_follows_a_whole_request_and_is_none_does_not_harm_its_answer(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"POST /a HTTP/1.1\r\n", HOST, b"content-length: 2\r\n\r\nab too much\r\n\r\n")
    assert json.loads((await caller.answer())[2]) == ["/a", 2]
    await caller.ended()


async def test_a_body_that_is_shorter_than_it_says_is_not_handed_on(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"POST /a HTTP/1.1\r\n", HOST, b"content-length: 20\r\n\r\nab")
    await asyncio.sleep(0)
    caller.writer.write_eof()
    await place.until(lambda: place.calls)
    assert place.calls == [("gone", "/a", b"ab")]


async def test_a_caller_who_closes_his_half_gets_his_answer(place: Place) -> None:
    caller = await connect(place)
    caller.get("/wait")
    caller.writer.write_eof()
    await place.until(lambda: place.calls)
    place.gate.set()
    assert (await caller.answer())[0] == 200
    assert await caller.ended() == b""


async def test_a_stream_hears_that_its_caller_has_left(place: Place) -> None:
    caller = await connect(place)
    caller.get("/watch")
    async with asyncio.timeout(PATIENCE_S):
        await caller.reader.readuntil(b"some")
        caller.leave()
        await place.gone.wait()


async def test_a_reset_in_the_middle_of_an_answer_harms_nobody(place: Place) -> None:
    for _ in range(4):
        caller = await connect(place)
        caller.get("/large")
        async with asyncio.timeout(PATIENCE_S):
            await caller.reader.readexactly(1000)
        found = caller.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.leave()
    await place.until(lambda: not place.front.open)
    assert place.said == []


# ---- too slowly, too much ----


@pytest.mark.parametrize(
    ("said", "after_s"),
    [
        (b"GET", 10),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: ", 10),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc", 30),
    ],
)
async def test_a_request_that_does_not_come_to_its_end_is_answered_408(
    place: Place, said: bytes, after_s: float
) -> None:
    caller = await connect(place)
    caller.say(said)
    await place.until(lambda: any(one.deadline < one._front.now + 35 for one in place.front.open))
    await place.later(after_s - 2 * SWEEP_S)
    assert place.front.open
    await place.later(SWEEP_S)
    status, _, body = await caller.answer()
    assert (status, code_of(body)) == (408, "request_timeout")
    assert await caller.ended() == b""


async def test_a_body_must_not_trickle_for_ever(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"POST / HTTP/1.1\r\n", HOST, b"content-length: 1000000\r\n\r\n")
    for _ in range(28):
        caller.say(b"0123456789")  # ten bytes a second
        await asyncio.sleep(0.002)
        await place.later(1 - SWEEP_S)
    assert place.front.open
    await place.later(5)
    assert (await caller.answer())[0] == 408


async def test_a_resting_connection_is_closed_in_time_and_no_sooner(place: Place) -> None:
    caller = await connect(place)
    caller.get("/")
    await caller.answer()
    await place.later(70)
    caller.get("/")
    await caller.answer()
    await place.later(76)
    assert await caller.ended() == b""


async def test_a_caller_who_takes_nothing_of_an_answer_is_dropped(place: Place) -> None:
    caller = await connect(place)
    caller.get("/large")
    await place.until(lambda: any(one.paused for one in place.front.open))
    await place.later(58)
    assert place.front.open
    await place.later(2)
    await place.until(lambda: not place.front.open)


async def test_a_slow_caller_who_takes_some_now_and_then_gets_all_of_it(place: Place) -> None:
    caller = await connect(place)
    caller.get("/large", b"connection: close\r\n")
    taken = len((await caller.reader.readuntil(b"\r\n\r\n"))[:0])
    async with asyncio.timeout(PATIENCE_S):
        while taken < 32 << 20:
            taken += len(await caller.reader.readexactly(4 << 20))
            await place.until(lambda: not place.front.open or caller.reader._buffer)  # type: ignore[attr-defined]
            await place.later(45)
    assert await caller.ended() == b""


async def test_half_a_request_behind_a_whole_one_is_not_waited_for_for_ever(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"GET /wait HTTP/1.1\r\n", HOST, b"\r\n", b"GET /b HTTP/1.1\r\n", HOST, b"\r\nGET /c HT")
    await place.until(lambda: place.calls)
    place.gate.set()
    for path in ("/wait", "/b"):
        assert json.loads((await caller.answer())[2])[0] == path
    await place.later(11)
    assert (await caller.answer())[0] == 408


async def test_a_body_that_nobody_asks_for_is_not_read(place: Place) -> None:
    """Neither is what comes with a second request while the first is being answered."""
    caller = await connect(place)
    caller.say(b"POST /wait HTTP/1.1\r\n", HOST, b"content-length: 0\r\n\r\n")
    caller.say(b"POST /b HTTP/1.1\r\n", HOST, b"content-length: 8000000\r\n\r\n")
    caller.say(b"x" * 8_000_000)
    await place.until(lambda: any(one._pipeline for one in place.front.open))
    await asyncio.sleep(0.05)
    [connection] = place.front.open
    assert connection._pipeline[0].held < 1 << 20
    await place.later(100)  # the caller is not to blame
    place.gate.set()
    assert json.loads((await caller.answer())[2]) == ["/wait", 0]
    assert json.loads((await caller.answer())[2]) == ["/b", 8_000_000]


async def test_an_answer_before_the_end_of_the_request_reaches_its_caller(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"POST /early HTTP/1.1\r\n", HOST, b"content-length: 3000000\r\n\r\n")
    caller.say(b"x" * 2_000_000)
    status, headers, _ = await caller.answer()
    assert (status, headers["connection"]) == (413, "close")
    caller.say(b"x" * 1_000_000)
    assert await caller.ended() == b""


async def test_a_caller_who_goes_on_sending_what_was_refused_is_cut_off(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"POST /early HTTP/1.1\r\n", HOST, b"content-length: 300000000\r\n\r\nab")
    assert (await caller.answer())[0] == 413
    await place.later(2)
    await place.until(lambda: not place.front.open)


async def test_connections_beyond_the_most_are_answered_503_and_the_others_served() -> None:
    place = Place(connections=3)
    await place.start()
    callers = [await connect(place) for _ in range(3)]
    await place.until(lambda: len(place.front.open) == 3)
    refused = await connect(place)
    status, _, body = await refused.answer()
    assert (status, code_of(body)) == (503, "overloaded")
    for caller in callers:
        caller.get("/")
        assert (await caller.answer())[0] == 200
    callers[0].leave()
    await place.until(lambda: len(place.front.open) == 2)
    again = await connect(place)
    again.get("/")
    assert (await again.answer())[0] == 200
    await place.stop()


async def test_all_requests_together_hold_no_more_than_they_may() -> None:
    place = Place(bodies_bytes=1_000_000, body_bytes=600_000)
    await place.start()
    callers = [await connect(place) for _ in range(4)]
    for caller in callers:
        caller.say(b"POST / HTTP/1.1\r\n", HOST, b"content-length: 500000\r\n\r\n", b"x" * 300_000)
    await place.until(lambda: any(caller.reader._buffer for caller in callers))  # type: ignore[attr-defined]
    [refused] = [caller for caller in callers if caller.reader._buffer]  # type: ignore[attr-defined]
    status, _, body = await refused.answer()
    assert (status, code_of(body)) == (503, "overloaded")
    for caller in callers:
        if caller is not refused:
            caller.say(b"x" * 200_000)
            assert json.loads((await caller.answer())[2]) == ["/", 500_000]
    await place.until(lambda: place.front.bodies == 0)
    large = await connect(place)
    large.say(b"POST / HTTP/1.1\r\n", HOST, b"content-length: 5000000\r\n\r\n", b"x" * 5_000_000)
    assert json.loads((await large.answer())[2]) == ["/", 5_000_000]
    await place.stop()


async def test_of_answers_that_nobody_takes_some_are_dropped_when_they_are_too_many() -> None:
    place = Place(unsent_bytes=62 << 20)
    await place.start()
    callers = [await connect(place) for _ in range(4)]
    for caller in callers:
        caller.get("/large")
    await place.until(lambda: sum(one.paused for one in place.front.open) == 4)
    await place.later(1)
    await place.until(lambda: len(place.front.open) < 4)
    assert sum(one.transport.get_write_buffer_size() for one in place.front.open) <= 62 << 20
    answers = await asyncio.gather(*(caller.answer() for caller in callers), return_exceptions=True)
    whole = [answer for answer in answers if isinstance(answer, tuple)]
    assert 1 <= len(whole) < 4
    assert {len(body) for _, _, body in whole} == {32 << 20}
    await place.stop()


# ---- an application that makes mistakes ----


@pytest.mark.parametrize("path", ["/raise", "/none", "/lines"])
async def test_a_mistake_before_the_answer_is_500_and_is_reported(place: Place, path: str) -> None:
    caller = await connect(place)
    caller.get(path)
    status, headers, body = await caller.answer()
    assert (status, code_of(body), "x-b" in headers) == (500, "internal_error", False)
    assert place.said[0]["path"] == path


async def test_a_stream_that_breaks_off_is_not_ended(place: Place) -> None:
    caller = await connect(place)
    caller.get("/broken")
    with pytest.raises(asyncio.IncompleteReadError):
        await caller.answer()


async def test_a_stream_that_breaks_off_resets_a_connection_of_http_1_0(place: Place) -> None:
    caller = await connect(place)
    caller.say(b"GET /broken HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await caller.answer()


async def test_an_answer_of_another_length_than_it_said_breaks_off(place: Place) -> None:
    caller = await connect(place)
    caller.get("/short")
    assert (await caller.ended()).count(b"HTTP/1.1") <= 1
    assert place.said


async def test_a_front_that_stops_answers_what_is_under_way_and_no_more(place: Place) -> None:
    caller, resting = await connect(place), await connect(place)
    caller.get("/wait")
    await place.until(lambda: place.calls and len(place.front.open) == 2)
    for connection in list(place.front.open):
        connection.shutdown()
    assert await resting.ended() == b""
    place.gate.set()
    assert (await caller.answer())[1]["connection"] == "close"
    assert await caller.ended() == b""
