"""`/v1/jobs`: submit, follow, cancel and redrive jobs.

Imports this room and the rooms below.
"""

from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.runtime.api.calls import job_input
from headrace.runtime.api.endpoint import (
    Endpoint,
    answer,
    read_body,
    read_cursor,
    read_limit,
    read_number,
    read_status,
    read_whole,
)
from headrace.runtime.api.records import Records
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.job import ENDED, LIVE


class Jobs:
    """The endpoints of jobs."""

    def __init__(self, services: Services, records: Records) -> None:
        self._services = services
        self._records = records

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", "/v1/jobs", self.submit_job, "invoke", takes_json=True),
            Endpoint("GET", "/v1/jobs", self.jobs, "read"),
            Endpoint("GET", "/v1/jobs/{id}", self.job, "read"),
            Endpoint("GET", "/v1/jobs/{id}/chunks", self.chunks, "read"),
            Endpoint("GET", "/v1/jobs/{id}/events", self.job_events, "read"),
            Endpoint("POST", "/v1/jobs/{id}/cancel", self.cancel_job, "write"),
            Endpoint("POST", "/v1/jobs/{id}/redrive", self.redrive_job, "write"),
        ]

    async def submit_job(self, request: Request) -> Response:
        body = await read_body(request, 16 * self._services.limits.async_body_bytes)
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
        limit = read_limit(query.get("limit"))
        status = [query["status"]] if query.get("status") else []
        if status and status[0] not in (*LIVE, *ENDED):
            raise BadRequest(f"there is no status {status[0]!r}", f"Known: {', '.join((*LIVE, *ENDED))}.")
        found = await self._services.store.jobs(
            status=status,
            function=query.get("function"),
            before=read_cursor(query.get("cursor")),
            limit=limit,
        )
        items = [await self._services.coordinator.describe(job) for job in found]
        return answer({"items": items, "next_cursor": show_id(found[-1].id) if len(found) == limit else None})

    async def job(self, request: Request) -> Response:
        coordinator = self._services.coordinator
        job = await coordinator.job(request.path_params["id"])
        wait_s = read_number(request.query_params.get("wait_s"), "wait_s")
        if wait_s > 0 and job.status not in ENDED:
            await coordinator.wait(job.id, min(wait_s, self._services.limits.wait_s))
            job = await coordinator.job(request.path_params["id"])
        shown = await coordinator.describe(job)
        if job.result_ref is not None:
            shown["result"] = await self._records.large(job.result_ref)
        return answer(shown)

    async def chunks(self, request: Request) -> Response:
        job = await self._services.coordinator.job(request.path_params["id"])
        query = request.query_params
        limit = read_limit(query.get("limit"))
        cursor = query.get("cursor")
        parts = await self._services.store.job_parts(
            job.id,
            stage=read_whole(query.get("stage"), "stage"),
            after=read_whole(cursor, "cursor") if cursor else -1,
            limit=limit,
            status=read_status(query.get("status")),
        )
        items = []
        for part in parts:
            shown = self._records.shown(part)
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
