"""Lanes: the ready queues, and who is served next.

Imports the floor only. A lane is a bounded window over the store for one flow and priority. Inside a priority
class flows take turns, each getting as many invocations a turn as its weight says (deficit round robin), so
that one job's 10,000 chunks starve nobody; classes are served strictly from the highest down.
"""

import asyncio
from collections import deque

from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.limits import NO_LIMITS


class FunctionGate:
    """What limits one function over all its flows: its reserved concurrency, whether it is paused or closed,
    and with a `meter` what is claimed of it.
    """

    __slots__ = ("_closed", "_dry", "_paused", "flows", "limit", "meter", "name", "running", "shut", "weight")

    def __init__(self, name: str, *, limit: int | None = None, weight: int = 1) -> None:
        self.name = name
        self.limit = limit
        self.weight = weight
        self.running = 0
        self.flows: dict[str, Flow] = {}
        self.meter: Meter | None = None
        self.shut = False
        """Nothing of it begins: it is paused, closed or dry."""
        self._paused = self._closed = self._dry = False

    @property
    def open(self) -> bool:
        return not self.shut and (self.limit is None or self.running < self.limit)

    @property
    def paused(self) -> bool:
        """By an operator, until it is resumed."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.shut = paused or self._closed or self._dry

    @property
    def closed(self) -> bool:
        """By a function's RetryAfter, until its moment."""
        return self._closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        self._closed = closed
        self.shut = self._paused or closed or self._dry

    @property
    def dry(self) -> bool:
        """Its rate is used up, for now."""
        return self._dry

    @dry.setter
    def dry(self, dry: bool) -> None:
        self._dry = dry
        self.shut = self._paused or self._closed or dry


class Meter:
    """What a function with limits, or with concurrency keys, has beside its lanes: its flows in the store.

    Its claims are granted by the store, a few at a time; those of all of its keys share the function's own
    lanes, so that a function with many keys has no more turns than one without, and a key costs nothing here
    while nothing of it is due.
    """

    def __init__(self) -> None:
        self.limits = NO_LIMITS
        self.tokens = self.refilled_at = 0.0
        """The rate once more, for what begins here: a claim may have waited for a worker."""
        self.wanting: dict[str, None] = {}
        """Flows that may have something due, in the order in which they are asked."""
        self.asking: dict[str, bool] = {}
        """Flows that are being asked; True when they are to be asked again."""
        self.asked = 0
        """Claims that may come of that."""
        self.due: dict[str, float] = {}
        """When flows are to be looked at again."""
        self.unlisted = False
        """The store may have flows of keys that nothing here knows."""
        self.cursor: str | None = None
        """The last flow of the pass over the store's that is under way."""
        self.listing = False
        self.blocked = ""
        """The limit that keeps all of its flows from being claimed: `rate` or `concurrency`."""


class Flow:
    """What shares the workers fairly: a function, or one job. `limit` is the job's own concurrency."""

    __slots__ = (
        "closed",
        "coming",
        "gate",
        "lanes",
        "limit",
        "loading",
        "more",
        "name",
        "next_due",
        "payload_bytes",
        "running",
        "urgent",
    )

    def __init__(self, name: str, gate: FunctionGate, *, limit: int | None = None) -> None:
        self.name = name
        self.gate = gate
        gate.flows[name] = self
        self.limit = limit
        self.running = 0
        self.lanes: dict[int, Lane] = {}
        self.more = False
        """The store may hold due invocations that are not in the window."""
        self.loading: asyncio.Task[None] | None = None
        self.coming = 0
        """Claims on their way into the window: they are there once they are durable."""
        self.urgent: int | None = None
        """The highest priority that something in the store, and not in the window, is known to have."""
        self.closed = False
        """It is being ended: nothing of it is loaded or begun."""
        self.next_due: float | None = None
        self.payload_bytes = 256.0
        """What a payload of this flow weighs, on the average of late."""

    def learn(self, payload_bytes: int) -> None:
        """A payload of so many bytes was seen."""
        self.payload_bytes += (max(payload_bytes, 1) - self.payload_bytes) * 0.05

    @property
    def open(self) -> bool:
        return self.gate.open and not self.closed and (self.limit is None or self.running < self.limit)

    @property
    def passed_over(self) -> bool:
        """Something in the store has a higher priority than everything in the window."""
        if self.urgent is None:
            return False
        return not any(lane.ready and priority >= self.urgent for priority, lane in self.lanes.items())

    @property
    def held(self) -> int:
        """Claims in the window; asked on the store's thread too, while lanes may be added."""
        return sum(len(lane.ready) for lane in tuple(self.lanes.values()))


class Lane:
    """A flow's ready invocations of one priority, in order."""

    __slots__ = ("active", "deficit", "flow", "priority", "ready")

    def __init__(self, flow: Flow, priority: int) -> None:
        self.flow = flow
        self.priority = priority
        self.ready: deque[Claim] = deque()
        self.active = False
        self.deficit = 0


class Rotation:
    """All lanes that have something ready and are open, in the order in which they are served."""

    def __init__(self) -> None:
        self._classes: dict[int, deque[Lane]] = {}
        self._order: list[int] = []

    def offer(self, lane: Lane) -> None:
        """Take part, if it has something ready and is open; harmless when it already does."""
        if lane.active or not lane.ready or not lane.flow.open:
            return
        lane.active = True
        lane.deficit = lane.flow.gate.weight
        turns = self._classes.get(lane.priority)
        if turns is None:
            turns = self._classes[lane.priority] = deque()
            self._order = sorted(self._classes, reverse=True)
        turns.append(lane)

    def peek(self) -> Lane | None:
        """The lane whose first invocation is to run next; None when nothing is ready."""
        for priority in self._order:
            turns = self._classes[priority]
            while turns:
                lane = turns[0]
                flow = lane.flow
                gate = flow.gate
                if (
                    not lane.ready
                    or gate.shut
                    or (gate.limit is not None and gate.running >= gate.limit)
                    or (flow.limit is not None and flow.running >= flow.limit)
                ):
                    turns.popleft()
                    lane.active = False
                    continue
                if lane.deficit <= 0:
                    lane.deficit = gate.weight
                    if len(turns) > 1:
                        turns.rotate(-1)
                        continue
                return lane
        return None

    def turn(self, lane: Lane) -> int:
        """How many invocations of the lane may run in a row, at least one; `lane` is what `peek` just
        answered.
        """
        flow = lane.flow
        if flow.limit is not None or flow.gate.limit is not None or flow.gate.meter is not None:
            return 1  # each one may be the last
        waiting = len(lane.ready)
        return waiting if len(self._classes[lane.priority]) == 1 else min(waiting, lane.deficit)

    def take(self, lane: Lane) -> Claim:
        """The lane's first invocation; `lane` is what `peek` just answered."""
        lane.deficit -= 1
        return lane.ready.popleft()
