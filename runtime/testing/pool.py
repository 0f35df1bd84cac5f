"""Pools that run functions in this process, for tests.

Imports the floor and, of the pool, what its workers make of a function: contexts, results, failures.
"""

import asyncio
import contextlib
import inspect
import io
import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.pool.context import Context, Toolbox, WorkerConfig
from headrace.runtime.pool.failure import describe
from headrace.runtime.pool.protocol import OnProgress, OnReports
from headrace.runtime.pool.pump import STREAMS, pieces_of
from headrace.runtime.pool.result import encode_result

Entry = Callable[[Any, Any], Any]


class _Tools(Toolbox):
    """What contexts in this process share."""

    def __init__(
        self,
        objects: ObjectStore | Path | None,
        client: Callable[[], Any] | None,
        send: Callable[[Any], None],
    ) -> None:
        config = WorkerConfig(objects=str(objects) if isinstance(objects, Path) else None)
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
    failures, so that a test sees the same outcomes; limits of time and memory are not enforced, and a stream
    is gathered into a list.

    Args:
        entries: what runs each function, by full name, as `app.entries()` gives it.
        reports: told how attempts ended: the dispatcher's `reports`.
        clock: where an attempt's times come from.
        workers: attempts held at once; beyond them `offer` answers False.
        held: attempts wait until the test calls `run`, instead of running in the next turn of the event loop.
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
        self._tools = _Tools(objects, client, self._told)

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

    def execute(self, token: int) -> Outcome:
        """Run a held attempt and say how it ended, without reporting it: it stays held."""
        return self._outcome(self._attempts[token][0])

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
        started_at, began = self._clock.now(), self._clock.monotonic()
        context = Context(
            self._tools, attempt.token, attempt.invocation_id, attempt.function, attempt.attempt, float("inf")
        )
        printed = io.StringIO()
        value, kind, error = b"", "ok", None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                found = self._entries[attempt.function](self._payload(attempt), context)
                if type(found) in STREAMS:
                    found = pieces_of(found)
                if inspect.iscoroutine(found):
                    with ThreadPoolExecutor(
                        1
                    ) as thread:  # this thread's event loop is the one that waits for it
                        found = thread.submit(asyncio.run, found).result()
                value = encode_result(found)
            except (
                Exception,
                SystemExit,
            ) as failed:  # the outermost loop of user code: what it raises is an outcome
                kind, error = describe(failed)
        context.close()
        output = printed.getvalue().encode()
        return Outcome(
            kind, value, None, error, output, len(output), self._clock.monotonic() - began, started_at
        )

    def _payload(self, attempt: Attempt) -> Any:
        if attempt.payload_ref is not None:
            return json.loads(self._tools.objects.get(*parse_object_url(attempt.payload_ref)))
        return json.loads(attempt.payload) if attempt.payload else None

    def _told(self, message: Any) -> None:
        if self._on_progress is not None and "progress" in message:
            self._on_progress(message["seq"], message["progress"])
