"""The HTTP backend: a node somewhere else, or another process here.

Imports urllib3, the client's own values and the error tree. One pool of kept connections, shared by all
threads; nothing is made again after a broken connection unless it may be made twice.
"""

import atexit
import select
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import ReadTimeoutError as ReadTimeout

from headrace.runtime.client.answer import ClientClosed, WaitTimeout, refuse
from headrace.runtime.client.backend import Answer, Stream, SubmitOptions
from headrace.runtime.errors import InvalidSettings, PayloadTooLarge, Unreachable

if TYPE_CHECKING:
    from headrace.runtime.client.future import InvocationFuture
    from headrace.runtime.client.submitter import Ended, Gathered, Submitter

CONNECTIONS_MAX = 32
CONNECT_S = 5.0
ANSWER_BYTES_MAX = 256 << 20
REPEATABLE = ("GET", "HEAD", "PUT", "DELETE")

# A call may rightly take hours, so a peer that is gone without a word is found by the system's probes.
_KEEPALIVE: list[tuple[int, int, int | bytes]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]
if hasattr(socket, "TCP_KEEPIDLE"):
    _KEEPALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]


class HttpBackend:
    """A node at a URL.

    Args:
        url: `http://HOST:PORT` or `https://…`, with a path prefix where a proxy needs one.
        token: what goes into the Authorization header; None for none.
        timeout_s: the most seconds that any call but `invoke` waits for its answer.

    Raises InvalidSettings for a text that is no such URL.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSettings(f"{url!r} is no address of a node", "Write it as http://HOST:PORT.")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.connection_from_url(
            f"{parts.scheme}://{parts.netloc}", maxsize=CONNECTIONS_MAX, block=False, retries=False,
            socket_options=_KEEPALIVE,
        )  # fmt: skip
        self._poll = _Poll(self)
        self._submitter: Submitter | None = None
        self._lock = threading.Lock()
        self._closed = False

    # ---- Backend ----

    def invoke(self, name: str, payload: bytes, *, wait: float | None = None) -> bytes:
        """See Backend. Without `wait` the function's own timeout, which the node enforces, is the limit."""
        headers = {"Content-Type": "application/json"}
        path = f"/v1/functions/{quote(name, safe='')}/invoke"
        try:
            response = self._open("POST", path, body=payload, headers=headers, read_s=wait)
            status, headers_in, body = _read(response)
        except ReadTimeout:
            raise WaitTimeout(f"the call of {name}", wait or 0.0) from None
        except HTTPError as error:
            raise self._unreachable(error) from None
        if status >= 400:
            refuse(status, headers_in, body)
        return body

    def submit(
        self, name: str, payload: bytes, *, options: SubmitOptions, future: "InvocationFuture"
    ) -> None:
        """See Backend."""
        self._sender().submit(name, payload, options=options, future=future)

    def submit_many(
        self, name: str, payloads: Sequence[bytes], *, futures: "Sequence[InvocationFuture]"
    ) -> None:
        """See Backend."""
        self._sender().submit_many(name, payloads, futures=futures)

    def _sender(self) -> "Submitter":
        submitter = self._submitter
        if submitter is None:
            from headrace.runtime.client.submitter import Submitter, at_exit  # most callers never submit

            with self._lock:
                if self._closed:
                    raise ClientClosed("the client is closed")
                if self._submitter is None:
                    self._submitter = Submitter(self)
                    self._at_exit = at_exit(self._submitter, self.timeout_s)
                    atexit.register(self._at_exit)
                submitter = self._submitter
        return submitter

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """See Backend."""
        repeatable = method in REPEATABLE and (body is None or isinstance(body, bytes))
        read_s = timeout_s or self.timeout_s
        while True:
            try:
                return _read(self._open(method, path, query=query, body=body, headers=headers, read_s=read_s))
            except HTTPError as error:
                # A kept connection that the node closed at this moment: once more, on a new one.
                if not repeatable or isinstance(
                    error, NewConnectionError | ConnectTimeoutError | ReadTimeout
                ):
                    raise self._unreachable(error) from None
                repeatable = False

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stream:
        """See Backend."""
        try:
            opened = self._open(method, path, query=query, body=body, headers=headers, read_s=self.timeout_s)
        except HTTPError as error:
            raise self._unreachable(error) from None
        return _HttpStream(self, opened)

    def close(self) -> None:
        """See Backend. Waits at most `timeout_s` for what is unsent."""
        with self._lock:
            self._closed = True
            submitter, self._submitter = self._submitter, None
        if submitter is not None:
            atexit.unregister(self._at_exit)
            submitter.close(self.timeout_s)
        self._poll.close()
        self._pool.close()

    # ---- what the submitter calls ----

    def accept_many(self, name: str, payloads: Sequence[bytes]) -> list[str]:
        """Have all or none accepted; the ids in order. Raises the answer's error."""
        import msgspec

        body = b"[" + b",".join(payloads) + b"]"
        answer = self.request(
            "POST", f"/v1/functions/{quote(name, safe='')}/invoke-many", body=body,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        if answer.status >= 400:
            refuse(*answer)
        ids: list[str] = msgspec.json.decode(answer.body)["invocation_ids"]
        return ids

    def accept_one(self, name: str, payload: bytes, options: SubmitOptions) -> str:
        """Have one accepted; its id. Raises the answer's error."""
        import msgspec

        query = {"mode": "async"}
        if options.delay_s:
            query["delay_s"] = f"{options.delay_s:g}"
        if options.priority is not None:
            query["priority"] = str(options.priority)
        if options.tags:
            query["tags"] = ",".join(options.tags)
        if options.key is not None:
            query["key"] = options.key
        headers = {"Content-Type": "application/json"}
        if options.idempotency_key is not None:
            headers["Idempotency-Key"] = options.idempotency_key
            if options.idempotency_ttl_s is not None:
                query["idempotency_ttl_s"] = f"{options.idempotency_ttl_s:.12g}"
        path = f"/v1/functions/{quote(name, safe='')}/invoke"
        try:
            answer = self.request("POST", path, query=query, body=payload, headers=headers)
        except Unreachable:
            if options.idempotency_key is None:
                raise
            answer = self.request(
                "POST", path, query=query, body=payload, headers=headers
            )  # the key makes it safe
        if answer.status >= 400:
            refuse(*answer)
        id: str = msgspec.json.decode(answer.body)["invocation_id"]
        return id

    def gather(self, ids: Sequence[str], wait_s: float) -> "Gathered | None":
        """Wait until one of the ids has ended, at most `wait_s`; None when interrupted."""
        return self._poll.gather(ids, wait_s)

    def interrupt(self) -> None:
        """End the `gather` that is under way soon."""
        self._poll.interrupt()

    def record(self, invocation_id: str) -> "Ended":
        """One record, with its result."""
        import msgspec

        from headrace.runtime.client.submitter import Ended

        answer = self.request("GET", f"/v1/invocations/{quote(invocation_id, safe='')}")
        if answer.status >= 400:
            refuse(*answer)
        return msgspec.json.decode(answer.body, type=Ended)

    # ---- the wire ----

    def target(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The request target of a path of the API."""
        return f"{self._prefix}{path}{'?' + urlencode(query) if query else ''}"

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        read_s: float | None,
    ) -> urllib3.BaseHTTPResponse:
        if self._pool.pool is None:  # closed: what is unsent at `close` still goes out before
            raise ClientClosed("the client is closed")
        sent = {**self._headers, **headers} if headers else self._headers
        return self._pool.urlopen(
            method, self.target(path, query), body=body, headers=sent, retries=False, redirect=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s), preload_content=False,
        )  # fmt: skip

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(self.url, _why(error))


def _why(error: Exception) -> str:
    """The cause in plain words: urllib3 wraps it with addresses of objects."""
    if isinstance(error, NameResolutionError):
        return "its host name is not known"
    if isinstance(error, ReadTimeout):
        return "it did not answer in time; the call may have been made"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused"
        if isinstance(cause, ssl.SSLError | SSLError):
            return f"the encrypted connection failed ({getattr(cause, 'reason', None) or cause})"
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, NewConnectionError):  # which is a ConnectTimeoutError too
        return "the connection failed"
    if isinstance(error, ConnectTimeoutError):
        return f"no connection within {CONNECT_S:g} s"
    return "the connection broke; the call may have been made"


def _read(response: Any) -> Answer:
    try:
        body = response.read(ANSWER_BYTES_MAX + 1)
        if len(body) > ANSWER_BYTES_MAX:
            response.close()
            raise PayloadTooLarge(-1, ANSWER_BYTES_MAX)
    except BaseException:
        response.close()  # a connection that is half read cannot serve again
        raise
    response.release_conn()
    return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, body)


class _HttpStream:
    """An answer read piece by piece."""

    def __init__(self, backend: HttpBackend, response: urllib3.BaseHTTPResponse) -> None:
        self._backend, self._response = backend, response
        self.status = response.status
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in response.headers.items()}

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises Unreachable when the connection breaks."""
        try:
            return self._response.read1(size)
        except HTTPError as error:
            self.close()
            raise self._backend._unreachable(error) from None

    def close(self) -> None:
        """Let go of the connection; twice is harmless."""
        self._response.close()


class _Poll:
    """The long poll for ended invocations, on a connection of its own, so that it can be broken off.

    Without that, what is accepted while a poll is under way would be asked about only after it, up to 20 s
    later.
    """

    GRACE_S = 0.004  # a busy node answers within this; breaking off costs a connection

    def __init__(self, backend: HttpBackend) -> None:
        self._backend = backend
        self._connection: Any = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    def gather(self, ids: Sequence[str], wait_s: float) -> "Gathered | None":
        import msgspec

        from headrace.runtime.client.submitter import Gathered

        body = msgspec.json.encode({"ids": ids, "wait_s": wait_s})
        fresh = self._connection is None
        try:
            connection = self._connect(wait_s)
            connection.request(
                "POST", self._backend.target("/v1/invocations/wait"), body=body,
                headers={**self._backend._headers, "Content-Type": "application/json"}, preload_content=False,
            )  # fmt: skip
            if not self._wait_answer(connection, wait_s):
                self._drop()
                return None
            response = connection.getresponse()
            data = response.read()
        except (HTTPError, OSError) as error:
            self._drop()
            if not fresh and not isinstance(error, NewConnectionError | TimeoutError):
                return None  # a kept connection that the node closed: the caller polls again on a new one
            raise self._backend._unreachable(error) from None
        if response.status >= 400:
            refuse(response.status, {k.lower(): v for k, v in response.headers.items()}, data)
        return msgspec.json.decode(data, type=Gathered)

    def interrupt(self) -> None:
        try:
            self._wake_out.send(b"!")
        except (BlockingIOError, OSError):
            return  # it is full of wake-ups, or closed: either way it is awake

    def close(self) -> None:
        self._drop()
        self._wake_in.close()
        self._wake_out.close()

    def _connect(self, wait_s: float) -> Any:
        if self._connection is None:
            pool = self._backend._pool
            kind: Any = (
                urllib3.connection.HTTPSConnection
                if pool.scheme == "https"
                else urllib3.connection.HTTPConnection
            )
            self._connection = kind(pool.host, pool.port, timeout=CONNECT_S, socket_options=_KEEPALIVE)
            self._connection.connect()
        self._connection.timeout = wait_s + CONNECT_S
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.settimeout(wait_s + CONNECT_S)
        return self._connection

    def _wait_answer(self, connection: Any, wait_s: float) -> bool:
        """Whether the answer has begun; False when a wake-up came before it."""
        ready = _readable([connection.sock, self._wake_in], wait_s + CONNECT_S)
        if self._wake_in in ready:
            try:
                self._wake_in.recv(4096)
            except BlockingIOError:
                return True
            return connection.sock in ready or bool(_readable([connection.sock], self.GRACE_S))
        return True  # or nothing came in time, which getresponse reports

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _readable(sockets: list[socket.socket], timeout_s: float) -> list[socket.socket]:
    # poll, not select: a process with more than 1,024 files has sockets that select cannot name.
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(timeout_s * 1000)}
    return [each for each in sockets if each.fileno() in ready]
