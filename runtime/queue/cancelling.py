"""Cancelling: invocations that wait, are ready, or run, one by one and by what they have in common.

Imports the floor, the store's protocol and this room. What runs is told to stop; it ends as CANCELLED when
its process has ended.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError, WrongState
from headrace.runtime.model.ids import Ids
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.write import CancelMatching, CancelWaiting, Settle
from headrace.runtime.queue.attempts import Attempts
from headrace.runtime.queue.ends import Ends
from headrace.runtime.queue.lane import Lane
from headrace.runtime.queue.matching import Matching
from headrace.runtime.queue.watchers import Watchers
from headrace.runtime.queue.window import Window
from headrace.runtime.store.protocol import QueueStore

CANCEL_WORD = "matching"
"""What begins the word to other nodes that something is cancelled by function or tag."""

CANCEL_MAX = 1_000
"""Invocations that are cancelled in one transaction, so that others' writes need not wait long."""

_READY = {"code": "cancelled", "message": "cancelled before it began"}


class Cancelling:
    """Ends invocations on request; `dispatch` goes on when one could not be ended after all."""

    def __init__(
        self,
        store: QueueStore,
        window: Window,
        attempts: Attempts,
        watchers: Watchers,
        ends: Ends,
        *,
        ids: Ids,
        clock: Clock,
        dispatch: Callable[[], None],
        spawn: Callable[[Any], "asyncio.Task[Any]"],
    ) -> None:
        self._store = store
        self._window = window
        self._attempts = attempts
        self._watchers = watchers
        self._ends = ends
        self._ids = ids
        self._clock = clock
        self._dispatch = dispatch
        self._spawn = spawn
        self._under_way: list[Matching] = []

    # ---- one ----

    async def cancel(self, id: int) -> bool:
        """End an invocation that waits or runs. True once a running one was told to stop or a waiting one has
        ended.

        Raises WrongState when it has ended, from the store.
        """
        if self._attempts.has(id):
            return self._attempts.kill_invocation(id)
        found = self._window.find(id)
        if found is not None:
            return await self._cancel_ready(*found)
        [applied] = await self._store.apply([CancelWaiting(id)], now=self._clock.now())
        refused = applied.refused
        if isinstance(refused, WrongState) and self._store.shared and refused.args[1] == "claimed":
            await self._store.tell(f"cancel:{id}")  # another node runs it
            return True
        if refused is not None:
            raise refused
        self._watchers.cancelled(id, "cancelled while it waited")
        return True

    async def _cancel_ready(self, lane: Lane, claim: Claim) -> bool:
        settle = Settle(claim, Status.CANCELLED, error=_READY, begun=False)
        lane.ready.remove(claim)
        try:
            [applied] = await self._store.apply([settle], now=self._clock.now())
        except HeadraceError:
            lane.ready.appendleft(claim)  # it was not recorded, so it is still to be run
            self._window.rotation.offer(lane)
            self._dispatch()
            raise
        if applied.refused is not None:
            return False
        self._watchers.settled(settle)
        if self._ends.jobs is not None and claim.invocation.job is not None:
            self._ends.jobs.settled([settle], [applied])
        return True

    # ---- many ----

    async def cancel_matching(
        self, *, function: str | None = None, tag: str | None = None
    ) -> tuple[int, int]:
        """End all invocations of a function, with a tag, or both, that were accepted before now; those of
        jobs excepted, which end with their job. Returns how many ended while they waited, and how many
        running ones were told to stop.

        What was asked for is done when it returns, but for the running ones' ends. The store is asked in
        small steps, so that others go on meanwhile. Other nodes are told, and end what they hold by
        themselves; it is not counted. Raises what the store does; then a part was cancelled.
        """
        matching = Matching(function, tag, self._ids.next())
        if not self._store.shared:
            return await self._all(matching)
        await self._store.tell(f"{CANCEL_WORD}:{matching.text}")
        counted = await self._all(matching)
        # What they gave back while this node read past it.
        await self._store.tell(f"{CANCEL_WORD}:{matching.final.text}")
        return counted

    def heard(self, text: str) -> None:
        """Another node cancels what matches: so does this one with what it holds. What nobody has claimed is
        that node's to end and to count, until it has been through.
        """
        matching = Matching.of_text(text)
        self._spawn(self._all(matching, stored=matching.last))

    def means(self, claim: Claim) -> bool:
        """Whether what is being cancelled includes this."""
        return bool(self._under_way) and any(matching.has(claim.invocation) for matching in self._under_way)

    async def _all(self, matching: Matching, *, stored: bool = True) -> tuple[int, int]:
        self._under_way.append(matching)
        cancelled = stopping = 0
        try:
            while True:
                loading = [flow.loading for flow in self._window.flows.values() if flow.loading is not None]
                if loading:
                    await asyncio.wait(loading)
                found = await self._ready(matching)
                stopping += self._stop(matching)
                if stored:
                    found += await self._stored(matching)
                cancelled += found
                begun = self._stop(matching)
                stopping += begun
                if not found and not begun:
                    return cancelled, stopping
        finally:
            self._under_way.remove(matching)

    async def _stored(self, matching: Matching) -> int:
        """End those that nobody has claimed."""
        cancelled = after = 0
        while True:
            write = CancelMatching(matching.function, matching.tag, CANCEL_MAX, after, matching.below)
            [applied] = await self._store.apply([write], now=self._clock.now())
            if applied.refused is not None:
                raise applied.refused
            ids = applied.ids or []
            for id in ids:
                self._watchers.cancelled(id, "cancelled while it waited")
            cancelled += len(ids)
            if len(ids) < CANCEL_MAX:
                return cancelled
            if matching.tag is not None:
                after = ids[-1]

    async def _ready(self, matching: Matching) -> int:
        """End those that are claimed and have not begun."""
        taken: list[Claim] = []
        for flow in self._window.flows.values():
            for lane in flow.lanes.values():
                chosen = [claim for claim in lane.ready if matching.has(claim.invocation)]
                if chosen:
                    kept = [claim for claim in lane.ready if not matching.has(claim.invocation)]
                    lane.ready.clear()
                    lane.ready.extend(kept)
                    taken += chosen
        cancelled = 0
        while taken:
            settles = [
                Settle(claim, Status.CANCELLED, error=_READY, begun=False) for claim in taken[:CANCEL_MAX]
            ]
            try:
                answers = await self._store.apply(settles, now=self._clock.now())
                if answers[0].refused is not None:  # one claim was lost meanwhile: the others by themselves
                    answers = [
                        (await self._store.apply([settle], now=self._clock.now()))[0] for settle in settles
                    ]
            except HeadraceError:
                self._window.take(taken)  # what was recorded after all is refused when it is run
                self._dispatch()
                raise
            del taken[:CANCEL_MAX]
            for settle, applied in zip(settles, answers, strict=True):
                if applied.refused is None:
                    self._watchers.settled(settle)
                    cancelled += 1
        for flow in list(self._window.flows.values()):
            if flow.more:
                self._window.refill(flow)
        return cancelled

    def _stop(self, matching: Matching) -> int:
        """Tell running ones to stop; how many had not been told before."""
        told = 0
        for token, held in list(self._attempts.held.items()):
            if held.claim is not None and not held.cancelled and matching.has(held.claim.invocation):
                self._attempts.kill(token)
                told += 1
        return told
