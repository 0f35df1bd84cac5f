"""Why: what holds an invocation, a job, a schedule or a function, said from facts alone.

Imports the floor and the store's values. Nothing here asks or waits: `Facts` gathers, this judges, so that
every sentence can be tested with plain values.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits
from headrace.runtime.store.protocol import Backfill, Closure, Deployment, ScheduleState

AHEAD_MAX = 1_000
"""How many invocations ahead of one are counted."""

SHOWN_MAX = 5
"""How many of several things are named: attempts at work, versions."""


class Hold(msgspec.Struct, frozen=True):
    """One thing that holds the subject back.

    `by` is one of `stopping`, `storage`, `code`, `paused`, `closed`, `backoff`, `delay`, `concurrency`,
    `key_concurrency`, `rate`, `claimed`, `order`, `workers`, `running`, `chunks`, `planning`, `not_due`,
    `finished`. `until` is in epoch seconds, None when it depends on an end or on somebody. `do` is the one
    thing that changes it; empty when only time does.
    """

    by: str
    detail: str
    until: float | None = None
    do: str = ""


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that was made, as far as it is known; `at` is when it ended, in epoch seconds."""

    attempt: int
    at: float | None
    outcome: str
    error: str = ""


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the subject, its state, what holds it (nothing: an empty list) and a sentence that sums it
    up. `happened` are the attempts so far; `do` is what may be done with a subject that nothing holds.
    """

    kind: str
    id: str
    function: str
    state: str
    held_by: tuple[Hold, ...]
    summary: str
    happened: tuple[Happening, ...] = ()
    do: str = ""


# ---- facts ----


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The node that was asked. `unready` says why it does not serve, `unrecorded` how many outcomes its
    store could not take, `at_work` what its workers run: (function, seconds), the longest first.
    """

    name: str
    version: str
    workers: int
    busy: int
    at_work: tuple[tuple[str, float], ...] = ()
    unready: str | None = None
    unrecorded: int = 0


class FunctionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a function, and of one flow of it.

    `elsewhere` are deployments of other versions that have it. `running` counts the function's attempts at
    this node, `flow_running` those of the flow, `flow_limit` is the flow's own limit (a job's
    `max_concurrency`). `held` is what the store says of the limits that hold over all nodes.
    """

    name: str
    loaded: bool
    elsewhere: tuple[Deployment, ...] = ()
    paused: bool = False
    closures: tuple[Closure, ...] = ()
    limits: Limits = NO_LIMITS
    running: int = 0
    flow_running: int = 0
    flow_limit: int | None = None
    held: Held | None = None
    waiting: int = 0


class InvocationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An invocation and what surrounds it. `running_s` is set while the node's pool holds it; `ahead` counts
    what is claimed before it in its flow, `above` what is ready with a higher priority elsewhere.
    """

    record: Record
    function: FunctionFacts
    node: NodeFacts
    now: float
    running_s: float | None = None
    timeout_s: float | None = None
    attempts_max: int = 1
    ahead: int = 0
    above: int = 0
    happened: tuple[Happening, ...] = ()


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A job, its counts by stage, the first chunk that is dead, and the answer for its next waiting
    invocation.
    """

    job: Job
    counts: dict[int, JobCounts]
    dead: Record | None = None
    waiting: Why | None = None


class ScheduleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as the store remembers it, with its function and, when that is loaded here, what its next
    moment is and what its policy for missed ones is.
    """

    state: ScheduleState
    function: FunctionFacts
    node: NodeFacts
    now: float
    loaded: bool
    next_at: float | None = None
    misfire: str = ""
    backfill: Backfill | None = None


# ---- answers ----


def why_invocation(facts: InvocationFacts) -> Why:
    """The answer for one invocation."""
    record, invocation = facts.record, facts.record.invocation
    id = show_id(invocation.id)
    holds: list[Hold] = []
    if record.status.ended:
        state = record.status.name.lower()
        summary, do = _ended(record, id)
    elif facts.running_s is not None or record.status is Status.RUNNING:
        state, do = "running", ""
        hold = _running(facts, id)
        holds = [hold]
        summary = f"It is running: {hold.detail}."
    else:
        state, do = "waiting", ""
        holds = _waiting(facts)
        summary = _summed(holds, invocation.expires_at)
    return Why(
        kind="invocation", id=id, function=invocation.function, state=state, held_by=tuple(holds),
        summary=summary, happened=facts.happened, do=do,
    )  # fmt: skip


def why_function(facts: FunctionFacts, node: NodeFacts) -> Why:
    """The answer for a function: what holds all that is sent to it."""
    holds = [*_node(node), *_function(facts), *_limits(facts)]
    if facts.waiting:
        holds += _workers(node)
    closed = any(hold.by == "closed" for hold in holds)
    state = "not loaded" if not facts.loaded else "paused" if facts.paused else "closed" if closed else "open"
    books = f"{facts.waiting:,} waiting, {facts.running:,} running here"
    summary = f"{_summed(holds, None)} ({books})" if holds else f"Nothing holds it: {books}."
    do = _pause(facts.name) if state == "open" else ""
    return Why(
        kind="function", id=facts.name, function=facts.name, state=state, held_by=tuple(holds),
        summary=summary, do=do,
    )  # fmt: skip


def why_job(facts: JobFacts) -> Why:
    """The answer for a job: what it waits for, or which chunk ended it."""
    job, id = facts.job, show_id(facts.job.id)
    holds: list[Hold] = []
    do = ""
    if job.status == "succeeded":
        summary = "It succeeded."
    elif job.status in ("failed", "cancelled"):
        summary = f"It {'failed' if job.status == 'failed' else 'was cancelled'}"
        summary += f": {shown_error(job.error)}." if job.error else "."
        if facts.dead is not None:
            summary += f" {_chunk(facts.dead)}"
        if job.status == "failed":
            do = f"headrace job redrive {id}"
    else:
        holds = [_stage(job, facts.counts)]
        if facts.waiting is not None:
            holds += [hold for hold in facts.waiting.held_by if hold.by != "order"]
        if facts.dead is not None:
            holds.append(Hold("chunks", _chunk(facts.dead), None, f"headrace job show {id} --chunks"))
        summary = f"It is {job.status}: {holds[0].detail}."
        if len(holds) > 1:
            summary += f" {_summed(holds[1:], None)}"
        do = f"headrace job cancel {id}"
    return Why(
        kind="job", id=id, function=job.function, state=job.status, held_by=tuple(holds), summary=summary,
        do=do,
    )  # fmt: skip


def why_schedule(facts: ScheduleFacts) -> Why:
    """The answer for a schedule: when it fires next, and what keeps it from that."""
    state = facts.state
    holds = _node(facts.node)
    shown = "waiting"
    if not facts.loaded:
        shown = "not loaded"
        holds.append(
            Hold(
                "code",
                f"this node's code (version {facts.node.version}) declares no such schedule",
                None,
                f"serve code in which {facts.function.name} has it",
            )
        )
    elif state.paused:
        shown = "paused"
        detail = "the schedule is paused: its moments pass without firing"
        holds.append(Hold("paused", detail, None, f"headrace schedule resume {state.name}"))
    elif facts.next_at is None:
        shown = "finished"
        holds.append(Hold("finished", "its expression names no moment any more"))
    else:
        holds.append(Hold("not_due", "its next moment has not come", facts.next_at))
    if state.queued_at is not None:
        detail = f"its moment {iso(state.queued_at)} waits until what an earlier one started has ended"
        holds.append(Hold("overlap", detail))
    if facts.loaded:
        holds += _function(facts.function)  # the event is accepted all the same, and its invocation is held
    last = f"It last fired for {iso(state.last_due_at)}" if state.last_due_at else "It has never fired"
    missed = {
        "once": "of missed moments the newest fires",
        "all": "missed moments all fire",
        "skip": "missed moments do not fire",
    }.get(facts.misfire, "")
    parts = [last, f"generation {state.generation} of {state.definition!r}", *([missed] if missed else [])]
    if facts.backfill is not None:
        filled = facts.backfill
        parts.append(
            f"backfill {show_id(filled.id)} has fired {filled.fired:,} and passed over {filled.present:,}"
            f" of its {filled.instants:,} moments"
        )
    summary = _summed(holds, None) + f" {parts[0]}; {'; '.join(parts[1:])}."
    return Why(
        kind="schedule", id=state.name, function=facts.function.name, state=shown, held_by=tuple(holds),
        summary=summary,
    )  # fmt: skip


# ---- what holds ----


def _waiting(facts: InvocationFacts) -> list[Hold]:
    invocation, now = facts.record.invocation, facts.now
    holds = [*_node(facts.node), *_function(facts.function)]
    if invocation.due_at > now:
        if facts.record.attempts:
            detail = f"attempt {facts.record.attempts} failed; the next one begins later"
            holds.append(Hold("backoff", detail, invocation.due_at, _cancel(facts)))
        else:
            holds.append(Hold("delay", "it was asked to begin later", invocation.due_at, _cancel(facts)))
        return holds  # what would hold it now may not hold it then
    holds += _limits(facts.function)
    if facts.record.node is not None and facts.record.node != facts.node.name:
        holds.append(Hold("claimed", f"the node {facts.record.node} has claimed it and begins it next"))
    if facts.ahead:
        count = f"over {AHEAD_MAX:,}" if facts.ahead > AHEAD_MAX else f"{facts.ahead:,}"
        of = f"job {invocation.flow[4:]}" if invocation.job is not None else invocation.flow
        holds.append(
            Hold(
                "order", f"{count} other{' of' if facts.ahead == 1 else 's of'} {of} {_go(facts.ahead)} first"
            )
        )
    if facts.above:
        count = f"over {AHEAD_MAX:,}" if facts.above > AHEAD_MAX else f"{facts.above:,}"
        holds.append(
            Hold(
                "order", f"{count} with a higher priority than {invocation.priority} {_go(facts.above)} first"
            )
        )
    return holds + _workers(facts.node)


def _node(node: NodeFacts) -> list[Hold]:
    holds = []
    if node.unready is not None:
        holds.append(
            Hold(
                "stopping",
                f"the node {node.name} is {node.unready} and begins nothing",
                None,
                "headrace serve",
            )
        )
    if node.unrecorded:
        detail = f"the store cannot record {node.unrecorded:,} outcomes, so nothing else begins"
        holds.append(Hold("storage", detail, None, "free disk space; `headrace doctor` says where"))
    return holds


def _function(facts: FunctionFacts) -> list[Hold]:
    """What holds the function whole: its code, a pause, a closure."""
    holds = []
    if not facts.loaded:
        known = ", ".join(
            f"version {each.version} (served by {each.node} from {iso(each.since)})"
            for each in facts.elsewhere[:SHOWN_MAX]
        )
        detail = f"the code of {facts.name} is not loaded here"
        detail += f"; it is in {known}" if known else "; no version that is kept has it"
        holds.append(Hold("code", detail, None, f"headrace serve with the code that has {facts.name}"))
    if facts.paused:
        holds.append(Hold("paused", f"{facts.name} is paused", None, _resume(facts.name)))
    for closure in facts.closures:
        kind, _, name = closure.name.partition(":")
        reason = f": {closure.reason}" if closure.reason else ""
        do = f"headrace closures open {closure.name}"
        holds.append(Hold("closed", f"the {kind} {name} is closed{reason}", closure.until_at, do))
    return holds


def _limits(facts: FunctionFacts) -> list[Hold]:
    """What holds it now: how much of it runs, and how much of it may."""
    holds = []
    limits, name = facts.limits, facts.name
    most = limits.concurrency
    if most is not None and facts.running >= most:
        holds.append(_concurrency(name, facts.running, most))
    elif facts.held is not None and facts.held.by == "concurrency" and most is not None:
        holds.append(_concurrency(name, max(facts.running, most), most))
    of_flow = facts.flow_limit if facts.flow_limit is not None else limits.key_concurrency
    by_key = facts.held is not None and facts.held.by == "key_concurrency"
    if of_flow is not None and (facts.flow_running >= of_flow or by_key):
        setting = "max_concurrency" if facts.flow_limit is not None else "key_concurrency"
        detail = f"{max(facts.flow_running, of_flow):,} of {of_flow:,} that may run at once of this "
        detail += "job" if facts.flow_limit is not None else "key"
        holds.append(Hold("key_concurrency", detail, None, f"raise {setting} of {name}"))
    if facts.held is not None and facts.held.by == "rate":
        rate = _rate(limits.rate) if limits.rate is not None else "its rate"
        holds.append(Hold("rate", f"{name} begins at most {rate}", facts.held.until, f"raise rate of {name}"))
    return holds


def _rate(per_second: float) -> str:
    """A rate in the unit in which it is at least one."""
    for seconds, unit in ((1, "a second"), (60, "a minute"), (3600, "an hour")):
        if per_second * seconds >= 1 - 1e-9:
            return f"{per_second * seconds:,.6g} {unit}"
    return f"one every {_duration(1 / per_second)}"


def _concurrency(name: str, running: int, most: int) -> Hold:
    do = f"raise reserved_concurrency of {name}"
    if most == 0:
        return Hold("concurrency", f"nothing of {name} may run: its reserved_concurrency is 0", None, do)
    return Hold("concurrency", f"{running:,} of {most:,} that may run at once of {name}", None, do)


def _workers(node: NodeFacts) -> list[Hold]:
    if node.workers == 0 or node.busy < node.workers:
        return []
    shown = ", ".join(
        f"{function} for {_duration(seconds)}" for function, seconds in node.at_work[:SHOWN_MAX]
    )
    more = len(node.at_work) - SHOWN_MAX
    detail = f"all {node.workers:,} workers are busy" if node.workers > 1 else "the one worker is busy"
    if shown:
        detail += f" ({shown}{f' and {more:,} more' if more > 0 else ''})"
    return [Hold("workers", detail, None, "headrace serve --workers with a higher number")]


def _running(facts: InvocationFacts, id: str) -> Hold:
    record = facts.record
    seconds = facts.running_s
    if seconds is None and record.started_at is not None:
        seconds = max(facts.now - record.started_at, 0.0)
    attempt = record.attempts + 1
    where = record.node or facts.node.name
    detail = f"attempt {attempt} of {facts.attempts_max} on {where}"
    until = None
    if seconds is not None:
        detail += f", for {_duration(seconds)}"
        if facts.timeout_s is not None:
            until = facts.now - seconds + facts.timeout_s
    return Hold("running", detail, until, f"headrace invocations cancel {id}")


def _stage(job: Job, counts: dict[int, JobCounts]) -> Hold:
    id = show_id(job.id)
    show = f"headrace job show {id}"
    if job.status == "planning":
        return Hold("planning", "its input is being cut into chunks", None, show)
    chunks = counts.get(0, JobCounts())
    if job.status == "running" and chunks.succeeded + chunks.dead < job.chunks:
        detail = f"{chunks.succeeded + chunks.dead:,} of {job.chunks:,} chunks have ended"
        detail += f", {chunks.running:,} run, {chunks.waiting:,} wait"
        return Hold("chunks", detail, None, f"{show} --chunks")
    above = [count for stage, count in counts.items() if stage > 0]
    left = sum(count.waiting + count.running for count in above)
    steps = "step of the reduce is" if left == 1 else "steps of the reduce are"
    return Hold("chunks", f"all {job.chunks:,} chunks have ended; {left:,} {steps} left", None, show)


def _chunk(record: Record) -> str:
    invocation = record.invocation
    what = {-1: "planning", 0: f"chunk {invocation.index}"}.get(
        invocation.stage, f"step {invocation.index} of reduce level {invocation.stage}"
    )
    return f"Because of {what}, {show_id(invocation.id)}: {shown_error(record.error)}."


def _ended(record: Record, id: str) -> tuple[str, str]:
    error = record.error or {}
    took = ""
    if record.started_at is not None and record.ended_at is not None:
        took = f" after {_duration(max(record.ended_at - record.started_at, 0.0))}"
    attempts = f"{record.attempts:,} attempt{'' if record.attempts == 1 else 's'}"
    when = f" at {iso(record.ended_at)}" if record.ended_at is not None else ""
    if record.status is Status.SUCCEEDED:
        return f"It succeeded{when}, in attempt {record.attempts}{took}.", f"headrace replay {id}"
    if record.status is Status.CANCELLED:
        return f"It was cancelled{when}: {error.get('message') or 'no reason is recorded'}.", ""
    again = (
        f"headrace dead-letters redrive {id}"
        if record.invocation.job is None
        else f"headrace job redrive {show_id(record.invocation.job)}"
    )
    if error.get("code") == "expired":
        return f"It is dead{when}: {shown_error(error)}, after {attempts}.", again
    return f"It is dead{when}, after {attempts}: {shown_error(error)}.", again


# ---- words ----


def _summed(holds: Sequence[Hold], expires_at: float | None) -> str:
    """The first hold is what has to go first; what comes behind it is counted."""
    if not holds:
        return "Nothing holds it: it begins as soon as a worker is free."
    first = holds[0]
    word = first.detail.partition(" ")[0]
    text = first.detail  # a function's name stays as it is written
    if "." not in word:
        text = text[0].upper() + text[1:]
    if first.until is not None:
        text += f", until {iso(first.until)}"
    if len(holds) > 1:
        text += f"; then: {', '.join(dict.fromkeys(hold.by for hold in holds[1:]))}"
    latest = max((hold.until for hold in holds if hold.until is not None), default=None)
    if expires_at is not None and latest is not None and latest > expires_at:
        text += f"; its event expires before that, at {iso(expires_at)}"
    return text + "."


def shown_error(error: dict[str, Any] | None) -> str:
    """A recorded error in one line."""
    if not error:
        return "no error is recorded"
    kind = str(error.get("type") or error.get("code") or "error")
    message = str(error.get("message") or "").splitlines()
    return f"{kind}: {message[0][:300]}".rstrip(".") if message else kind


def iso(moment: float) -> str:
    """A moment, epoch seconds, in ISO 8601 UTC to the second."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def _go(count: int) -> str:
    return "goes" if count == 1 else "go"


def _cancel(facts: InvocationFacts) -> str:
    job = facts.record.invocation.job
    if job is not None:
        return f"headrace job cancel {show_id(job)}"
    return f"headrace invocations cancel {show_id(facts.record.invocation.id)}"


def _resume(function: str) -> str:
    return f"headrace functions resume {function}"


def _pause(function: str) -> str:
    return f"headrace functions pause {function}"
