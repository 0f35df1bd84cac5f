"""The client for asyncio: the same calls, awaited.

Imports the client. Each call of the plain client runs in a bounded pool of threads, so that there is one
logic and not two; what goes at full speed, `submit`, takes a thread only while it is queued and a future
after that.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from headrace.runtime.client.streamed import Streamed

if TYPE_CHECKING:
    from headrace.runtime.client.backend import Backend
    from headrace.runtime.client.client import Client
    from headrace.runtime.client.future import InvocationFuture

T = TypeVar("T")
Json = dict[str, Any]
Way = Literal["bytes", "lines", "items", "events"]


class AsyncClient:
    """A node, as asyncio code sees it; `async with AsyncClient() as client`. See Client for what each method
    does and raises.

    `threads` is the most calls under way at once; others wait for their turn.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        backend: "Backend | None" = None,
        threads: int = 32,
    ) -> None:
        from headrace.runtime.client.client import Client

        self._client = Client(url, token, timeout_s=timeout_s, backend=backend)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="headrace-client")

    @property
    def url(self) -> str:
        """Where the node is."""
        return self._client.url

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what was submitted, then let go of threads and connections."""
        await asyncio.to_thread(self._client.close)
        self._threads.shutdown(wait=False)

    async def invoke(self, name: str, payload: object = None, *, timeout_s: float | None = None) -> Any:
        """Run a function and return its result."""
        return await self._run(self._client.invoke, name, payload, timeout_s=timeout_s)

    def stream(self, name: str, payload: object = None, *, of: Way = "bytes") -> AsyncIterator[Any]:
        """What a function streams, as it comes: `bytes`, or its `lines`, `items` (of lines of JSON) or
        `events`.
        """
        return self._iterate(lambda: _streamed(self._client, name, payload, of))

    async def submit(
        self,
        name: str,
        payload: object = None,
        *,
        delay_s: float = 0.0,
        priority: int | None = None,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
        key: str | None = None,
        idempotency_ttl_s: float | None = None,
    ) -> "InvocationFuture":
        """Have an invocation accepted; `await asyncio.wrap_future(future)` is its result."""
        return await self._run(
            self._client.submit, name, payload, delay_s=delay_s, priority=priority, tags=tags,
            idempotency_key=idempotency_key, idempotency_ttl_s=idempotency_ttl_s, key=key,
        )  # fmt: skip

    async def submit_many(self, name: str, payloads: Iterable[object]) -> "list[InvocationFuture]":
        """Submit one invocation per payload; the futures in order."""
        return await self._run(self._client.submit_many, name, payloads)

    def map(
        self, function: str | Callable[[Any], Any], items: Iterable[Any], **options: Any
    ) -> AsyncIterator[Any]:
        """Run a function on each item and yield the results; the options are those of Client.map."""
        return self._iterate(lambda: self._client.map(function, items, **options))

    async def functions(self) -> list[Json]:
        """What the node has loaded."""
        return await self._run(self._client.functions)

    async def function(self, name: str) -> Json:
        """One function."""
        return await self._run(self._client.function, name)

    async def pause(self, name: str) -> Json:
        """Start no more attempts of a function."""
        return await self._run(self._client.pause, name)

    async def resume(self, name: str) -> Json:
        """Undo `pause`."""
        return await self._run(self._client.resume, name)

    async def closures(self) -> list[Json]:
        """The functions and keys that are closed."""
        return await self._run(self._client.closures)

    async def open(self, name: str) -> Json:
        """End a closure now."""
        return await self._run(self._client.open, name)

    async def stats(self) -> Json:
        """Counters."""
        return await self._run(self._client.stats)

    async def verify(self, *, objects: bool = True, function: str | None = None, limit: int = 100) -> Json:
        """Whether nothing that was accepted is unaccounted for."""
        return await self._run(self._client.verify, objects=objects, function=function, limit=limit)

    async def invocation(self, id: str, *, wait_s: float = 0.0) -> Json:
        """One invocation's record."""
        return await self._run(self._client.invocation, id, wait_s=wait_s)

    def invocations(self, **matching: Any) -> AsyncIterator[Json]:
        """The records of invocations, newest first."""
        return self._iterate(lambda: self._client.invocations(**matching))

    async def cancel(self, id: str | None = None, **matching: str | None) -> Json:
        """Cancel an invocation, or all that match."""
        return await self._run(self._client.cancel, id, **matching)

    async def logs(self, id: str) -> list[Json]:
        """What the attempts of an invocation printed."""
        return await self._run(self._client.logs, id)

    def follow_logs(self, **matching: Any) -> AsyncIterator[Json]:
        """What invocations printed, as it comes."""
        return self._iterate(lambda: self._client.follow_logs(**matching))

    def dead_letters(self, **matching: Any) -> AsyncIterator[Json]:
        """The records of dead invocations."""
        return self._iterate(lambda: self._client.dead_letters(**matching))

    async def dead_letter(self, id: str) -> Json:
        """One dead invocation's record, with its payload."""
        return await self._run(self._client.dead_letter, id)

    async def discard(self, id: str) -> Json:
        """Give a dead invocation up."""
        return await self._run(self._client.discard, id)

    async def redrive(self, id: str | None = None, **matching: Any) -> Json:
        """Put dead invocations back to waiting."""
        return await self._run(self._client.redrive, id, **matching)

    async def submit_job(self, name: str, input: object, *, tags: Sequence[str] = ()) -> "AsyncJob":
        """Submit a job on an input."""
        handle = await self._run(self._client.submit_job, name, input, tags=tags)
        return AsyncJob(self, handle.id)

    def job(self, id: str) -> "AsyncJob":
        """A handle of a job that was submitted before."""
        return AsyncJob(self, id)

    def jobs(self, **matching: Any) -> AsyncIterator[Json]:
        """The jobs that are kept."""
        return self._iterate(lambda: self._client.jobs(**matching))

    async def buckets(self) -> list[str]:
        """The names of the buckets of the node's object store."""
        return await self._run(self._client.buckets)

    async def make_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        await self._run(self._client.make_bucket, bucket)

    async def put_object(self, url: str, data: bytes | BinaryIO | Path) -> Json:
        """Write an object."""
        return await self._run(self._client.put_object, url, data)

    async def get_object(self, url: str) -> bytes:
        """Read an object whole."""
        return await self._run(self._client.get_object, url)

    def read_object(self, url: str) -> AsyncIterator[bytes]:
        """Read an object in pieces."""
        return self._iterate(lambda: self._client.read_object(url))

    async def link_object(self, url: str, **options: Any) -> str:
        """As `Client.link_object`."""
        return await self._run(self._client.link_object, url, **options)

    async def object_versions(self, url: str) -> list[Json]:
        """As `Client.object_versions`."""
        return await self._run(self._client.object_versions, url)

    def list_objects(self, url: str, **matching: Any) -> AsyncIterator[Json]:
        """The objects under a prefix."""
        return self._iterate(lambda: self._client.list_objects(url, **matching))

    async def _run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(call, *args, **options))

    async def _iterate(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The items of an iterator that blocks, each taken in a thread."""
        iterator = await self._run(begin)
        missing = object()
        turn = threading.Lock()  # a cancelled await leaves its thread in `next`: `close` must come after it

        def step() -> Any:
            with turn:
                return next(iterator, missing)

        def close() -> None:
            with turn:
                if isinstance(iterator, Generator):
                    iterator.close()

        try:
            while (item := await self._run(step)) is not missing:
                yield item
        finally:
            self._threads.submit(close)


def _streamed(client: "Client", name: str, payload: object, of: Way) -> Iterator[Any]:
    with client.stream(name, payload) as answer:
        ways: dict[Way, Callable[[Any], Iterator[Any]]] = {
            "bytes": iter,
            "lines": Streamed.lines,
            "items": Streamed.items,
            "events": Streamed.events,
        }
        yield from ways[of](answer)


class AsyncJob:
    """A job by its id. See JobHandle."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client, self.id = client, id
        self._handle = client._client.job(id)

    async def status(self) -> Json:
        """What the node knows of the job."""
        return await self._client._run(self._handle.status)

    def progress(self, *, timeout_s: float | None = None) -> AsyncIterator[Json]:
        """The job's status as it changes."""
        return self._client._iterate(lambda: self._handle.progress(timeout_s=timeout_s))

    async def wait(self, timeout_s: float | None = None) -> Json:
        """Its status when it has ended."""
        return await self._client._run(self._handle.wait, timeout_s)

    async def result(self, timeout_s: float | None = None) -> Any:
        """Its result when it has ended."""
        return await self._client._run(self._handle.result, timeout_s)

    async def cancel(self) -> Json:
        """Cancel it."""
        return await self._client._run(self._handle.cancel)

    async def redrive(self) -> Json:
        """Run again what failed."""
        return await self._client._run(self._handle.redrive)
