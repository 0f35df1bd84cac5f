"""`/v1/dead-letters`: browse, edit, redrive and discard what will not be tried again by itself.

Imports this room and the rooms below.
"""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.runtime.api.calls import Calls
from headrace.runtime.api.endpoint import Endpoint, answer, read_body, read_cursor, read_limit, read_number
from headrace.runtime.api.records import Records
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, PayloadTooLarge, UnknownInvocation, WrongState
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.write import Discard, Redrive
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.matching import tagged

IDS_MAX = 10_000
PAGE = 500
LOOKED_MAX = 5_000
"""Dead letters that one call looks at, for those of an error code or a time."""


class DeadLetters:
    """The endpoints of dead letters."""

    def __init__(self, services: Services, calls: Calls, records: Records) -> None:
        self._services = services
        self._calls = calls
        self._records = records

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/dead-letters", self.dead_letters, "read"),
            Endpoint("POST", "/v1/dead-letters/redrive", self.redrive_many, "write"),
            Endpoint("GET", "/v1/dead-letters/{id}", self.dead_letter, "read"),
            Endpoint("POST", "/v1/dead-letters/{id}/redrive", self.redrive, "write"),
            Endpoint("POST", "/v1/dead-letters/{id}/discard", self.discard, "write"),
        ]

    async def dead_letters(self, request: Request) -> Response:
        query = request.query_params
        limit = read_limit(query.get("limit"))
        since = read_number(query.get("since"), "since", below=1e12) if query.get("since") else None
        asked = _Filter(query.get("function"), query.get("code"), query.get("tag"), since)
        records, cursor = await self._dead(asked, read_cursor(query.get("cursor")), limit)
        items = [self._shown_dead(record) for record in records]
        return answer({"items": items, "next_cursor": show_id(cursor) if cursor is not None else None})

    async def redrive_many(self, request: Request) -> Response:
        body = await read_body(request, 1 << 20)
        try:
            asked = msgspec.json.decode(body, type=_Filter) if body else _Filter()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            hint = 'Send {} for all, {"function": NAME}, {"code": …}, {"tag": …}, {"since": …}, {"ids": […]}.'
            raise BadRequest(f"the filter is wrong: {error}", hint) from None
        done = skipped = 0
        before: int | None = None
        while done < asked.limit:
            records, before = await self._dead(asked, before, 500)
            free = [record for record in records if record.invocation.job is None]
            known = [one for one in free if one.invocation.function in self._services.dispatcher.functions]
            skipped += len(free) - len(known)
            done += await self._redrive_all(known[: asked.limit - done])
            if before is None:
                break
        shown: dict[str, Any] = {"redriven": done}
        if skipped:
            shown["skipped"] = skipped
        return answer(shown, 202)

    async def dead_letter(self, request: Request) -> Response:
        return answer(self._shown_dead(await self._dead_record(request, "be shown as a dead letter")))

    async def redrive(self, request: Request) -> Response:
        body = await read_body(request, self._services.limits.async_body_bytes + 1024)
        try:
            asked = msgspec.json.decode(body or b"{}", type=_Edit)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is wrong: {error}", 'Send {"payload": …}, or nothing.') from None
        record = await self._dead_record(request, "be redriven")
        payload = None if asked.payload is msgspec.UNSET else bytes(asked.payload)
        limit = self._services.limits.async_body_bytes
        if payload is not None and len(payload) > limit:
            raise PayloadTooLarge(len(payload), limit)
        await self._redrive(record, payload)
        return answer({"invocation_id": show_id(record.invocation.id), "status": "waiting"}, 202)

    async def discard(self, request: Request) -> Response:
        record = await self._dead_record(request, "be discarded")
        _check_alone(record, "be discarded alone")
        services, id = self._services, record.invocation.id
        [applied] = await services.store.apply([Discard(id)], now=services.clock.now())
        if applied.refused is not None:
            raise applied.refused
        self._calls.recent.drop(id)
        return answer({"invocation_id": show_id(id), "status": "cancelled"}, 202)

    async def _dead(
        self, asked: "_Filter", before: int | None, limit: int
    ) -> tuple[list[Record], int | None]:
        """Up to `limit` dead letters, newest first, with ids below `before`; and where to go on, None at the
        end. What is looked at in one call is bounded: there may be fewer although more follow.
        """
        store = self._services.store
        if asked.ids is not None:
            numbers = [number for text in asked.ids if (number := read_id(text)) is not None]
            found = [one for one in await store.ended(numbers[:IDS_MAX]) if one.status is Status.DEAD]
            return [one for one in found if asked.has(one)], None
        records: list[Record] = []
        looked = 0
        while len(records) < limit and looked < LOOKED_MAX:
            size = limit - len(records) if asked.code is None and asked.since is None else PAGE
            page = await store.find(
                function=asked.function, status=Status.DEAD, tag=asked.tag, before=before, limit=size
            )
            looked += len(page)
            for record in page:
                before = record.invocation.id
                if asked.has(record):
                    records.append(record)
                    if len(records) == limit:
                        return records, before
            if len(page) < size:
                return records, None
        return records, before

    async def _dead_record(self, request: Request, what: str) -> Record:
        text = request.path_params["id"]
        id = read_id(text)
        record = await self._services.store.get(id) if id is not None else None
        if record is None:
            raise UnknownInvocation(text)
        if record.status is not Status.DEAD:
            raise WrongState(f"invocation {text}", record.status.name.lower(), what)
        return record

    def _shown_dead(self, record: Record) -> dict[str, Any]:
        shown = self._records.shown(record)
        shown["payload"] = msgspec.Raw(record.invocation.payload or b"null")
        shown["payload_ref"] = record.invocation.payload_ref
        return shown

    async def _redrive(self, record: Record, payload: bytes | None = None) -> None:
        """Put it back to waiting, with another payload when one is given."""
        services, invocation = self._services, record.invocation
        _check_alone(record, "be redriven alone")
        write = self._redriving(record)
        if payload is not None:
            write.payload_ref = await self._calls.offload(payload)
            write.payload = b"" if write.payload_ref is not None else payload
        [applied] = await services.store.apply([write], now=write.due_at)
        replaced = invocation.payload_ref if payload is not None else None
        if applied.refused is not None:
            replaced = write.payload_ref
        if replaced is not None and replaced.startswith(f"s3://{SYSTEM_BUCKET}/"):
            await services.in_thread(services.objects.delete, *parse_object_url(replaced))
        if applied.refused is not None:
            raise applied.refused
        self._redriven(record)

    async def _redrive_all(self, records: list[Record]) -> int:
        """Put all of them back in one step, or each by itself when one is not dead any more; how many."""
        if not records:
            return 0
        services = self._services
        writes = [self._redriving(record) for record in records]
        answers = await services.store.apply(writes, now=services.clock.now())
        if answers[0].refused is not None:
            answers = [(await services.store.apply([write], now=services.clock.now()))[0] for write in writes]
        done = 0
        for record, applied in zip(records, answers, strict=True):
            if applied.refused is None:
                self._redriven(record)
                done += 1
        return done

    def _redriving(self, record: Record) -> Redrive:
        services = self._services
        now = services.clock.now()
        spec = services.dispatcher.spec(record.invocation.function)
        return Redrive(record.invocation.id, now, now + spec.max_age_s)

    def _redriven(self, record: Record) -> None:
        self._calls.recent.drop(record.invocation.id)
        self._services.dispatcher.wake(record.invocation.flow, record.invocation.function)


class _Filter(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters are meant: of a function, with an error code, with a tag, dead at `since` (UTC epoch
    seconds) or later, of these ids; and how many are redriven at the most.
    """

    function: str | None = None
    code: str | None = None
    tag: str | None = None
    since: float | None = None
    ids: frozenset[str] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] = 10_000

    def has(self, record: Record) -> bool:
        """Whether a dead invocation is meant."""
        return (
            self.function in (None, record.invocation.function)
            and (self.code is None or (record.error or {}).get("code") == self.code)
            and (self.since is None or (record.ended_at or 0.0) >= self.since)
            and tagged(record.invocation.tags, self.tag)
        )


class _Edit(msgspec.Struct, forbid_unknown_fields=True):
    """Another payload for a dead letter, when there is one."""

    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _check_alone(record: Record, what: str) -> None:
    invocation = record.invocation
    if invocation.job is not None:
        raise WrongState(
            f"invocation {show_id(invocation.id)}",
            "a chunk of a job",
            f"{what}; use `headrace job redrive {show_id(invocation.job)}`",
        )
