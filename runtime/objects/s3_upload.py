"""S3Upload: a stream that becomes an object at once and whole.

Imports the floor and this room. What fits into one part is one PutObject; more is a multipart upload, of
which nobody sees anything before its end. Every part is in memory once. A write whose condition or whose end
may be sent again after its answer got lost carries a random mark, so that a second try which is refused can
be told from a first one that was carried out.
"""

import base64
import hashlib
import secrets
from types import TracebackType
from typing import Self

from headrace.runtime.errors import HeadraceError, NoSuchBucket, PreconditionFailed
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.s3_connection import Answer, Body, S3Connection
from headrace.runtime.objects.s3_errors import ConditionalWritesUnsupported, ObjectServerUnavailable
from headrace.runtime.objects.s3_object import PUT_MARK, etag_in, from_headers, parse_field
from headrace.runtime.objects.s3_refusal import raise_refusal
from headrace.runtime.objects.trail import NAME as TRAIL
from headrace.runtime.objects.trail import present_trail

PART_BYTES = 8 << 20
_SAME_SIZE_PARTS = 1_000
_CONFLICT = "ConditionalRequestConflict"  # Amazon's, when another write of the key was under way
_CONFLICTS_MAX = 5


class S3Upload:
    """An ObjectWriter to an S3 server."""

    def __init__(
        self,
        connection: S3Connection,
        bucket: str,
        key: str,
        *,
        content_type: str | None,
        if_none_match: bool,
        if_match: str | None,
    ) -> None:
        self._connection = connection
        self._bucket, self._key, self._path = bucket, key, f"/{bucket}/{key}"
        self._content_type = content_type
        self._if_match = if_match
        self._condition: dict[str, str] = {}
        if if_none_match:
            self._condition = {"if-none-match": "*"}
        elif if_match is not None:
            self._condition = {"if-match": f'"{if_match}"'}
        self._mark = ""
        self._held = bytearray()
        self._opened = False
        self._upload_id = ""
        self._parts: list[str] = []
        self._size = 0
        self._info: ObjectInfo | None = None

    def __enter__(self) -> Self:
        if self._opened or self._info is not None:
            raise ValueError("a writer serves one with block")
        self._opened = True
        return self

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if not self._opened:
            raise ValueError("the writer is not open")
        with memoryview(data).cast("B") as rest:
            taken = len(rest)
            while len(self._held) + len(rest) > self._part_bytes():
                room = self._part_bytes() - len(self._held)
                self._held += rest[:room]
                rest = rest[room:]
                self._send_part(self._held)
                self._held = bytearray()
            self._held += rest
        self._size += taken
        return taken

    @property
    def info(self) -> ObjectInfo:
        if self._info is None:
            raise ValueError("nothing is committed yet")
        return self._info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._opened:
            return
        self._opened = False
        try:
            if error is None:
                self._info = self._commit()
        finally:
            self._held = bytearray()
            if self._info is None and self._upload_id:
                self._abort()

    def put_whole(self, data: Body) -> ObjectInfo:
        """The whole object in one request, without a copy."""
        self._size = len(data)
        self._info = self._put(data)
        return self._info

    def _commit(self) -> ObjectInfo:
        if not self._upload_id:
            return self._put(self._held)
        if self._held:
            self._send_part(self._held)
        return self._complete()

    def _part_bytes(self) -> int:
        # S3 takes 10,000 parts: doubling now and then makes room for all it can hold, from small parts on.
        return PART_BYTES << (len(self._parts) // _SAME_SIZE_PARTS)

    def _put(self, data: Body) -> ObjectInfo:
        headers = self._describing(marked=bool(self._condition)) | self._condition
        for _ in range(_CONFLICTS_MAX):
            answer = self._connection.request("PUT", self._path, headers=headers, body=data)
            if answer.status != 409 or answer.code != _CONFLICT:
                break
        return self._settle(answer)

    def _send_part(self, data: bytearray) -> None:
        if not self._upload_id:
            answer = self._connection.request(
                "POST", self._path, query={"uploads": ""}, headers=self._describing(marked=True)
            )
            if not answer.ok:
                raise_refusal(self._connection, self._bucket, self._key, answer, writing=True)
            self._upload_id = parse_field(answer.data, "UploadId")
        answer = self._connection.request(
            "PUT",
            self._path,
            query={"partNumber": str(len(self._parts) + 1), "uploadId": self._upload_id},
            body=data,
        )
        if not answer.ok:
            raise_refusal(self._connection, self._bucket, self._key, answer, writing=True)
        self._parts.append(answer.headers["etag"])

    def _complete(self) -> ObjectInfo:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(self._parts, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        headers = {
            "content-type": "application/xml",
            "content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
            **self._condition,
        }
        answer = self._connection.request(
            "POST", self._path, query={"uploadId": self._upload_id}, headers=headers, body=body
        )
        return self._settle(answer)

    def _settle(self, answer: Answer) -> ObjectInfo:
        """What a committing request's answer means."""
        gone = answer.status == 404 and (self._condition or self._upload_id)
        refused = answer.status == 412 or answer.code == _CONFLICT or gone
        if not answer.ok and not refused:
            raise_refusal(self._connection, self._bucket, self._key, answer, writing=True)
        if answer.code == "NoSuchBucket":
            raise NoSuchBucket(self._bucket)
        head = self._connection.request("HEAD", self._path)
        found = from_headers(self._bucket, self._key, head.headers, size=_length(head)) if head.ok else None
        if answer.ok:
            etag = parse_field(answer.data, "ETag").strip('"') if self._upload_id else etag_in(answer.headers)
            if found is not None and found.etag == etag:
                return found
            # Somebody has replaced or deleted it since: what was committed is still what this put did.
            said = {
                "date": answer.headers["date"],
                "etag": etag,
                "content-type": self._content_type or "",
            }
            if "x-amz-version-id" in answer.headers:
                said["x-amz-version-id"] = answer.headers["x-amz-version-id"]
            return from_headers(self._bucket, self._key, said, size=self._size)
        if found is not None and answer.retried and self._mark and head.headers.get(PUT_MARK) == self._mark:
            return found
        if not self._condition:
            raise ObjectServerUnavailable(
                self._connection.endpoint.base, answer.message or "a multipart upload is gone"
            )
        raise PreconditionFailed(
            self._bucket, self._key, self._if_match, None if found is None else found.etag
        )

    def _describing(self, *, marked: bool) -> dict[str, str]:
        headers = {} if self._content_type is None else {"content-type": self._content_type}
        if (trail := present_trail()) is not None:
            headers[f"x-amz-meta-{TRAIL}"] = str(trail)
        if marked:
            self._mark = self._mark or secrets.token_hex(8)
            headers[PUT_MARK] = self._mark
        return headers

    def _abort(self) -> None:
        try:
            self._connection.request("DELETE", self._path, query={"uploadId": self._upload_id})
        except HeadraceError:
            # The error that brought us here says more; servers remove unfinished uploads in time.
            return


def _length(answer: Answer) -> int:
    return int(answer.headers.get("content-length", "0"))


def conditions_heeded(connection: S3Connection, bucket: str, probe_key: str) -> bool:
    """Whether the server refuses a write whose condition cannot hold.

    Writes and removes an empty object if it does not.
    """
    path = f"/{bucket}/{probe_key}"
    answer = connection.request("PUT", path, headers={"if-match": '"00000000000000000000000000000000"'})
    if answer.ok:
        connection.request("DELETE", path)
    return answer.status in (404, 409, 412)


def check_conditions_heeded(connection: S3Connection, bucket: str, probe_key: str) -> None:
    """Raises: ConditionalWritesUnsupported unless the server heeds the conditions of writes."""
    if not conditions_heeded(connection, bucket, probe_key):
        raise ConditionalWritesUnsupported(connection.endpoint.base)
