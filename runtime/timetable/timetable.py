"""Timetable: the schedules of a store as operators see them, and what they do with them.

Imports the floor, the store's protocol, the trigger protocol and this room. A schedule has the name
`FUNCTION/KIND/NAME`; wherever one is named, its own part or its function do when no other has the same.
"""

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    AlreadyFired,
    BadRequest,
    Contended,
    Duplicate,
    UnknownBackfill,
    UnknownSchedule,
    WrongState,
)
from headrace.runtime.model.ids import Ids, read_id, show_id
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Fired
from headrace.runtime.store.protocol import Backfill, Fire, ScheduleState, Store
from headrace.runtime.timetable.backfills import CONTENDED_S, PAGE, Accept, Backfills, Declared
from headrace.runtime.trigger import Timed

INSTANTS_MAX = 100_000
"""Instants that one backfill may have."""

CONCURRENCY_MAX = 100
SHOWN_MAX = 1_000
"""Missing instants that a plan names."""

NEXT_SHOWN, LAST_SHOWN = 5, 3


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """A schedule: what the store knows, what the code declares (`settings`, None when this node's code does
    not), its next moments, and what became of the last ones, newest first.
    """

    state: ScheduleState
    function: str
    settings: dict[str, Any] | None
    next: list[float]
    last: list[Fire]
    backfill: Backfill | None

    @property
    def shown_state(self) -> str:
        if self.settings is None:
            return "not loaded"
        if self.state.paused:
            return "paused"
        return "active" if self.next else "finished"


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What a backfill would do: how many instants its range has, how many would fire, and the first of
    those.
    """

    schedule: str
    from_at: float
    until_at: float
    instants: int
    missing: int
    moments: list[float]


class Timetable:
    """Lists, pauses, resumes and fires schedules, and begins and ends backfills.

    `declared` gives those of the present code, `accept` and `cancel` are the intake's, `clock` is the wall
    clock. Every method that takes a name raises UnknownSchedule.
    """

    def __init__(
        self,
        store: Store,
        backfills: Backfills,
        *,
        declared: Declared,
        accept: Accept,
        cancel: Callable[[str], Awaitable[None]],
        ids: Ids,
        clock: Clock,
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._store = store
        self._backfills = backfills
        self._declared = declared
        self._accept = accept
        self._cancel = cancel
        self._ids = ids
        self._clock = clock
        self._in_thread = in_thread

    # ---- looking ----

    async def entries(self, *, after: str = "", limit: int = 100) -> list[Entry]:
        """A page of the schedules that are known, by name."""
        states = [state for state in await self._store.schedules() if state.name > after]
        running = {each.schedule: each for each in await self._store.backfills(running=True, limit=10_000)}
        return [
            await self._entry(state, running.get(state.name), last=LAST_SHOWN) for state in states[:limit]
        ]

    async def entry(self, name: str, *, last: int = LAST_SHOWN) -> Entry:
        """One, with what became of its last moments."""
        state = await self.state(name)
        running = await self._store.backfills(schedule=state.name, running=True, limit=1)
        return await self._entry(state, running[0] if running else None, last=last)

    async def state(self, name: str) -> ScheduleState:
        """What the store knows of the schedule with that name."""
        states = await self._store.schedules()
        for said in (_whole, _own_part, _function_of):
            found = [state for state in states if said(state.name) == name]
            if len(found) == 1:
                return found[0]
            if found:
                raise UnknownSchedule(name, [state.name for state in found])
        raise UnknownSchedule(name)

    async def moments(self, name: str, *, after: float | None = None, limit: int = NEXT_SHOWN) -> list[float]:
        """The next moments after `after`, by default from now on. Raises WrongState when it is not loaded."""
        state = await self.state(name)
        _, trigger = self._declaration(state, "be asked for its next moments")
        start = self._clock.now() if after is None else after
        found: list[float] = await self._in_thread(_next, trigger, start, state.anchor, limit)
        return found

    # ---- changing ----

    async def pause(self, name: str, *, paused: bool) -> ScheduleState:
        """Keep it from firing, or let it fire again; the moments between do not fire."""
        state = await self.state(name)
        await self._store.pause_schedule(state.name, paused=paused, now=self._clock.now())
        return await self.state(state.name)

    async def run(self, name: str, *, due: float | None = None, again: bool = False) -> tuple[float, str]:
        """Fire it now, for the instant `due`, or for now: that instant, and the invocation's or job's id.

        An instant that fires so does not fire by itself any more. Raises AlreadyFired for one that has,
        unless `again`; WrongState when it is not loaded.
        """
        state = await self.state(name)
        spec, trigger = self._declaration(state, "be run")
        if due is None:
            # No moment of any expression, which would not fire by itself then.
            due, again = _between_seconds(self._clock.now()), True
        event = trigger.event(state.name, due, id=show_id(self._ids.next()))
        fired = Fired(state.name, due, state.generation, "run", again=again)
        while True:
            try:
                [id] = await self._accept(spec, trigger, [event], [fired])
            except Contended:
                await self._clock.sleep(CONTENDED_S)
            except Duplicate:
                raise AlreadyFired(state.name, show_moment(due)) from None
            else:
                return due, id

    # ---- backfills ----

    async def plan(self, name: str, *, from_at: float, until_at: float | None, again: bool = False) -> Plan:
        """What a backfill of the moments from `from_at` up to and with `until_at` (by default now) would do.

        Raises BadRequest for a range without a moment, with more than INSTANTS_MAX, in the future, or of
        which it is not remembered any more what fired; WrongState when the schedule is not loaded.
        """
        state = await self.state(name)
        _, trigger = self._declaration(state, "be backfilled")
        after, until, instants = await self._range(state, trigger, from_at, until_at, again)
        known: set[float] = set()
        position = after
        while not again:
            page = await self._store.fires(state.name, after=position, until=until, limit=PAGE)
            known |= {fire.due_at for fire in page if fire.cause != "skipped"}
            if len(page) < PAGE:
                break
            position = page[-1].due_at
        missing = [moment for moment in instants if moment not in known]
        return Plan(
            schedule=state.name, from_at=after, until_at=until, instants=len(instants), missing=len(missing),
            moments=missing[:SHOWN_MAX],
        )  # fmt: skip

    async def begin(
        self,
        name: str,
        *,
        from_at: float,
        until_at: float | None = None,
        concurrency: int = 1,
        again: bool = False,
    ) -> Backfill:
        """Begin a backfill, of which at most `concurrency` (1 to CONCURRENCY_MAX) run at once; with `again`
        what has fired fires once more. Raises what `plan` does, and WrongState when one is running.
        """
        if not 1 <= concurrency <= CONCURRENCY_MAX:
            raise BadRequest(f"concurrency is {concurrency}", f"Give 1 to {CONCURRENCY_MAX}.")
        state = await self.state(name)
        _, trigger = self._declaration(state, "be backfilled")
        after, until, instants = await self._range(state, trigger, from_at, until_at, again)
        backfill = Backfill(
            id=self._ids.next(), schedule=state.name, generation=state.generation, from_at=after,
            until_at=until, position=after, concurrency=concurrency, again=again, instants=len(instants),
            created_at=self._clock.now(),
        )  # fmt: skip
        await self._store.begin_backfill(backfill)
        self._backfills.wake()
        return backfill

    async def backfill(self, id: str) -> Backfill:
        """One. Raises UnknownBackfill."""
        number = read_id(id)
        found = await self._store.backfill(number) if number is not None else None
        if found is None:
            raise UnknownBackfill(id)
        return found

    async def backfills(
        self, *, name: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[Backfill]:
        """Backfills, newest first, with ids below `before`."""
        schedule = (await self.state(name)).name if name is not None else None
        return await self._store.backfills(schedule=schedule, before=before, limit=limit)

    async def cancel(self, id: str, *, running: bool = False) -> Backfill:
        """End a backfill: it fires nothing more. What it has fired goes on, unless `running` ends that too.

        Raises UnknownBackfill, or WrongState when it has ended.
        """
        found = await self.backfill(id)
        if found.ended_at is not None:
            raise WrongState(f"backfill {id}", found.status, "be cancelled")
        ended = await self._store.end_backfill(
            found.id, status="cancelled", note="cancelled by request", now=self._clock.now()
        )
        if running and ended is not None:
            for live in ended.live:
                await self._cancel(show_id(live))
        return ended or found

    # ---- within ----

    async def _entry(self, state: ScheduleState, backfill: Backfill | None, *, last: int) -> Entry:
        declared = self._declared().get(state.name)
        moments: list[float] = []
        settings = None
        if declared is not None:
            settings = declared[1].fields()
            start = max(self._clock.now(), state.last_due_at or 0.0)
            moments = await self._in_thread(_next, declared[1], start, state.anchor, NEXT_SHOWN)
        return Entry(
            state=state,
            function=_function_of(state.name),
            settings=settings,
            next=moments,
            last=await self._store.fires(state.name, newest=True, limit=last),
            backfill=backfill,
        )

    def _declaration(self, state: ScheduleState, what: str) -> tuple[FunctionSpec, Timed]:
        found = self._declared().get(state.name)
        if found is None or found[1].definition != state.definition:
            raise WrongState(f"schedule {state.name}", "not in the code that this node serves", what)
        return found

    async def _range(
        self, state: ScheduleState, trigger: Timed, from_at: float, until_at: float | None, again: bool
    ) -> tuple[float, float, list[float]]:
        """The moment before the first, the last, and the instants between."""
        now = self._clock.now()
        until = now if until_at is None else until_at
        if until > now + 1:
            raise BadRequest(f"{show_moment(until)} is in the future", "A backfill ends now, or earlier.")
        if from_at > until:
            raise BadRequest("the range ends before it begins", "Exchange its ends.")
        forgotten_at = state.forgotten_at
        if not again and forgotten_at is not None and from_at <= forgotten_at:
            raise BadRequest(
                f"it is not remembered what fired up to {show_moment(forgotten_at)}",
                "Begin after that, or fire all of them again: --again.",
            )
        after = math.nextafter(from_at, -math.inf)
        found = await self._in_thread(_instants, trigger, after, until, state.anchor)
        if len(found) > INSTANTS_MAX:
            hint = "Make it in parts."
            raise BadRequest(f"the range has more than {INSTANTS_MAX:,} moments of the schedule", hint)
        if not found:
            raise BadRequest(
                f"the schedule ({state.definition}) has no moment in the range",
                "A rate has none before it was first seen, unless it has a start.",
            )
        return after, until, found


def show_moment(moment: float) -> str:
    """A moment in ISO 8601 UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def _whole(name: str) -> str:
    return name


def _own_part(name: str) -> str:
    return name.split("/", 2)[-1]


def _function_of(name: str) -> str:
    return name.split("/", 1)[0]


def _next(trigger: Timed, after: float, anchor: float, limit: int) -> list[float]:
    moments: list[float] = []
    while len(moments) < limit and (found := trigger.next_after(after, anchor=anchor)) is not None:
        moments.append(found)
        after = found
    return moments


def _instants(trigger: Timed, after: float, until: float, anchor: float) -> list[float]:
    """The moments in (after, until], at most one more than INSTANTS_MAX."""
    moments: list[float] = []
    while len(moments) <= INSTANTS_MAX:
        found = trigger.next_after(after, anchor=anchor)
        if found is None or found > until:
            break
        moments.append(found)
        after = found
    return moments


def _between_seconds(now: float) -> float:
    milliseconds = round(now * 1000)
    return (milliseconds + (milliseconds % 1000 == 0)) / 1000
