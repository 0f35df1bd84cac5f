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
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.store.protocol import Store


class Intake:
    """Accepts events of triggers; `version` is that of the code that jobs are submitted with."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        coordinator: Coordinator,
        *,
        ids: Ids,
        clock: Clock,
        version: Callable[[], str],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._coordinator = coordinator
        self._ids = ids
        self._clock = clock
        self._version = version

    async def accept(
        self, spec: FunctionSpec, kind: str, events: Sequence[Mapping[str, Any]], writes: Sequence[Write]
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
            return [
                await self._coordinator.submit(
                    spec.name,
                    _job_input(spec, event),
                    before=writes if at == 0 else (),
                    version=self._version(),
                    id=id,
                )
                for at, (id, event) in enumerate(zip(ids, events, strict=True))
            ]
        puts = [
            self._dispatcher.prepare(spec.name, msgspec.json.encode(event), source=kind) for event in events
        ]
        _name_subject(writes, puts[0].invocation.id)
        await self._dispatcher.accept(puts, before=writes)
        return [show_id(put.invocation.id) for put in puts]

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


def _job_input(spec: FunctionSpec, event: Mapping[str, Any]) -> dict[str, Any]:
    """What a trigger's event gives to a job: an upload's object, or the event itself as the only item."""
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
