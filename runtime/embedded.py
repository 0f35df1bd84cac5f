"""The embedded node: a whole node in this process, in an event-loop thread of its own, behind the client's
interface.

Imports `node` and the client. Calls cross from the caller's thread to the loop in batches, so that a tight
loop of `submit` wakes the loop once, not once a call.
"""

import asyncio
import io
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import urlencode

import structlog

from headrace.runtime.api.answers import check_json, outcome_error
from headrace.runtime.api.calls import INLINE_PAYLOAD_BYTES
from headrace.runtime.client.answer import WaitTimeout
from headrace.runtime.client.backend import PLAIN, Answer, Stream, SubmitOptions
from headrace.runtime.client.client import Client
from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.code import request_for_app
from headrace.runtime.errors import (
    HeadraceError,
    LoadFailed,
    NodeStopping,
    PayloadTooLarge,
    StreamBroken,
    failure,
)
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.model.write import Applied, Put
from headrace.runtime.node import Node
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.dispatcher import Puts
from headrace.runtime.queue.watchers import Ended
from headrace.runtime.serve import configure_log
from headrace.runtime.settings import Settings, function_defaults

T = TypeVar("T")
Query = Mapping[str, str] | Sequence[tuple[str, str]]

UNSENT_MAX = 50_000
"""Submitted invocations that the loop has not taken yet; beyond it `submit` waits."""

SWEEP_MIN = 20_000
"""From so many open futures on, those that nobody holds are looked for and forgotten."""

TURN_MAX = 2_000
"""Submitted invocations taken in one turn of the loop, so that results are not held up by a long burst."""


class EmbeddedNode:
    """`with app.node() as client:` — entering starts the node and gives its client; leaving stops it, without
    loss.

    Made by `App.node`; the functions' own load errors are raised on entry as LoadFailed.
    """

    def __init__(self, settings: Settings, code: bytes, *, listen: bool = False) -> None:
        self.settings = settings
        self.client: Client | None = None
        self._code = code
        self._listen = listen
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._node: Node | None = None

    @classmethod
    def of_app(
        cls,
        app: object,
        *,
        data: str | Path = "./data",
        workers: int | None = None,
        http: bool = False,
        **settings: Any,
    ) -> "EmbeddedNode":
        """A node for an App. With `http` it also listens, on a free port unless `port` says which."""
        given: dict[str, Any] = {"data": Path(data), "port": 0, **settings}
        if workers is not None:
            given["workers"] = workers
        found = Settings(**given)
        return cls(found, request_for_app(app, defaults=function_defaults(found)), listen=http)

    def __enter__(self) -> Client:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Client:
        """Start the node and return its client. Raises what `Node.start` does, and LoadFailed."""
        if not structlog.is_configured():
            configure_log(Settings(log_level="warning"), dev=True)  # the program's own output stays its own
        ready: threading.Event = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self._main(ready, failed))

        self._thread = threading.Thread(target=run, name="headrace-node", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            self._thread.join()
            self._thread = None
            raise failed[0]
        assert self._loop is not None
        assert self._node is not None
        self.client = Client(backend=NodeBackend(self._node, self._loop))
        return self.client

    def stop(self) -> None:
        """Let what runs end for a while, hand back the rest, and stop. Twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self.client is not None:
            self.client.close()
        assert self._loop is not None
        assert self._node is not None
        self._loop.call_soon_threadsafe(self._node.stopping.set)
        thread.join()

    async def _main(self, ready: threading.Event, failed: list[BaseException]) -> None:
        node = Node(self.settings, self._code, listen=self._listen)
        try:
            await node.start()
            if node.manifest.errors:
                await node.stop(grace_s=0)
                first = node.manifest.errors[0]
                raise LoadFailed(first.file, first.line, first.message)
        except BaseException as error:
            failed.append(error)
            ready.set()
            if not isinstance(error, Exception):
                raise
            return
        self._node = node
        ready.set()
        await node.stopping.wait()
        await node.stop()


class NodeBackend:
    """A node of this process, behind what a Client needs. Methods are called from any thread but the node's
    own.
    """

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        self.url = node.url or "embedded"
        self._node = node
        self._loop = loop
        self._inbox: deque[tuple[str, bytes, SubmitOptions, InvocationFuture]] = deque()
        self._awake = False
        self._futures: dict[int, InvocationFuture] = {}
        """The futures of what was accepted here, by number, until it ends."""
        self._sweeping = threading.Lock()
        """Held while futures are added to those, on the store's thread, or looked through, on the loop's."""
        self._kept: dict[int, InvocationFuture] = {}
        """Futures that somebody wants to be called by, though nobody may hold them; by their `id()`."""
        self._sweep_at = SWEEP_MIN
        self._tell_future = self._ended
        self._room = threading.Semaphore(0)
        self._blocked = 0
        self._closed = False

    # ---- hot paths ----

    def invoke(self, name: str, payload: bytes, *, wait: float | None = None) -> bytes:
        """See Backend."""

        async def call() -> bytes:
            node = self._node
            spec = node.dispatcher.spec(name)
            limit = node.settings.body_bytes_sync
            if len(payload) > limit:
                raise PayloadTooLarge(len(payload), limit)
            outcome: Outcome = await node.dispatcher.call(spec.name, check_json(payload))
            if outcome.kind != "ok":
                raise outcome_error(outcome, name)
            if outcome.result_ref is not None:
                data: bytes = await node.in_thread(node.objects.get, *parse_object_url(outcome.result_ref))
                return data
            return outcome.value

        return self._run(call(), wait, f"the answer of {name}")

    def submit(self, name: str, payload: bytes, *, options: SubmitOptions, future: InvocationFuture) -> None:
        """See Backend."""
        self._put(((name, payload, options, future),))

    def submit_many(
        self, name: str, payloads: Sequence[bytes], *, futures: Sequence[InvocationFuture]
    ) -> None:
        """See Backend."""
        self._put([(name, *item) for item in zip(payloads, repeat(PLAIN), futures, strict=False)])

    def _put(self, items: Sequence[tuple[str, bytes, SubmitOptions, InvocationFuture]]) -> None:
        inbox = self._inbox
        while len(inbox) >= UNSENT_MAX and not self._closed:
            self._blocked += 1
            self._room.acquire(timeout=1.0)
        if self._closed:
            for item in items:
                item[3].failed(NodeStopping("the node has stopped"))
            return
        inbox.extend(items)
        if not self._awake:
            self._wake()

    def _wake(self) -> None:
        """Have what was submitted taken."""
        self._awake = True
        try:
            self._node.dispatcher.submit_later(self._take)
        except HeadraceError as error:
            while self._inbox:
                self._inbox.popleft()[3].failed(error)

    def _take(self, now: float) -> Puts | None:
        """Prepare what was submitted, on the store's thread, so that a caller who waits does not wait for the
        loop as well.
        """
        self._awake = False
        inbox, dispatcher = self._inbox, self._node.dispatcher
        puts: list[Put] = []
        futures: list[InvocationFuture] = []
        rest: list[Callable[[], object]] = []
        waiting, watch, told = self._futures, dispatcher.watchers.watch, self._tell_future
        with self._sweeping:
            for _ in range(min(len(inbox), TURN_MAX)):
                name, payload, options, future = inbox.popleft()
                if not future.sending(self._keep):
                    continue
                try:
                    if options is PLAIN and len(payload) <= INLINE_PAYLOAD_BYTES:
                        put = dispatcher.prepare(name, payload, now=now)
                    elif len(payload) > INLINE_PAYLOAD_BYTES or options.idempotency_key is not None:
                        rest.append(partial(self._alone, name, payload, options, future))
                        continue
                    else:
                        put = dispatcher.prepare(
                            name,
                            payload,
                            delay_s=options.delay_s,
                            priority=options.priority,
                            tags=",".join(options.tags) if options.tags else None,
                            now=now,
                            concurrency_key=options.key,
                        )
                except HeadraceError as error:
                    rest.append(partial(future.failed, error))
                    continue
                puts.append(put)
                futures.append(future)
                number = put.invocation.id
                waiting[number] = future
                watch(number, told)
        if rest:
            self._loop.call_soon_threadsafe(_each, rest)
        if inbox and not self._awake:
            self._wake()
        while self._blocked and len(inbox) < UNSENT_MAX // 2:
            self._blocked -= 1
            self._room.release()
        if not puts:
            return None

        def done(result: list[Applied] | BaseException) -> None:
            if isinstance(result, BaseException):
                for put, future in zip(puts, futures, strict=True):
                    dispatcher.watchers.forget(put.invocation.id)
                    waiting.pop(put.invocation.id, None)
                    self._kept.pop(id(future), None)
                    future.failed(result)
            elif len(waiting) > self._sweep_at:
                self._sweep()

        def on_disk() -> None:
            for put, future in zip(puts, futures, strict=True):
                future.accepted(put.invocation.id)

        return puts, done, on_disk

    def _alone(self, *given: Any) -> None:
        self._loop.create_task(self._take_alone(*given))

    def _keep(self, future: InvocationFuture) -> None:
        self._kept[id(future)] = future

    def _sweep(self) -> None:
        """Forget the futures that nobody holds any more, so that a long backlog costs no memory. It is done
        whenever there are twice as many as the last time, so each future pays for a bounded part of it.
        """
        with self._sweeping:
            refs = [(number, weakref.ref(future)) for number, future in self._futures.items()]
            self._futures.clear()
            for number, ref in refs:
                future = ref()
                if future is not None:
                    self._futures[number] = future
                else:
                    self._node.dispatcher.watchers.unwatch(number, self._tell_future)
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._futures))

    async def _take_alone(
        self, name: str, payload: bytes, options: SubmitOptions, future: InvocationFuture
    ) -> None:
        """An invocation with a large payload or an idempotency key: it is accepted by itself."""
        node, dispatcher = self._node, self._node.dispatcher
        try:
            ref = None
            limit = node.settings.body_bytes_async
            if len(payload) > limit:
                raise PayloadTooLarge(len(payload), limit)
            if len(payload) > INLINE_PAYLOAD_BYTES:
                ref = f"s3://{SYSTEM_BUCKET}/payloads/{show_id(node.ids.next())}.json"
                await node.in_thread(node.objects.put, *parse_object_url(ref), payload)
            key = options.key
            if ref and key is None:  # it is found here, since the payload is not handed on
                key = dispatcher.key_in(name, payload)
            put = dispatcher.prepare(
                name,
                b"" if ref else payload,
                payload_ref=ref,
                concurrency_key=key,
                delay_s=options.delay_s,
                priority=options.priority,
                tags=",".join(options.tags) if options.tags else None,
                idempotency_key=options.idempotency_key,
                idempotency_ttl_s=options.idempotency_ttl_s,
                fingerprint=payload,
            )
            [applied] = await dispatcher.accept([put])
            if ref is not None and applied.repeated:  # the first one's payload is there already
                await node.in_thread(node.objects.delete, *parse_object_url(ref))
            id = applied.id if applied.id is not None else put.invocation.id

            def reporter(ended: Ended) -> None:
                self._report(future, ended)

            dispatcher.watchers.watch(id, reporter)
            future.accepted(id)
            if applied.repeated or put.node is None:
                for record in await node.services.store.ended(
                    [id]
                ):  # it may have ended before it was watched
                    dispatcher.watchers.unwatch(id, reporter)
                    reporter(
                        Ended(id, record.status, record.result or b"null", record.result_ref, record.error)
                    )
        except HeadraceError as error:
            future.failed(error)

    def _ended(self, ended: Ended) -> None:
        future = self._futures.pop(ended.id, None)
        if future is not None:
            self._report(future, ended)

    def _report(self, future: InvocationFuture, ended: Ended) -> None:
        """Tell a future how its invocation ended."""
        if self._kept:
            self._kept.pop(id(future), None)
        if ended.status is not Status.SUCCEEDED:
            future.failed(failure({**(ended.error or {}), "invocation_id": show_id(ended.id)}))
        elif ended.result_ref is None:
            future.succeeded(ended.result)
        else:
            self._loop.create_task(self._fetch(future, ended.result_ref))

    async def _fetch(self, future: InvocationFuture, ref: str) -> None:
        try:
            data = await self._node.in_thread(self._node.objects.get, *parse_object_url(ref))
            future.succeeded(data)
        except HeadraceError as error:
            future.failed(error)

    # ---- everything else: the HTTP API, without HTTP ----

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """See Backend. A query may also be pairs, so that a name may come twice."""

        async def call() -> Answer:
            answered = _Answered(self._loop, self._node, method, path, query, body, headers)
            await answered.begun()
            pieces = [piece async for piece in answered]
            return Answer(answered.status, answered.headers, b"".join(pieces))

        return self._run(call(), timeout_s, f"{method} {path}")

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

        async def begin() -> _Answered:
            answered = _Answered(self._loop, self._node, method, path, query, body, headers)
            await answered.begun()
            return answered

        return _Pieces(self, self._run(begin(), None, f"{method} {path}"))

    def close(self) -> None:
        """See Backend."""
        self._closed = True

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the node's loop and wait for it."""
        return self._run(work, None, "the node")

    def _run(self, work: Coroutine[Any, Any, T], wait: float | None, what: str) -> T:
        if self._loop.is_closed():
            work.close()
            raise NodeStopping("the node has stopped")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(wait)
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise WaitTimeout(what, wait or 0.0) from None


class _Answered:
    """One call of the node's own application: the status and headers once begun, then the body's pieces."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: Node,
        method: str,
        path: str,
        query: Query | None,
        body: bytes | BinaryIO | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.status = 500
        self.headers: dict[str, str] = {}
        self._body = body
        self._sent = False
        self._node = node
        self._pieces: asyncio.Queue[bytes | HeadraceError | None] = asyncio.Queue(maxsize=16)
        self._whole = False
        self._started = asyncio.Event()
        sent = {"host": "localhost", "authorization": f"Bearer {node.secret}", **dict(headers or {})}
        if body is not None and "content-type" not in {name.lower() for name in sent}:
            sent["content-type"] = "application/json"
        from urllib.parse import unquote

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(query or {}).encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 0),
        }
        self._task = loop.create_task(self._serve(scope))

    async def begun(self) -> None:
        """Return when status and headers are there."""
        await self._started.wait()

    def __aiter__(self) -> "Self":
        return self

    async def __anext__(self) -> bytes:
        piece = await self._pieces.get()
        if piece is None:
            raise StopAsyncIteration
        if isinstance(piece, HeadraceError):
            raise piece
        return piece

    def cancel(self) -> None:
        """Stop the answer."""
        self._task.cancel()

    async def _serve(self, scope: dict[str, Any]) -> None:
        try:
            await self._node.application(scope, self._receive, self._send)
        finally:
            self._started.set()
            if self._task.cancelling() == 0:
                await self._pieces.put(None if self._whole else StreamBroken("the answer broke off"))

    async def _receive(self) -> dict[str, Any]:
        body = self._body
        if self._sent:
            await (
                asyncio.Event().wait()
            )  # the caller stays until it is answered; the task is cancelled otherwise
        if body is None or isinstance(body, bytes):
            self._sent = True
            return {"type": "http.request", "body": body or b"", "more_body": False}
        piece = await self._node.in_thread(body.read, 1 << 20)
        self._sent = not piece
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]
            }
            self._started.set()
        else:
            if message.get("body"):
                await self._pieces.put(message["body"])
            self._whole = not message.get("more_body")


class _Pieces:
    """An answer read piece by piece from the caller's thread."""

    def __init__(self, backend: NodeBackend, answered: _Answered) -> None:
        self._backend = backend
        self._answered = answered
        self._rest = io.BytesIO()
        self._ended = False
        self.status = answered.status
        self.headers: Mapping[str, str] = answered.headers

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; none at the end."""
        data = self._rest.read(size)
        if data or self._ended:
            return data
        piece = self._backend.run(_next(self._answered))
        if piece is None:
            self._ended = True
            return b""
        self._rest = io.BytesIO(piece)
        return self._rest.read(size)

    def close(self) -> None:
        """Stop the answer; twice is harmless."""
        self._ended = True
        if not self._backend._loop.is_closed():
            self._backend._loop.call_soon_threadsafe(self._answered.cancel)


async def _next(answered: _Answered) -> bytes | None:
    async for piece in answered:
        return piece
    return None


def _each(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
