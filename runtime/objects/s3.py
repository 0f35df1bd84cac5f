"""S3Store: the buckets of MinIO, AWS or any other server that speaks S3.

Imports the floor and this room. What one would get wrong:

- An ETag belongs to contents, not to writes: putting the same bytes again gives the same ETag.
- Only Amazon's keys are any text. Servers over file systems refuse an empty, `.` or `..` segment, or take it
  for another key, so here such a put or deletion raises InvalidKey. A server's own rules come on top: MinIO
  takes at most 255 bytes in a segment, and does not list `a/b` while there is an object `a`. A key that
  cannot be put is read as absent.
- A put is followed by a HEAD, because the answer to a put names no time.
"""

import builtins
import functools
import io
import itertools
import mimetypes
import os
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Literal

from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    InvalidBucketName,
    InvalidKey,
    NoSuchBucket,
    NoSuchObject,
    PreconditionFailed,
)
from headrace.runtime.objects.folder_file import check_content_type
from headrace.runtime.objects.key import (
    KEY_BYTES_MAX,
    RESERVED_PREFIX,
    SYSTEM_BUCKET,
    check_bucket,
    check_key,
)
from headrace.runtime.objects.protocol import LINK_S, LINK_S_MAX, LIST_LIMIT_MAX, ObjectInfo
from headrace.runtime.objects.s3_connection import RETRIES, SILENCE_S, Answer, S3Connection
from headrace.runtime.objects.s3_endpoint import S3Endpoint
from headrace.runtime.objects.s3_errors import ObjectServerRefuses
from headrace.runtime.objects.s3_listing import PAGE_MAX, objects_in_order
from headrace.runtime.objects.s3_object import from_headers, parse_buckets, parse_page, parse_tags
from headrace.runtime.objects.s3_reader import S3Reader
from headrace.runtime.objects.s3_refusal import is_about_key, raise_refusal
from headrace.runtime.objects.s3_signature import Credentials
from headrace.runtime.objects.s3_upload import S3Upload, check_conditions_heeded

WHOLE_PUT_BYTES_MAX = 64 << 20
_PIECE_BYTES = 1 << 20
_READ_BUFFER_BYTES = 256 << 10
_PROBE_KEY = RESERVED_PREFIX + "conditional-write-probe"
_ETAG = re.compile(r"[\x21\x23-\x7e]+")


class S3Store:
    """An ObjectStore on an S3 server.

    Args:
        retries: how often a request that was not answered is tried again.
        silence_s: seconds for which a server may say nothing in an answer.
        patient: whether that holds also after a request was given up; otherwise, until one is answered, they
            are tried twice.

    Making one sends nothing.
    """

    def __init__(
        self,
        endpoint: S3Endpoint,
        credentials: Credentials,
        *,
        clock: Clock,
        retries: int = RETRIES,
        silence_s: float = SILENCE_S,
        patient: bool = True,
    ) -> None:
        self.connection = S3Connection(
            endpoint, credentials, clock=clock, retries=retries, silence_s=silence_s, patient=patient
        )
        self._conditions_heeded = False

    def buckets(self) -> builtins.list[str]:
        answer = self.connection.request("GET", "/")
        if not answer.ok:
            raise_refusal(self.connection, "", None, answer)
        return sorted(
            name for name in parse_buckets(answer.data) if name != SYSTEM_BUCKET and _is_bucket_name(name)
        )

    def has_bucket(self, name: str) -> bool:
        """Whether the bucket exists."""
        check_bucket(name)
        return self.connection.request("HEAD", f"/{name}").ok

    def make_bucket(self, name: str) -> None:
        # Asking first lets a node work whose credentials may use the bucket and may not make one.
        if self.has_bucket(name):
            return
        region = self.connection.endpoint.region
        body = (
            b""
            if region == "us-east-1"
            else (
                "<CreateBucketConfiguration>"
                f"<LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            ).encode()
        )
        answer = self.connection.request("PUT", f"/{name}", body=body)
        if not answer.ok and answer.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise_refusal(self.connection, name, None, answer)

    def remove_bucket(self, name: str) -> None:
        check_bucket(name)
        answer = self.connection.request("DELETE", f"/{name}")
        if not answer.ok and not (answer.retried and answer.code == "NoSuchBucket"):
            raise_refusal(self.connection, name, None, answer)

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        answer = self.connection.request("HEAD", _path(bucket, key), query=_version(version_id))
        if not answer.ok:
            raise_refusal(self.connection, bucket, key, answer)
        size = int(answer.headers.get("content-length", "0"))
        return from_headers(bucket, key, answer.headers, size=size)

    def tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """The tags of an object. Raises: NoSuchObject."""
        query = {"tagging": "", **_version(version_id)}
        answer = self.connection.request("GET", _path(bucket, key), query=query)
        if not answer.ok:
            raise_refusal(self.connection, bucket, key, answer)
        return parse_tags(answer.data)

    def open(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        end: int | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> BinaryIO:
        reader = self._reader(bucket, key, start, end, if_match, version_id)
        return io.BytesIO() if reader is None else io.BufferedReader(reader, _READ_BUFFER_BYTES)

    def get(self, bucket: str, key: str, *, version_id: str | None = None) -> bytes:
        reader = self._reader(bucket, key, 0, None, None, version_id)
        if reader is None:
            return b""
        with reader:
            return reader.readall()

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes | BinaryIO | Iterable[bytes],
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> ObjectInfo:
        upload = self.writer(
            bucket, key, content_type=content_type, if_none_match=if_none_match, if_match=if_match
        )
        if isinstance(data, bytes) and len(data) <= WHOLE_PUT_BYTES_MAX:
            return upload.put_whole(data)
        with upload:
            for piece in _pieces(data):
                upload.write(piece)
        return upload.info

    def writer(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> S3Upload:
        if if_none_match and if_match is not None:
            raise ValueError("if_none_match and if_match exclude each other")
        check_bucket(bucket)
        self._check_key(key)
        if if_match is not None and not _ETAG.fullmatch(if_match):
            raise PreconditionFailed(bucket, key, if_match, self._etag_now(bucket, key))
        if (if_none_match or if_match is not None) and not self._conditions_heeded:
            if not self.has_bucket(bucket):
                raise NoSuchBucket(bucket)
            check_conditions_heeded(self.connection, bucket, _PROBE_KEY)
            self._conditions_heeded = True
        return S3Upload(
            self.connection,
            bucket,
            key,
            content_type=check_content_type(content_type) or _guessed_type(key),
            if_none_match=if_none_match,
            if_match=if_match,
        )

    def delete(self, bucket: str, key: str) -> None:
        path = _path(bucket, key)
        self._check_key(key)
        answer = self.connection.request("DELETE", path)
        if not answer.ok:
            try:
                raise_refusal(self.connection, bucket, key, answer)
            except NoSuchObject:
                return
            except ObjectServerRefuses:
                # Servers over file systems refuse it for a folder that holds something, a marker or none.
                if not key.endswith("/") or self._holds(bucket, key):
                    raise

    def _holds(self, bucket: str, key: str) -> bool:
        try:
            self.head(bucket, key)
        except NoSuchObject:
            return False
        return True

    def list(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> builtins.list[ObjectInfo]:
        if not 1 <= limit <= LIST_LIMIT_MAX:
            raise ValueError(f"limit must be 1 to {LIST_LIMIT_MAX}, not {limit}")
        return builtins.list(itertools.islice(self._walk(bucket, prefix, after, page=limit), limit))

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._walk(bucket, prefix, after, page=PAGE_MAX)

    def link(
        self,
        bucket: str,
        key: str,
        *,
        method: Literal["GET", "PUT"] = "GET",
        expires_s: int = LINK_S,
        version_id: str | None = None,
    ) -> str:
        if not 1 <= expires_s <= LINK_S_MAX:
            raise ValueError(f"a link is good for 1 to {LINK_S_MAX} seconds, not {expires_s}")
        path = _path(bucket, key)
        if method == "PUT":
            self._check_key(key)
        return self.connection.link(method, path, query=_version(version_id), expires_s=expires_s)

    def versions(self, bucket: str, key: str) -> builtins.list[ObjectInfo]:
        _path(bucket, key)
        query = {"versions": "", "encoding-type": "url", "prefix": key, "max-keys": str(PAGE_MAX)}
        answer = self.connection.request("GET", f"/{bucket}", query=query)
        if is_about_key(answer):
            return []
        if not answer.ok:
            raise_refusal(self.connection, bucket, None, answer)
        # A prefix also matches longer keys, but they sort behind.
        return [info for info in parse_page(bucket, answer.data).objects if info.key == key]

    def _walk(self, bucket: str, prefix: str, after: str, *, page: int) -> Iterator[ObjectInfo]:
        check_bucket(bucket)
        if prefix:
            check_key(prefix[:KEY_BYTES_MAX])
        if len(prefix.encode("utf-8", "replace")) > KEY_BYTES_MAX:
            self._bucket_must_exist(bucket)
            return
        yield from objects_in_order(self.connection, bucket, prefix=prefix, after=after, page=page)

    def _reader(
        self,
        bucket: str,
        key: str,
        start: int,
        end: int | None,
        if_match: str | None,
        version_id: str | None,
    ) -> S3Reader | None:
        """A reader of the range; None when no byte is in it."""
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no byte range: start {start}, end {end}")
        path, query, headers = _path(bucket, key), _version(version_id), {}
        if start or end is not None:
            headers["range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
        if if_match is not None and _ETAG.fullmatch(if_match):
            headers["if-match"] = f'"{if_match}"'
        answer: Answer | None = None
        if end != start and ("if-match" in headers or if_match is None):
            answer = self.connection.open(path, query=query, headers=headers)
        if answer is None or answer.stream is None:
            if answer is not None and answer.status not in (412, 416):
                raise_refusal(self.connection, bucket, key, answer)
            # A range without bytes cannot be asked for, and an answer to one tells nothing of the state.
            found = self.head(bucket, key, version_id=version_id)
            if if_match is not None and if_match != found.etag:
                raise PreconditionFailed(bucket, key, if_match, found.etag)
            if answer is not None and answer.status == 412:
                raise PreconditionFailed(bucket, key, if_match, found.etag)
            return None
        left = int(answer.headers["content-length"])
        if headers.get("range") and answer.status != 206:
            # The server knows no ranges: pass over what was not asked for.
            left = max(0, min(left, left if end is None else end) - start)
            _pass_over(answer, start)
        return S3Reader(self.connection, answer, bucket=bucket, key=key, query=query, start=start, left=left)

    def _check_key(self, key: str) -> None:
        check_key(key)
        if self.connection.endpoint.aws:
            return
        if "\0" in key:
            raise InvalidKey(key, "no S3 server but Amazon's takes a null character")
        *parents, last = key.split("/")
        if any(segment in ("", ".", "..") for segment in parents) or last in (".", ".."):
            why = "S3 servers other than Amazon's take an empty, `.` or `..` segment for another key"
            raise InvalidKey(key, why)

    def _etag_now(self, bucket: str, key: str) -> str | None:
        try:
            return self.head(bucket, key).etag
        except NoSuchObject:
            return None

    def _bucket_must_exist(self, bucket: str) -> None:
        answer = self.connection.request("HEAD", f"/{bucket}")
        if not answer.ok:
            raise_refusal(self.connection, bucket, None, answer)


def _path(bucket: str, key: str) -> str:
    check_bucket(bucket)
    check_key(key)
    return f"/{bucket}/{key}"


def _version(version_id: str | None) -> dict[str, str]:
    return {} if version_id is None else {"versionId": version_id}


def _pass_over(answer: Answer, count: int) -> None:
    assert answer.stream is not None
    while count:
        piece = answer.stream.read(min(count, _PIECE_BYTES), decode_content=False)
        if not piece:
            return
        count -= len(piece)


def _pieces(data: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(data, bytes):
        return (data,)
    read = getattr(data, "read", None)
    return data if read is None else iter(lambda: read(_PIECE_BYTES), b"")


@functools.cache
def _types() -> dict[str, str]:
    return dict(mimetypes.MimeTypes().types_map[True])


def _guessed_type(key: str) -> str | None:
    return _types().get(os.path.splitext(key)[1].lower())


def _is_bucket_name(name: str) -> bool:
    try:
        check_bucket(name)
    except InvalidBucketName:
        return False
    return True
