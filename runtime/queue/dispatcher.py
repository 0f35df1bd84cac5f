"""The dispatcher: durable invocations from acceptance to their end, and synchronous calls past the queue.

Imports the floor, the store's protocol and, of the pool, its protocol. It runs on the event loop and never
blocks it. What it holds is bounded: a window of claims per flow; everything else waits in the store.
"""

import asyncio
import difflib
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    HeadraceError,
    LeaseLost,
    NodeStopping,
    StoreUnavailable,
    Throttled,
    UnknownFunction,
)
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Claim, Invocation, Outcome, Status
from headrace.runtime.model.policy import retry_delay
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import (
    Applied,
    CancelWaiting,
    FunctionPaused,
    MarkRunning,
    Put,
    Retry,
    Settle,
    Write,
)
from headrace.runtime.queue.lane import Flow, FunctionGate, Lane, Rotation
from headrace.runtime.queue.ports import AttemptPool, JobSettler
from headrace.runtime.store.protocol import QueueStore

WINDOW = 2048
"""Claims held ready per flow. A backlog of any size costs no more memory than this."""

URGENT = 16
"""Claims that may be loaded beyond a full window, when what is in the store has a higher priority."""

UNCOMMITTED_MAX = 100_000
"""Invocations handed to the store and not yet durable; beyond it callers are throttled."""

MARK_AFTER_S = 0.1
"""A claim that runs longer is recorded, so that an event which takes the node down spends its attempts."""

IDEMPOTENCY_S = 24 * 3600.0


class Ended(msgspec.Struct, gc=False):
    """How an invocation ended, for those who wait for it."""

    id: int
    status: Status
    result: bytes = b""
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    attempts: int = 0


Watcher = Callable[[Ended], None]
_WaitingCall = tuple[float, int, FunctionSpec, bytes, asyncio.Future[Outcome]]
"""Until when, in monotonic seconds, and what a caller waits for."""


class SyncCounters(msgspec.Struct):
    """Synchronous calls of one function since the node began."""

    invoked: int = 0
    succeeded: int = 0
    failed: int = 0
    throttled: int = 0


class _Running:
    """An attempt that the pool holds."""

    __slots__ = ("claim", "flow", "future", "id", "lane", "marked", "payload", "progress", "spec")

    def __init__(
        self,
        id: int,
        spec: FunctionSpec,
        flow: Flow,
        lane: Lane | None,
        claim: Claim | None,
        future: Any = None,
    ) -> None:
        self.id = id
        self.spec = spec
        self.flow = flow
        self.lane = lane
        self.claim = claim
        self.future = future
        self.marked = False
        self.payload = b""
        self.progress: dict[str, Any] | None = None


class _Settling:
    """The end of an attempt on its way to the store."""

    __slots__ = ("held", "outcome", "writes")

    def __init__(self, writes: list[Write], held: _Running, outcome: Outcome) -> None:
        self.writes = writes
        self.held = held
        self.outcome = outcome


class Dispatcher:
    """Accepts invocations durably, runs them by priority and in fair turns, retries, and ends each somewhere
    visible.

    `node` is this node's id in every claim. `logs` gets what an attempt printed. `chance` seeds the retry
    jitter.
    """

    def __init__(
        self,
        store: QueueStore,
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
        self._sync_wait_s = sync_wait_s
        self._window = window
        self._pool: AttemptPool | None = None
        self._pools: list[AttemptPool] = []
        self._specs: dict[str, FunctionSpec] = {}
        self._gates: dict[str, FunctionGate] = {}
        self._flows: dict[str, Flow] = {}
        self._rotation = Rotation()
        self._running: dict[int, _Running] = {}
        self._token = 0
        self._tokens: dict[int, int] = {}
        self._watchers: dict[int, list[Watcher]] = {}
        self._waiting_calls: deque[_WaitingCall] = deque()
        self._giving_up = False
        self._timers: list[tuple[float, str]] = []
        self._timer_set = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uncommitted = 0
        self._unsettled: set[_Settling] = set()
        self._accepting = True
        self._claiming = False
        self.jobs: JobSettler | None = None
        self.sync: dict[str, SyncCounters] = {}
        self.throttled: dict[str, int] = {}

    # ---- life ----

    def use(self, pool: AttemptPool, functions: Iterable[FunctionSpec]) -> None:
        """Run on `pool` from now on, with these functions; what already runs elsewhere ends there."""
        self._pool = pool
        if pool not in self._pools:
            self._pools.append(pool)
        self._specs = {spec.name: spec for spec in functions}
        for spec in self._specs.values():
            gate = self._gates.get(spec.name)
            if gate is None:
                gate = self._gates[spec.name] = FunctionGate(spec.name)
            gate.limit, gate.weight = spec.reserved_concurrency, spec.weight
        for flow in list(self._flows.values()):
            self._refill(flow)
            self._offer(flow)
        self.dispatch()

    def retire(self, pool: AttemptPool) -> None:
        """The pool has stopped: nothing of it is asked any more."""
        if pool in self._pools:
            self._pools.remove(pool)

    async def start(self, *, paused: Iterable[str] = ()) -> None:
        """Begin claiming what the store holds."""
        for name in paused:
            self._gate(name).paused = True
        self._claiming = True
        self._spawn(self._run_timers())
        self._spawn(self._mark_long())
        for name in await self._store.flows():
            if not name.startswith("job:"):  # the coordinator adopts those, with their own limits
                self._need(self._flow(name, name))

    def stop_accepting(self) -> None:
        """Refuse new work, and claim nothing more."""
        self._accepting = False
        self._claiming = False
        for _, _, _, _, future in self._waiting_calls:
            if not future.done():
                future.set_exception(NodeStopping("the node is stopping"))
        self._waiting_calls.clear()

    async def stop(self) -> None:
        """Hand back what is ready and end. The pool has been stopped before, so that nothing runs."""
        self.stop_accepting()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ready = [
            claim for flow in self._flows.values() for lane in flow.lanes.values() for claim in lane.ready
        ]
        for flow in self._flows.values():
            for lane in flow.lanes.values():
                lane.ready.clear()
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
        source: str | None = None,
        payload_ref: str | None = None,
        now: float | None = None,
    ) -> Put:
        """A Put for a new invocation; nothing is recorded yet.

        `payload` is JSON, `delay_s` seconds from now. Raises UnknownFunction, NodeStopping, or Throttled when
        too much is waiting for the disk.
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
        invocation = Invocation(
            self._ids.next(),
            function,
            function,
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
        return Put(invocation, None, now + IDEMPOTENCY_S if idempotency_key is not None else 0.0)

    def submit(
        self,
        puts: list[Put],
        done: Callable[[list[Applied] | BaseException], None],
        *,
        before: Sequence[Write] = (),
        now: float | None = None,
    ) -> None:
        """Record new invocations, all or none, after the writes in `before`; `done` gets one Applied for each
        of `puts`.

        With a refusal each of them carries it. What is due is claimed in the same step, and dispatched as
        soon as it is durable.
        """
        if now is None:
            now = self._clock.now()
        flow: Flow | None = None
        coming: list[tuple[Flow, int]] = []
        room = claimed = 0
        for put in puts:
            invocation = put.invocation
            if flow is None or flow.name != invocation.flow:
                if flow is not None and claimed:
                    flow.coming += claimed
                    coming.append((flow, claimed))
                    claimed = 0
                flow = self._flow(invocation.flow, invocation.function)
                free = self._claiming and not flow.more and not flow.closed
                room = self._window - flow.held - flow.coming if free else 0
            if room > 0 and invocation.due_at <= now:
                put.node = self._node
                room -= 1
                claimed += 1
        if flow is not None and claimed:
            flow.coming += claimed
            coming.append((flow, claimed))
        self._uncommitted += len(puts)
        skip = len(before)

        def committed(result: list[Applied] | BaseException) -> None:
            self._uncommitted -= len(puts)
            for flow, claimed in coming:
                flow.coming -= claimed
            if isinstance(result, list):
                result = result[skip:]
                self._arrived(puts, result)
            for flow, _ in coming:
                if flow.more:
                    self._refill(flow)
            done(result)

        self._store.submit([*before, *puts] if before else puts, committed, now=now)

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
        found = self._flow(flow, function)
        found.limit = limit
        found.closed = False
        self._need(found)

    def forget_flow(self, name: str) -> None:
        """Drop what is ready of a flow whose invocations were cancelled or replaced in the store."""
        flow = self._flows.get(name)
        if flow is None:
            return
        ready = [claim for lane in flow.lanes.values() for claim in lane.ready]
        for lane in flow.lanes.values():
            lane.ready.clear()
        if ready:
            self._spawn(self._store.release(ready))

    def watch(self, id: int, watcher: Watcher) -> None:
        """Call `watcher` once when the invocation has ended and that is durable."""
        found = self._watchers.get(id)
        if found is None:
            self._watchers[id] = [watcher]
        else:
            found.append(watcher)

    def unwatch(self, id: int, watcher: Watcher) -> None:
        """Undo `watch`; harmless when it was called."""
        found = self._watchers.get(id)
        if found and watcher in found:
            found.remove(watcher)
            if not found:
                del self._watchers[id]

    def forget(self, id: int) -> None:
        """Drop every watcher of an invocation that was not accepted."""
        self._watchers.pop(id, None)

    def _arrived(self, puts: Sequence[Put], result: Sequence[Applied]) -> None:
        flow: Flow | None = None
        lane: Lane | None = None
        for put, applied in zip(puts, result, strict=True):
            invocation = put.invocation
            if applied.refused is not None or applied.repeated:
                continue
            claim = applied.claim
            if flow is None or flow.name != invocation.flow:
                flow = self._flow(invocation.flow, invocation.function)
                lane = None
            if claim is None:
                if invocation.due_at <= self._clock.now():
                    if flow.urgent is None or invocation.priority > flow.urgent:
                        flow.urgent = invocation.priority
                    self._need(flow)
                else:
                    self._wake_at(flow, invocation.due_at)
                continue
            if lane is None or lane.priority != invocation.priority:
                lane = self._lane(flow, invocation.priority)
            lane.ready.append(claim)
            if not lane.active:
                self._rotation.offer(lane)
        self.dispatch()

    # ---- dispatch ----

    def dispatch(self) -> None:
        """Give the pool what it has room for: waiting callers first, then the queue."""
        pool = self._pool
        if pool is None:
            return
        if self._waiting_calls:
            self._serve_waiting()
        if not self._claiming or self._unsettled:
            return
        rotation, running = self._rotation, self._running
        now = self._clock.now()
        while (lane := rotation.peek()) is not None:
            flow = lane.flow
            claim = lane.ready[0]
            invocation = claim.invocation
            spec = self._specs.get(invocation.function)
            if spec is None:  # its code is not here any more: it waits in the store until it is
                self._give_back(flow)
                continue
            if invocation.expires_at < now or claim.attempt > spec.retry.attempts_max:
                rotation.take(lane)
                self._bury(spec, flow, claim, now)
                continue
            self._token = token = self._token + 1
            attempt = Attempt(
                token,
                invocation.function,
                invocation.id,
                claim.attempt,
                invocation.payload,
                spec.timeout_s,
                spec.memory_bytes,
                invocation.payload_ref,
            )
            if not pool.offer(attempt):
                break
            rotation.take(lane)
            running[token] = _Running(invocation.id, spec, flow, lane, claim)
            self._tokens[invocation.id] = token
            flow.running += 1
            flow.gate.running += 1
            if flow.more and flow.loading is None:
                self._refill(flow)

    def reports(self, reports: Sequence[Report]) -> None:
        """Attempts have ended; called by the pool."""
        settles: list[_Settling] = []
        now = self._clock.now()
        opened: Flow | None = None
        for report in reports:
            held = self._running.pop(report.token, None)
            if held is None:
                continue
            flow = held.flow
            if not flow.open or flow is not opened:
                if opened is not None and opened is not flow:
                    self._offer(opened)
                opened = flow
            flow.running -= 1
            flow.gate.running -= 1
            outcome: Outcome = report.outcome
            claim = held.claim
            if claim is None:
                self._answer(held, outcome, now)
                continue
            self._tokens.pop(claim.invocation.id, None)
            if outcome.output and self._on_output is not None:
                self._on_output(held.spec, claim.invocation.id, claim.attempt, outcome, now)
            if outcome.kind == "ok":
                settle = Settle(
                    claim, Status.SUCCEEDED, outcome.value, outcome.result_ref, None, outcome.started_at
                )
                settles.append(_Settling([settle], held, outcome))
            elif outcome.kind == "returned":
                self._requeue(held, claim)
            else:
                self._failed(held, claim, outcome, now, settles)
        if opened is not None:
            self._offer(opened)
        if settles:
            self._settle(settles, now)
        self.dispatch()

    def _settle(self, settles: list[_Settling], now: float) -> None:
        """Record ends: the plain ones together, those that come with more writes each by itself."""
        plain: list[_Settling] = []
        for item in settles:
            settle = item.writes[0]
            if isinstance(settle, Settle):
                if self.jobs is not None and settle.claim.invocation.job is not None:
                    self._record(
                        [_Settling(list(self.jobs.settle(settle, item.outcome)), item.held, item.outcome)],
                        now,
                    )
                    continue
                follow = self._destination(settle, item.held.spec, item.outcome, now)
                if follow is not None:
                    item.writes.append(follow)
                    self._record([item], now)
                    continue
            plain.append(item)
        if plain:
            self._record(plain, now)

    def _record(self, items: list[_Settling], now: float) -> None:
        writes = [write for item in items for write in item.writes]

        def committed(result: list[Applied] | BaseException) -> None:
            if isinstance(result, BaseException):
                if len(items) > 1 and not isinstance(result, HeadraceError):
                    for item in items:  # not the database's fault but one item's: it must not keep the others
                        self._record([item], now)
                else:
                    self._unrecorded(items, result)
                return
            if len(items) > 1 and any(applied.refused is not None for applied in result):
                for item in items:  # one refusal undoes its whole list: record the others by themselves
                    self._record([item], now)
                return
            at = 0
            for item in items:
                size = len(item.writes)
                self._recorded(item, result if size == len(result) else result[at : at + size])
                at += size

        self._store.submit(writes, committed, now=now)

    def _recorded(self, item: _Settling, applied: Sequence[Applied]) -> None:
        if self._unsettled:
            self._unsettled.discard(item)
            if not self._unsettled:
                asyncio.get_running_loop().call_soon(self.dispatch)
        write, refused = item.writes[0], applied[0].refused
        if refused is not None:
            if not isinstance(refused, LeaseLost):
                self._on_error("an outcome was refused", {"error": str(refused), "code": refused.code})
        elif isinstance(write, Retry):
            self._wake_at(item.held.flow, write.due_at)
        else:
            settle = write if isinstance(write, Settle) else getattr(write, "settle", None)
            if isinstance(settle, Settle):
                self._tell(settle)
            if len(item.writes) > 1:
                puts = [(w, a) for w, a in zip(item.writes, applied, strict=True) if isinstance(w, Put)]
                self._arrived([put for put, _ in puts], [answer for _, answer in puts])
        if (
            self.jobs is not None
            and item.held.claim is not None
            and item.held.claim.invocation.job is not None
        ):
            self.jobs.settled(item.writes, applied)

    def _tell(self, settle: Settle) -> None:
        """Those who wait for the invocation learn how it ended."""
        claim = settle.claim
        watchers = self._watchers.pop(claim.invocation.id, None)
        if watchers is not None:
            ended = Ended(
                claim.invocation.id,
                settle.status,
                settle.result,
                settle.result_ref,
                settle.error,
                claim.attempt,
            )
            for watcher in watchers:
                watcher(ended)

    def _unrecorded(self, items: list[_Settling], error: BaseException) -> None:
        """The database could not record outcomes (a full disk): keep trying, since the functions have run,
        and begin no others meanwhile.
        """
        if isinstance(error, HeadraceError):
            self._unsettled.update(items)
        self._on_error(
            "outcomes could not be recorded; trying again", {"error": str(error), "count": len(items)}
        )
        self._spawn(self._record_later(items))

    async def _record_later(self, items: list[_Settling]) -> None:
        await self._clock.sleep(1.0)
        self._record(items, self._clock.now())

    def _failed(
        self, held: _Running, claim: Claim, outcome: Outcome, now: float, settles: list[_Settling]
    ) -> None:
        spec, error = held.spec, outcome.error or {"code": outcome.kind, "message": outcome.kind}
        if outcome.kind == "cancelled":
            settle = Settle(claim, Status.CANCELLED, b"", None, error, outcome.started_at)
            settles.append(_Settling([settle], held, outcome))
            return
        due = now + retry_delay(claim.attempt, spec.retry, self._chance)
        final = error.get("final") is True or outcome.kind == "invalid_event"
        if claim.attempt < spec.retry.attempts_max and not final:
            if due <= claim.invocation.expires_at:
                settles.append(_Settling([Retry(claim, due, True, error)], held, outcome))
                return
            late = f"its next attempt would come after max_age, {spec.max_age_s:g} s"
            error = {"code": "expired", "message": f"{late}; attempt {claim.attempt} failed", "cause": error}
        settle = Settle(claim, Status.DEAD, b"", None, error, outcome.started_at)
        settles.append(_Settling([settle], held, outcome))

    def _bury(self, spec: FunctionSpec, flow: Flow, claim: Claim, now: float) -> None:
        invocation = claim.invocation
        if invocation.expires_at < now:
            late = now - invocation.accepted_at
            error = {
                "code": "expired",
                "message": f"not succeeded {late:.0f} s after acceptance; max_age is {spec.max_age_s:g} s",
            }
        else:
            error = {
                "code": "node_lost",
                "message": f"its node was lost during each of {claim.attempt - 1} attempts",
            }
        held = _Running(invocation.id, spec, flow, None, claim)
        settle = Settle(claim, Status.DEAD, error=error)
        self._settle([_Settling([settle], held, Outcome("error", error=error))], now)

    def _destination(self, settle: Settle, spec: FunctionSpec, outcome: Outcome, now: float) -> Put | None:
        """The event for the function's destination, in the shape of Lambda's invocation record.

        Source: "Capturing records of Lambda asynchronous invocations", AWS Lambda Developer Guide.
        """
        if settle.status is Status.SUCCEEDED:
            target, condition = spec.on_success, "Success"
        elif settle.status is Status.DEAD:
            expired = (settle.error or {}).get("code") == "expired"
            target, condition = spec.on_failure, "EventAgeExceeded" if expired else "RetriesExhausted"
        else:
            return None
        if target is None or target not in self._specs:
            return None
        claim = settle.claim
        record: dict[str, Any] = {
            "version": "1.0",
            "timestamp": now,
            "requestContext": {
                "requestId": show_id(claim.invocation.id),
                "functionArn": spec.name,
                "condition": condition,
                "approximateInvokeCount": claim.attempt,
            },
            "requestPayload": msgspec.Raw(claim.invocation.payload or b"null"),
            "responseContext": {"statusCode": 200 if outcome.ok else 500},
            "responsePayload": msgspec.Raw(settle.result or b"null") if outcome.ok else settle.error,
        }
        try:
            return self.prepare(target, msgspec.json.encode(record), source=spec.name, now=now)
        except HeadraceError as error:
            self._on_error("a destination could not be reached", {"function": spec.name, "error": str(error)})
            return None

    def _requeue(self, held: _Running, claim: Claim) -> None:
        """An attempt that never began goes back to the front of its lane; it costs nothing."""
        if not self._claiming or held.flow.closed:
            self._spawn(self._store.release([claim]))
            return
        lane = held.lane or self._lane(held.flow, claim.invocation.priority)
        lane.ready.appendleft(claim)
        self._rotation.offer(lane)

    def _give_back(self, flow: Flow) -> None:
        ready = [claim for lane in flow.lanes.values() for claim in lane.ready]
        for lane in flow.lanes.values():
            lane.ready.clear()
        flow.more = True
        self._spawn(self._store.release(ready))

    # ---- synchronous calls ----

    def call(self, function: str, payload: bytes) -> asyncio.Future[Outcome]:
        """Run a function now, past the queue and without a row in the store.

        The future gets the Outcome. Raises UnknownFunction, NodeStopping or, when the function may not run or
        10,000 callers wait, Throttled at once; the future gets Throttled when no worker was free in
        `sync_wait_s`.
        """
        spec = self._specs.get(function)
        if spec is None:
            spec = self.spec(function)
        if not self._accepting or self._pool is None:
            raise NodeStopping("the node is stopping")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        id = self._ids.next()
        counters = self.sync.get(function)
        if counters is None:
            counters = self.sync[function] = SyncCounters()
        counters.invoked += 1
        if self._waiting_calls or not self._call_now(spec, id, payload, future):
            if len(self._waiting_calls) >= 10_000 or (spec.reserved_concurrency == 0):
                counters.throttled += 1
                raise Throttled(f"no worker is free for {function}", 1.0)
            self._wait_for_worker(spec, id, payload, future)
        return future

    def _wait_for_worker(
        self, spec: FunctionSpec, id: int, payload: bytes, future: asyncio.Future[Outcome]
    ) -> None:
        deadline = self._clock.monotonic() + self._sync_wait_s
        self._waiting_calls.append((deadline, id, spec, payload, future))
        if not self._giving_up:
            self._giving_up = True
            self._spawn(self._give_up())

    def _call_now(self, spec: FunctionSpec, id: int, payload: bytes, future: asyncio.Future[Outcome]) -> bool:
        gate = self._gates[spec.name]
        if gate.paused or (gate.limit is not None and gate.running >= gate.limit):
            return False
        assert self._pool is not None
        self._token = token = self._token + 1
        attempt = Attempt(token, spec.name, id, 1, payload, spec.timeout_s, spec.memory_bytes, None, True)
        if not self._pool.offer(attempt):
            return False
        flow = self._flow(spec.name, spec.name)
        held = self._running[token] = _Running(id, spec, flow, None, None, future)
        held.payload = payload
        flow.running += 1
        gate.running += 1
        return True

    def _serve_waiting(self) -> None:
        waiting = self._waiting_calls
        blocked: deque[_WaitingCall] = deque()
        while waiting:
            item = waiting.popleft()
            _, id, spec, payload, future = item
            if future.done():
                continue
            if not self._call_now(spec, id, payload, future):
                blocked.append(item)
                if len(blocked) > 64:
                    break
        blocked.extend(waiting)
        self._waiting_calls = blocked

    async def _give_up(self) -> None:
        """Throttle the callers whose time is over; they wait in the order of their deadlines."""
        try:
            while self._waiting_calls:
                deadline, _, spec, _, future = self._waiting_calls[0]
                left = deadline - self._clock.monotonic()
                if left > 0 and not future.done():
                    await self._clock.sleep(left)
                    continue
                self._waiting_calls.popleft()
                if future.done():
                    continue
                self.sync[spec.name].throttled += 1
                busy = f"no worker was free for {spec.name} in {self._sync_wait_s:g} s"
                paused = self._gates[spec.name].paused
                future.set_exception(Throttled(f"{spec.name} is paused" if paused else busy, 1.0))
        finally:
            self._giving_up = False

    def _answer(self, held: _Running, outcome: Outcome, now: float) -> None:
        counters = self.sync[held.spec.name]
        if outcome.kind == "returned":
            # The worker went away before this call began, which is nobody's fault: it waits for another one.
            if held.future.done():
                return
            if not self._accepting:
                held.future.set_exception(NodeStopping("the node is stopping"))
            elif not self._call_now(held.spec, held.id, held.payload, held.future):
                self._wait_for_worker(held.spec, held.id, held.payload, held.future)
            return
        if outcome.ok:
            counters.succeeded += 1
        else:
            counters.failed += 1
        if outcome.output and self._on_output is not None:
            self._on_output(held.spec, held.id, 1, outcome, now)
        outcome.invocation_id = held.id
        if not held.future.done():
            held.future.set_result(outcome)

    # ---- control ----

    async def cancel(self, id: int) -> bool:
        """End an invocation that waits or runs. True once a running one was told to stop or a waiting one has
        ended.

        Raises WrongState when it has ended, from the store.
        """
        token = self._tokens.get(id)
        if token is not None:
            return any(pool.kill(token) for pool in self._pools)
        now = self._clock.now()
        for flow in self._flows.values():
            for lane in flow.lanes.values():
                for claim in lane.ready:
                    if claim.invocation.id == id:
                        return await self._cancel_ready(lane, claim, now)
        [applied] = await self._store.apply([CancelWaiting(id)], now=now)
        if applied.refused is not None:
            raise applied.refused
        for watcher in self._watchers.pop(id, ()):
            watcher(
                Ended(
                    id, Status.CANCELLED, error={"code": "cancelled", "message": "cancelled before it began"}
                )
            )
        return True

    async def _cancel_ready(self, lane: Lane, claim: Claim, now: float) -> bool:
        error = {"code": "cancelled", "message": "cancelled before it began"}
        settle = Settle(claim, Status.CANCELLED, error=error)
        lane.ready.remove(claim)
        try:
            [applied] = await self._store.apply([settle], now=now)
        except HeadraceError:
            lane.ready.appendleft(claim)  # it was not recorded, so it is still to be run
            self._rotation.offer(lane)
            self.dispatch()
            raise
        if applied.refused is not None:
            return False
        self._tell(settle)
        if self.jobs is not None and claim.invocation.job is not None:
            self.jobs.settled([settle], [applied])
        return True

    def kill_job(self, job: int) -> None:
        """Stop every running invocation of a job."""
        for token, held in list(self._running.items()):
            if held.claim is not None and held.claim.invocation.job == job:
                any(pool.kill(token) for pool in self._pools)

    async def pause(self, function: str, *, paused: bool) -> None:
        """Stop starting a function's invocations, or go on. The backlog is kept. Raises UnknownFunction."""
        self.spec(function)
        await self._store.apply([FunctionPaused(function, paused)], now=self._clock.now())
        gate = self._gate(function)
        gate.paused = paused
        if not paused:
            for flow in self._flows.values():
                if flow.gate is gate:
                    self._offer(flow)
                    self._refill(flow)
            self.dispatch()

    def output(self, id: int) -> bytes:
        """What a running invocation has printed so far."""
        token = self._tokens.get(id)
        if token is None:
            return b""
        return next((found for pool in self._pools if (found := pool.output(token))), b"")

    def wake(self, flow: str, function: str) -> None:
        """Something of the flow waits in the store that nobody claimed."""
        self._need(self._flow(flow, function))

    async def hand_back(self, flow: str) -> None:
        """Release what is ready of a flow, so that it can be ended in the store. Nothing of it begins until
        it is adopted again.
        """
        found = self._flows.get(flow)
        if found is None:
            return
        found.closed = True
        ready = [claim for lane in found.lanes.values() for claim in lane.ready]
        for lane in found.lanes.values():
            lane.ready.clear()
        if found.loading is not None:
            await asyncio.wait({found.loading})
        await self._store.release(ready)

    def drop_flow(self, flow: str) -> None:
        """Forget a flow that has ended."""
        found = self._flows.get(flow)
        if found is not None and found.running == 0 and found.held == 0:
            del self._flows[flow]

    def running_in(self, flow: str) -> int:
        """Attempts of a flow that the pool holds."""
        found = self._flows.get(flow)
        return found.running if found is not None else 0

    def progress(self, token: int, told: dict[str, Any]) -> None:
        """A function said how far it is; kept until its attempt ends."""
        held = self._running.get(token)
        if held is not None:
            held.progress = told

    def progress_of(self, id: int) -> dict[str, Any] | None:
        """How far a running invocation said it is."""
        token = self._tokens.get(id)
        held = self._running.get(token) if token is not None else None
        return held.progress if held is not None else None

    def is_running(self, id: int) -> bool:
        """Whether this node's pool holds the invocation."""
        return id in self._tokens

    def counts(self) -> tuple[int, int, int]:
        """(attempts with the pool, claims ready, callers waiting for a worker)."""
        ready = sum(flow.held for flow in self._flows.values())
        return len(self._running), ready, len(self._waiting_calls)

    def running_by_function(self) -> dict[str, int]:
        """Durable attempts with the pool, by function."""
        out: dict[str, int] = {}
        for held in self._running.values():
            if held.claim is not None:
                out[held.spec.name] = out.get(held.spec.name, 0) + 1
        return out

    # ---- the window over the store ----

    def _gate(self, function: str) -> FunctionGate:
        gate = self._gates.get(function)
        if gate is None:
            gate = self._gates[function] = FunctionGate(function)
        return gate

    def _flow(self, name: str, function: str) -> Flow:
        flow = self._flows.get(name)
        if flow is None:
            flow = self._flows[name] = Flow(name, self._gate(function))
        return flow

    def _lane(self, flow: Flow, priority: int) -> Lane:
        lane = flow.lanes.get(priority)
        if lane is None:
            lane = flow.lanes[priority] = Lane(flow, priority)
        return lane

    def _offer(self, flow: Flow) -> None:
        """The flow, or its function, may have become open again."""
        if flow.gate.limit is None:
            for lane in flow.lanes.values():
                self._rotation.offer(lane)
            return
        for other in self._flows.values():  # a limited function's flows share one gate
            if other.gate is flow.gate:
                for lane in other.lanes.values():
                    self._rotation.offer(lane)

    def _need(self, flow: Flow) -> None:
        flow.more = True
        self._refill(flow)

    def _refill(self, flow: Flow) -> None:
        if not self._claiming or flow.closed or flow.loading is not None or not flow.more:
            return
        if flow.held + flow.coming >= max(self._window // 2, 1) and not flow.passed_over:
            return
        if flow.gate.paused or (flow.gate.name not in self._specs and not flow.name.startswith("job:")):
            return
        flow.loading = self._spawn(self._load(flow))

    async def _load(self, flow: Flow) -> None:
        try:
            limit = max(self._window - flow.held - flow.coming, min(URGENT, self._window))
            flow.more = False
            now = self._clock.now()
            claims = await self._store.claim(self._node, flow=flow.name, limit=limit, now=now)
            if len(claims) >= limit:
                flow.more = True
            if not flow.more or (flow.urgent is not None and claims[-1].invocation.priority < flow.urgent):
                flow.urgent = None
            if not self._claiming or flow.closed:
                flow.more = True
                await self._store.release(claims)
                return
            for claim in claims:
                lane = self._lane(flow, claim.invocation.priority)
                lane.ready.append(claim)
                flow.gate = self._gate(claim.invocation.function)
            self._offer(flow)
            if not flow.more:
                due = await self._store.next_due(flow.name, now=now)
                if due is not None:
                    self._wake_at(flow, due)
        except StoreUnavailable as error:
            flow.more = True
            self._on_error(
                "the queue could not be read; trying again", {"flow": flow.name, "error": str(error)}
            )
            self._wake_at(flow, self._clock.now() + 1.0)
        finally:
            flow.loading = None
        if flow.more:
            self._refill(flow)
        self.dispatch()

    def _wake_at(self, flow: Flow, due: float) -> None:
        """Look at the flow again at `due`. One timer a flow: the earliest."""
        if flow.next_due is None or due < flow.next_due:
            flow.next_due = due
            heapq.heappush(self._timers, (due, flow.name))
            self._timer_set.set()

    async def _run_timers(self) -> None:
        while True:
            now = self._clock.now()
            while self._timers and self._timers[0][0] <= now:
                due, name = heapq.heappop(self._timers)
                flow = self._flows.get(name)
                if flow is not None and flow.next_due == due:
                    flow.next_due = None
                    self._need(flow)
            self._timer_set.clear()
            wait = min(max(self._timers[0][0] - now, 0.001), 60.0) if self._timers else 60.0
            sleeper = asyncio.ensure_future(self._clock.sleep(wait))
            waiter = asyncio.ensure_future(self._timer_set.wait())
            try:
                await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waiter.cancel()

    async def _mark_long(self) -> None:
        while True:
            await self._clock.sleep(MARK_AFTER_S)
            if not self._running:
                continue
            now = self._clock.now()
            marks: list[Write] = []
            for token, seconds in [item for pool in self._pools for item in pool.running()]:
                held = self._running.get(token)
                if (
                    held is not None
                    and held.claim is not None
                    and not held.marked
                    and seconds >= MARK_AFTER_S
                ):
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
