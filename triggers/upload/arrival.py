"""Arrival: an object's state that a trigger has been told of, or has found; and what is recorded of it.

Imports the model, the object stores' protocol and the trigger protocol.
"""

from datetime import UTC, datetime
from typing import Protocol

import msgspec

from headrace.runtime.fault import reach
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.model.write import Seen
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import TriggerContext

CREATED = "ObjectCreated:Put"
REMOVED = "ObjectRemoved:Delete"
_LAST_TIME = 253_402_300_799.0  # the end of the year 9999


class Arrival(msgspec.Struct, frozen=True):
    """One state of one object. `name` is the event's, without `s3:`; `listed` says that a listing showed it,
    which knows no order among the states of a key; `source` is the event's `eventSource`.
    """

    info: ObjectInfo
    name: str = CREATED
    listed: bool = False
    source: str = "headrace:folder"

    @property
    def removed(self) -> bool:
        """Whether the object has gone, rather than come."""
        return self.name.startswith("ObjectRemoved")


class Recorder(Protocol):
    """What becomes of arrivals: whoever records them decides which events they make."""

    async def record(self, arrival: Arrival) -> None:
        """Record the ledger's row and all that follows from it, in one step.

        Raises: Duplicate when the ledger had it already; a Retryable error when it is to be offered again.
        """


class EventRecorder:
    """Each arrival is one event."""

    def __init__(self, context: TriggerContext) -> None:
        self._context = context

    async def record(self, arrival: Arrival) -> None:
        event = event_of(arrival)
        reach("ledger.before")
        await self._context.accept([event], [seen(self._context.name, arrival)])
        reach("ledger.after")


def event_of(arrival: Arrival) -> UploadEvent:
    """The event of one arrival, in S3's shape."""
    info = arrival.info
    event = UploadEvent.of(
        info.bucket,
        info.key,
        size=info.size,
        etag=info.etag,
        sequencer=info.sequencer,
        time=iso(info.modified_at),
        name=arrival.name,
        source=arrival.source,
        version_id=info.version_id,
    )
    if arrival.removed:
        del event.record["s3"]["object"]["size"], event.record["s3"]["object"]["eTag"]
    return event


def seen(trigger: str, arrival: Arrival) -> Seen:
    """The ledger's row of one arrival, for the trigger of that name. That of an object that has gone has no
    ETag, and none of its versions: it is a mark against what is told of it late.
    """
    info = arrival.info
    if arrival.removed:
        return Seen(
            trigger=trigger,
            bucket=info.bucket,
            key=info.key,
            etag="",
            size=0,
            sequencer=info.sequencer,
            modified_at=info.modified_at,
            listed=arrival.listed,
        )
    return Seen(
        trigger=trigger,
        bucket=info.bucket,
        key=info.key,
        etag=info.etag,
        size=info.size,
        sequencer=info.sequencer,
        modified_at=info.modified_at,
        listed=arrival.listed,
        version_id=info.version_id or "",
    )


def iso(moment: float) -> str:
    """ISO 8601 UTC, to the millisecond as S3 writes it; a time that no calendar holds becomes the nearest it
    does.
    """
    held = min(max(moment, 0.0), _LAST_TIME)
    return datetime.fromtimestamp(held, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
