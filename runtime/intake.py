"""Intake: what triggers hand in, recorded together with their own writes.

Imports the rooms below it: a function's event becomes an invocation, a job's one a job.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import UnknownInvocation, WrongState
from headrace.runtime.jobs.coordinator import Coordinator
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.model.ids import Ids, read_id, show_id
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Fired, Write
from headrace.runtime.queue.burying import bury
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.store.protocol import Store
from headrace.runtime.trigger import FeedsJobs, Timed, Trigger


class Intake:
    """Accepts events of triggers. `version` is that of the code that jobs are submitted with, `node` this
    node's name in claims.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        coordinator: Coordinator,
        *,
        ids: Ids,
        clock: Clock,
        version: Callable[[], str],
        node: Callable[[], str],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._coordinator = coordinator
        self._ids = ids
        self._clock = clock
        self._version = version
        self._node = node

    async def accept(
        self,
        spec: FunctionSpec,
        trigger: Trigger | Timed,
        events: Sequence[Mapping[str, Any]],
        writes: Sequence[Write],
    ) -> list[str]:
        """Record a trigger's events and its own writes in one step; the ids of what was accepted."""
        if not events:
            for applied in await self._store.apply(writes, now=self._clock.now()) if writes else ():
                if applied.refused is not None:
                    raise applied.refused
            return []
        if spec.job is not None:
            ids = [self._ids.next() for _ in events]
            _name_subject(writes, ids[0])
            inputs = [_job_input(spec, trigger, event) for event in events]
            return await self._coordinator.submit_all(
                spec.name, inputs, ids=ids, before=writes, version=self._version()
            )
        puts = [
            self._dispatcher.prepare(spec.name, msgspec.json.encode(event), source=trigger.kind)
            for event in events
        ]
        _name_subject(writes, puts[0].invocation.id)
        await self._dispatcher.accept(puts, before=writes)
        return [show_id(put.invocation.id) for put in puts]

    async def bury(
        self,
        spec: FunctionSpec,
        trigger: Trigger,
        event: Mapping[str, Any],
        error: Mapping[str, Any],
        writes: Sequence[Write],
    ) -> str:
        """Record an event that shall not run as a dead letter, with the trigger's own writes, in one step."""
        if spec.job is not None:
            given = _job_input(spec, trigger, event)
            return await self._coordinator.submit_failed(
                spec.name, given, error=error, before=writes, version=self._version()
            )
        return await bury(
            self._dispatcher,
            spec,
            msgspec.json.encode(event),
            error=error,
            node=self._node(),
            source=trigger.kind,
            clock=self._clock,
            before=writes,
        )

    async def cancel(self, id: str) -> None:
        """End an invocation or a job, unless it has ended."""
        number = read_id(id)
        assert number is not None
        with contextlib.suppress(WrongState, UnknownInvocation):
            if await self._store.job(number) is not None:
                await self._coordinator.cancel(id)
            else:
                await self._dispatcher.cancelling.cancel(number)


def _name_subject(writes: Sequence[Write], id: int) -> None:
    """What a schedule fires is remembered with the instant."""
    for write in writes:
        if isinstance(write, Fired):
            write.subject = id


def _job_input(spec: FunctionSpec, trigger: object, event: Mapping[str, Any]) -> dict[str, Any]:
    """What a trigger's event gives to a job: what the trigger says, an upload's object, or the event itself
    as the only item.
    """
    if isinstance(trigger, FeedsJobs):
        return dict(trigger.job_input(event))
    if "Records" in event:
        found = UploadEvent(event)
        return {"object": f"s3://{found.bucket}/{found.key}"}
    given = event.get("detail")  # what a schedule was given as its input
    if not given:
        inputs = (trigger.fields.get("input") for trigger in spec.triggers if "detail" not in event)
        given = next((each for each in inputs if each is not None), None)
    if given is None or given == {}:
        return {"items": [dict(event)]}
    return {"object": given} if isinstance(given, str) else {"items": given}
