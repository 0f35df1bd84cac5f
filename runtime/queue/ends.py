"""Ends: how attempts end, on their way to the store, and what follows once that is durable.

Imports the floor, the store's protocol and this room. The functions have run: what the database cannot take
now is kept until it can, and meanwhile nothing else begins.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError, LeaseLost
from headrace.runtime.fault import armed, reach
from headrace.runtime.model.ids import Ids
from headrace.runtime.model.invocation import Invocation, Outcome, Status
from headrace.runtime.model.spec import DEFAULT_MAX_AGE_S, FunctionSpec
from headrace.runtime.model.write import Applied, ChunkDone, Closed, Put, Retry, Settle, Write
from headrace.runtime.queue.attempts import Held
from headrace.runtime.queue.ending import callback_call, destination_call
from headrace.runtime.queue.ports import JobSettler
from headrace.runtime.queue.watchers import Watchers
from headrace.runtime.queue.window import Window
from headrace.runtime.store.protocol import QueueStore

AGAIN_S = 1.0
"""How long ends wait that the database could not record, before it is asked again."""


class End(msgspec.Struct, gc=False, eq=False):
    """The end of an attempt: the write that records it, and what is recorded with it."""

    write: Write
    held: Held
    outcome: Outcome
    more: Sequence[Write] = ()


class Ends:
    """Records ends. `arrived` takes in what was accepted with one, `dispatch` goes on once all are."""

    def __init__(
        self,
        store: QueueStore,
        window: Window,
        watchers: Watchers,
        *,
        ids: Ids,
        clock: Clock,
        spec: Callable[[str], FunctionSpec | None],
        arrived: Callable[[Sequence[Put], Sequence[Applied]], None],
        dispatch: Callable[[], None],
        spawn: Callable[[Any], "asyncio.Task[Any]"],
        on_error: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._window = window
        self._watchers = watchers
        self._ids = ids
        self._clock = clock
        self._spec = spec
        self._arrived = arrived
        self._dispatch = dispatch
        self._spawn = spawn
        self._on_error = on_error
        self._late: list[End] = []
        self.jobs: JobSettler | None = None
        self.unrecorded: set[End] = set()
        """What the store could not take yet; nothing begins while there is any."""

    def settle(self, ends: Sequence[End], now: float) -> None:
        """Record ends: the plain ones together, those that come with more writes each by itself."""
        if armed:
            _reach(ends, "before")
        plain: list[End] = []
        for end in ends:
            settle = end.write
            if type(settle) is Settle:
                if settle.claim.invocation.job is not None and self.jobs is not None:
                    end.write, *more = self.jobs.settle(settle, end.outcome)
                    end.more = [*more, *end.more]
                    self._record([end], now)
                    continue
                follow = self.told(settle, end.held.spec, now)
                if follow is not None:
                    end.more = [follow, *end.more]
                if end.held.spec.callbacks:
                    told = callback_call(settle, end.held.spec, now=now)
                    if told is not None:
                        end.more = [self._put(*told, source=end.held.spec.name, now=now), *end.more]
            if end.more:
                self._record([end], now)
            else:
                plain.append(end)
        if plain:
            self._record(plain, now)

    def _record(self, ends: list[End], now: float) -> None:
        """Record the ends together: one with more writes, or any number without."""
        writes = [end.write for end in ends]
        for end in ends:
            writes += end.more

        def committed(result: list[Applied] | BaseException) -> None:
            if isinstance(result, BaseException):
                if len(ends) > 1 and not isinstance(result, HeadraceError):
                    for end in ends:  # not the database's fault but one end's: it must not keep the others
                        self._record([end], now)
                else:
                    self._keep(ends, result)
                return
            if len(ends) > 1 and any(applied.refused is not None for applied in result):
                for end in ends:  # one refusal undoes its whole list: record the others by themselves
                    self._record([end], now)
                return
            if armed:
                _reach(ends, "after")
            if self.unrecorded:
                self.unrecorded.difference_update(ends)
                if not self.unrecorded:
                    asyncio.get_running_loop().call_soon(self._dispatch)
            if len(ends) > 1:
                for end, applied in zip(ends, result, strict=True):
                    self._recorded(end, (applied,))
            else:
                self._recorded(ends[0], result)

        self._store.submit(writes, committed, now=now)

    def _recorded(self, end: End, applied: Sequence[Applied]) -> None:
        write, held, refused = end.write, end.held, applied[0].refused
        if held.claim is not None and held.flow.gate.meter is not None:
            self._window.metering.ended(held.flow.gate, held.claim.invocation.flow)
        if refused is not None:
            for closure in end.more:
                if isinstance(closure, Closed):  # the attempt was not ours any more; what it was told is true
                    self._store.submit([closure], lambda _: None, now=self._clock.now())
            if not isinstance(refused, LeaseLost):
                self._on_error("an outcome was refused", {"error": str(refused), "code": refused.code})
        elif type(write) is Settle:
            self._watchers.settled(write)
        elif isinstance(write, Retry):
            invocation = write.claim.invocation
            self._window.wake_at(invocation.flow, invocation.function, write.due_at)
        elif isinstance(write, ChunkDone):
            self._watchers.settled(write.settle)
        if end.more and refused is None:
            puts = [(w, a) for w, a in zip(end.more, applied[1:], strict=True) if isinstance(w, Put)]
            self._arrived([put for put, _ in puts], [answer for _, answer in puts])
        claim = held.claim
        if claim is not None and claim.invocation.job is not None and self.jobs is not None:
            self.jobs.settled([write, *end.more], applied)

    # ---- what could not be recorded ----

    def _keep(self, ends: list[End], error: BaseException) -> None:
        """The database could not record ends (a full disk): keep trying, since the functions have run."""
        if isinstance(error, HeadraceError):
            self.unrecorded.update(ends)
        if not self._late:
            self._spawn(self._record_late(error))
        self._late += ends

    async def _record_late(self, error: BaseException) -> None:
        await self._clock.sleep(AGAIN_S)
        late, self._late = self._late, []
        self._on_error(
            "outcomes could not be recorded; trying again", {"error": str(error), "count": len(late)}
        )
        now = self._clock.now()
        plain = [end for end in late if not end.more]
        if plain:
            self._record(plain, now)
        for end in late:
            if end.more:
                self._record([end], now)

    # ---- destinations ----

    def told(self, settle: Settle, spec: FunctionSpec, now: float) -> Put | None:
        """The invocation that tells of an end. It is accepted also while the node stops, and when the code of
        its function is not here just now: it is recorded with the end, or neither is.
        """
        call = destination_call(settle, spec, now=now)
        return None if call is None else self._put(*call, source=spec.name, now=now)

    def _put(self, name: str, event: bytes, *, source: str, now: float) -> Put:
        target = self._spec(name)
        max_age_s = target.max_age_s if target is not None else DEFAULT_MAX_AGE_S
        priority = target.priority if target is not None else 0
        id = self._ids.next()
        return Put(Invocation(id, name, name, event, now, now, now + max_age_s, priority, source=source))


def _reach(ends: Iterable[End], side: str) -> None:
    """The fault points of ends of attempts, by what they end as."""
    for end in ends:
        write = end.write
        settle = write.settle if isinstance(write, ChunkDone) else write
        if end.held.claim is not None and end.held.claim.invocation.job is not None:
            reach(f"chunk.{side}")
        elif isinstance(write, Retry):
            reach(f"retry.{side}")
        elif isinstance(settle, Settle) and settle.status is Status.DEAD:
            reach(f"dead.{side}")
        else:
            reach(f"complete.{side}")
