"""Pools that run functions in this process, for tests.

Imports the floor and, of the pool, what its workers make of a function: contexts, results, failures.
"""

import asyncio
import contextlib
import inspect
import io
import json
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.stream import Stream, content_type_of
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.pool.context import Context, Toolbox, WorkerConfig
from headrace.runtime.pool.failure import describe
from headrace.runtime.pool.protocol import OnProgress, OnReports
from headrace.runtime.pool.pump import (
    PIECE_BYTES,
    PIECE_COST,
    STREAMS,
    encode_piece,
    pieces_of,
)
from headrace.runtime.pool.result import encode_result

Entry = Callable[[Any, Any], Any]


class _Tools(Toolbox):
    """What contexts in this process share."""

    def __init__(
        self,
        config: WorkerConfig,
        objects: ObjectStore | Path | None,
        client: Callable[[], Any] | None,
        send: Callable[[Any], None],
    ) -> None:
        reached = str(objects) if isinstance(objects, Path) else None
        config = msgspec.structs.replace(config, objects=reached)
        super().__init__(config, Path(tempfile.gettempdir()), send)
        if not isinstance(objects, Path):
            self._objects = objects
        self._make_client = client

    @property
    def client(self) -> Any:
        if self._client is None and self._make_client is not None:
            self._client = self._make_client()
        return super().client


class InlinePool:
    """A pool without processes: attempts run on the event loop's own thread, one after another, in the order
    they were offered.

    It is what the dispatcher asks of a pool, with the workers' own contexts, encoding and descriptions of
    failures, so that a test sees the same outcomes; limits of time and memory are not enforced, and `run`
    gathers a stream into a list.

    Args:
        entries: what runs each function, by full name, as `app.entries()` gives it.
        reports: told how attempts ended: the dispatcher's `reports`.
        clock: where an attempt's times come from.
        workers: attempts held at once; beyond them `offer` answers False.
        held: attempts wait until the test calls `run`, instead of running in the next turn of the event loop.
        config: what workers may reach, but for the objects and the client.
        objects: the object store that contexts give, or its folder; None for none.
        client: makes the client that contexts give; None for none.
        on_progress: told what functions say of their progress, by token.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        reports: OnReports,
        clock: Clock,
        workers: int = 1,
        held: bool = False,
        config: WorkerConfig | None = None,
        objects: ObjectStore | Path | None = None,
        client: Callable[[], Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.workers = workers
        self.held = held
        self.most = 0
        """The most attempts that were held at once."""
        self.begun = 0
        """Attempts that have run, or begun to."""
        self._entries = entries
        self._reports = reports
        self._clock = clock
        self._on_progress = on_progress
        self._attempts: dict[int, tuple[Attempt, float]] = {}
        self._ended: list[Report] = []
        self._awake = False
        self._stopped = False
        self._tools = _Tools(config or WorkerConfig(), objects, client, self._told)

    @property
    def attempts(self) -> list[Attempt]:
        """What is held, in the order it was offered."""
        return [attempt for attempt, _ in self._attempts.values()]

    def offer(self, attempt: Attempt) -> bool:
        """See AttemptPool."""
        if self._stopped or len(self._attempts) >= self.workers:
            return False
        self._attempts[attempt.token] = attempt, self._clock.monotonic()
        self.most = max(self.most, len(self._attempts))
        self._wake()
        return True

    def free(self) -> int:
        """See AttemptPool."""
        return self.workers - len(self._attempts)

    def kill(self, token: int) -> bool:
        """See AttemptPool."""
        if token not in self._attempts:
            return False
        del self._attempts[token]
        error = {"code": "cancelled", "message": "cancelled while it ran"}
        self._end(token, Outcome("cancelled", error=error))
        return True

    def recall(self, tokens: Collection[int]) -> None:
        """See AttemptPool; what a test holds counts as begun."""
        left = [] if self.held else [token for token in tokens if token in self._attempts]
        for token in left:
            del self._attempts[token]
            self._end(token, Outcome("returned"))

    def running(self) -> list[tuple[int, float]]:
        """See AttemptPool: everything that is held counts as executing since it was offered."""
        now = self._clock.monotonic()
        return [(token, now - since) for token, (_, since) in self._attempts.items()]

    def output(self, token: int) -> bytes:
        """See AttemptPool; what an attempt prints is in its outcome only."""
        return b""

    def run(self, *tokens: int) -> None:
        """Run these attempts in this order, or all that are held; then report them together."""
        reports = [
            Report(token, self._outcome(self._attempts.pop(token)[0]))
            for token in tokens or list(self._attempts)
        ]
        self._reports(reports)

    def execute(self, token: int) -> "Outcome | Streaming":
        """Run a held attempt and say how it ended, without reporting it: it stays held. One whose result may
        come as a stream, and does, has only begun.
        """
        attempt = self._attempts[token][0]
        self.begun += 1
        running = _Running(attempt, self._tools, self._clock)
        found = running.step(lambda: _awaited(self._call(attempt, running.context)))
        if attempt.credit and type(found) in STREAMS:
            return Streaming(running, token, attempt.credit, found)
        running.step(lambda: running.returned(_whole(found)))
        return running.outcome()

    def end(self, token: int, outcome: Outcome) -> None:
        """End a held attempt as the test says, without running it."""
        del self._attempts[token]
        self._reports([Report(token, outcome)])

    def stop(self) -> None:
        """Take nothing more, and report all that is held as `returned`."""
        self._stopped = True
        left = list(self._attempts)
        self._attempts.clear()
        self._reports([Report(token, Outcome("returned")) for token in left])

    def _end(self, token: int, outcome: Outcome) -> None:
        self._ended.append(Report(token, outcome))
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _wake(self) -> None:
        if not self._awake and not self.held:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._awake = False
        reports, self._ended = self._ended, []
        if not self.held and not self._stopped:
            reports += [
                Report(token, self._outcome(self._attempts.pop(token)[0])) for token in list(self._attempts)
            ]
        if reports:
            self._reports(reports)

    def _outcome(self, attempt: Attempt) -> Outcome:
        """Run one attempt."""
        self.begun += 1
        running = _Running(attempt, self._tools, self._clock)
        running.step(lambda: running.returned(_whole(_awaited(self._call(attempt, running.context)))))
        return running.outcome()

    def _call(self, attempt: Attempt, context: Context) -> Any:
        return self._entries[attempt.function](self._payload(attempt), context)

    def _payload(self, attempt: Attempt) -> Any:
        if attempt.payload_ref is not None:
            return json.loads(self._tools.objects.get(*parse_object_url(attempt.payload_ref)))
        return json.loads(attempt.payload) if attempt.payload else None

    def _told(self, message: Any) -> None:
        if self._on_progress is not None and "progress" in message:
            self._on_progress(message["seq"], message["progress"])


class _Running:
    """One attempt in this process: what it prints, and how it ends."""

    def __init__(self, attempt: Attempt, tools: Toolbox, clock: Clock) -> None:
        self.context = Context(
            tools, attempt.token, attempt.invocation_id, attempt.function, attempt.attempt, float("inf")
        )
        self._clock = clock
        self._started_at, self._began = clock.now(), clock.monotonic()
        self._printed = io.StringIO()
        self._kind = "ok"
        self._error: dict[str, Any] | None = None
        self._value = b""

    @property
    def failed(self) -> bool:
        return self._kind != "ok"

    def step(self, work: Callable[[], Any]) -> Any:
        """Run some of it; once it has failed, nothing more. None when it fails."""
        if self.failed:
            return None
        with contextlib.redirect_stdout(self._printed), contextlib.redirect_stderr(self._printed):
            try:
                return work()
            # The outermost loop of user code: what it raises is an outcome.
            except (Exception, SystemExit) as failed:
                self._kind, self._error = describe(failed)
        return None

    def returned(self, value: Any) -> None:
        """This is its result."""
        self._value = encode_result(value)

    def outcome(self) -> Outcome:
        """How it has ended."""
        self.context.close()
        output = self._printed.getvalue().encode()
        return Outcome(
            self._kind,
            self._value,
            None,
            self._error,
            output,
            len(output),
            self._clock.monotonic() - self._began,
            self._started_at,
        )


class Streaming:
    """A function's stream, taken a piece at a time in the test's thread; see Pump for what it is on the wire.

    `credit` is how much may leave before its reader has said more; `closed` says that nobody reads any more.
    `head` is what it begins with, once that is known, and `opened` whether its reader was told.
    """

    def __init__(self, running: _Running, token: int, credit: int, stream: Any) -> None:
        self.token = token
        self.credit = credit
        self.closed = False
        self.head: list[Any] | None = None
        self.opened = False
        self._running = running
        self._made = stream if isinstance(stream, Stream) else None
        pieces: Any = stream.pieces if isinstance(stream, Stream) else stream
        self._runner = asyncio.Runner() if hasattr(pieces, "__aiter__") else None
        self._pieces: Any = aiter(pieces) if self._runner is not None else iter(pieces)
        self._cut: deque[bytes] = deque()
        if self._made is not None and self._made.content_type is not None:
            self._begin(self._made.content_type)

    def next(self) -> bytes | None:
        """The next piece; None at the end, and when nobody reads any more."""
        while not self._cut and not self.closed:
            item = self._running.step(self._take)
            if item is _END or self._running.failed:
                break
            data = self._running.step(partial(self._encoded, item))
            if data is None:
                break
            self._cut.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        if not self._cut or self.closed:
            if not self._running.failed:
                self._begin("application/x-ndjson")  # a stream of nothing is an answer as well
            return None
        piece = self._cut.popleft()
        self.credit -= len(piece) + PIECE_COST
        return piece

    def end(self) -> Outcome:
        """End the function, wherever it is; how it has ended."""
        close = getattr(self._pieces, "close" if self._runner is None else "aclose", None)
        if close is not None:
            self._running.step(lambda: self._run(close()) if self._runner is not None else close())
        if self._runner is not None:
            self._runner.close()
        self._running.step(lambda: self._running.returned(None))
        return self._running.outcome()

    def _take(self) -> Any:
        if self._runner is None:
            return next(self._pieces, _END)
        return self._run(anext(self._pieces, _END))

    def _run(self, work: Any) -> Any:
        async def awaited() -> Any:
            return await work

        assert self._runner is not None
        return self._runner.run(awaited())

    def _encoded(self, item: Any) -> bytes:
        self._begin(content_type_of(type(item)))
        return encode_piece(item)

    def _begin(self, content_type: str) -> None:
        if self.head is not None:
            return
        made = self._made
        if made is None:
            self.head = [200, content_type, []]
        else:
            self.head = [made.status, made.content_type or content_type, made.headers]


_END = object()


def _awaited(found: Any) -> Any:
    """What a function has returned, or what its coroutine does, on an event loop of its own."""
    if not inspect.iscoroutine(found):
        return found
    with ThreadPoolExecutor(1) as thread:  # this thread's event loop may be the one that waits for it
        return thread.submit(asyncio.run, found).result()


def _whole(found: Any) -> Any:
    """A stream as a list of all that it gives; anything else as it is."""
    return _awaited(pieces_of(found)) if type(found) in STREAMS else found
