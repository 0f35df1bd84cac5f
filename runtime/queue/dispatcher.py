"""The dispatcher: durable invocations from acceptance to their end, and synchronous calls past the queue.

Imports the floor, the store's protocol and, of the pool, its protocol. It runs on the event loop and never
blocks it. What it holds is bounded: a window of claims per flow; everything else waits in the store.
"""

import asyncio
import difflib
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    NodeStopping,
    RetryAfter,
    Throttled,
    UnknownFunction,
)
from headrace.runtime.fault import reach
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.ids import Ids
from headrace.runtime.model.invocation import Claim, Invocation, Outcome, Status
from headrace.runtime.model.limits import (
    KEY_MARK,
    NO_LIMITS,
    Limits,
    check_key,
    flow_of,
    key_at,
    key_of,
    limits_of,
)
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import (
    Applied,
    Closed,
    FunctionPaused,
    MarkRunning,
    Opened,
    Put,
    Retry,
    Settle,
    Write,
)
from headrace.runtime.queue.attempts import Attempts, Held
from headrace.runtime.queue.calls import Calls, SyncCounters
from headrace.runtime.queue.cancelling import Cancelling
from headrace.runtime.queue.ending import closure_of, ending_of, stillborn
from headrace.runtime.queue.ends import End, Ends
from headrace.runtime.queue.lane import Flow, FunctionGate
from headrace.runtime.queue.ports import AttemptPool, CallStream
from headrace.runtime.queue.watchers import Watchers
from headrace.runtime.queue.window import WINDOW, Window
from headrace.runtime.store.protocol import Closure, Item, QueueStore

UNCOMMITTED_MAX = 100_000
"""Invocations handed to the store and not yet durable; beyond it callers are throttled."""

MARK_AFTER_S = 0.1
"""A claim that runs longer is recorded, so that an event which takes the node down spends its attempts."""

FLOWS_AT_ONCE = 1_000
"""Flows that are looked for in the store at a time."""

HAND_ON_TURNS = 5
"""After how many times MARK_AFTER_S what has not begun is offered to other nodes."""


class DispatcherStore(QueueStore, Protocol):
    """The queue, with what an operator or a function has stopped."""

    async def paused(self) -> set[str]:
        """The functions that are paused."""

    async def closures(self, *, now: float) -> list[Closure]:
        """The functions and keys that are closed, with moments after `now`."""


Puts = tuple[list[Put], Callable[[list[Applied] | BaseException], None], Callable[[], None] | None]
"""What `Dispatcher.submit` is given: puts, done, on_disk."""


class Dispatcher:
    """Accepts invocations durably, runs them by priority and in fair turns, retries, and ends each somewhere
    visible.

    `node` is this node's id in every claim. `logs` gets what an attempt printed. `chance` seeds the retry
    jitter.
    """

    def __init__(
        self,
        store: DispatcherStore,
        *,
        node: str,
        ids: Ids,
        clock: Clock,
        chance: random.Random,
        on_output: Callable[[FunctionSpec, int, int, Outcome, float], None] | None = None,
        on_error: Callable[[str, Mapping[str, Any]], None] | None = None,
        sync_wait_s: float = 1.0,
        window: int = WINDOW,
    ) -> None:
        self._store = store
        self._node = node
        self._ids = ids
        self._clock = clock
        self._chance = chance
        self._on_output = on_output
        self._on_error = on_error or (lambda message, fields: None)
        self._pool: AttemptPool | None = None
        self._specs: dict[str, FunctionSpec] = {}
        self._token = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uncommitted = 0
        self._counting = threading.Lock()
        """Held where what is on its way to the store is counted, which is on two threads."""
        self._accepting = True
        self.attempts = Attempts()
        self.watchers = Watchers()
        self._window = Window(
            store,
            node=node,
            clock=clock,
            size=window,
            free=lambda: self._pool.free() if self._pool is not None else 0,
            loaded=lambda function: function in self._specs,
            ready=self.dispatch,
            spawn=self._spawn,
            on_error=self._on_error,
        )
        self._calls = Calls(
            clock=clock, wait_s=sync_wait_s, begin=self._begin_call, gate=self._window.gate, spawn=self._spawn
        )
        self.ends = Ends(
            store,
            self._window,
            self.watchers,
            ids=ids,
            clock=clock,
            spec=lambda name: self._specs.get(name),
            arrived=self._arrived,
            dispatch=self.dispatch,
            spawn=self._spawn,
            on_error=self._on_error,
        )
        self.cancelling = Cancelling(
            store,
            self._window,
            self.attempts,
            self.watchers,
            self.ends,
            ids=ids,
            clock=clock,
            dispatch=self.dispatch,
            spawn=self._spawn,
        )
        self.throttled: dict[str, int] = {}

    @property
    def sync(self) -> Mapping[str, SyncCounters]:
        """The books of synchronous calls, by function."""
        return self._calls.counters

    # ---- life ----

    def use(self, pool: AttemptPool, functions: Iterable[FunctionSpec]) -> None:
        """Run on `pool` from now on, with these functions; what already runs elsewhere ends there."""
        self._pool = pool
        if pool not in self.attempts.pools:
            self.attempts.pools.append(pool)
        self._specs = {spec.name: spec for spec in functions}
        window = self._window
        for spec in self._specs.values():
            gate = window.gate(spec.name)
            gate.limit, gate.weight = spec.reserved_concurrency, spec.weight
            limits = limits_of(spec, shared=self._store.shared)
            if limits.any or gate.meter is not None:
                self._keep_to(gate, limits)
        for flow in list(window.flows.values()):
            window.refill(flow)
            window.offer(flow)
        self.dispatch()

    def _keep_to(self, gate: FunctionGate, limits: Limits) -> None:
        """The limits of a function from now on. What was claimed without them goes back."""
        window = self._window
        ready = [] if gate.meter else [claim for flow in gate.flows.values() for claim in window.empty(flow)]
        window.metering.keep_to(gate, limits)
        if ready:
            self._spawn(window.hand_back(ready))

    def retire(self, pool: AttemptPool) -> None:
        """The pool has stopped: nothing of it is asked any more."""
        if pool in self.attempts.pools:
            self.attempts.pools.remove(pool)

    async def start(self, *, paused: Iterable[str] = ()) -> None:
        """Begin claiming what the store holds."""
        window = self._window
        for name in paused:
            window.gate(name).paused = True
        for closure in await self._store.closures(now=self._clock.now()):
            window.close(closure.name, closure.until_at)
        window.open = True
        self._spawn(window.run_timers())
        self._spawn(self._mark_long())
        await self._find_flows()

    async def _find_flows(self) -> None:
        """Look at all that waits in the store, in portions; the meters go through the keys of theirs."""
        window, after = self._window, ""
        while names := await self._store.flows(after=after, limit=FLOWS_AT_ONCE):
            for after in names:
                function, keyed, _ = after.partition(KEY_MARK)
                if keyed:
                    window.metering.find_all(window.gate(function))
                    after = function + chr(ord(KEY_MARK) + 1)  # behind all of its keys
                    break
                if not after.startswith("job:"):  # the coordinator adopts those, with their own limits
                    window.need(window.flow(after, after))

    async def refresh(self) -> None:
        """Take over the pauses and closures that the store has: another node may have changed them."""
        window = self._window
        known = list(window.closures)
        await self._store.apply([], now=self._clock.now())  # what was closed here is recorded by then
        self.paused_are(await self._store.paused())
        closed = {c.name: c.until_at for c in await self._store.closures(now=self._clock.now())}
        for name in known:
            if name not in closed:
                window.reopen(name)
        for name, until in closed.items():
            self._close(name, until)

    def next_timer(self) -> float | None:
        """When work that waits for its time may be due next, in epoch seconds; None when none is known of."""
        return self._window.next_timer()

    def stop_accepting(self) -> None:
        """Refuse new work, and claim nothing more."""
        self._accepting = False
        self._window.open = False
        self._calls.stop()
        self.attempts.close_event_streams()

    async def stop(self) -> None:
        """Hand back what is ready and end. The pool has been stopped before, so that nothing runs."""
        self.stop_accepting()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ready = [claim for flow in self._window.flows.values() for claim in self._window.empty(flow)]
        if ready:
            await self._store.release(ready)

    # ---- acceptance ----

    @property
    def functions(self) -> Mapping[str, FunctionSpec]:
        """What is loaded, by name."""
        return self._specs

    def spec(self, name: str) -> FunctionSpec:
        """The function of that name. Raises UnknownFunction, naming the nearest."""
        found = self._specs.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._specs, 1)
            raise UnknownFunction(name, near[0] if near else "")
        return found

    def prepare(
        self,
        function: str,
        payload: bytes,
        *,
        delay_s: float = 0.0,
        priority: int | None = None,
        tags: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl_s: float | None = None,
        source: str | None = None,
        payload_ref: str | None = None,
        fingerprint: bytes = b"",
        concurrency_key: str | None = None,
        now: float | None = None,
    ) -> Put:
        """A Put for a new invocation; nothing is recorded yet.

        `payload` is JSON, `delay_s` seconds from now; `fingerprint` is what a repeat of the idempotency key
        must have in common with the first, by default its payload; `idempotency_ttl_s` how long the key is
        remembered, by default as the function says; `concurrency_key` stands for the one that the function
        finds in the payload. Raises UnknownFunction, BadRequest for a key that cannot be used, NodeStopping,
        or Throttled when too much is waiting for the disk.
        """
        spec = self._specs.get(function)
        if spec is None:
            spec = self.spec(function)
        if not self._accepting:
            raise NodeStopping("the node is stopping")
        if self._uncommitted >= UNCOMMITTED_MAX:
            self.throttled[function] = self.throttled.get(function, 0) + 1
            raise Throttled("too many invocations are waiting to be recorded", 1.0)
        if now is None:
            now = self._clock.now()
        flow = function
        if concurrency_key is not None:
            flow = flow_of(function, check_key(concurrency_key))
        elif spec.concurrency_key and payload:
            flow = flow_of(function, key_at(msgspec.json.decode(payload), spec.concurrency_key))
        invocation = Invocation(
            self._ids.next(now),
            function,
            flow,
            payload,
            now,
            now + delay_s,
            now + delay_s + spec.max_age_s,
            spec.priority if priority is None else priority,
            0,
            payload_ref,
            idempotency_key,
            tags,
            source,
        )
        if idempotency_key is None:
            return Put(invocation)
        ttl = spec.idempotency_ttl_s if idempotency_ttl_s is None else idempotency_ttl_s
        return Put(invocation, None, now + ttl, fingerprint)

    def key_in(self, function: str, payload: bytes) -> str | None:
        """The concurrency key that the function finds in a payload, which is JSON. Raises UnknownFunction."""
        path = self.spec(function).concurrency_key
        return key_at(msgspec.json.decode(payload), path) if path and payload else None

    def submit(
        self,
        puts: list[Put],
        done: Callable[[list[Applied] | BaseException], None],
        *,
        before: Sequence[Write] = (),
        now: float | None = None,
        on_disk: Callable[[], None] | None = None,
    ) -> None:
        """Record new invocations, all or none, after the writes in `before`; `done` gets one Applied for each
        of `puts`.

        With a refusal each of them carries it. What is due is claimed in the same step, and dispatched as
        soon as it is durable. `on_disk` is as in `QueueStore.submit`.
        """
        if now is None:
            now = self._clock.now()
        committed = self._claim(puts, done, now=now, find=self._window.flow, skip=len(before))
        reach("accept")
        self._store.submit([*before, *puts] if before else puts, committed, now=now, on_disk=on_disk)

    def submit_later(self, gather: Callable[[float], Puts | None]) -> None:
        """From any thread: as `submit`, of what `gather` gives when the store is about to record.

        It is handed the time, and called once, on a thread of the store's: `prepare` and `watch` may be used
        there, each for new invocations. Raises StoreUnavailable when the store is stopped.
        """

        def later() -> Item | None:
            now = self._clock.now()
            found = gather(now)
            if found is None:
                return None
            puts, done, on_disk = found
            committed = self._claim(puts, done, now=now, find=self._window.known)
            reach("accept")
            return puts, committed, now, on_disk

        self._store.submit_later(later)

    def _claim(
        self,
        puts: list[Put],
        done: Callable[[list[Applied] | BaseException], None],
        *,
        now: float,
        find: Callable[[str, str], Flow | None],
        skip: int = 0,
    ) -> Callable[[list[Applied] | BaseException], None]:
        """Claim what is due and has room in the flow that `find` knows; what the store is to call when it has
        recorded `skip` writes and then `puts`. On any thread.
        """
        window = self._window
        name: str | None = None
        flow: Flow | None = None
        claims: dict[Flow, int] = {}
        room = 0
        for put in puts:
            invocation = put.invocation
            if name != invocation.flow:
                name = invocation.flow
                flow = find(name, invocation.function)
                room = 0 if flow is None else window.room(flow) - claims.get(flow, 0)
            if flow is not None:
                flow.learn(len(invocation.payload))
                if room > 0 and invocation.due_at <= now:
                    put.node = self._node
                    room -= 1
                    claims[flow] = claims.get(flow, 0) + 1
        with self._counting:
            self._uncommitted += len(puts)
            for found, claimed in claims.items():
                found.coming += claimed

        def committed(result: list[Applied] | BaseException) -> None:
            with self._counting:
                self._uncommitted -= len(puts)
                for flow, claimed in claims.items():
                    flow.coming -= claimed
            if isinstance(result, list):
                result = result[skip:]
                self._arrived(puts, result)
            for flow in claims:
                if flow.gate.shut:
                    self._spawn(window.hand_back(window.empty(flow)))
                elif flow.more:
                    window.refill(flow)
            done(result)

        return committed

    async def accept(self, puts: list[Put], *, before: Sequence[Write] = ()) -> list[Applied]:
        """`submit`, awaited. Raises the refusal when there was one."""
        future: asyncio.Future[list[Applied]] = asyncio.get_running_loop().create_future()

        def done(result: list[Applied] | BaseException) -> None:
            if future.done():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
                return
            for applied in result:
                if applied.refused is not None:
                    future.set_exception(applied.refused)
                    return
            future.set_result(result)

        self.submit(puts, done, before=before)
        return await future

    def adopt(self, flow: str, function: str, *, limit: int | None = None) -> None:
        """The store holds new waiting invocations of a flow that nobody claimed yet: load them. `limit` is
        the flow's own concurrency.
        """
        found = self._window.flow(flow, function)
        found.limit = limit
        found.closed = False
        if limit is not None and self._store.shared and found.gate.meter is None:
            self._keep_to(found.gate, NO_LIMITS)  # the job's own limit holds over all nodes
        self._window.need(found)

    def forget_flow(self, name: str) -> None:
        """Drop what is ready of a flow whose invocations were cancelled or replaced in the store."""
        flow = self._window.flows.get(name)
        ready = self._window.empty(flow) if flow is not None else []
        if ready:
            self._spawn(self._store.release(ready))

    def _arrived(self, puts: Sequence[Put], result: Sequence[Applied]) -> None:
        window = self._window
        window.take([applied.claim for applied in result if applied.claim is not None])
        waiting: dict[tuple[str, str, int], float] = {}
        for put, applied in zip(puts, result, strict=True):
            if applied.claim is None and applied.refused is None and not applied.repeated:
                invocation = put.invocation
                name = (invocation.flow, invocation.function, invocation.priority)
                known = waiting.get(name)
                if known is None or invocation.due_at < known:
                    waiting[name] = invocation.due_at
        for (flow, function, priority), due_at in waiting.items():
            window.waits(flow, function, priority=priority, due_at=due_at)
        self.dispatch()

    # ---- dispatch ----

    def dispatch(self) -> None:
        """Give the pool what it has room for: waiting callers first, then the queue."""
        pool = self._pool
        if pool is None:
            return
        if self._calls.waiting:
            self._calls.serve()
        window = self._window
        if not window.open or self.ends.unrecorded:
            return
        rotation, running, tokens = window.rotation, self.attempts.held, self.attempts.tokens
        now = self._clock.now()
        while (lane := rotation.peek()) is not None:
            flow, ready = lane.flow, lane.ready
            for _ in range(rotation.turn(lane)):
                claim = ready[0]
                invocation = claim.invocation
                spec = self._specs.get(invocation.function)
                if spec is None:  # its code is not here any more: it waits in the store until it is
                    flow.more = True
                    self._spawn(window.hand_back(window.empty(flow)))
                    break
                if invocation.expires_at < now or claim.attempt > spec.retry.attempts_max:
                    rotation.take(lane)
                    self._bury(Held(invocation.id, spec, flow, None, claim), claim, now)
                    continue
                self._token = token = self._token + 1
                attempt = Attempt(
                    token,
                    invocation.function,
                    invocation.id,
                    claim.attempt,
                    invocation.payload,
                    spec.timeout_s,
                    spec.memory_bytes if invocation.memory_bytes is None else invocation.memory_bytes,
                    invocation.payload_ref,
                )
                if not pool.offer(attempt):
                    return
                rotation.take(lane)
                running[token] = Held(invocation.id, spec, flow, lane, claim)
                tokens[invocation.id] = token
                flow.running += 1
                flow.gate.running += 1
                if flow.gate.meter is not None:
                    window.metering.begun(flow.gate)
            if flow.more and flow.loading is None:
                window.refill(flow)
        if not window.alone:
            window.look()

    def reports(self, reports: Sequence[Report]) -> None:
        """Attempts have ended; called by the pool."""
        settles: list[End] = []
        now = self._clock.now()
        touched: dict[Flow, None] = {}
        running, tokens, chance = self.attempts.held, self.attempts.tokens, self._chance
        handed_on: list[Claim] = []
        for report in reports:
            held = running.pop(report.token, None)
            if held is None:
                continue
            flow, outcome, claim = held.flow, report.outcome, held.claim
            touched[flow] = None
            flow.running -= 1
            flow.gate.running -= 1
            if held.stream is not None:
                outcome = self._stream_ended(held, held.stream, outcome)
            if outcome.output and self._on_output is not None:
                attempt = claim.attempt if claim is not None else 1
                self._on_output(held.spec, held.id, attempt, outcome, now)
            closure: Closed | None = None
            if outcome.kind == "retry_after":
                closure = closure_of(held.spec, outcome, claim, now=now)
                self._close(closure.name, closure.until_at)
            if claim is None:
                if closure is not None:
                    self._store.submit([closure], _ignore, now=now)
                self._answer(held, outcome)
                continue
            tokens.pop(held.id, None)
            if held.fenced:  # its claim is another node's by now
                continue
            closed = (flow.closed and self._window.open) or held.cancelled or self.cancelling.means(claim)
            if outcome.kind == "returned" and not closed:
                if held.handed_on:
                    handed_on.append(claim)
                else:
                    self._requeue(held, claim)
                continue
            ending = ending_of(claim, held.spec, outcome, now=now, chance=chance)
            if closed and (outcome.kind == "returned" or isinstance(ending, Retry)):
                # It is being ended, perhaps has been just now, alone or with its job: it may not wait again.
                told = "its job ended" if flow.closed else "cancelled by request"
                error = {"code": "cancelled", "message": told}
                ending = Settle(claim, Status.CANCELLED, error=error, begun=outcome.kind != "returned")
            settles.append(End(ending, held, outcome, () if closure is None else (closure,)))
        for flow in touched:
            self._window.offer(flow)
        if handed_on:
            self._spawn(self._window.hand_back(handed_on))
        if settles:
            self.ends.settle(settles, now)
        self.dispatch()

    def _answer(self, held: Held, outcome: Outcome) -> None:
        if outcome.kind != "returned":
            self._calls.ended(held.spec, held.id, outcome, held.future)
        elif self._accepting:
            self._calls.again(held.spec, held.id, held.payload, held.future, held.credit)
        elif not held.future.done():
            held.future.set_exception(NodeStopping("the node is stopping"))

    def _stream_ended(self, held: Held, stream: CallStream, outcome: Outcome) -> Outcome:
        """A call that has streamed its result has ended; what went wrong goes to its log, since its caller
        can only be cut off.
        """
        if outcome.kind == "returned":
            error = {"code": NodeStopping.code, "message": "the node stopped"}
            outcome = Outcome("cancelled", error=error)
        stream.ended(outcome)
        outcome = stream.outcome or outcome
        if not outcome.ok and not stream.abandoned:
            error = outcome.error or {}
            why = error.get("stack") or f"{error.get('message', outcome.kind)}\n"
            line = f"the stream was broken off: {why}".encode("utf-8", "replace")
            outcome.output += line
            outcome.output_bytes += len(line)
        return outcome

    def _bury(self, held: Held, claim: Claim, now: float) -> None:
        settle = stillborn(claim, held.spec, now=now)
        assert settle is not None
        self.ends.settle([End(settle, held, Outcome("error", error=settle.error))], now)

    def _requeue(self, held: Held, claim: Claim) -> None:
        """An attempt that never began goes back to the front of its lane, or to the store while it may not
        begin; it costs nothing.
        """
        window, invocation = self._window, claim.invocation
        if not window.open:
            self._spawn(self._store.release([claim]))
            return
        gate = held.flow.gate
        if gate.paused or gate.closed or window.closed_until(key_of(invocation.flow)) is not None:
            self._spawn(window.hand_back([claim]))
            return
        lane = held.lane or self._window.lane(held.flow, claim.invocation.priority)
        lane.ready.appendleft(claim)
        self._window.rotation.offer(lane)

    # ---- synchronous calls ----

    def call(self, function: str, payload: bytes, *, credit: int = 0) -> asyncio.Future[Any]:
        """Run a function now, past the queue and without a row in the store.

        The future gets the Outcome, or Throttled when no worker was free in `sync_wait_s`. With `credit`, the
        bytes of a stream that may be on their way, it gets the stream (whose `kind` is `stream`) when the
        function begins one, which else is gathered into one result. Raises UnknownFunction, NodeStopping or,
        when the function may not run or 10,000 callers wait, Throttled at once.
        """
        spec = self._specs.get(function)
        if spec is None:
            spec = self.spec(function)
        if not self._accepting or self._pool is None:
            raise NodeStopping("the node is stopping")
        if self._window.closures:
            self._refuse_closed(spec, payload)
        return self._calls.call(spec, self._ids.next(), payload, credit)

    def _refuse_closed(self, spec: FunctionSpec, payload: bytes) -> None:
        """Raises RetryAfter when the function, or the key in the payload, is closed."""
        closures = self._window.closures
        until = closures.get(f"function:{spec.name}")
        if until is None and spec.concurrency_key and payload:
            until = self._window.closed_until(key_at(msgspec.json.decode(payload), spec.concurrency_key))
        if until is not None:
            self.throttled[spec.name] = self.throttled.get(spec.name, 0) + 1
            raise RetryAfter(max(until - self._clock.now(), 0.0))

    def _begin_call(
        self, spec: FunctionSpec, id: int, payload: bytes, future: asyncio.Future[Any], credit: int
    ) -> bool:
        gate = self._window.gate(spec.name)
        if not gate.open or self._pool is None:
            return False
        self._token = token = self._token + 1
        attempt = Attempt(
            token, spec.name, id, 1, payload, spec.timeout_s, spec.memory_bytes, None, True, credit
        )
        if not self._pool.offer(attempt):
            return False
        flow = self._window.flow(spec.name, spec.name)
        held = self.attempts.held[token] = Held(id, spec, flow, None, None, future)
        held.payload, held.credit = payload, credit
        flow.running += 1
        gate.running += 1
        if gate.meter is not None:
            self._window.metering.begun(gate)
        return True

    # ---- control ----

    async def pause(self, function: str, *, paused: bool) -> None:
        """Stop starting a function's invocations, or go on. The backlog is kept. Raises UnknownFunction."""
        self.spec(function)
        window = self._window
        gate = window.gate(function)
        before, gate.paused = gate.paused, gate.paused or paused  # nothing more is claimed meanwhile
        try:
            await self._store.apply([FunctionPaused(function, paused)], now=self._clock.now())
        except BaseException:
            window.pause(gate, paused=before)
            raise
        window.pause(gate, paused=paused)
        if paused:
            self.attempts.recall(lambda held: held.spec.name == function)

    async def open(self, name: str) -> None:
        """End the closure of `function:NAME` or `key:KEY` now; harmless when there is none."""
        await self._store.apply([Opened(name)], now=self._clock.now())
        self._window.reopen(name)

    def _close(self, name: str, until: float) -> None:
        """Begin nothing of a function or key until that moment. The store is told by the caller."""
        self._window.close(name, until)
        kind, _, rest = name.partition(":")
        if kind == "function":
            self.attempts.recall(lambda held: held.spec.name == rest)
        else:
            self.attempts.recall(
                lambda held: held.claim is not None and key_of(held.claim.invocation.flow) == rest
            )

    @property
    def paused(self) -> set[str]:
        """The functions of which this node begins nothing, because they are paused."""
        return {gate.name for gate in self._window.gates.values() if gate.paused}

    def wake(self, flow: str, function: str) -> None:
        """Something of the flow waits in the store that nobody claimed."""
        self._window.wake(flow, function)

    async def hand_back(self, flow: str) -> None:
        """Release what is ready of a flow, so that it can be ended in the store. Nothing of it begins until
        it is adopted again.
        """
        found = self._window.flows.get(flow)
        if found is None:
            return
        found.closed = True
        ready = self._window.empty(found)
        if found.loading is not None:
            await asyncio.wait({found.loading})
        await self._store.release(ready)

    def drop_flow(self, flow: str) -> None:
        """Forget a flow that has ended."""
        found = self._window.flows.get(flow)
        if found is not None and found.running == 0 and found.held == 0:
            self._window.drop(found)

    def running_in(self, flow: str) -> int:
        """Attempts of a flow that the pool holds."""
        found = self._window.flows.get(flow)
        return found.running if found is not None else 0

    def running_of(self, function: str) -> int:
        """Attempts of a function, synchronous calls included, that the pool holds."""
        found = self._window.gates.get(function)
        return found.running if found is not None else 0

    def ready_above(self, priority: int, *, beside: str) -> int:
        """Claims of other flows than `beside` that are ready with a higher priority."""
        return sum(
            len(lane.ready)
            for flow in self._window.flows.values()
            if flow.name != beside
            for lane in flow.lanes.values()
            if lane.priority > priority and flow.open
        )

    def counts(self) -> tuple[int, int, int]:
        """(attempts with the pool, claims ready, callers waiting for a worker)."""
        return len(self.attempts.held), self._window.held, len(self._calls.waiting)

    # ---- among other nodes ----

    def only_queued(self, function: str) -> bool:
        """Whether calls go the durable way, because a limit over all nodes is held in the claim."""
        return self._store.shared and limits_of(self.spec(function), shared=True).any

    def paused_are(self, names: set[str]) -> None:
        """These functions are paused, and no others, as the store says."""
        window = self._window
        for gate in list(window.gates.values()):
            if gate.paused and gate.name not in names:
                window.pause(gate, paused=False)
        for name in names:
            gate = window.gate(name)
            if not gate.paused:
                window.pause(gate, paused=True)

    def heard(self, flow: str, function: str) -> None:
        """Another node says that something of the flow can be claimed."""
        if self._window.open and function in self._specs:
            self._window.wake(flow, function)

    def flow_known(self, name: str) -> bool:
        """Whether the flow is in the window."""
        return name in self._window.flows

    @property
    def alone(self) -> bool:
        """Whether no other node claims from this store."""
        return self._window.alone

    def wake_flow(self, name: str) -> None:
        """Something of a flow that is in the window can be claimed."""
        self._window.need(self._window.flows[name])

    async def share(self, *, alone: bool) -> None:
        """Other nodes have come, or all have gone: hold ready only what keeps nobody else idle."""
        if self._window.alone == alone:
            return
        self._window.alone = alone
        if not alone:
            excess = self._window.excess()
            if excess:
                await self._window.hand_back(excess)
        self._window.look()

    def fence(self) -> None:
        """The node's lease may have run out: drop what is ready, stop what runs, and report nothing of it."""
        window = self._window
        window.open = False
        for flow in window.flows.values():
            window.empty(flow)
        self.attempts.fence()

    async def rejoin(self, node: str) -> None:
        """Go on under a new node id, after `fence`; the old id's claims are no longer this node's."""
        if not self._accepting:
            return
        window = self._window
        self._node = node
        window.become(node)
        window.open = True
        for flow in list(window.flows.values()):
            window.need(flow)
        await self.look_again()

    async def look_again(self) -> None:
        """Look at every flow of which the store has something waiting."""
        if self._window.open:
            await self._find_flows()

    def _hand_on(self) -> None:
        """Give back what has not begun since the last time: a node beside this one may have a free worker."""
        self.attempts.hand_on()
        excess = self._window.excess()
        if excess:
            self._spawn(self._window.hand_back(excess))

    async def _mark_long(self) -> None:
        turns = 0
        while True:
            await self._clock.sleep(MARK_AFTER_S)
            self._window.measure(self._token)
            if not self.attempts.held:
                continue
            turns += 1
            if not self._window.alone and turns % HAND_ON_TURNS == 0:
                self._hand_on()
            now = self._clock.now()
            marks: list[Write] = []
            for _, held, seconds in self.attempts.executing():
                if held.claim is not None and not held.marked and seconds >= MARK_AFTER_S:
                    held.marked = True
                    marks.append(MarkRunning(held.claim, now - seconds))
            for mark in marks:
                self._store.submit([mark], _ignore, now=now)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error("the dispatcher failed", {"error": f"{type(error).__name__}: {error}"})


def _ignore(result: list[Applied] | BaseException) -> None:
    """A mark that came too late or could not be recorded changes nothing: the attempt's end counts."""
