"""Facts: what the node and its store know of one thing, gathered for `why`.

Imports this room and the rooms below. Every question is bounded: counts stop at `AHEAD_MAX`, lists are short.
"""

from headrace.runtime.api.services import Services
from headrace.runtime.api.why import (
    AHEAD_MAX,
    FunctionFacts,
    Happening,
    InvocationFacts,
    JobFacts,
    NodeFacts,
    ScheduleFacts,
    Why,
    shown_error,
    why_function,
    why_invocation,
    why_job,
    why_schedule,
)
from headrace.runtime.errors import UnknownSubject
from headrace.runtime.model.ids import read_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.job import LIVE, Job
from headrace.runtime.model.limits import NO_LIMITS, key_of, limits_of
from headrace.runtime.store.protocol import ScheduleState

_AT_WORK_MAX = 100


class Facts:
    """Answers `why` for whatever has the name."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def why(self, name: str) -> Why:
        """The answer for an invocation, a job, a schedule or a function. Raises UnknownSubject.

        A schedule has the name `FUNCTION/schedule/NAME`; its own part does where no other has the same.
        """
        store = self._services.store
        id = read_id(name)
        if id is not None:
            record = await store.get(id)
            if record is not None:
                return await self._invocation(record)
            job = await store.job(id)
            if job is not None:
                return await self._job(job)
        if name in self._services.dispatcher.functions:
            return await self._function(name)
        schedules = await store.schedules()
        found = [state for state in schedules if state.name == name] or [
            state for state in schedules if state.name.rpartition("/")[2] == name
        ]
        if len(found) == 1:
            return await self._schedule(found[0])
        if name in await store.counters():
            return await self._function(name)
        raise UnknownSubject(name, [state.name for state in found])

    async def _function(self, name: str) -> Why:
        counters = (await self._services.store.counters()).get(name)
        running = self._services.dispatcher.attempts.by_function().get(name, 0)
        # A short claim is not written: what the pool holds of the waiting ones is running.
        waiting = max(counters.waiting + counters.running - running, 0) if counters is not None else 0
        facts = await self._about_function(name, flow=name, waiting=waiting)
        return why_function(facts, self._node())

    async def _invocation(self, record: Record) -> Why:
        services, invocation = self._services, record.invocation
        dispatcher, now = services.dispatcher, services.clock.now()
        spec = dispatcher.functions.get(invocation.function)
        running_s = dispatcher.attempts.running_s(invocation.id)
        waits = record.status is Status.WAITING and running_s is None
        ahead = above = 0
        if waits and invocation.due_at <= now:
            ahead = await services.store.ahead(invocation, now=now, limit=AHEAD_MAX + 1)
            above = dispatcher.ready_above(invocation.priority, beside=invocation.flow)
        limit = None
        if invocation.job is not None:
            job = await services.store.job(invocation.job)
            limit = job.spec.max_concurrency if job is not None else None
        return why_invocation(
            InvocationFacts(
                record=record,
                function=await self._about_function(
                    invocation.function, flow=invocation.flow, flow_limit=limit, due=waits
                ),
                node=self._node(),
                now=now,
                running_s=running_s,
                timeout_s=spec.timeout_s if spec is not None else None,
                attempts_max=spec.retry.attempts_max if spec is not None else 1,
                ahead=ahead,
                above=above,
                happened=await self._happened(record),
            )
        )

    async def _job(self, job: Job) -> Why:
        store = self._services.store
        counts = await store.job_counts(job.id)
        dead = waiting = None
        for stage in sorted(counts):
            if dead is None and counts[stage].dead:
                found = await store.job_parts(job.id, stage=stage, limit=1, status=Status.DEAD)
                dead = found[0] if found else None
            if waiting is None and counts[stage].waiting and job.status in LIVE:
                # The pool may hold the first ones: the next that does not run is looked at.
                for part in await store.job_parts(job.id, stage=stage, limit=100, status=Status.WAITING):
                    if not self._services.dispatcher.attempts.has(part.invocation.id):
                        waiting = await self._invocation(part)
                        break
        return why_job(JobFacts(job=job, counts=counts, dead=dead, waiting=waiting))

    async def _schedule(self, state: ScheduleState) -> Why:
        services = self._services
        now = services.clock.now()
        found = services.schedules().get(state.name)
        function = found[0].name if found is not None else state.name.partition("/")[0]
        next_at, misfire = None, ""
        running = await services.store.backfills(schedule=state.name, running=True, limit=1)
        if found is not None:
            # It has not fired for what lies between its last moment and now only while it is held up.
            next_at = found[1].next_after(max(now, state.last_due_at or now), anchor=state.anchor)
            misfire = found[1].misfire
        return why_schedule(
            ScheduleFacts(
                state=state,
                function=await self._about_function(function, flow=function, due=False),
                node=self._node(),
                now=now,
                loaded=found is not None,
                next_at=next_at,
                misfire=misfire,
                backfill=running[0] if running else None,
            )
        )

    async def _about_function(
        self,
        name: str,
        *,
        flow: str,
        flow_limit: int | None = None,
        waiting: int = 0,
        due: bool = True,
    ) -> FunctionFacts:
        services = self._services
        store, dispatcher, now = services.store, services.dispatcher, services.clock.now()
        spec = dispatcher.functions.get(name)
        limits = limits_of(spec, shared=True) if spec is not None else NO_LIMITS
        in_claim = limits_of(spec, shared=store.shared) if spec is not None else NO_LIMITS
        names = {f"function:{name}", f"key:{key_of(flow)}" if not flow.startswith("job:") else ""}
        held = None
        # What this node's own gates do not decide is asked of the store, which holds it in the claim.
        if due and in_claim.any:
            held = await store.held_back(flow=flow, function=name, limits=in_claim, now=now)
        return FunctionFacts(
            name=name,
            loaded=spec is not None,
            elsewhere=() if spec is not None else tuple(await services.versions.having(name, now=now)),
            paused=name in await store.paused(),
            closures=tuple(each for each in await store.closures(now=now) if each.name in names),
            limits=limits,
            running=dispatcher.running_of(name),
            flow_running=dispatcher.running_in(flow),
            flow_limit=flow_limit,
            held=held,
            waiting=waiting,
        )

    def _node(self) -> NodeFacts:
        services = self._services
        health = services.health()
        return NodeFacts(
            name=str(health["node"]),
            version=services.manifest.version,
            workers=int(health.get("workers", 0)),
            busy=int(health.get("busy", 0)),
            at_work=tuple(services.dispatcher.attempts.at_work(_AT_WORK_MAX)),
            unready=services.ready(),
            unrecorded=len(services.dispatcher.ends.unrecorded),
        )

    async def _happened(self, record: Record) -> tuple[Happening, ...]:
        """The attempts so far: those that printed are in the logs, the last failed one's error in the
        record.
        """
        services = self._services
        entries = await services.in_thread(services.logs.read, record.invocation.id)
        found = {
            entry.attempt: Happening(attempt=entry.attempt, at=entry.at, outcome=entry.outcome)
            for entry in entries
        }
        last = record.attempts
        if last and (record.error is not None or record.status is Status.SUCCEEDED):
            known = found.get(last)
            outcome = "ok" if record.error is None else str(record.error.get("code") or "error")
            found[last] = Happening(
                attempt=last,
                at=record.ended_at or (known.at if known is not None else None),
                outcome=known.outcome if known is not None else outcome,
                error=shown_error(record.error) if record.error is not None else "",
            )
        return tuple(found[attempt] for attempt in sorted(found))
