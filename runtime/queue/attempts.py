"""Attempts: what the pools hold, by token and by invocation.

Imports the floor, this room's lanes and the pool's protocol. A token is one attempt's name between the
dispatcher and the pools; an invocation has at most one at a time.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from headrace.runtime.model.invocation import Claim
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.queue.lane import Flow, Lane
from headrace.runtime.queue.ports import AttemptPool, CallStream


class Held(msgspec.Struct, gc=False, eq=False):
    """An attempt that a pool holds. A synchronous call has a `future` and no claim."""

    id: int
    spec: FunctionSpec
    flow: Flow
    lane: Lane | None
    claim: Claim | None
    future: Any = None
    marked: bool = False
    """Its claim was recorded as running."""
    fenced: bool = False
    """Its claim may be another node's by now: nothing of it is reported."""
    handed_on: bool = False
    """It did not begin in time, and goes back to the store for a node with a free worker."""
    cancelled: bool = False
    """It was told to stop: however its attempt ends, it does not wait again."""
    payload: bytes = b""
    credit: int = 0
    progress: dict[str, Any] | None = None
    stream: CallStream | None = None
    """What a synchronous call has begun to stream."""


class Attempts:
    """The attempts of this node. `held` by token and `tokens` by invocation the dispatcher changes."""

    def __init__(self) -> None:
        self.pools: list[AttemptPool] = []
        self.held: dict[int, Held] = {}
        self.tokens: dict[int, int] = {}
        self._stuck: set[int] = set()

    # ---- ending them ----

    def kill(self, token: int) -> bool:
        """Tell an attempt to stop. False when no pool holds it."""
        held = self.held.get(token)
        if held is not None:
            held.cancelled = True
        return any(pool.kill(token) for pool in self.pools)

    def kill_invocation(self, id: int) -> bool:
        """Tell an invocation to stop. False when it does not run here."""
        token = self.tokens.get(id)
        return token is not None and self.kill(token)

    def kill_job(self, job: int) -> None:
        """Stop every running invocation of a job."""
        for token, held in list(self.held.items()):
            if held.claim is not None and held.claim.invocation.job == job:
                self.kill(token)

    def fence(self) -> None:
        """Stop every claimed attempt, and have nothing of it reported."""
        for token, held in list(self.held.items()):
            if held.claim is not None and not held.fenced:
                held.fenced = True
                self.kill(token)

    def recall(self, meant: Callable[[Held], bool]) -> None:
        """Ask back what the pools hold of these and have not begun; it is reported as `returned`."""
        tokens = [token for token, held in self.held.items() if held.claim is not None and meant(held)]
        if tokens:
            for pool in self.pools:
                pool.recall(tokens)

    def hand_on(self) -> None:
        """Ask back what had not begun the last time either."""
        begun = {token for token, _, _ in self.executing()}
        stuck = {token for token, held in self.held.items() if held.claim is not None and token not in begun}
        tokens = stuck & self._stuck
        self._stuck = stuck
        for token in tokens:
            self.held[token].handed_on = True
        if tokens:
            for pool in self.pools:
                pool.recall(tokens)

    # ---- looking at them ----

    def executing(self) -> Iterator[tuple[int, Held, float]]:
        """What executes now: its token, the attempt, seconds since it began."""
        for pool in self.pools:
            for token, seconds in pool.running():
                held = self.held.get(token)
                if held is not None:
                    yield token, held, seconds

    def has(self, id: int) -> bool:
        """Whether a pool of this node holds the invocation."""
        return id in self.tokens

    def running_s(self, id: int) -> float | None:
        """For how many seconds an invocation has been executing here, 0 while it is placed behind others;
        None when no pool holds it.
        """
        token = self.tokens.get(id)
        if token is None:
            return None
        return next((seconds for other, _, seconds in self.executing() if other == token), 0.0)

    def at_work(self, limit: int) -> list[tuple[str, float]]:
        """What executes now, up to `limit`: (function, seconds since it began), the longest first."""
        found = [(held.spec.name, seconds) for _, held, seconds in self.executing()]
        return heapq.nlargest(limit, found, key=lambda item: item[1])

    def by_function(self) -> dict[str, int]:
        """How many claimed attempts the pools hold, by function."""
        out: dict[str, int] = {}
        for held in self.held.values():
            if held.claim is not None:
                out[held.spec.name] = out.get(held.spec.name, 0) + 1
        return out

    def output(self, id: int) -> bytes:
        """What a running invocation has printed so far."""
        token = self.tokens.get(id)
        if token is None:
            return b""
        return next((found for pool in self.pools if (found := pool.output(token))), b"")

    def progress(self, token: int, told: dict[str, Any]) -> None:
        """A function said how far it is; kept until its attempt ends."""
        held = self.held.get(token)
        if held is not None:
            held.progress = told

    def opened(self, token: int, stream: CallStream) -> None:
        """A call begins to stream its result: its caller gets the stream in the place of an outcome."""
        held = self.held.get(token)
        if held is None or held.future is None or held.future.done():
            stream.abandon()
            return
        stream.invocation_id = held.id
        held.stream = stream
        held.future.set_result(stream)

    def close_event_streams(self) -> None:
        """End the streams whose callers come again by themselves."""
        for held in self.held.values():
            if held.stream is not None and held.stream.events:
                held.stream.close()

    def progress_of(self, id: int) -> dict[str, Any] | None:
        """How far a running invocation said it is."""
        token = self.tokens.get(id)
        held = self.held.get(token) if token is not None else None
        return held.progress if held is not None else None
