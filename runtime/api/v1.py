"""`/v1`: everything else that clients ask, on Starlette's routing.

Imports this room and the rooms below. Each endpoint names the scope that it needs.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from headrace.runtime.api.answers import send_error, shown_record
from headrace.runtime.api.calls import Calls, job_input
from headrace.runtime.api.facts import Facts
from headrace.runtime.api.services import Services
from headrace.runtime.errors import (
    BadRequest,
    Forbidden,
    HeadraceError,
    PayloadTooLarge,
    UnknownInvocation,
    UnknownVersion,
    WrongState,
)
from headrace.runtime.model.audit import ENDS
from headrace.runtime.model.destination import shown_destination
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.job import ENDED
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Discard, Redrive
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.matching import tagged
from headrace.runtime.store.verify import NAMED_MAX, Verifier

Endpoint = Callable[[Request], Awaitable[Response]]
PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
ANSWER_BYTES_MAX = 64 << 20
IDS_MAX = 10_000
PAGE = 500
LOOKED_MAX = 5_000
"""Dead letters that one call looks at, for those of an error code or a time."""
NAMED_LIMIT_MAX = 10_000


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


class Api:
    """The endpoints of `/v1` but the calls of functions."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._services = services
        self._calls = calls
        self._verifier: Verifier | None = None
        self._facts = Facts(services)

    @property
    def verifier(self) -> Verifier:
        """What verifies the node's store and objects, and remembers the last verdict."""
        if self._verifier is None:
            of = self._services
            self._verifier = Verifier(of.store, of.objects, clock=of.clock, in_thread=of.in_thread)
        return self._verifier

    def app(self) -> Starlette:
        """All of them as one application."""
        on = self._on
        routes = [
            on("GET", "/v1/invocations", self.invocations, "read"),
            on("POST", "/v1/invocations/wait", self.wait, "read"),
            on("POST", "/v1/invocations/cancel", self.cancel_many, "write"),
            on("GET", "/v1/invocations/{id}", self.invocation, "read"),
            on("GET", "/v1/invocations/{id}/payload", self.payload, "read"),
            on("GET", "/v1/invocations/{id}/code", self.invocation_code, "read"),
            on("POST", "/v1/invocations/{id}/cancel", self.cancel, "write"),
            on("GET", "/v1/invocations/{id}/logs", self.invocation_logs, "read"),
            on("GET", "/v1/logs", self.logs, "read"),
            on("GET", "/v1/stats", self.stats, "read"),
            on("GET", "/v1/verify", self.verify, "read"),
            on("GET", "/v1/functions", self.functions, "read"),
            on("GET", "/v1/functions/{name}", self.function, "read"),
            on("POST", "/v1/functions/{name}/pause", self.pause, "write"),
            on("POST", "/v1/functions/{name}/resume", self.resume, "write"),
            on("GET", "/v1/closures", self.closures, "read"),
            on("POST", "/v1/closures/{name:path}/open", self.open, "write"),
            on("DELETE", "/v1/closures/{name:path}", self.open, "write"),
            on("GET", "/v1/dead-letters", self.dead_letters, "read"),
            on("POST", "/v1/dead-letters/redrive", self.redrive_many, "write"),
            on("GET", "/v1/dead-letters/{id}", self.dead_letter, "read"),
            on("POST", "/v1/dead-letters/{id}/redrive", self.redrive, "write"),
            on("POST", "/v1/dead-letters/{id}/discard", self.discard, "write"),
            on("POST", "/v1/jobs", self.submit_job, "invoke"),
            on("GET", "/v1/jobs", self.jobs, "read"),
            on("GET", "/v1/jobs/{id}", self.job, "read"),
            on("GET", "/v1/jobs/{id}/chunks", self.chunks, "read"),
            on("GET", "/v1/jobs/{id}/events", self.job_events, "read"),
            on("POST", "/v1/jobs/{id}/cancel", self.cancel_job, "write"),
            on("POST", "/v1/jobs/{id}/redrive", self.redrive_job, "write"),
            on("GET", "/v1/buckets", self.buckets, "read"),
            on("PUT", "/v1/buckets/{bucket}", self.make_bucket, "write"),
            on("GET", "/v1/objects/{bucket}", self.list_objects, "read"),
            on("GET", "/v1/objects/{bucket}/{key:path}", self.get_object, "read"),
            on("HEAD", "/v1/objects/{bucket}/{key:path}", self.get_object, "read"),
            on("PUT", "/v1/objects/{bucket}/{key:path}", self.put_object, "write"),
            on("DELETE", "/v1/objects/{bucket}/{key:path}", self.delete_object, "write"),
            on("GET", "/v1/schedules", self.schedules, "read"),
            on("GET", "/v1/why/{id:path}", self.why, "read"),
            on("GET", "/v1/code/{version}", self.code, "code"),
            on("GET", "/v1/node", self.node, "read"),
        ]
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: _http_error, Exception: _failed},
        )

    def _on(self, method: str, path: str, endpoint: Endpoint, scope: str) -> Route:
        access = self._services.access
        takes_json = method == "POST" and endpoint in (self.wait, self.submit_job)

        async def checked(request: Request) -> Response:
            try:
                access.check(request.headers.get("authorization"), scope)
                if takes_json and "json" not in request.headers.get("content-type", ""):
                    raise BadRequest("the content type is not JSON", "Send content-type: application/json.")
                return await endpoint(request)
            except HeadraceError as error:
                return _error(error)

        return Route(path, checked, methods=[method])

    # ---- invocations ----

    async def invocations(self, request: Request) -> Response:
        query = request.query_params
        status = _status(query.get("status"))
        limit = _limit(query.get("limit"))
        records = await self._services.store.find(
            function=query.get("function"),
            status=status,
            tag=query.get("tag"),
            before=_cursor(query.get("cursor")),
            limit=limit,
        )
        return answer(self._page(records, limit))

    async def invocation(self, request: Request) -> Response:
        text = request.path_params["id"]
        id = read_id(text)
        wait_s = _number(request.query_params.get("wait_s"), "wait_s")
        record = await self._calls.wait_for(id, wait_s) if id is not None else None
        if record is None:
            raise UnknownInvocation(text)
        shown = self._shown(record)
        shown["payload_bytes"] = len(record.invocation.payload)
        if record.result_ref is not None:
            shown["result"] = await self._large(record.result_ref)
        if request.query_params.get("payload") == "true":
            shown["payload"] = msgspec.Raw(record.invocation.payload or b"null")
            shown["payload_ref"] = record.invocation.payload_ref
        return answer(shown)

    async def payload(self, request: Request) -> Response:
        """The event as it was recorded, streamed: it may be an object of any size."""
        record = await self._record(request.path_params["id"])
        invocation, services = record.invocation, self._services
        if invocation.payload_ref is None:
            return Response(invocation.payload or b"null", media_type="application/json")
        bucket, key = parse_object_url(invocation.payload_ref)
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key)
        reader = await services.in_thread(services.objects.open, bucket, key, if_match=info.etag)
        headers = {"content-length": str(info.size)}
        return StreamingResponse(self._pieces(reader), media_type="application/json", headers=headers)

    async def invocation_code(self, request: Request) -> Response:
        """Which version of the code ran its last attempt, and whether that is kept."""
        record = await self._record(request.path_params["id"])
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

    async def code(self, request: Request) -> Response:
        version = request.path_params["version"]
        about = await self._services.versions.about(version)
        if about is None or not about.kept:
            raise UnknownVersion(version, about.note if about is not None else "")
        data = await self._services.versions.zipped(version)
        headers = {"content-disposition": f'attachment; filename="{about.version}.zip"'}
        return Response(data, media_type="application/zip", headers=headers)

    async def why(self, request: Request) -> Response:
        return answer(await self._facts.why(request.path_params["id"]))

    async def wait(self, request: Request) -> Response:
        body = await _body(request, 1 << 20)
        try:
            return answer(await self._calls.wait(body))
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is wrong: {error}", 'Send {"ids": […], "wait_s": 20}.') from None

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

    async def cancel_many(self, request: Request) -> Response:
        body = await _body(request, 1 << 16)
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
        limit = _limit(query.get("limit"))
        wait_s = min(_number(query.get("wait_s"), "wait_s"), services.limits.wait_s)
        deadline = services.clock.monotonic() + wait_s
        text = query.get("after") or ""
        if text and not text.isdigit():
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

    # ---- functions ----

    async def stats(self, request: Request) -> Response:
        return answer(await self.books())

    async def books(self) -> dict[str, Any]:
        """The books of every function and in all, with the synchronous calls beside them."""
        services = self._services
        counters = await services.store.counters()
        running = services.dispatcher.attempts.by_function()
        now = services.clock.now()
        functions: dict[str, dict[str, Any]] = {}
        names = {*counters, *services.dispatcher.functions, *services.dispatcher.sync}
        for name in sorted(names):
            found = counters.get(name)
            entry = {
                key: getattr(found, key) if found is not None else 0
                for key in (
                    "accepted",
                    "waiting",
                    "running",
                    "succeeded",
                    "dead",
                    "cancelled",
                    "deduplicated",
                )
            }
            entry["removed"] = {
                end: getattr(found, f"removed_{end}") if found is not None else 0 for end in ENDS
            }
            # A short claim is not written: what the pool holds of the waiting ones is running.
            unwritten = min(max(running.get(name, 0) - entry["running"], 0), entry["waiting"])
            entry["waiting"] -= unwritten
            entry["running"] += unwritten
            entry["throttled"] = services.dispatcher.throttled.get(name, 0)
            oldest = found.oldest_accepted_at if found is not None else None
            entry["oldest_waiting_s"] = (
                max(now - oldest, 0.0) if oldest is not None and entry["waiting"] else 0.0
            )
            sync = services.dispatcher.sync.get(name)
            entry["sync"] = (
                msgspec.to_builtins(sync)
                if sync is not None
                else {
                    "invoked": 0,
                    "succeeded": 0,
                    "failed": 0,
                    "throttled": 0,
                }
            )
            functions[name] = entry
        total: dict[str, Any] = {}
        for entry in functions.values():
            for key, value in entry.items():
                if isinstance(value, dict):
                    at = total.setdefault(key, {})
                    for name, count in value.items():
                        at[name] = at.get(name, 0) + count
                elif key == "oldest_waiting_s":
                    total[key] = max(total.get(key, 0.0), value)
                else:
                    total[key] = total.get(key, 0) + value
        return {"total": total, "functions": functions}

    async def verify(self, request: Request) -> Response:
        query = request.query_params
        objects = query.get("objects") or "true"
        if objects not in ("true", "false"):
            raise BadRequest(f"objects is {objects!r}", "It is true or false.")
        text = query.get("limit") or str(NAMED_MAX)
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= NAMED_LIMIT_MAX:
            raise BadRequest(f"limit is {text!r}", f"It must be a whole number, 1 to {NAMED_LIMIT_MAX:,}.")
        verdict = await self.verifier.verify(
            function=query.get("function"), objects=objects == "true", limit=int(text)
        )
        return answer(verdict.document())

    async def functions(self, request: Request) -> Response:
        manifest = self._services.manifest
        paused = self._services.dispatcher.paused
        return answer(
            {
                "version": manifest.version,
                "functions": [
                    _shown_spec(spec, paused)
                    for spec in manifest.functions
                    if not spec.name.startswith("headrace.")
                ],
                "errors": msgspec.to_builtins(manifest.errors),
            }
        )

    async def function(self, request: Request) -> Response:
        spec = self._services.dispatcher.spec(request.path_params["name"])
        paused = self._services.dispatcher.paused
        shown = _shown_spec(spec, paused)
        shown["parameters"] = spec.parameters
        shown["version"] = self._services.manifest.version
        return answer(shown)

    async def pause(self, request: Request) -> Response:
        await self._services.dispatcher.pause(request.path_params["name"], paused=True)
        return answer({"function": request.path_params["name"], "paused": True})

    async def resume(self, request: Request) -> Response:
        await self._services.dispatcher.pause(request.path_params["name"], paused=False)
        return answer({"function": request.path_params["name"], "paused": False})

    # ---- closures ----

    async def closures(self, request: Request) -> Response:
        services = self._services
        found = await services.store.closures(now=services.clock.now())
        return answer({"items": msgspec.to_builtins(found)})

    async def open(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name.startswith(("function:", "key:")):
            raise BadRequest(f"{name!r} is no closure's name", "Use function:NAME or key:KEY.")
        await self._services.dispatcher.open(name)
        return answer({"name": name, "open": True})

    # ---- dead letters ----

    async def dead_letters(self, request: Request) -> Response:
        query = request.query_params
        limit = _limit(query.get("limit"))
        since = _number(query.get("since"), "since", below=1e12) if query.get("since") else None
        asked = _Filter(query.get("function"), query.get("code"), query.get("tag"), since)
        records, cursor = await self._dead(asked, _cursor(query.get("cursor")), limit)
        items = [self._shown_dead(record) for record in records]
        return answer({"items": items, "next_cursor": show_id(cursor) if cursor is not None else None})

    async def dead_letter(self, request: Request) -> Response:
        return answer(self._shown_dead(await self._dead_record(request, "be shown as a dead letter")))

    async def redrive(self, request: Request) -> Response:
        body = await _body(request, self._services.limits.async_body_bytes + 1024)
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

    async def redrive_many(self, request: Request) -> Response:
        body = await _body(request, 1 << 20)
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
        shown = self._shown(record)
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

    # ---- jobs ----

    async def submit_job(self, request: Request) -> Response:
        body = await _body(request, 16 * self._services.limits.async_body_bytes)
        try:
            asked = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(
                f"the body is not JSON: {error}", 'Send {"function": NAME, "input": …}.'
            ) from None
        if not isinstance(asked, dict) or not isinstance(asked.get("function"), str):
            raise BadRequest(
                "the function is missing", 'Send {"function": NAME, "input": "s3://BUCKET/KEY"}.'
            )
        tags = asked.get("tags")
        if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
            tags = ",".join(tags)
        if tags is not None and not isinstance(tags, str):
            raise BadRequest(f"tags is {tags!r}", "Send a list of texts.")
        unknown = set(asked) - {"function", "input", "tags"}
        if unknown:
            raise BadRequest(f"there is no option {sorted(unknown)[0]!r}", "Known: function, input, tags.")
        id = await self._services.coordinator.submit(
            asked["function"],
            job_input(asked.get("input")),
            tags=tags or None,
            version=self._services.manifest.version,
        )
        return answer({"job_id": id}, 202)

    async def jobs(self, request: Request) -> Response:
        query = request.query_params
        limit = _limit(query.get("limit"))
        status = [query["status"]] if query.get("status") else []
        found = await self._services.store.jobs(
            status=status, function=query.get("function"), before=_cursor(query.get("cursor")), limit=limit
        )
        items = [await self._services.coordinator.describe(job) for job in found]
        return answer({"items": items, "next_cursor": show_id(found[-1].id) if len(found) == limit else None})

    async def job(self, request: Request) -> Response:
        coordinator = self._services.coordinator
        job = await coordinator.job(request.path_params["id"])
        wait_s = _number(request.query_params.get("wait_s"), "wait_s")
        if wait_s > 0 and job.status not in ENDED:
            await coordinator.wait(job.id, min(wait_s, self._services.limits.wait_s))
            job = await coordinator.job(request.path_params["id"])
        shown = await coordinator.describe(job)
        if job.result_ref is not None:
            shown["result"] = await self._large(job.result_ref)
        return answer(shown)

    async def chunks(self, request: Request) -> Response:
        job = await self._services.coordinator.job(request.path_params["id"])
        query = request.query_params
        limit = _limit(query.get("limit"))
        cursor = query.get("cursor")
        parts = await self._services.store.job_parts(
            job.id,
            stage=_whole(query.get("stage"), "stage"),
            after=_whole(cursor, "cursor") if cursor else -1,
            limit=limit,
            status=_status(query.get("status")),
        )
        items = []
        for part in parts:
            shown = self._shown(part)
            shown["index"] = part.invocation.index
            place = msgspec.json.decode(part.invocation.payload)
            shown["start"], shown["end"] = place.get("start"), place.get("end")
            items.append(shown)
        return answer(
            {"items": items, "next_cursor": str(parts[-1].invocation.index) if len(parts) == limit else None}
        )

    async def job_events(self, request: Request) -> Response:
        coordinator = self._services.coordinator
        first = await coordinator.job(request.path_params["id"])

        async def stream() -> AsyncIterator[bytes]:
            job = first
            last = b""
            while True:
                shown = msgspec.json.encode(await coordinator.describe(job))
                if shown != last:
                    yield b"event: progress\ndata: " + shown + b"\n\n"
                    last = shown
                if job.status in ENDED:
                    yield b"event: end\ndata: {}\n\n"
                    return
                await coordinator.wait(job.id, self._services.limits.sse_s)
                job = await coordinator.job(request.path_params["id"])

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def cancel_job(self, request: Request) -> Response:
        job = await self._services.coordinator.cancel(request.path_params["id"])
        return answer(await self._services.coordinator.describe(job), 202)

    async def redrive_job(self, request: Request) -> Response:
        job = await self._services.coordinator.redrive(request.path_params["id"])
        return answer(await self._services.coordinator.describe(job), 202)

    # ---- objects ----

    async def buckets(self, request: Request) -> Response:
        services = self._services
        return answer({"buckets": await services.in_thread(services.objects.buckets)})

    async def make_bucket(self, request: Request) -> Response:
        services = self._services
        bucket = _bucket(request)
        await services.in_thread(services.objects.make_bucket, bucket)
        return answer({"bucket": bucket}, 201)

    async def list_objects(self, request: Request) -> Response:
        services, query = self._services, request.query_params
        limit = _limit(query.get("limit"))
        found = await services.in_thread(
            services.objects.list,
            _bucket(request),
            prefix=query.get("prefix") or "",
            after=query.get("cursor") or "",
            limit=limit,
        )
        items = [_shown_object(info) for info in found]
        return answer({"items": items, "next_cursor": found[-1].key if len(found) == limit else None})

    async def get_object(self, request: Request) -> Response:
        services = self._services
        bucket, key = _bucket(request), request.path_params["key"]
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key)
        start, end, partial = _range(request.headers.get("range"), info.size)
        headers = {
            "etag": f'"{info.etag}"',
            "content-length": str(end - start),
            "accept-ranges": "bytes",
            "content-type": info.content_type or "application/octet-stream",
            "x-content-type-options": "nosniff",
            "headrace-modified-at": repr(info.modified_at),
            "headrace-sequencer": info.sequencer,
            "content-disposition": f"attachment; filename*=UTF-8''{quote(key.rsplit('/', 1)[-1])}",
        }
        if info.version_id is not None:
            headers["headrace-version-id"] = info.version_id
        if partial:
            headers["content-range"] = f"bytes {start}-{end - 1}/{info.size}"
        status = 206 if partial else 200
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        reader = await services.in_thread(
            services.objects.open, bucket, key, start=start, end=end, if_match=info.etag
        )

        return StreamingResponse(self._pieces(reader), status_code=status, headers=headers)

    async def put_object(self, request: Request) -> Response:
        services = self._services
        bucket, key = _bucket(request), request.path_params["key"]
        limit = services.limits.object_bytes
        declared = request.headers.get("content-length")
        if declared is not None and int(declared) > limit:
            raise PayloadTooLarge(int(declared), limit)
        none_match = request.headers.get("if-none-match") == "*"
        match = (request.headers.get("if-match") or "").strip('"') or None
        writer = await services.in_thread(
            services.objects.writer,
            bucket,
            key,
            content_type=request.headers.get("content-type"),
            if_none_match=none_match,
            if_match=match,
        )
        await services.in_thread(writer.__enter__)
        try:
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise PayloadTooLarge(size, limit)
                if piece:
                    await services.in_thread(writer.write, piece)
        except BaseException as error:  # the upload is undone whatever stopped it
            await services.in_thread(writer.__exit__, type(error), error, error.__traceback__)
            raise
        await services.in_thread(writer.__exit__, None, None, None)
        return answer(_shown_object(writer.info), 201)

    async def delete_object(self, request: Request) -> Response:
        services = self._services
        await services.in_thread(services.objects.delete, _bucket(request), request.path_params["key"])
        return Response(status_code=204)

    # ---- the node ----

    async def schedules(self, request: Request) -> Response:
        return answer({"items": msgspec.to_builtins(await self._services.store.schedules())})

    async def node(self, request: Request) -> Response:
        return answer({**self._services.health(), "store": await self._services.store.health()})

    # ---- inside ----

    async def _record(self, text: str) -> Record:
        id = read_id(text)
        record = await self._services.store.get(id) if id is not None else None
        if record is None:
            raise UnknownInvocation(text)
        return record

    async def _pieces(self, reader: Any) -> AsyncIterator[bytes]:
        in_thread = self._services.in_thread
        try:
            while piece := await in_thread(reader.read, PIECE_BYTES):
                yield piece
        finally:
            await in_thread(reader.close)

    async def _large(self, ref: str) -> Any:
        """A result that lies in the object store, as long as it fits into an answer; None otherwise."""
        services = self._services
        bucket, key = parse_object_url(ref)
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key)
        if info.size > ANSWER_BYTES_MAX:
            return None
        return msgspec.Raw(await services.in_thread(services.objects.get, bucket, key))

    def _shown(self, record: Record) -> dict[str, Any]:
        dispatcher, id = self._services.dispatcher, record.invocation.id
        shown = shown_record(record, running=dispatcher.attempts.has(id))
        shown["progress"] = dispatcher.attempts.progress_of(id)
        return shown

    def _page(self, records: list[Record], limit: int) -> dict[str, Any]:
        last = show_id(records[-1].invocation.id) if len(records) == limit else None
        return {"items": [self._shown(record) for record in records], "next_cursor": last}


def _error(error: HeadraceError) -> Response:
    messages: list[Any] = []

    async def collect(message: Any) -> None:
        messages.append(message)

    # The error's form has one home; running it to its end needs no event loop, since it never waits.
    work = send_error(collect, error)
    try:
        work.send(None)
    except StopIteration:
        pass
    start, body = messages
    headers = {key.decode(): value.decode() for key, value in start["headers"]}
    return Response(body["body"], status_code=start["status"], headers=headers)


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


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """What is cancelled: of a function, with a tag, of a job; all that is given must hold."""

    function: str | None = None
    tag: str | None = None
    job: str | None = None


def _check_alone(record: Record, what: str) -> None:
    invocation = record.invocation
    if invocation.job is not None:
        raise WrongState(
            f"invocation {show_id(invocation.id)}",
            "a chunk of a job",
            f"{what}; use `headrace job redrive {show_id(invocation.job)}`",
        )


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody expected, in the form of every other error; the application records it."""
    return _error(HeadraceError("the node failed to answer; its log says why"))


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        body = {
            "code": "method_not_allowed",
            "message": f"{request.method} is not allowed here",
            "hint": "docs/guide/api.md lists the paths.",
        }
    else:
        body = {
            "code": "not_found",
            "message": f"there is nothing at {request.url.path}",
            "hint": "docs/guide/api.md lists the paths.",
        }
    return answer({"error": body}, status)


async def _body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(size, limit)
        parts.append(piece)
    return b"".join(parts)


def _status(text: str | None) -> Status | None:
    if not text:
        return None
    try:
        return Status[text.upper()]
    except KeyError:
        known = ", ".join(status.name.lower() for status in Status)
        raise BadRequest(f"there is no status {text!r}", f"Known: {known}.") from None


def _limit(text: str | None) -> int:
    if not text:
        return 100
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise BadRequest(f"limit is {text!r}", "It must be a whole number from 1 to 1000.")
    return int(text)


def _cursor(text: str | None) -> int | None:
    if not text:
        return None
    found = read_id(text)
    if found is None:
        raise BadRequest(f"the cursor {text!r} is wrong", "Use the next_cursor of the page before.")
    return found


def _whole(text: str | None, name: str) -> int:
    if not text:
        return 0
    if not text.isdigit():
        raise BadRequest(f"{name} is {text!r}", "It must be a whole number, 0 or more.")
    return int(text)


def _number(text: str | None, name: str, *, below: float = 1e9) -> float:
    if not text:
        return 0.0
    try:
        value = float(text)
        if not 0 <= value < below:
            raise ValueError
        return value
    except ValueError:
        raise BadRequest(f"{name} is {text!r}", "It must be a number of seconds, 0 or more.") from None


def _bucket(request: Request) -> str:
    bucket: str = request.path_params["bucket"]
    if bucket == SYSTEM_BUCKET:
        raise Forbidden(f"the bucket {SYSTEM_BUCKET} is the node's own")
    return bucket


def _range(text: str | None, size: int) -> tuple[int, int, bool]:
    """The bytes [start, end) that a Range header asks for; the whole when it asks for several or for none.

    Source: RFC 9110, section 14.
    """
    if not text:
        return 0, size, False
    found = _RANGE.fullmatch(text)
    if found is None or not (found[1] or found[2]):
        return 0, size, False
    if found[1]:
        start = int(found[1])
        end = min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return 0, size, False
    else:
        start, end = max(size - int(found[2]), 0), size
    if start >= end:
        raise _Unsatisfiable(size)
    return start, end, True


class _Unsatisfiable(BadRequest):
    """A range that begins beyond the object's end: (size in bytes)."""

    code = "range_not_satisfiable"
    http_status = 416

    hint = "Ask for a range inside it."

    def __init__(self, size: int) -> None:
        HeadraceError.__init__(self, size)

    def __str__(self) -> str:
        return f"the range begins beyond the object's end ({self.args[0]:,} bytes)"


def _shown_object(info: ObjectInfo) -> dict[str, Any]:
    return {
        "bucket": info.bucket,
        "key": info.key,
        "size": info.size,
        "etag": info.etag,
        "modified_at": info.modified_at,
        "content_type": info.content_type,
        "sequencer": info.sequencer,
        "version_id": info.version_id,
    }


def _shown_target(destination: str | None) -> str | None:
    return None if destination is None else shown_destination(destination)


def _shown_spec(spec: FunctionSpec, paused: set[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": spec.name,
        "kind": "job" if spec.job is not None else "function",
        "doc": spec.doc,
        "file": spec.file,
        "line": spec.line,
        "paused": spec.name in paused,
        "timeout_s": spec.timeout_s,
        "memory_bytes": spec.memory_bytes,
        "retries": spec.retry.retries,
        "max_age_s": spec.max_age_s,
        "memory_max_bytes": spec.memory_max_bytes,
        "reserved_concurrency": spec.reserved_concurrency,
        "rate": spec.rate,
        "rate_burst": spec.rate_burst if spec.rate is not None else None,
        "concurrency_key": ".".join(spec.concurrency_key) or None,
        "key_concurrency": spec.key_concurrency,
        "weight": spec.weight,
        "priority": spec.priority,
        "on_failure": _shown_target(spec.on_failure),
        "on_success": _shown_target(spec.on_success),
        "idempotency_ttl_s": spec.idempotency_ttl_s,
        "triggers": [{"kind": item.kind, **item.fields} for item in spec.triggers],
    }
    if spec.job is not None:
        shown["job"] = msgspec.to_builtins(spec.job)
    return shown
