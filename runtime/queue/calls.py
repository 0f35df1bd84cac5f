"""Synchronous calls: functions that run now, past the queue and without a row in the store.

Imports the floor and this room. They are at most once, as Lambda's are, and have counters of their own.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import NodeStopping, Throttled
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.queue.lane import FunctionGate

WAITING_MAX = 10_000

Begin = Callable[[FunctionSpec, int, bytes, "asyncio.Future[Any]", int], bool]
"""Give a call to the pool; False when there is no room for it now."""


class SyncCounters(msgspec.Struct):
    """Synchronous calls of one function since the node began."""

    invoked: int = 0
    succeeded: int = 0
    failed: int = 0
    throttled: int = 0


class _Waiting(msgspec.Struct, gc=False):
    """A caller who waits for a worker, until `deadline` in monotonic seconds."""

    deadline: float
    id: int
    spec: FunctionSpec
    payload: bytes
    future: Any
    credit: int


class Calls:
    """The callers who wait for a worker, at most `wait_s` seconds each, and the books of all calls."""

    def __init__(
        self,
        *,
        clock: Clock,
        wait_s: float,
        begin: Begin,
        gate: Callable[[str], FunctionGate],
        spawn: Callable[[Any], "asyncio.Task[Any]"],
    ) -> None:
        self._clock = clock
        self._wait_s = wait_s
        self._begin = begin
        self._gate = gate
        self._spawn = spawn
        self._giving_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.waiting: deque[_Waiting] = deque()
        self.counters: dict[str, SyncCounters] = {}

    def call(self, spec: FunctionSpec, id: int, payload: bytes, credit: int = 0) -> "asyncio.Future[Any]":
        """Run a function now. The future gets the Outcome, or Throttled when no worker was free in time; with
        `credit` it may get a stream.

        Raises Throttled at once when the function may not run, or too many callers wait.
        """
        loop = self._loop
        if loop is None:  # asking for it costs a system call each time
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        counters = self.counters.get(spec.name)
        if counters is None:
            counters = self.counters[spec.name] = SyncCounters()
        counters.invoked += 1
        if self.waiting or not self._begin(spec, id, payload, future, credit):
            if len(self.waiting) >= WAITING_MAX or spec.reserved_concurrency == 0:
                counters.throttled += 1
                raise Throttled(f"no worker is free for {spec.name}", 1.0)
            self._wait(spec, id, payload, future, credit)
        return future

    def serve(self) -> None:
        """There may be room: begin those who wait, in their order."""
        blocked: deque[_Waiting] = deque()
        while self.waiting:
            item = self.waiting.popleft()
            if item.future.done():
                continue
            if not self._begin(item.spec, item.id, item.payload, item.future, item.credit):
                blocked.append(item)
                if len(blocked) > 64:
                    break
        blocked.extend(self.waiting)
        self.waiting = blocked

    def ended(self, spec: FunctionSpec, id: int, outcome: Outcome, future: "asyncio.Future[Any]") -> None:
        """A call's attempt has ended: answer its caller."""
        counters = self.counters[spec.name]
        if outcome.ok:
            counters.succeeded += 1
        else:
            counters.failed += 1
        outcome.invocation_id = id
        if not future.done():
            future.set_result(outcome)

    def again(
        self, spec: FunctionSpec, id: int, payload: bytes, future: "asyncio.Future[Any]", credit: int
    ) -> None:
        """The worker went away before the call began, which is nobody's fault: another one takes it."""
        if not future.done() and not self._begin(spec, id, payload, future, credit):
            self._wait(spec, id, payload, future, credit)

    def stop(self) -> None:
        """Tell every waiting caller that the node stops."""
        for item in self.waiting:
            if not item.future.done():
                item.future.set_exception(NodeStopping("the node is stopping"))
        self.waiting.clear()

    def _wait(
        self, spec: FunctionSpec, id: int, payload: bytes, future: "asyncio.Future[Any]", credit: int
    ) -> None:
        deadline = self._clock.monotonic() + self._wait_s
        self.waiting.append(_Waiting(deadline, id, spec, payload, future, credit))
        if not self._giving_up:
            self._giving_up = True
            self._spawn(self._give_up())

    async def _give_up(self) -> None:
        """Throttle the callers whose time is over; they wait in the order of their deadlines."""
        try:
            while self.waiting:
                first = self.waiting[0]
                left = first.deadline - self._clock.monotonic()
                if left > 0 and not first.future.done():
                    await self._clock.sleep(left)
                    continue
                self.waiting.popleft()
                if first.future.done():
                    continue
                name = first.spec.name
                self.counters[name].throttled += 1
                busy = f"no worker was free for {name} in {self._wait_s:g} s"
                paused = self._gate(name).paused
                first.future.set_exception(Throttled(f"{name} is paused" if paused else busy, 1.0))
        finally:
            self._giving_up = False
