"""Arrival: an object's state that a trigger has been told of, or has found; and what is recorded of it.

Imports the model, the object stores' protocol and the trigger protocol.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import msgspec

from headrace.runtime.errors import NoSuchObject
from headrace.runtime.fault import reach
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.model.write import Seen
from headrace.runtime.objects.protocol import ObjectInfo, Tagged
from headrace.runtime.objects.trail import EVENT, UploadLoop, read_trail
from headrace.runtime.objects.trail import NAME as TRAIL
from headrace.runtime.trigger import TriggerContext

if TYPE_CHECKING:
    from headrace.triggers.upload.trigger import Upload

CREATED = "ObjectCreated:Put"
REMOVED = "ObjectRemoved:Delete"
_OWN = "headrace-"
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
    """Each arrival is one event, with what its trigger asks for beside."""

    def __init__(self, trigger: "Upload", context: TriggerContext) -> None:
        self._trigger, self._context = trigger, context

    async def record(self, arrival: Arrival) -> None:
        arrival = await self._completed(arrival)
        event, row = event_of(arrival), seen(self._context.name, arrival)
        if not arrival.removed:
            await self._add(event, arrival.info)
            trail = read_trail((arrival.info.metadata or {}).get(TRAIL))
            if trail is not None:
                event[EVENT] = {"hops": trail.hops, "functions": trail.functions}
                if trail.hops > self._trigger.max_hops:
                    error = UploadLoop(
                        event.url, trail.hops, trail.then(self._context.function.name).functions
                    )
                    detail = {"code": error.code, "message": str(error), "hint": error.hint, "final": True}
                    await self._context.bury(event, detail, [row])
                    return
        reach("ledger.before")
        await self._context.accept([event], [row])
        reach("ledger.after")

    async def _completed(self, arrival: Arrival) -> Arrival:
        """The arrival with the object's metadata, which a listing does not tell."""
        info = arrival.info
        if info.metadata is not None or arrival.removed:
            return arrival
        try:
            found = await self._context.in_thread(
                self._context.objects.head, info.bucket, info.key, version_id=info.version_id
            )
        except NoSuchObject:  # it has gone since, and had its moment
            return arrival
        whole = msgspec.structs.replace(info, metadata=found.metadata or {}, content_type=found.content_type)
        return msgspec.structs.replace(arrival, info=whole)

    async def _add(self, event: UploadEvent, info: ObjectInfo) -> None:
        """What the event has beside S3's own."""
        about = event.record["s3"]["object"]
        if self._trigger.metadata:
            given = info.metadata or {}
            about["userMetadata"] = {n: text for n, text in given.items() if not n.startswith(_OWN)}
            if info.content_type is not None:
                about["contentType"] = info.content_type
        if self._trigger.tags:
            about["tags"] = await self._tags(info)

    async def _tags(self, info: ObjectInfo) -> dict[str, str]:
        objects = self._context.objects
        if not isinstance(objects, Tagged):
            return {}
        try:
            return await self._context.in_thread(  # type: ignore[no-any-return]
                objects.tags, info.bucket, info.key, version_id=info.version_id
            )
        except NoSuchObject:
            return {}


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
