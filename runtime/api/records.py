"""Records: invocations as the API finds and shows them.

Imports this room and the rooms below.
"""

from typing import Any

import msgspec

from headrace.runtime.api.answers import shown_record
from headrace.runtime.api.services import Services
from headrace.runtime.errors import UnknownInvocation
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Record
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.url import parse_object_url

ANSWER_BYTES_MAX = 64 << 20


class Records:
    """Invocations as the API finds and shows them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def record(self, text: str) -> Record:
        id = read_id(text)
        record = await self._services.store.get(id) if id is not None else None
        if record is None:
            raise UnknownInvocation(text)
        return record

    async def large(self, ref: str) -> Any:
        """A result that lies in the object store, as long as it fits into an answer; None otherwise."""
        services = self._services
        bucket, key = parse_object_url(ref)
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key)
        if info.size > ANSWER_BYTES_MAX:
            return None
        return msgspec.Raw(await services.in_thread(services.objects.get, bucket, key))

    def shown(self, record: Record) -> dict[str, Any]:
        dispatcher, id = self._services.dispatcher, record.invocation.id
        shown = shown_record(record, running=dispatcher.attempts.has(id))
        shown["progress"] = dispatcher.attempts.progress_of(id)
        return shown

    def page(self, records: list[Record], limit: int) -> dict[str, Any]:
        last = show_id(records[-1].invocation.id) if len(records) == limit else None
        return {"items": [self.shown(record) for record in records], "next_cursor": last}
