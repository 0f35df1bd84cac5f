"""Metering: how functions with limits, and invocations with concurrency keys, come into the window.

Imports the floor, the store's protocol and this room's lanes. The usual claim is made with the acceptance;
one that has limits to keep to is granted by the store, and only a few are held, so that what is claimed
begins soon. What is known of flows is bounded: beyond that they are found again in the store, in portions.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError
from headrace.runtime.fault import reach
from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import (
    KEY_MARK,
    Limits,
    key_of,
    next_token_at,
    tokens_at,
    whole_tokens,
)
from headrace.runtime.queue.lane import Flow, FunctionGate, Meter
from headrace.runtime.store.protocol import QueueStore

READY = 8
"""Claims of a metered function that are held ready while fewer of its attempts run; else as many as run."""

KEY_PORTION = 2
"""Claims of one key at a time, where its own limit allows more."""

FLOWS_KNOWN_MAX = 10_000
"""Flows of one function that are remembered to be asked."""

DUE_MAX = 100_000
"""Flows of one function whose next moment is remembered."""

PORTION = 500
"""Flows that are listed at a time."""

POLL_S = 1.0
"""When to ask again about a limit that another node's claims use up."""

# Keys that no invocation can have, for a meter's own timers.
_BLOCK, _LIST = "\0block", "\0list"


class Ready(Protocol):
    """The window, as far as metering needs it."""

    open: bool
    alone: bool

    def ahead(self) -> int:
        """Claims that may be held while there are other nodes."""

    def flow(self, name: str, function: str) -> Flow:
        """The flow that claims of that name are held in."""

    def take(self, claims: Sequence[Claim]) -> None:
        """Hold claims ready."""

    def offer(self, flow: Flow) -> None:
        """The flow may have become open again."""

    def closed_until(self, key: str | None) -> float | None:
        """Until when a concurrency key is closed; None when it is open."""

    def wake_timers(self, due: float, name: str) -> None:
        """Have `due` called with this at that moment."""


class Metering:
    """Asks the store for claims of metered functions, for `node`. `ready` is called when some have come."""

    def __init__(
        self,
        store: QueueStore,
        window: Ready,
        *,
        node: str,
        clock: Clock,
        loaded: Callable[[str], bool],
        ready: Callable[[], None],
        spawn: Callable[[Any], "asyncio.Task[Any]"],
        on_error: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._window = window
        self.node = node
        self._clock = clock
        self._loaded = loaded
        self._ready = ready
        self._spawn = spawn
        self._on_error = on_error

    # ---- limits ----

    def meter(self, gate: FunctionGate) -> Meter:
        """The function's meter; from the first time on its claims come through the store."""
        meter = gate.meter
        if meter is None:
            meter = gate.meter = Meter()
            for flow in gate.flows.values():
                flow.more = True
                meter.wanting[flow.name] = None
        return meter

    def keep_to(self, gate: FunctionGate, limits: Limits) -> None:
        """The function's limits from now on."""
        meter = self.meter(gate)
        if limits.rate is not None and (limits.rate, limits.burst) != (meter.limits.rate, meter.limits.burst):
            meter.tokens, meter.refilled_at = limits.burst, self._clock.now()
        meter.limits = limits
        if limits.rate is None:
            gate.dry = False
        meter.blocked = ""

    def begun(self, gate: FunctionGate) -> None:
        """An attempt of a metered function begins: without a token left, none begins until there is one."""
        meter = gate.meter
        if meter is None or meter.limits.rate is None:
            return
        limits, now = meter.limits, self._clock.now()
        meter.tokens = tokens_at(limits, meter.tokens, meter.refilled_at, now=now) - 1.0
        meter.refilled_at = now
        if not whole_tokens(meter.tokens):
            gate.dry = True
            self._wake_at(gate, gate.name + KEY_MARK + _BLOCK, next_token_at(limits, meter.tokens, now=now))

    # ---- flows ----

    def want(self, gate: FunctionGate, name: str) -> None:
        """Something of this flow may be due in the store."""
        meter = self.meter(gate)
        if name in meter.asking:
            meter.asking[name] = True
            return
        if name not in meter.wanting:
            if len(meter.wanting) >= FLOWS_KNOWN_MAX and KEY_MARK in name:
                meter.unlisted = True
                return
            meter.wanting[name] = None
        self.pump(gate)

    def ended(self, gate: FunctionGate, name: str) -> None:
        """An attempt of this flow has ended, and that is recorded."""
        meter = self.meter(gate)
        if meter.blocked == "concurrency":
            meter.blocked = ""
        self.want(gate, name)

    def find_all(self, gate: FunctionGate) -> None:
        """The store has flows of keys that are not known here."""
        self.meter(gate).unlisted = True
        self.pump(gate)

    def wake_at(self, gate: FunctionGate, name: str, due: float) -> None:
        """Look at a flow again at `due`."""
        meter = self.meter(gate)
        if len(meter.due) >= DUE_MAX and name not in meter.due and KEY_MARK in name:
            name = gate.name + KEY_MARK + _LIST
            due = max(due, self._clock.now() + POLL_S)
        self._wake_at(gate, name, due)

    def _wake_at(self, gate: FunctionGate, name: str, due: float) -> None:
        meter = self.meter(gate)
        known = meter.due.get(name)
        if known is None or due < known:
            meter.due[name] = due
            self._window.wake_timers(due, name)

    def due(self, gate: FunctionGate, name: str, at: float) -> None:
        """A timer of `wake_timers` has come."""
        meter = gate.meter
        if meter is None or meter.due.get(name) != at:
            return
        del meter.due[name]
        own = key_of(name)
        if own == _BLOCK:
            self._unblock(gate, meter)
        elif own == _LIST:
            meter.unlisted = True
            self.pump(gate)
        else:
            self.want(gate, name)

    def _unblock(self, gate: FunctionGate, meter: Meter) -> None:
        meter.blocked = ""
        if gate.dry:
            now = self._clock.now()
            tokens = tokens_at(meter.limits, meter.tokens, meter.refilled_at, now=now)
            if meter.limits.rate is not None and not whole_tokens(tokens):
                name = gate.name + KEY_MARK + _BLOCK
                self._wake_at(gate, name, next_token_at(meter.limits, tokens, now=now))
            else:
                gate.dry = False
                for flow in gate.flows.values():
                    self._window.offer(flow)
                self._ready()
        self.pump(gate)

    # ---- asking ----

    def pump(self, gate: FunctionGate) -> None:
        """Ask for as much as may begin soon."""
        meter = gate.meter
        if (
            meter is None
            or not self._window.open
            or gate.paused
            or gate.closed
            or not self._loaded(gate.name)
        ):
            return
        wanting = meter.wanting
        if wanting and not meter.blocked:
            ready = max(READY, gate.running) if self._window.alone else self._window.ahead()
            room = ready - meter.asked - sum(flow.held for flow in gate.flows.values())
            while room > 0 and wanting:
                name = next(iter(wanting))
                del wanting[name]
                portion = self._portion(gate, meter, name, room)
                if portion > 0:
                    room -= portion
                    meter.asked += portion
                    meter.asking[name] = False
                    task = self._spawn(self._ask(gate, meter, name, portion))
                    flow = gate.flows.get(name)
                    if flow is not None:
                        flow.loading = task
        if not meter.listing and len(wanting) <= FLOWS_KNOWN_MAX // 2:
            if meter.unlisted or meter.cursor is not None:
                meter.listing = True
                self._spawn(self._list(gate, meter))

    def _portion(self, gate: FunctionGate, meter: Meter, name: str, room: int) -> int:
        """How many to ask for; 0 when the flow is to wait for a moment or an event of which it will hear."""
        key = key_of(name)
        if key is not None:
            until = self._window.closed_until(key)
            if until is not None:
                self.wake_at(gate, name, until)
                return 0
            return min(room, meter.limits.key_concurrency or KEY_PORTION, KEY_PORTION)
        flow = gate.flows.get(name)
        if flow is None:
            return 0 if name.startswith("job:") else room  # a job that has ended here is forgotten
        if flow.closed:
            return 0
        return room if flow.limit is None else min(room, flow.limit - flow.running - flow.held)

    async def _ask(self, gate: FunctionGate, meter: Meter, name: str, portion: int) -> None:
        window, again = self._window, False
        flow = window.flow(name, gate.name)
        try:
            now = self._clock.now()
            limits = self._limits_of(meter, flow, name)
            claims = await self._store.claim(
                self.node, flow=name, limit=portion, now=now, function=gate.name, limits=limits
            )
            if claims:
                reach("claim")
            shut = gate.paused or gate.closed or flow.closed or window.closed_until(key_of(name)) is not None
            if shut or not window.open or (claims and claims[0].node != self.node):
                await self._store.release(claims)
                again = True
            else:
                window.take(claims)
                again = len(claims) >= portion
                if not again:
                    await self._look(gate, meter, flow, name, limits, now)
        except HeadraceError as error:  # a full disk too: what is left of a rate is recorded with the claim
            self._on_error("the queue could not be read; trying again", {"flow": name, "error": str(error)})
            self.wake_at(gate, name, self._clock.now() + POLL_S)
        finally:
            meter.asked -= portion
            again = meter.asking.pop(name, False) or again
            if flow.name == name:
                flow.loading = None
        if again:
            self.want(gate, name)
        else:
            self.pump(gate)
        self._ready()

    async def _look(
        self, gate: FunctionGate, meter: Meter, flow: Flow, name: str, limits: Limits, now: float
    ) -> None:
        """Fewer came than were asked for: when to ask again."""
        held = await self._store.held_back(flow=name, function=gate.name, limits=limits, now=now)
        if held is None:
            due = await self._store.next_due(name, now=now)
            if due is not None:
                self.wake_at(gate, name, due)
        elif held.by in ("rate", "concurrency"):
            meter.wanting[name] = None
            meter.blocked = held.by
            if held.until is not None:
                self._wake_at(gate, gate.name + KEY_MARK + _BLOCK, held.until)
            elif self._store.shared or not gate.running:
                self._wake_at(gate, gate.name + KEY_MARK + _BLOCK, now + POLL_S)
        elif held.until is not None:
            self.wake_at(gate, name, held.until)
        elif held.by != "key_concurrency" or self._store.shared:
            self.wake_at(gate, name, now + POLL_S)

    def _limits_of(self, meter: Meter, flow: Flow, name: str) -> Limits:
        limits = meter.limits
        if key_of(name) is not None:
            return limits
        own = flow.limit if self._store.shared else None  # a job's own concurrency
        if limits.key_concurrency == own:
            return limits
        return msgspec.structs.replace(limits, key_concurrency=own)

    async def _list(self, gate: FunctionGate, meter: Meter) -> None:
        """Learn the next portion of the function's keyed flows."""
        prefix = gate.name + KEY_MARK
        if meter.cursor is None:
            meter.cursor, meter.unlisted = prefix, False
        try:
            names = await self._store.flows(after=meter.cursor, limit=PORTION)
        except HeadraceError as error:
            self._on_error("the queue could not be read; trying again", {"error": str(error)})
            meter.unlisted, meter.cursor = False, None
            self._wake_at(gate, prefix + _LIST, self._clock.now() + POLL_S)
            return
        finally:
            meter.listing = False
        mine = [name for name in names if name.startswith(prefix)]
        meter.cursor = mine[-1] if len(mine) == PORTION else None
        for name in mine:
            if name not in meter.due and name not in meter.asking:
                meter.wanting.setdefault(name, None)
        self.pump(gate)
