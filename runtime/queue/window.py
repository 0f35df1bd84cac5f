"""The window over the store: which claims are held ready, flow by flow, and when more are loaded.

Imports the floor, the store's protocol and this room's lanes. What it holds is bounded, by count and by
bytes; everything else waits in the store.
"""

import asyncio
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError
from headrace.runtime.fault import reach
from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import KEY_MARK, flow_of, key_of
from headrace.runtime.queue.lane import Flow, FunctionGate, Lane, Rotation
from headrace.runtime.queue.metering import Metering
from headrace.runtime.store.protocol import QueueStore

WINDOW = 16_384
"""Claims held ready per flow, at the most. A backlog of any size costs no more memory than this."""

WINDOW_BYTES = 16 << 20
"""Payloads held ready per flow, at the most, as far as the flow's payloads so far foretell it."""

LOAD = 2_048
"""Claims loaded at a time."""

LOAD_AGAIN_S = 1.0
"""How long after a failure the store is asked again."""

AHEAD_S = 0.25
"""How much work, in seconds at its present pace, a node claims ahead of its workers while it has peers."""

URGENT = 16
"""Claims that may be loaded beyond a full window, when what is in the store has a higher priority."""

Spawn = Callable[[Any], "asyncio.Task[Any]"]


class Window:
    """The ready claims of this node. `node` is its id in every claim.

    `free` says how many workers have nothing to do, `loaded` whether a function's code is here; `ready` is
    called when claims have come, `spawn` runs a task of the dispatcher's. `open` is False until claiming
    begins, and again when the node stops.
    """

    def __init__(
        self,
        store: QueueStore,
        *,
        node: str,
        clock: Clock,
        size: int,
        free: Callable[[], int],
        loaded: Callable[[str], bool],
        ready: Callable[[], None],
        spawn: Spawn,
        on_error: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._size = size
        self._loaded = loaded
        self._ready = ready
        self._spawn = spawn
        self._on_error = on_error
        self._free = free
        self._begun = 0
        self._pace = 0.0
        self._paced_at = clock.monotonic()
        self.alone = True
        """No other node claims from this store, so that what is held here keeps nobody idle."""
        self._timers: list[tuple[float, str]] = []
        self._timer_set = asyncio.Event()
        self.open = False
        self.gates: dict[str, FunctionGate] = {}
        self.flows: dict[str, Flow] = {}
        self.rotation = Rotation()
        self.closures: dict[str, float] = {}
        """Until when functions (`function:NAME`) and keys (`key:KEY`) are closed."""
        self.metering = Metering(
            store,
            self,
            node=node,
            clock=clock,
            loaded=loaded,
            ready=ready,
            spawn=spawn,
            on_error=on_error,
        )

    def room(self, flow: Flow) -> int:
        """How many more claims of the flow may be held; none while older ones wait in the store."""
        if not self.open or flow.more or flow.closed or flow.gate.shut or flow.gate.meter is not None:
            return 0
        return self._limit(flow) - flow.held - flow.coming

    def take(self, claims: Sequence[Claim]) -> None:
        """Hold claims ready, in this order, unless they were made under an id this node no longer has."""
        lane: Lane | None = None
        flow, priority = "", 0
        if claims and claims[0].node != self._node:
            return
        for claim in claims:
            invocation = claim.invocation
            if lane is None or invocation.flow != flow or invocation.priority != priority:
                flow, priority = invocation.flow, invocation.priority
                lane = self.lane(self.flow(flow, invocation.function), priority)
            lane.ready.append(claim)
            if not lane.active:
                self.rotation.offer(lane)

    def waits(self, name: str, function: str, *, priority: int, due_at: float) -> None:
        """Something of the flow of that name waits in the store, claimed by nobody."""
        flow = self.flow(name, function)
        if due_at > self._clock.now():
            self.wake_at(name, function, due_at)
            return
        if flow.gate.meter is not None:
            self.metering.want(flow.gate, name)
            return
        if flow.urgent is None or priority > flow.urgent:
            flow.urgent = priority
        self.need(flow)

    def empty(self, flow: Flow) -> list[Claim]:
        """Take everything that is ready out of the flow."""
        ready = [claim for lane in flow.lanes.values() for claim in lane.ready]
        for lane in flow.lanes.values():
            lane.ready.clear()
        return ready

    async def hand_back(self, claims: Sequence[Claim]) -> None:
        """Release claims that are not to begin now, and look again at where they came from."""
        if claims:
            await self._store.release(claims)
            for name, function in {c.invocation.flow: c.invocation.function for c in claims}.items():
                self.wake(name, function)

    def wake(self, name: str, function: str) -> None:
        """The store holds something due of the flow of that name."""
        flow = self.flow(name, function)
        if flow.gate.meter is not None:
            self.metering.want(flow.gate, name)
        else:
            self.need(flow)

    # ---- pauses and closures ----

    def pause(self, gate: FunctionGate, *, paused: bool) -> None:
        """Begin nothing of the function, or go on."""
        gate.paused = paused
        self._changed(gate)

    def close(self, name: str, until: float) -> None:
        """Begin nothing of a function or key until that moment; the later one counts."""
        if until <= self.closures.get(name, float("-inf")):
            return
        self.closures[name] = until
        self.wake_timers(until, name)
        kind, _, rest = name.partition(":")
        if kind == "function":
            gate = self.gate(rest)
            gate.closed = True
            self._changed(gate)
        else:
            self._spawn(self.hand_back([claim for gate in self._metered() for claim in _taken(gate, rest)]))

    def reopen(self, name: str) -> None:
        """A closure has ended, by time or by an operator."""
        if self.closures.pop(name, None) is None:
            return
        kind, _, rest = name.partition(":")
        if kind == "function":
            gate = self.gate(rest)
            gate.closed = False
            self._changed(gate)
        else:
            for gate in self._metered():
                self.metering.want(gate, flow_of(gate.name, rest))

    def closed_until(self, key: str | None) -> float | None:
        """Until when a concurrency key is closed; None when it is open."""
        return self.closures.get(f"key:{key}") if key is not None and self.closures else None

    def _metered(self) -> list[FunctionGate]:
        return [gate for gate in self.gates.values() if gate.meter is not None]

    def _changed(self, gate: FunctionGate) -> None:
        """The function was paused, closed, resumed or opened."""
        flows = list(gate.flows.values())
        if gate.paused or gate.closed:
            self._spawn(self.hand_back([claim for flow in flows for claim in self.empty(flow)]))
            return
        for flow in flows:
            self.offer(flow)
            self.refill(flow)
        self.metering.pump(gate)
        self._ready()

    def find(self, id: int) -> tuple[Lane, Claim] | None:
        """The ready claim on an invocation."""
        for lane in self._lanes():
            for claim in lane.ready:
                if claim.invocation.id == id:
                    return lane, claim
        return None

    @property
    def held(self) -> int:
        """Claims ready, over all flows."""
        return sum(flow.held for flow in self.flows.values())

    def _lanes(self) -> Iterator[Lane]:
        for flow in self.flows.values():
            yield from flow.lanes.values()

    def _limit(self, flow: Flow) -> int:
        size = self._size
        if not self.alone:  # what waits here could begin elsewhere
            size = min(size, self.ahead())
        return min(size, max(int(WINDOW_BYTES / flow.payload_bytes), URGENT))

    def ahead(self) -> int:
        """Claims that may be held while there are other nodes: what begins at once, or very soon."""
        return self._free() + int(self._pace * AHEAD_S)

    def look(self) -> None:
        """A worker may have become free: ask for what is known to wait in the store."""
        for flow in list(self.flows.values()):
            if flow.more and flow.gate.meter is None:
                self.refill(flow)
        for gate in self._metered():
            self.metering.pump(gate)

    def measure(self, begun: int) -> None:
        """Learn how fast work is begun here, from all that was begun so far; called a few times a second."""
        now = self._clock.monotonic()
        took = now - self._paced_at
        if took > 0:
            self._pace += ((begun - self._begun) / took - self._pace) * 0.5
            self._begun, self._paced_at = begun, now

    def excess(self) -> list[Claim]:
        """Take out what is held beyond the limits, the last of each flow first."""
        out: list[Claim] = []
        for flow in self.flows.values():
            over = flow.held - self._limit(flow)
            for lane in sorted(flow.lanes.values(), key=lambda lane: lane.priority):
                while over > 0 and lane.ready:
                    out.append(lane.ready.pop())
                    over -= 1
        return out

    def become(self, node: str) -> None:
        """Claim under another id from now on."""
        self._node = self.metering.node = node

    def gate(self, function: str) -> FunctionGate:
        """What limits the function; made when it is first asked for."""
        gate = self.gates.get(function)
        if gate is None:
            gate = self.gates[function] = FunctionGate(function)
        return gate

    def flow(self, name: str, function: str) -> Flow:
        """The flow of that name; made when it is first asked for."""
        flow = self.flows.get(name)
        if flow is None:
            gate = self.gate(function)
            if KEY_MARK in name:  # all keys share the function's own; each is known to the meter alone
                self.metering.meter(gate)
                return self.flow(function, function)
            flow = self.flows[name] = Flow(name, gate)
            flow.more = gate.meter is not None
        return flow

    def known(self, name: str, function: str) -> Flow | None:
        """The flow of that name if there is one; for other threads, which must not make any."""
        return self.flows.get(name)

    def drop(self, flow: Flow) -> None:
        """Forget a flow of which nothing is held."""
        self.flows.pop(flow.name, None)
        flow.gate.flows.pop(flow.name, None)

    def lane(self, flow: Flow, priority: int) -> Lane:
        """The flow's lane of that priority; made when it is first asked for."""
        lane = flow.lanes.get(priority)
        if lane is None:
            lane = flow.lanes[priority] = Lane(flow, priority)
        return lane

    def offer(self, flow: Flow) -> None:
        """The flow, or its function, may have become open again."""
        if flow.gate.limit is None:
            for lane in flow.lanes.values():
                self.rotation.offer(lane)
            return
        for other in flow.gate.flows.values():  # a limited function's flows share one gate
            for lane in other.lanes.values():
                self.rotation.offer(lane)

    def need(self, flow: Flow) -> None:
        """The store holds something due of the flow that is not in the window."""
        flow.more = True
        if flow.gate.meter is not None:
            self.metering.want(flow.gate, flow.name)
        else:
            self.refill(flow)

    def refill(self, flow: Flow) -> None:
        """Load more of the flow, if there may be more and there is room."""
        if flow.gate.meter is not None:
            self.metering.pump(flow.gate)
            return
        if not self.open or flow.closed or flow.loading is not None or not flow.more:
            return
        held, limit = flow.held + flow.coming, self._limit(flow)
        if (held >= max(limit // 2, 1) and not flow.passed_over) or (not self.alone and held >= limit):
            return
        if flow.gate.shut or (not self._loaded(flow.gate.name) and not flow.name.startswith("job:")):
            return
        flow.loading = self._spawn(self._load(flow))

    async def _load(self, flow: Flow) -> None:
        try:
            room = min(self._limit(flow) - flow.held - flow.coming, LOAD)
            limit = max(room, min(URGENT, self._size) if self.alone else 1)
            flow.more = False
            now = self._clock.now()
            claims = await self._store.claim(
                self._node, flow=flow.name, limit=limit, now=now, function=flow.gate.name
            )
            if claims:
                reach("claim")
            if len(claims) >= limit:
                flow.more = True
            # Something may have come while this was asked: then `more` stands although nothing was found.
            if not flow.more or (
                claims and flow.urgent is not None and claims[-1].invocation.priority < flow.urgent
            ):
                flow.urgent = None
            moved = claims and claims[0].node != self._node
            if not self.open or flow.closed or flow.gate.shut or moved:
                flow.more = True
                await self._store.release(claims)
                return
            for claim in claims:
                lane = self.lane(flow, claim.invocation.priority)
                lane.ready.append(claim)
                if claim.invocation.function != flow.gate.name:
                    flow.gate.flows.pop(flow.name, None)
                    flow.gate = self.gate(claim.invocation.function)
                    flow.gate.flows[flow.name] = flow
                flow.learn(len(claim.invocation.payload))
            self.offer(flow)
            if not flow.more:
                due = await self._store.next_due(flow.name, now=now)
                if due is not None:
                    self.wake_at(flow.name, flow.gate.name, due)
        except Exception as error:  # the outermost of this task: a flow that is given up would wait for ever
            flow.more = True
            shown = str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
            self._on_error("the queue could not be read; trying again", {"flow": flow.name, "error": shown})
            self.wake_at(flow.name, flow.gate.name, self._clock.now() + LOAD_AGAIN_S)
            return
        finally:
            flow.loading = None
        if flow.more:
            self.refill(flow)
        self._ready()

    def wake_at(self, name: str, function: str, due: float) -> None:
        """Look at the flow of that name again at `due`. One timer a flow: the earliest."""
        flow = self.flow(name, function)
        if flow.gate.meter is not None:
            self.metering.wake_at(flow.gate, name, due)
        elif flow.next_due is None or due < flow.next_due:
            flow.next_due = due
            self.wake_timers(due, name)

    def wake_timers(self, due: float, name: str) -> None:
        """Have what `name` stands for looked at at `due`: a flow, a closure, or something of a meter's."""
        heapq.heappush(self._timers, (due, name))
        self._timer_set.set()

    def next_timer(self) -> float | None:
        """When the first flow is to be looked at again, in epoch seconds; None when there is none."""
        return self._timers[0][0] if self._timers else None

    async def run_timers(self) -> None:
        """Look at each flow again when it is due, until cancelled."""
        while True:
            now = self._clock.now()
            while self._timers and self._timers[0][0] <= now:
                self._due(*heapq.heappop(self._timers))
            self._timer_set.clear()
            wait = min(max(self._timers[0][0] - now, 0.001), 60.0) if self._timers else 60.0
            sleeper = asyncio.ensure_future(self._sleep_until(self._clock.monotonic() + wait))
            waiter = asyncio.ensure_future(self._timer_set.wait())
            try:
                await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waiter.cancel()

    async def _sleep_until(self, moment: float) -> None:
        # Time may have passed before this task has begun.
        await self._clock.sleep(max(moment - self._clock.monotonic(), 0.0))

    def _due(self, due: float, name: str) -> None:
        if name in self.closures:
            if self.closures[name] <= due:
                self.reopen(name)
            return
        flow = self.flows.get(name)
        if flow is not None and flow.next_due == due:
            flow.next_due = None
            self.need(flow)
            return
        gate = flow.gate if flow is not None else self.gates.get(name.partition(KEY_MARK)[0])
        if gate is not None:
            self.metering.due(gate, name, due)


def _taken(gate: FunctionGate, key: str) -> list[Claim]:
    """Take what is ready of a key out of the function's lanes."""
    found = []
    for flow in gate.flows.values():
        for lane in flow.lanes.values():
            mine = [claim for claim in lane.ready if key_of(claim.invocation.flow) == key]
            for claim in mine:
                lane.ready.remove(claim)
            found += mine
    return found
