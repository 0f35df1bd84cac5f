"""Connections: HTTP/1.1 as callers speak it, well or badly, in front of the application.

Imports the floor and this room. It is uvicorn's place for a protocol, filled by our own for what a node that
anybody may call needs: bounds on what a caller may send before it is answered, and on how slowly; one write
for an answer that is there at once; callers who close their half; streams that break off visibly.

Sources: RFC 9110 and RFC 9112; for bodies that come too slowly, Apache's mod_reqtimeout.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

from headrace.runtime.api.answers import Headers, Message, Scope, encode
from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    BadRequest,
    HeadersTooLarge,
    HeadraceError,
    NodeStopping,
    Overloaded,
    RequestTimeout,
    TargetTooLong,
)

SWEEP_S = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one caller may take of the node, in bytes and seconds.

    Attributes:
        connections: how many there may be; more are answered 503.
        bodies_bytes: what all requests together may hold while they are read. One of more than `body_bytes`
            is not counted: no call has so large a body, and what does is written on as it comes.
        unsent_bytes: what may wait in all for callers to take it; the slowest are dropped beyond.
        target_bytes, head_bytes, headers: a request's path and query, its headers, and their number.
        head_s: from the first byte of a request to the end of its headers.
        body_s: how long a body may pause. Apart from that it must bring `body_rate` bytes a second.
        held_bytes: what is held of a body that the application has not asked for.
        keep_s: how long a connection may rest between two requests.
        write_s: how long a caller may take nothing of an answer.
        linger_s, linger_bytes: what is still read of a request that was answered before its end, so that its
            caller sees the answer.
    """

    connections: int = 10_000
    bodies_bytes: int = 512 << 20
    body_bytes: int = 16 << 20
    unsent_bytes: int = 256 << 20
    target_bytes: int = 8 << 10
    head_bytes: int = 32 << 10
    headers: int = 200
    head_s: float = 10.0
    body_s: float = 30.0
    body_rate: float = 500.0
    held_bytes: int = 64 << 10
    keep_s: float = 75.0
    write_s: float = 60.0
    linger_s: float = 2.0
    linger_bytes: int = 4 << 20


App = Callable[[Scope, Any, Any], Awaitable[None]]

_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}\r\n".encode()
    for status in range(200, 600)
}
_NEVER = float("inf")
_GONE: Message = {"type": "http.disconnect"}
_RESET = struct.pack("ii", 1, 0)  # linger for no time
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Front:
    """What the connections of one node share: the application, the date, the time by which each is judged.

    Args:
        app: the ASGI application.
        clock: where the time comes from.
        report: told of what the application failed to answer.
        bounds: what each caller may take.
    """

    def __init__(
        self,
        app: App,
        *,
        clock: Clock,
        report: Callable[[str, dict[str, Any]], None],
        bounds: Bounds | None = None,
    ) -> None:
        self.app = app
        self.report = report
        self.bounds = bounds or Bounds()
        self.open: set[Connection] = set()
        self.bodies = 0
        """Bytes of requests that are being read, without those that are too large to be held."""
        self.stopping = False
        self._clock = clock
        self.step()

    def protocol(
        self, *, server_state: Any, _loop: asyncio.AbstractEventLoop | None = None, **_: Any
    ) -> "Connection":
        """A protocol for a new connection, as uvicorn asks for one."""
        return Connection(self, server_state, _loop or asyncio.get_running_loop())

    async def run(self) -> None:
        """Look at all connections again and again."""
        while True:
            await self._clock.sleep(SWEEP_S)
            self.step()

    def step(self) -> None:
        """Take the time, and end the connections whose time is over."""
        self.now = now = self._clock.monotonic()
        self.date = f"date: {formatdate(self._clock.now(), usegmt=True)}\r\n".encode()
        paused = [one for one in self.open if one.paused]
        unsent = sum(one.measure() for one in paused)
        for connection in [one for one in self.open if now > one.deadline or now > one.write_deadline]:
            connection.expire()
        for connection in sorted(paused, key=lambda one: one.write_deadline):
            if unsent <= self.bounds.unsent_bytes:
                break
            unsent -= connection.unsent
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One caller's connection. Moments are those of its front."""

    __slots__ = (
        "_bounds",
        "_deaf",
        "_drained",
        "_eof",
        "_exchange",
        "_expects",
        "_front",
        "_head_bytes",
        "_head_fed",
        "_headers",
        "_hosts",
        "_in_head",
        "_latest",
        "_lingering",
        "_loop",
        "_parser",
        "_pipeline",
        "_reading_paused",
        "_refusal",
        "_state",
        "_target",
        "client",
        "deadline",
        "paused",
        "server",
        "transport",
        "unsent",
        "write_deadline",
    )

    def __init__(self, front: Front, state: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._front = front
        self._bounds = front.bounds
        self._state = state
        self._loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None  # the one that is being answered
        self._latest: Exchange | None = None  # the one whose request is being read
        self._pipeline: deque[Exchange] = deque()
        self._in_head = False
        self._head_bytes = 0  # of the headers
        self._head_fed = 0  # of all that came before their end
        self._headers: Headers = []
        self._target = b""
        self._hosts = 0
        self._expects = False
        self._refusal: HeadraceError | None = None
        self._deaf = False  # nothing more is read as HTTP
        self._eof = False  # the caller sends no more
        self._lingering = -1  # bytes that may still come of what nobody reads, once it is closing
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None
        self.paused = False
        self.unsent = 0
        """What was still to be taken at the last look, while it is paused."""
        self.deadline = _NEVER
        self.write_deadline = _NEVER
        self.transport: Any = None
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None

    # ---- the transport ----

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple | list) else None
        self.server = (str(own[0]), int(own[1])) if isinstance(own, tuple | list) else None
        front = self._front
        most = front.bounds.connections
        if len(front.open) >= most or front.stopping:
            stopping = front.stopping
            self._answer_with(
                NodeStopping("the node is stopping")
                if stopping
                else Overloaded(f"it has {most:,} connections")
            )
            self._close()
            return
        front.open.add(self)
        self._state.connections.add(self)
        self.deadline = front.now + self._bounds.keep_s

    def connection_lost(self, error: Exception | None) -> None:
        self._front.open.discard(self)
        self._state.connections.discard(self)
        self.deadline = self.write_deadline = _NEVER
        self._deaf = True
        for exchange in (self._exchange, self._latest, *self._pipeline):
            if exchange is not None:
                exchange.lose()
        for exchange in self._pipeline:
            exchange.done()
        self._pipeline.clear()
        self._latest = self._parser = None  # which hold this connection in turn
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
            return
        if self._deaf:
            return
        if self._latest is None and not self._in_head:
            self._in_head = True
            self.deadline = self._front.now + self._bounds.head_s
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # what is offered instead of HTTP/1.1 is not spoken here
        except httptools.HttpParserError as error:
            self._refusal = self._refusal or _malformed(error)
        if self._in_head:
            self._head_fed += len(data)
            if self._head_fed > self._bounds.head_bytes + self._bounds.target_bytes:
                self._refusal = self._refusal or HeadersTooLarge(self._bounds.head_bytes)
        if self._refusal is not None:
            self._break(self._refusal)

    def eof_received(self) -> bool:
        """The caller has closed its half: what it has asked for whole is answered."""
        self._eof = True
        for exchange in (self._latest, self._exchange, *self._pipeline):
            if exchange is not None:
                exchange.leave()
        return self._exchange is not None

    def pause_writing(self) -> None:
        self.paused = True
        self.unsent = self.transport.get_write_buffer_size()
        self.write_deadline = self._front.now + self._bounds.write_s

    def measure(self) -> int:
        """How much waits to be taken. Whoever takes some of it has time again."""
        unsent: int = self.transport.get_write_buffer_size()
        if unsent < self.unsent:
            self.write_deadline = self._front.now + self._bounds.write_s
        self.unsent = unsent
        return unsent

    def resume_writing(self) -> None:
        self.paused = False
        self.write_deadline = _NEVER
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def drain(self) -> None:
        """Return when the caller has taken most of what was written."""
        if self._drained is None:
            self._drained = self._loop.create_future()
        await asyncio.shield(self._drained)

    # ---- the parser ----

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._head_fed = 0
        self.deadline = self._front.now + self._bounds.head_s
        self._target = b""
        self._headers = []
        self._hosts = 0
        self._expects = False

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._bounds.target_bytes:
            self._refusal = self._refusal or TargetTooLong(self._bounds.target_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._head_bytes += len(name) + len(value)
        self._headers.append((name, value))
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        version = parser.get_http_version()
        if self._head_bytes > self._bounds.head_bytes or len(self._headers) > self._bounds.headers:
            self._refusal = self._refusal or HeadersTooLarge(self._bounds.head_bytes)
        elif version not in ("1.1", "1.0"):
            self._refusal = self._refusal or BadRequest(f"HTTP/{version} is not spoken", "Speak HTTP/1.1.")
        elif self._hosts != 1 and (version == "1.1" or self._hosts):
            self._refusal = self._refusal or BadRequest("the request has not one header Host", "Send one.")
        if self._refusal is not None:
            return
        target = httptools.parse_url(self._target)
        raw_path = target.path or b"/"
        path = raw_path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": target.query or b"",
            "headers": self._headers,
        }
        keep_alive = version == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        exchange = Exchange(self, scope, expects=self._expects, keep_alive=keep_alive)
        self._latest = exchange
        self.deadline = self._front.now + self._bounds.body_s
        if self._exchange is None:
            self._begin(exchange)
        else:
            self._pipeline.append(exchange)
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        exchange = self._latest
        if exchange is None or exchange.lost:
            return
        exchange.feed(body)
        if self._front.bodies > self._bounds.bodies_bytes and exchange.counted > 0:
            self._refusal = self._refusal or Overloaded("too many requests are on their way in")
        self.deadline = min(
            self._front.now + self._bounds.body_s, self.deadline + len(body) / self._bounds.body_rate
        )
        if exchange.held > self._bounds.held_bytes:
            self.pause_reading()

    def on_message_complete(self) -> None:
        self.deadline = _NEVER
        if self._latest is not None:
            self._latest.end_body()
            self._latest = None

    # ---- exchanges ----

    def _begin(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        task = self._loop.create_task(exchange.run(self._front))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def answered(self, exchange: "Exchange") -> None:
        """The application is done with the exchange that was under way."""
        exchange.done()
        if exchange is not self._exchange:
            return
        self._exchange = None
        if self.transport.is_closing():
            return
        if not exchange.whole:
            # The caller must see that this was not the end: it is missing what ends a chunked body. A body
            # that ends with its connection has no such sign, but for the connection's being reset.
            if exchange.ends_visibly:
                self._close()
            else:
                self._reset()
        elif self._refusal is not None:
            self._break(self._refusal)
        elif not exchange.keep_alive:
            if exchange.complete or self._eof:
                self._close()
            else:
                self._linger()
        elif self._pipeline:
            self._begin(self._pipeline.popleft())
            self.resume_reading()
        else:
            self.resume_reading()
            if not self._in_head and self._latest is None:
                self.deadline = self._front.now + self._bounds.keep_s

    def closing(self, exchange: "Exchange") -> bool:
        """Whether this exchange is the connection's last."""
        return self._eof or self._deaf or self._front.stopping or not exchange.complete

    def pause_reading(self) -> None:
        """Read no more until the application has caught up; the caller is not to blame for the time."""
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()
        self.deadline = _NEVER

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()
            if self._latest is not None:
                self.deadline = self._front.now + self._bounds.body_s
            elif self._in_head:
                self.deadline = self._front.now + self._bounds.head_s

    # ---- ending ----

    def shutdown(self) -> None:
        """The node stops: what is being answered may end."""
        self._front.stopping = True
        if self._exchange is None:
            self._close()

    def expire(self) -> None:
        """Its time is over, in whatever it does."""
        if self._front.now > self.write_deadline or self._lingering >= 0 or self.transport.is_closing():
            self.transport.abort()
        elif self._latest is None and not self._in_head:
            self._close()
        else:
            missing = "some of its headers is" if self._in_head else "some of its body is"
            self._break(RequestTimeout(missing))

    def _break(self, error: HeadraceError) -> None:
        """The request cannot be read to its end. What came before it is answered first."""
        self._deaf = True
        self.deadline = _NEVER
        self._refusal = error
        broken = self._latest
        for exchange in self._pipeline:
            exchange.done()
        self._pipeline.clear()  # the answer under way is this connection's last
        if self._exchange is not None and self._exchange is not broken:
            return
        if broken is not None and broken.started:
            self.transport.abort()
            return
        self._exchange = self._latest = None
        if broken is not None:
            broken.lose()
            broken.done()
        self._answer_with(error)
        self._linger()

    def _answer_with(self, error: HeadraceError) -> None:
        body = encode({"error": {"code": error.code, "message": str(error), "hint": error.hint}})
        head = _STATUS_LINES[error.http_status] + self._front.date
        head += b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    def _linger(self) -> None:
        """Close, and read on for a while what nobody wants: a connection that is closed with something unread
        is reset, and the answer with it.
        """
        self._deaf = True
        self._lingering = self._bounds.linger_bytes
        self.deadline = self._front.now + self._bounds.linger_s
        if self._eof or not self.transport.can_write_eof():
            self._close()
        else:
            self.transport.write_eof()
            if self._reading_paused:
                self._reading_paused = False
                self.transport.resume_reading()

    def _reset(self) -> None:
        """Break off so that the caller cannot take it for an end."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _close(self) -> None:
        """Close once what was written is taken, which a paused connection's other deadline is for."""
        self._deaf = True
        self.transport.close()
        self.deadline = _NEVER if self.paused else self._front.now + self._bounds.write_s


class Exchange:
    """One request and its answer, between the connection and the application."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_connection",
        "_expects",
        "_handed",
        "_left",
        "_length",
        "_scope",
        "_start",
        "_waiter",
        "complete",
        "counted",
        "held",
        "keep_alive",
        "lost",
        "started",
        "whole",
    )

    def __init__(
        self, connection: Connection, scope: dict[str, Any], *, expects: bool, keep_alive: bool
    ) -> None:
        self._connection = connection
        self._scope = scope
        self._expects = expects
        self._chunks: list[bytes] = []
        self._handed = False
        self._left = False
        self._waiter: asyncio.Future[None] | None = None
        self._start: Any = None
        self._chunked = False
        self._length = -1
        self.held = 0
        self.counted = 0
        """What of it counts for all requests together; -1 when it does not count any more."""
        self.complete = False
        """All of the request has come."""
        self.keep_alive = keep_alive
        self.lost = False
        """Nothing of it reaches the caller any more."""
        self.started = False
        """Some of the answer has been written."""
        self.whole = False
        """All of it has."""

    async def run(self, front: Front) -> None:
        """Have the application answer."""
        try:
            await front.app(self._scope, self.receive, self.send)
            if not self.started and not self.lost:
                await self._fail(front, "nothing was answered")
        except Exception as error:  # the outermost loop of a request
            if not self.lost:
                await self._fail(front, f"{type(error).__name__}: {error}")
        finally:
            self._connection.answered(self)

    async def _fail(self, front: Front, why: str) -> None:
        front.report("a request failed", {"path": self._scope["path"], "error": why})
        if not self.started:
            failed = HeadraceError("the node failed to answer; its log says why")
            body = encode({"error": {"code": failed.code, "message": str(failed), "hint": ""}})
            self._chunked, self._length = False, -1
            self._start = {"status": 500, "headers": [(b"content-type", b"application/json")]}
            self._write(body, more=False)

    @property
    def ends_visibly(self) -> bool:
        """Whether its caller can tell a body that broke off from a whole one."""
        return self._chunked or self._length >= 0

    # ---- what the connection tells ----

    def feed(self, body: bytes) -> None:
        """Some of the request's body."""
        self._chunks.append(body)
        self.held += len(body)
        self._count(len(body))
        self._wake()

    def _count(self, size: int) -> None:
        """Add to what all requests hold, and take it back once this one is too large to be held."""
        front = self._connection._front
        if self.counted >= 0:
            self.counted += size
            front.bodies += size
            if self.counted > front.bounds.body_bytes:
                front.bodies -= self.counted
                self.counted = -1

    def done(self) -> None:
        """Nothing of it is held any more."""
        if self.counted > 0:
            self._connection._front.bodies -= self.counted
            self.counted = -1

    def end_body(self) -> None:
        """All of it has come."""
        self.complete = True
        self._wake()

    def leave(self) -> None:
        """The caller sends no more."""
        self._left = True
        self._wake()

    def lose(self) -> None:
        """The caller is gone."""
        self.lost = self._left = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ---- what the application calls ----

    async def receive(self) -> Message:
        """Some of the body; after its end, that the caller has left or is answered."""
        if self._handed:
            while not self._left and not self.whole:
                await self._wait()
            return _GONE
        if self._expects and not self.started and not self.lost:
            self._expects = False
            self._connection.transport.write(_CONTINUE)
        while not self._chunks and not self.complete and not self._left:
            self._connection.resume_reading()
            await self._wait()
        if not self._chunks and not self.complete:
            return _GONE
        chunks, self._chunks, self.held = self._chunks, [], 0
        self._handed = self.complete
        if not self.complete:
            self._connection.resume_reading()
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        """Write some of the answer; the head goes with the first of the body."""
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise RuntimeError("an answer was begun twice")
            self._start = message
            return
        if self._start is None or self.whole:
            raise RuntimeError("a body came without a beginning, or after its end")
        if self._connection.paused and not self.lost:
            await self._connection.drain()
        if not self.lost:
            self._write(message.get("body", b""), more=message.get("more_body", False))

    def _write(self, body: bytes, *, more: bool) -> None:
        parts: list[bytes] = []
        if not self.started:
            self._head(parts, len(body), more=more)
        if self._scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
            body = b""
        elif self._length >= 0:
            self._length -= len(body)
            if self._length < 0 or (self._length and not more):
                raise RuntimeError("an answer was not as long as it had said")
        if body:
            parts.append(body)
        if parts:
            self._connection.transport.write(b"".join(parts))
        if not more:
            self.whole = True
            self._wake()

    def _head(self, parts: list[bytes], size: int, *, more: bool) -> None:
        status = self._start["status"]
        parts += (_STATUS_LINES[status], self._connection._front.date)
        lines = 2
        bodiless = status in (204, 304) or self._scope["method"] == "HEAD"
        for name, value in self._start["headers"]:
            if name == b"content-length":
                self._length = -1 if bodiless else int(value)
                if status == 204:
                    continue
            elif name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        if self._length < 0 and not bodiless:
            if not more:
                self._length = size
                lines += 1
                parts.append(b"content-length: %d\r\n" % size)
            elif self._scope["http_version"] == "1.1":
                self._chunked = True
                lines += 1
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False  # the end of the connection is that of the body
        if self.keep_alive and self._connection.closing(self):
            self.keep_alive = False
        if not self.keep_alive:
            lines += 1
            parts.append(b"connection: close\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise RuntimeError("a header of the answer has more than one line")
        parts.append(b"\r\n")
        self.started = True


def _malformed(error: Exception) -> HeadraceError:
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    return BadRequest(f"the request is not HTTP/1.1: {cause or error}", "Look at what lies between.")
