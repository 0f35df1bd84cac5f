"""`/v1/buckets` and `/v1/objects`: the object store behind one door, streamed, with ranges.

Imports this room and the rooms below.
"""

import re
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.runtime.api.endpoint import Endpoint, answer, pieces, read_limit
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, Forbidden, HeadraceError, PayloadTooLarge
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import LINK_S, LINK_S_MAX, ObjectInfo, ObjectServer

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Objects:
    """The endpoints of buckets and objects."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/buckets", self.buckets, "read"),
            Endpoint("PUT", "/v1/buckets/{bucket}", self.make_bucket, "write"),
            Endpoint("GET", "/v1/objects/{bucket}", self.list_objects, "read"),
            Endpoint("GET", "/v1/objects/{bucket}/{key:path}", self.get_object, "read"),
            Endpoint("HEAD", "/v1/objects/{bucket}/{key:path}", self.get_object, "read"),
            Endpoint("PUT", "/v1/objects/{bucket}/{key:path}", self.put_object, "write"),
            Endpoint("DELETE", "/v1/objects/{bucket}/{key:path}", self.delete_object, "write"),
        ]

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
        limit = read_limit(query.get("limit"))
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
        version_id = request.query_params.get("version_id") or None
        if "versions" in request.query_params:
            found = await services.in_thread(self._server().versions, bucket, key)
            return answer({"items": [_shown_object(info) for info in found]})
        if "link" in request.query_params:
            return await self._link(request, bucket, key, "GET")
        info: ObjectInfo = await services.in_thread(services.objects.head, bucket, key, version_id=version_id)
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
            services.objects.open,
            bucket,
            key,
            start=start,
            end=end,
            if_match=info.etag,
            version_id=version_id,
        )

        return StreamingResponse(pieces(reader, services.in_thread), status_code=status, headers=headers)

    async def put_object(self, request: Request) -> Response:
        services = self._services
        bucket, key = _bucket(request), request.path_params["key"]
        if "link" in request.query_params:
            return await self._link(request, bucket, key, "PUT")
        limit = services.limits.object_bytes
        declared = request.headers.get("content-length")
        if declared is not None and int(declared) > limit:
            raise PayloadTooLarge(int(declared), limit)
        none_match = request.headers.get("if-none-match") == "*"
        match = (request.headers.get("if-match") or "").strip('"') or None
        if none_match and match is not None:
            raise BadRequest("If-None-Match and If-Match exclude each other", "Send one of them.")
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

    async def _link(self, request: Request, bucket: str, key: str, method: str) -> Response:
        """A link to the object server itself, good for `?link=SECONDS`; to write with one, ask with PUT."""
        text = request.query_params["link"]
        if text and not (text.isdecimal() and 1 <= int(text) <= LINK_S_MAX):
            raise BadRequest(f"link is {text!r}", f"It must be a number of seconds from 1 to {LINK_S_MAX:,}.")
        expires_s = int(text or LINK_S)
        until = self._services.clock.now() + expires_s
        url = await self._services.in_thread(
            self._server().link,
            bucket,
            key,
            method=method,
            expires_s=expires_s,
            version_id=request.query_params.get("version_id") or None,
        )
        return answer({"url": url, "method": method, "expires_at": until})

    def _server(self) -> ObjectServer:
        objects = self._services.objects
        if not isinstance(objects, ObjectServer):
            raise BadRequest(
                "objects are kept in a folder here, which has neither links nor versions",
                "They come with an object server: --objects s3://HOST:PORT.",
            )
        return objects


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
