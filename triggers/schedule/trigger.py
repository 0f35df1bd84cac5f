"""`Schedule(...)`: turns the moments that an expression names into events.

Imports the trigger protocol, the model and its own room. Every node of a cluster computes the same moments;
the store accepts one event for each, whoever comes first. What is done about moments that passed while no
node ran is decided by `missed`, which is pure.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Self, TypeVar
from zoneinfo import ZoneInfo

import msgspec

from headrace.runtime.errors import (
    Contended,
    Duplicate,
    InvalidFunction,
    InvalidSettings,
    Overlapping,
    Retryable,
)
from headrace.runtime.fault import reach
from headrace.runtime.model.event import ScheduleEvent
from headrace.runtime.model.size import read_duration
from headrace.runtime.model.write import CursorMoved, Fired
from headrace.runtime.trigger import Options, Route, Source, TriggerContext
from headrace.triggers.schedule.expression import CLOCK_CHANGES, ClockChanges, jitter, parse

T = TypeVar("T")

GRACE_S = 60.0
"""A moment that is later than this has been missed."""

LOOK_S = 30.0
"""The longest sleep, after which the wall clock is looked at again, since it may have been set."""

MISFIRES_MAX = 1_000
JITTER_S_MAX = 86_400.0
WINDOW_S_MAX = 86_400.0
"""As EventBridge Scheduler's: a flexible time window is at most 1,440 minutes."""

QUEUE_LOOK_S = 1.0
"""How often is looked whether what a queued moment waits for has ended."""

_MISFIRE = ("skip", "once", "all")
_OVERLAP = ("allow", "skip", "queue", "cancel")
_CANCEL_LOOK_S = 0.25
_CONTENDED_S = 0.05  # a commit or two of another node
_TRY_AGAIN_S_MAX = 30.0
_BISECT_S = 0.5  # below the shortest gap between two moments, which is a second


class Schedule:
    """Call the function at the moments of an expression.

    Args:
        expression: `rate(5 minutes)`, `cron(0 9 ? * MON-FRI *)`, a crontab line, or
            `at(2030-01-31T09:00:00)`.
        timezone: IANA name; what the local times of the expression, `start` and `end` are of.
        name: the schedule's identity beside its function. A renamed schedule is a new one, and so is one
            without a name that changes its place among the function's triggers.
        start: no moment before this one; an ISO 8601 text or a datetime. A rate counts from it.
        end: no moment after this one.
        jitter: delays each event by up to so many seconds (0 to 86,400), by a hash of schedule and moment, so
            that many schedules of one minute do not run at once. The event's `time` stays the moment itself.
        window: a flexible time window, as EventBridge Scheduler's: seconds, or a text such as `15 min`, up to
            a day. The event comes somewhere within it, by the same hash, and a moment whose window is open is
            not missed. The jitter comes on top.
        clock_changes: the rule that a cron expression follows where clocks change: `eventbridge`, or `cron`
            for that of Vixie's cron; see `expression.py`.
        overlap: what a moment does while what an earlier one started (an invocation or a job) has not ended:
            `allow` fires; `skip` does not; `queue` fires when it has ended, one moment at a time: the first
            waits and others are skipped meanwhile; `cancel` ends the earlier one, then fires. What is fired
            by hand or by a backfill does not count.
        misfire: what becomes of moments that passed while no node ran, or while the machine slept: `once`
            fires the newest of them, `all` the newest `max_misfires`, oldest first, `skip` none. A newest
            moment that is less than GRACE_S late is not missed and fires in any case.
        max_misfires: 1 to MISFIRES_MAX.
        input: JSON that becomes the event's `detail`.

    The event has EventBridge's envelope. Raises: InvalidFunction; InvalidSchedule for the expression or time
    zone.
    """

    kind: ClassVar[str] = "schedule"
    sample_options: ClassVar[Mapping[str, str]] = {
        "time": "the due moment: ISO 8601 with a time zone",
        "schedule": "the schedule's name",
        "detail": "JSON, instead of the schedule's input",
    }

    def __init__(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        name: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        jitter: float = 0,
        window: float | str = 0,
        misfire: str = "once",
        max_misfires: int = 100,
        overlap: str = "allow",
        clock_changes: str = "eventbridge",
        input: Any = None,
    ) -> None:
        rule = next((each for each in CLOCK_CHANGES if each == clock_changes), CLOCK_CHANGES[0])
        self.expression = parse(expression, timezone=timezone, clock_changes=rule)
        self.clock_changes: ClockChanges = self._one_of(CLOCK_CHANGES, clock_changes, "clock_changes")
        self.timezone = timezone
        self.name = name
        if name is not None and (not isinstance(name, str) or not name or len(name) > 128):
            raise self._invalid(
                f"the name {name!r} is not a text of 1 to 128 characters", "Give another name."
            )
        self.start = self._moment(start, "start")
        self.end = self._moment(end, "end")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise self._invalid("it ends before it starts", "Exchange start and end.")
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= JITTER_S_MAX:
            raise self._invalid(f"jitter is {jitter!r}", f"Give seconds from 0 to {JITTER_S_MAX:,.0f}.")
        self.jitter = float(jitter)
        self.window = self._window(window)
        self.misfire: str = self._one_of(_MISFIRE, misfire, "misfire")
        self.overlap: str = self._one_of(_OVERLAP, overlap, "overlap")
        is_whole = isinstance(max_misfires, int) and not isinstance(max_misfires, bool)
        if not is_whole or not 1 <= max_misfires <= MISFIRES_MAX:
            hint = f"Give a whole number from 1 to {MISFIRES_MAX}."
            raise self._invalid(f"max_misfires is {max_misfires!r}", hint)
        self.max_misfires = max_misfires
        try:
            self.input = None if input is None else msgspec.json.decode(msgspec.json.encode(input))
        except (TypeError, ValueError, OverflowError) as error:
            raise self._invalid(
                f"input is not JSON: {error}", "Give text, numbers, lists and dicts."
            ) from None

    def __repr__(self) -> str:
        fields = self.fields()
        del fields["expression"]
        given = [f"{key}={value!r}" for key, value in fields.items() if value != _DEFAULTS.get(key)]
        return f"Schedule({', '.join([repr(self.expression.text), *given])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((self.expression, self.name))

    def fields(self) -> dict[str, Any]:
        return {
            "expression": self.expression.text,
            "timezone": self.timezone,
            "name": self.name,
            "start": None if self.start is None else _iso(self.start),
            "end": None if self.end is None else _iso(self.end),
            "jitter": self.jitter,
            "window": self.window,
            "misfire": self.misfire,
            "max_misfires": self.max_misfires,
            "overlap": self.overlap,
            "clock_changes": self.clock_changes,
            "input": self.input,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        others = {key: value for key, value in fields.items() if key != "expression"}
        return cls(fields["expression"], **others)

    @property
    def definition(self) -> str:
        """What its moments depend on, as canonical text; another one begins a new generation."""
        parts = [self.expression.text, self.timezone]
        parts += [f"from {_iso(self.start)}"] if self.start is not None else []
        parts += [f"until {_iso(self.end)}"] if self.end is not None else []
        parts += ["clock changes as cron"] if self.clock_changes == "cron" else []
        return "; ".join(parts)

    def next_after(self, moment: float, *, anchor: float) -> float | None:
        """The first moment after `moment`, between start and end; None when there is none any more.

        Args:
            moment: UTC epoch seconds.
            anchor: UTC epoch seconds from which a rate counts, unless it has a start.
        """
        if self.start is not None:
            anchor, moment = self.start, max(moment, math.nextafter(self.start, -math.inf))
        found = self.expression.next_after(moment, anchor=anchor)
        return None if found is None or (self.end is not None and found > self.end) else found

    def next_moments(self, moment: float, *, anchor: float, limit: int = 5) -> list[float]:
        """The next moments, for people to look at."""
        return list(_upcoming(partial(self.next_after, anchor=anchor), moment, limit))

    @property
    def slack_s(self) -> float:
        """How long after a moment its event may come and still be in time."""
        return self.window + self.jitter

    def delay(self, name: str, due: float) -> float:
        """Seconds after a moment at which the event of the schedule `name` comes, in [0, `slack_s`]."""
        return jitter(f"{name} window", due, self.window) + jitter(name, due, self.jitter)

    def event(self, name: str, due: float, *, id: str) -> Mapping[str, Any]:
        """The event for a moment, in EventBridge's envelope, with `input` as its detail."""
        event = ScheduleEvent.of(name, due=_iso(due), id=id)
        if self.input is not None:
            event["detail"] = self.input
        return event

    @classmethod
    def sample(
        cls, options: Options, *, like: Self | None, name: str, moment: float, id: str
    ) -> Mapping[str, Any]:
        """See Sampled."""
        from headrace.triggers.schedule.sample import sample_schedule

        return sample_schedule(options, like, name, moment, id)

    def source(self, context: TriggerContext) -> Source:
        return ScheduleSource(self, context)

    def routes(self) -> Sequence[Route]:
        return ()

    def _moment(self, value: datetime | str | None, name: str) -> float | None:
        if value is None:
            return None
        try:
            read = datetime.fromisoformat(value) if isinstance(value, str) else value
            if not isinstance(read, datetime):
                raise TypeError
            local = read if read.tzinfo is not None else read.replace(tzinfo=ZoneInfo(self.timezone))
            return local.timestamp()
        except (ValueError, TypeError, OverflowError):
            hint = "Write for example 2030-01-31T09:00:00, in the schedule's time zone."
            raise self._invalid(f"{name} is {value!r}, not a date and time", hint) from None

    def _window(self, value: float | str) -> float:
        hint = f'Give seconds, or a text such as "15 min", up to {WINDOW_S_MAX:,.0f} s.'
        if value == 0 and not isinstance(value, bool | str):
            return 0.0
        try:
            found = read_duration(value, field="window")
        except InvalidSettings:
            found = math.inf
        if found > WINDOW_S_MAX:
            raise self._invalid(f"window is {value!r}", hint)
        return found

    def _one_of(self, known: tuple[T, ...], value: str, name: str) -> T:
        for each in known:
            if value == each:
                return each
        raise self._invalid(f"{name} is {value!r}", f"Use one of {', '.join(map(repr, known))}.")

    def _invalid(self, why: str, hint: str) -> InvalidFunction:
        return InvalidFunction(f"Schedule({self.expression.text!r})", why, hint)


_DEFAULTS: Mapping[str, Any] = {
    "timezone": "UTC",
    "jitter": 0.0,
    "window": 0.0,
    "misfire": "once",
    "max_misfires": 100,
    "overlap": "allow",
    "clock_changes": "eventbridge",
}


NextAfter = Callable[[float], float | None]


class Missed(msgspec.Struct, frozen=True):
    """What becomes of a stretch of moments that passed unheeded.

    Attributes:
        fire: the moments that still fire, ascending.
        newest: the last moment of the stretch, fired or not.
        is_complete: whether all of them still fire.
    """

    fire: list[float]
    newest: float
    is_complete: bool


def missed(
    next_after: NextAfter, after: float, *, until: float, now: float, misfire: str, max_misfires: int
) -> Missed:
    """Apply a misfire policy to the moments in (after, until], of which there is at least one.

    Args:
        next_after: the schedule's arithmetic.
        now: what the grace counts from; not below `until`.
    """
    newest = _newest(next_after, after, until)
    is_only_one = next_after(after) == newest
    if misfire == "all":
        low, high, is_complete = after, newest, True
        if _are_more(next_after, low, until, max_misfires):
            # Narrow it to where few enough are left: the newest ones count.
            is_complete = False
            while high - low > _BISECT_S:
                middle = (low + high) / 2
                if _are_more(next_after, middle, until, max_misfires):
                    low = middle
                else:
                    high = middle
            low = high
        return Missed(list(_upcoming(next_after, low, max_misfires, until=until)), newest, is_complete)
    if misfire == "once" or now - newest <= GRACE_S:
        return Missed([newest], newest, is_only_one)
    return Missed([], newest, False)


def _are_more(next_after: NextAfter, after: float, until: float, limit: int) -> bool:
    return len(list(_upcoming(next_after, after, limit + 1, until=until))) > limit


def _newest(next_after: NextAfter, after: float, until: float) -> float:
    """The last moment in (after, until]; there is one."""
    low, high = after, until
    while high - low > _BISECT_S:
        middle = (low + high) / 2
        found = next_after(middle)
        low, high = (middle, high) if found is not None and found <= until else (low, middle)
    newest = next_after(low)
    assert newest is not None
    return newest


def _upcoming(next_after: NextAfter, after: float, limit: int, *, until: float = math.inf) -> Iterator[float]:
    for _ in range(limit):
        moment = next_after(after)
        if moment is None or moment > until:
            return
        yield moment
        after = moment


class ScheduleSource:
    """The source of one schedule: sleeps until a moment, then gets its event accepted.

    A moment that cannot be accepted is tried again until the next one is due; then it counts as missed,
    except that the policy `all` goes on trying. What `stop` interrupts is found as a missed moment by the
    next start. A moment that waits for an earlier one's end is remembered by the store, so that every node
    looks after it.
    """

    def __init__(self, schedule: Schedule, context: TriggerContext, *, look_s: float = LOOK_S) -> None:
        self._schedule = schedule
        self._context = context
        self._look_s = look_s if context.clock_look_s is None else context.clock_look_s
        self._name = context.name
        self._cursor = f"schedule:{self._name}:definition"
        self._holding = False
        self._task: asyncio.Task[None] | None = None
        self._queue: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"schedule {self._name}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        await _ended(task)  # first, since it may begin the other
        task, self._queue = self._queue, None
        await _ended(task)

    async def _run(self) -> None:
        for attempt in itertools.count():
            try:
                await self._fire_for_ever()
            except Exception as error:
                self._report("the schedule cannot go on and begins again", error=error)
                await self._context.clock.sleep(min(2.0 ** min(attempt, 5), _TRY_AGAIN_S_MAX))
            else:
                return

    async def _fire_for_ever(self) -> None:
        context, clock = self._context, self._context.clock
        definition, slack_s = self._schedule.definition, self._schedule.slack_s
        state = await self._state()
        if await context.state.cursor(self._cursor) != definition:
            reach("cursor.before")
            await context.accept([], [CursorMoved(self._cursor, definition)])
            reach("cursor.after")
        if state.queued_at is not None:
            self._look_after_queue()
        # The moments of a pause are passed over, even when nobody was here to see its end.
        after: float = max(state.anchor, state.last_due_at or 0.0, min(state.resumed_at or 0.0, clock.now()))
        if after > clock.now() + 86_400:
            self._report(
                "the schedule last fired in the future: the clock was wrong, or is", after=_iso(after)
            )
            after = clock.now()
        if state.paused:
            after = max(after, clock.now())
        is_starting = True
        while True:
            anchor: float = state.anchor
            next_after = partial(self._schedule.next_after, anchor=anchor)
            if (due := next_after(after)) is None:
                return
            is_late = is_starting or await self._sleep_until(self._fire_at(due))
            passed = due <= clock.now() - slack_s
            if is_starting and not passed:
                is_starting = False
                continue
            is_starting = False
            if await context.state.cursor(self._cursor) != definition:
                # A newer definition fires. Asking for the state with this one would make this the newest.
                after = due
                continue
            state = await self._state()
            if state.anchor != anchor:
                after = max(after, state.anchor)
            elif due <= (state.resumed_at or 0.0) <= clock.now() + GRACE_S:
                after = max(due, min(state.resumed_at, clock.now()))
            elif is_late and passed:
                after = await self._catch_up(next_after, after, state)
            else:
                if not state.paused:
                    await self._fire(due, state.generation, until=next_after(due))
                after = due

    async def _catch_up(self, next_after: NextAfter, after: float, state: Any) -> float:
        """Fire what the policy keeps of the moments that have passed; returns the last of them all."""
        now, schedule = self._context.clock.now(), self._schedule
        found: Missed = await self._context.in_thread(
            partial(
                missed,
                next_after,
                after,
                until=now - schedule.slack_s,
                now=now,
                misfire=schedule.misfire,
                max_misfires=schedule.max_misfires,
            )
        )
        if state.paused:
            return found.newest
        if not found.is_complete:
            window = f"{_iso(after)} to {_iso(found.newest)}"
            self._report("moments of the schedule passed unheeded", window=window, fired=len(found.fire))
        for moment, successor in zip(found.fire, [*found.fire[1:], next_after(found.newest)], strict=False):
            cause = "missed" if now - moment > GRACE_S + schedule.slack_s else "due"
            await self._fire(moment, state.generation, until=successor, cause=cause)
        return found.newest

    async def _sleep_until(self, moment: float) -> bool:
        """Whether it woke so late that moments may have been missed."""
        clock = self._context.clock
        while (left := moment - clock.now()) > 0:
            await clock.sleep(min(left, self._look_s))
        return -left > GRACE_S

    async def _fire(self, due: float, generation: int, *, until: float | None, cause: str = "due") -> None:
        context, schedule, shown = self._context, self._schedule, _iso(due)
        event = schedule.event(self._name, due, id=context.new_id())
        next_at = None if until is None else self._fire_at(until)
        give_up_at = None if schedule.misfire == "all" else next_at
        wait_s = 1.0
        while True:
            fired = Fired(self._name, due, generation, cause, schedule.overlap)
            try:
                reach("fire.before")
                await context.accept([event], [fired])
                reach("fire.after")
            except Duplicate:
                if schedule.overlap == "queue":
                    self._look_after_queue()  # another node may have put it there, and be gone
                return  # another node was first, or has a newer definition
            except Contended:
                await self._let_others_decide()
            except Overlapping as error:
                if schedule.overlap == "skip":
                    return await self._leave(due, generation, "skipped")
                if schedule.overlap == "queue":
                    await self._leave(due, generation, "waits")
                    return self._look_after_queue()
                if next_at is not None and context.clock.now() >= next_at:
                    message = "an earlier run could not be ended in time for the schedule"
                    self._report(message, due=shown)
                    return await self._leave(due, generation, "skipped")
                await self._cancel(error.ids)
            except Retryable as error:
                now = context.clock.now()
                if not self._holding:
                    self._holding = True
                    self._report("the schedule is held back until it is accepted", error=error, due=shown)
                if give_up_at is not None and now >= give_up_at:
                    return
                left = wait_s if give_up_at is None else min(wait_s, give_up_at - now)
                await context.clock.sleep(max(left * (0.5 + context.chance.random() / 2), 0.01))
                wait_s = min(2 * wait_s, _TRY_AGAIN_S_MAX)
            else:
                self._holding = False
                return

    async def _cancel(self, ids: Sequence[str]) -> None:
        """Have earlier runs ended; what cannot be told now is told again, as long as it has not ended."""
        for id in ids:
            with contextlib.suppress(Retryable):
                await self._context.cancel(id)
        await self._context.clock.sleep(_CANCEL_LOOK_S)

    async def _leave(self, due: float, generation: int, cause: str) -> None:
        """Record that a moment does not fire, or not yet. Dying before, it is found as a missed one."""
        while True:
            try:
                await self._context.accept([], [Fired(self._name, due, generation, cause)])
            except Duplicate:
                return  # another node has recorded what becomes of it, or has fired it after all
            except Contended:
                await self._let_others_decide()
            except Retryable as error:
                self._report("what becomes of a moment could not be recorded yet", error=error, due=_iso(due))
                await self._context.clock.sleep(1.0)
            else:
                return

    async def _let_others_decide(self) -> None:
        await self._context.clock.sleep(_CONTENDED_S * (0.5 + self._context.chance.random()))

    # ---- what waits for an earlier one's end ----

    def _look_after_queue(self) -> None:
        if self._queue is None or self._queue.done():
            self._queue = asyncio.create_task(self._fire_queued(), name=f"queue of schedule {self._name}")

    async def _fire_queued(self) -> None:
        """Fire the moments that wait, each when what it waits for has ended, until none does."""
        context = self._context
        while True:
            try:
                if await context.state.cursor(self._cursor) != self._schedule.definition:
                    return  # nodes with the newer definition look after it
                state = await self._state()
                if (due := state.queued_at) is None:
                    return
                if not state.paused:
                    event = self._schedule.event(self._name, due, id=context.new_id())
                    fired = Fired(self._name, due, state.generation, "queued", "queue")
                    await context.accept([event], [fired])
                    continue
            except Duplicate:
                continue  # another node was first: perhaps the next one waits already
            except Contended:
                await self._let_others_decide()
                continue
            except (Overlapping, Retryable):
                pass  # it has not ended, or it is not the time to ask
            except Exception as error:
                self._report("what waits of the schedule could not be fired and is tried again", error=error)
            await context.clock.sleep(QUEUE_LOOK_S)

    def _fire_at(self, due: float) -> float:
        return due + self._schedule.delay(self._name, due)

    async def _state(self) -> Any:
        # Whole seconds, so that the moments of a rate are whole ones too.
        now = float(math.floor(self._context.clock.now()))
        return await self._context.state.schedule(self._name, definition=self._schedule.definition, now=now)

    def _report(self, message: str, *, error: Exception | None = None, **facts: object) -> None:
        shown = {"schedule": self._name, **facts}
        if error is not None:
            shown |= {"error": f"{type(error).__name__}: {error}", "hint": getattr(error, "hint", "")}
        self._context.report(message, shown)


async def _ended(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
