"""Backfills: ranges of schedules' instants that are fired after the fact, a few at a time.

Imports the floor, the store's protocol and the trigger protocol. What a backfill has come to is in the store,
so that any node goes on with it, after a restart and beside others: each instant is fired by one transaction,
which also moves the backfill's position and counts what of it has not ended.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from headrace.runtime.clock import Clock
from headrace.runtime.errors import Contended, Duplicate, HeadraceError, Overlapping
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Fired, Write
from headrace.runtime.store.protocol import Backfill, ScheduleState, Store
from headrace.runtime.trigger import Timed

LOOK_S = 1.0
"""How often a backfill that waits for ends is looked at, beside being told of them."""

IDLE_LOOK_S = 5.0
"""How often is looked for backfills that another node has begun."""

RUNNING_MAX = 1_000
"""Backfills that are looked at in one turn."""

TURN_FIRES = 100
"""Instants that one backfill fires before the others have their turn."""

PAGE = 500

CONTENDED_S = 0.05
"""How long another node is let decide about a schedule: a commit or two."""

Accept = Callable[[FunctionSpec, Timed, Sequence[Mapping[str, Any]], Sequence[Write]], Awaitable[list[str]]]
"""Record events of a trigger of a function, with writes."""

Declared = Callable[[], Mapping[str, tuple[FunctionSpec, Timed]]]
"""The schedules of the present code, by name."""


class Backfills:
    """Goes on with all backfills that run. `watch` has a callback called when an invocation has ended on this
    node; `clock` is the wall clock.
    """

    def __init__(
        self,
        store: Store,
        *,
        declared: Declared,
        accept: Accept,
        watch: Callable[[str, Callable[[], None]], None],
        new_id: Callable[[], str],
        clock: Clock,
        report: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._declared = declared
        self._accept = accept
        self._watch = watch
        self._new_id = new_id
        self._clock = clock
        self._report = report
        self._woken = asyncio.Event()
        self._watched: set[str] = set()
        self._held: set[int] = set()
        """Backfills of which it was reported that they are held back."""

    def wake(self) -> None:
        """Something has changed: look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Go on until it is cancelled."""
        while True:
            self._woken.clear()
            try:
                busy = await self.step()
            except HeadraceError as error:
                self._report("backfills could not go on; trying again", {"error": str(error)})
                busy = True
            await self._wait(LOOK_S if busy else IDLE_LOOK_S if self._store.shared else None)

    async def step(self) -> bool:
        """One turn of each backfill that runs; whether there are any."""
        running = await self._store.backfills(running=True, limit=RUNNING_MAX)
        if running:
            states = {state.name: state for state in await self._store.schedules()}
            for backfill in reversed(running):
                await self._turn(backfill, states.get(backfill.schedule))
        return bool(running)

    async def _turn(self, backfill: Backfill, state: ScheduleState | None) -> None:
        why = _obsolete(backfill, state)
        if why:
            await self._store.end_backfill(backfill.id, status="cancelled", note=why, now=self._clock.now())
            return
        found = self._declared().get(backfill.schedule)
        if found is None or state is None or found[1].definition != state.definition:
            return  # a node that has the code goes on with it
        spec, trigger = found
        position, present, fires = backfill.position, 0, 0
        known: set[float] = set()
        seen_to = -math.inf
        while fires < TURN_FIRES:
            due = trigger.next_after(position, anchor=state.anchor)
            if due is None or due > backfill.until_at:
                break
            if due > seen_to:
                known, seen_to = await self._known(backfill, due)
            if due in known:
                position, present = due, present + 1
                if present >= PAGE:
                    await self._store.pass_backfill(backfill.id, position=position, present=present)
                    present = 0
            elif await self._fire(backfill, spec, trigger, due, present):
                position, present, fires = due, 0, fires + 1
            else:
                return
        else:
            self.wake()  # there is more, after the others' turn
            return
        if present:
            await self._store.pass_backfill(backfill.id, position=position, present=present)
        ended = await self._store.end_backfill(backfill.id, status="done", now=self._clock.now())
        if ended is not None and ended.ended_at is None:
            self._watch_all(show_id(id) for id in ended.live)

    async def _known(self, backfill: Backfill, due: float) -> tuple[set[float], float]:
        """The instants from `due` on that have fired, or are about to, and how far that is known."""
        if backfill.again:
            return set(), math.inf
        fires = await self._store.fires(
            backfill.schedule, after=math.nextafter(due, -math.inf), until=backfill.until_at, limit=PAGE
        )
        seen_to = fires[-1].due_at if len(fires) == PAGE else math.inf
        return {fire.due_at for fire in fires if fire.cause != "skipped"}, seen_to

    async def _fire(
        self, backfill: Backfill, spec: FunctionSpec, trigger: Timed, due: float, present: int
    ) -> bool:
        """Whether it fired; if not, the backfill's turn is over."""
        name = backfill.schedule
        event = trigger.event(name, due, id=self._new_id())
        fired = Fired(
            name, due, backfill.generation, "backfill", backfill=backfill.id, present=present,
            again=backfill.again,
        )  # fmt: skip
        try:
            await self._accept(spec, trigger, [event], [fired])
        except Overlapping as error:
            self._watch_all(error.ids)
            return False
        except Contended:
            await self._clock.sleep(CONTENDED_S)
            self.wake()
            return False
        except Duplicate:
            return False  # another node was first, or it was cancelled: the next turn sees which
        except HeadraceError as error:
            # Also what is wrong with the call, such as a job's input that is not there: it may be mended.
            if backfill.id not in self._held:
                self._held.add(backfill.id)
                details = {"backfill": show_id(backfill.id), "schedule": name, "error": str(error)}
                self._report("a backfill is held back until its events are accepted", details)
            return False
        self._held.discard(backfill.id)
        return True

    def _watch_all(self, ids: Iterable[str]) -> None:
        for id in ids:
            if id not in self._watched:
                self._watched.add(id)
                self._watch(id, partial(self._ended, id))

    def _ended(self, id: str) -> None:
        self._watched.discard(id)
        self.wake()

    async def _wait(self, seconds: float | None) -> None:
        waiter = asyncio.ensure_future(self._woken.wait())
        waiting = {waiter}
        if seconds is not None:
            waiting.add(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def _sleep(self, seconds: float) -> Literal[True]:
        await self._clock.sleep(seconds)
        return True


def _obsolete(backfill: Backfill, state: ScheduleState | None) -> str:
    """Why a backfill cannot go on, empty when it can."""
    if state is None or state.generation != backfill.generation:
        return "the schedule's definition has changed"
    forgotten_at = state.forgotten_at
    if forgotten_at is not None and backfill.position < forgotten_at and not backfill.again:
        return "it is not remembered any more what had fired"
    return ""
