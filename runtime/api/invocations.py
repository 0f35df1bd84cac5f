"""`/v1/invocations` and `/v1/logs`: what became of invocations, and how to end them.

Imports this room and the rooms below.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.runtime.api.calls import Calls
from headrace.runtime.api.endpoint import (
    Endpoint,
    answer,
    pieces,
    read_body,
    read_cursor,
    read_limit,
    read_number,
    read_status,
)
from headrace.runtime.api.records import Records
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, UnknownInvocation, WrongState
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Status
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.matching import tagged


class Invocations:
    """The endpoints of invocations and of what they printed."""

    def __init__(self, services: Services, calls: Calls, records: Records) -> None:
        self._services = services
        self._calls = calls
        self._records = records

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/invocations", self.invocations, "read"),
            Endpoint("POST", "/v1/invocations/wait", self.wait, "read", takes_json=True),
            Endpoint("POST", "/v1/invocations/cancel", self.cancel_many, "write"),
            Endpoint("GET", "/v1/invocations/{id}", self.invocation, "read"),
            Endpoint("GET", "/v1/invocations/{id}/payload", self.payload, "read"),
            Endpoint("GET", "/v1/invocations/{id}/code", self.invocation_code, "read"),
            Endpoint("POST", "/v1/invocations/{id}/cancel", self.cancel, "write"),
            Endpoint("GET", "/v1/invocations/{id}/logs", self.invocation_logs, "read"),
            Endpoint("GET", "/v1/logs", self.logs, "read"),
            Endpoint("GET", "/v1/calls/{ticket}", self.call, ""),
        ]

    async def invocations(self, request: Request) -> Response:
        query = request.query_params
        status = read_status(query.get("status"))
        limit = read_limit(query.get("limit"))
        records = await self._services.store.find(
            function=query.get("function"),
            status=status,
            tag=query.get("tag"),
            before=read_cursor(query.get("cursor")),
            limit=limit,
        )
        return answer(self._records.page(records, limit))

    async def wait(self, request: Request) -> Response:
        body = await read_body(request, 1 << 20)
        try:
            return answer(await self._calls.wait(body))
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is wrong: {error}", 'Send {"ids": […], "wait_s": 20}.') from None

    async def cancel_many(self, request: Request) -> Response:
        body = await read_body(request, 1 << 16)
        hint = 'Send {"function": NAME}, {"tag": TAG}, {"job": ID}, or several of these.'
        try:
            asked = msgspec.json.decode(body or b"{}", type=_Cancel)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"the filter is wrong: {error}", hint) from None
        function, tag = asked.function, asked.tag
        if not (function or tag or asked.job):
            raise BadRequest("nothing says what to cancel", hint)
        if tag is not None and (not 1 <= len(tag) <= 1000 or "," in tag):
            raise BadRequest(f"the tag is {tag[:100]!r}", "Give one tag, without a comma.")
        services = self._services
        if function is not None and function not in services.dispatcher.functions:
            if function not in await services.store.counters():  # what is not loaded any more may still wait
                services.dispatcher.spec(function)
        if asked.job is not None:
            job = await services.coordinator.job(asked.job)
            matches = function in (None, job.function) and tagged(job.tags, tag)
            counts = await services.coordinator.cancel_counted(job) if matches else (0, 0)
        else:
            alone = await services.dispatcher.cancelling.cancel_matching(function=function, tag=tag)
            of_jobs = await services.coordinator.cancel_matching(function=function, tag=tag)
            counts = (alone[0] + of_jobs[0], alone[1] + of_jobs[1])
        return answer({"cancelled": counts[0], "stopping": counts[1]}, 202)

    async def invocation(self, request: Request) -> Response:
        text = request.path_params["id"]
        id = read_id(text)
        wait_s = read_number(request.query_params.get("wait_s"), "wait_s")
        record = await self._calls.wait_for(id, wait_s) if id is not None else None
        if record is None:
            raise UnknownInvocation(text)
        shown = self._records.shown(record)
        shown["payload_bytes"] = len(record.invocation.payload)
        if record.result_ref is not None:
            shown["result"] = await self._records.large(record.result_ref)
        if request.query_params.get("payload") == "true":
            shown["payload"] = msgspec.Raw(record.invocation.payload or b"null")
            shown["payload_ref"] = record.invocation.payload_ref
        return answer(shown)

    async def call(self, request: Request) -> Response:
        """What the caller of an asynchronous route may know of its invocation, by its ticket."""
        ticket = request.path_params["ticket"]
        id = self._services.tickets.read(ticket)
        wait_s = read_number(request.query_params.get("wait_s"), "wait_s")
        record = await self._calls.wait_for(id, wait_s) if id is not None else None
        if record is None:
            raise UnknownInvocation(ticket.partition(".")[0])
        seen = self._records.shown(record)
        shown = {name: seen[name] for name in ("invocation_id", "status", "attempts", "accepted_at")}
        if record.status is Status.SUCCEEDED:
            shown["result"] = (
                await self._records.large(record.result_ref) if record.result_ref else seen["result"]
            )
        elif record.status.ended:
            error = record.error or {}
            shown["error"] = {"code": error.get("code", "cancelled"), "message": error.get("message", "")}
        headers = {"cache-control": "no-store", **({} if record.status.ended else {"retry-after": "1"})}
        answered = answer(shown)
        answered.headers.update(headers)
        return answered

    async def payload(self, request: Request) -> Response:
        """The event as it was recorded, streamed: it may be an object of any size."""
        record = await self._records.record(request.path_params["id"])
        invocation, services = record.invocation, self._services
        if invocation.payload_ref is None:
            return Response(invocation.payload or b"null", media_type="application/json")
        bucket, key = parse_object_url(invocation.payload_ref)
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key)
        reader = await services.in_thread(services.objects.open, bucket, key, if_match=info.etag)
        headers = {"content-length": str(info.size)}
        return StreamingResponse(
            pieces(reader, services.in_thread), media_type="application/json", headers=headers
        )

    async def invocation_code(self, request: Request) -> Response:
        """Which version of the code ran its last attempt, and whether that is kept."""
        record = await self._records.record(request.path_params["id"])
        services = self._services
        found = await services.versions.that_ran(record, now=services.clock.now())
        about = await services.versions.about(found.version) if found is not None else None
        shown: dict[str, Any] = {"version": None, "node": None, "since": None, "kept": False, "note": ""}
        if found is not None:
            shown |= {"version": found.version, "node": found.node, "since": found.since}
        if about is not None:
            kept = {"kept": about.kept, "note": about.note, "code_bytes": about.code_bytes}
            shown |= {"python": about.python, "cloudpickle": about.cloudpickle, "headrace": about.headrace}
            shown |= {**kept, "functions": about.functions}
        return answer(shown)

    async def cancel(self, request: Request) -> Response:
        text = request.path_params["id"]
        id = read_id(text)
        record = await self._services.store.get(id) if id is not None else None
        if id is None or record is None:
            raise UnknownInvocation(text)
        if record.status.ended:
            raise WrongState(f"invocation {text}", record.status.name.lower(), "be cancelled")
        await self._services.dispatcher.cancelling.cancel(id)
        return answer({"invocation_id": show_id(id), "cancelling": True}, 202)

    async def invocation_logs(self, request: Request) -> Response:
        text = request.path_params["id"]
        id = read_id(text)
        if id is None:
            raise UnknownInvocation(text)
        services = self._services
        entries = await services.in_thread(services.logs.read, id)
        shown = [
            {
                "attempt": entry.attempt,
                "at": entry.at,
                "outcome": entry.outcome,
                "text": entry.output.decode("utf-8", "replace"),
                "bytes": entry.total_bytes,
            }
            for entry in entries
        ]
        running = services.dispatcher.attempts.output(id)
        if running:
            shown.append(
                {
                    "attempt": len(shown) + 1,
                    "at": services.clock.now(),
                    "outcome": "running",
                    "text": running.decode("utf-8", "replace"),
                    "bytes": len(running),
                }
            )
        if not shown and await services.store.get(id) is None:
            raise UnknownInvocation(text)
        return answer({"entries": shown})

    async def logs(self, request: Request) -> Response:
        services, query = self._services, request.query_params
        limit = read_limit(query.get("limit"))
        wait_s = min(read_number(query.get("wait_s"), "wait_s"), services.limits.wait_s)
        deadline = services.clock.monotonic() + wait_s
        text = query.get("after") or ""
        if text and not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise BadRequest(f"after is {text!r}", "Use the `next` of the answer before.")
        after = int(text) if text else None
        while True:
            entries, position = await services.in_thread(
                services.logs.tail, function=query.get("function"), after_position=after, limit=limit
            )
            if entries or services.clock.monotonic() >= deadline:
                break
            after = position
            await services.clock.sleep(0.1)
        shown = [
            {
                "invocation_id": show_id(entry.invocation_id),
                "function": entry.function,
                "attempt": entry.attempt,
                "at": entry.at,
                "outcome": entry.outcome,
                "text": entry.output.decode("utf-8", "replace"),
            }
            for entry in entries
        ]
        return answer({"entries": shown, "next": str(position)})


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """What is cancelled: of a function, with a tag, of a job; all that is given must hold."""

    function: str | None = None
    tag: str | None = None
    job: str | None = None
