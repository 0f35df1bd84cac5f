"""Objects through a node: the object store as code sees it that has no other way to it than the HTTP API.

Imports the rooms below. Reads are the node's objects; writes stay in a folder here, and are read from there,
unless they are meant to go through.
"""

import builtins
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast
from urllib.parse import quote

from headrace.runtime.client.answer import refuse
from headrace.runtime.client.client import Client
from headrace.runtime.errors import NoSuchBucket, NoSuchObject, PreconditionFailed
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import LIST_LIMIT_MAX, ObjectInfo

_PAGE = 1000
_SPOOL_BYTES = 8 << 20


class NodeObjects:
    """An ObjectStore of a node's buckets.

    Args:
        client: of the node.
        folder: where what is written stays; made when it is missing.
        through: write to the node itself; what an engine's own step leaves still stays here.
        pinned: by `s3://BUCKET/KEY`, the versions that are read of objects until they are written here.
    """

    def __init__(
        self,
        client: Client,
        folder: Path,
        *,
        through: bool = False,
        pinned: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._pinned = pinned or {}
        self._through = through
        self._here = FolderStore(folder, fsync=False)
        self._gone: set[tuple[str, str]] = set()
        self.written: list[ObjectInfo] = []
        """What was written here, in the order of its writing."""

    # ---- buckets ----

    def buckets(self) -> builtins.list[str]:
        return sorted({*self._client.buckets(), *self._here.buckets()})

    def make_bucket(self, name: str) -> None:
        self._client.make_bucket(name) if self._through else self._here.make_bucket(name)

    def remove_bucket(self, name: str) -> None:
        self._here.remove_bucket(name)

    # ---- reading ----

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        here = self._look(bucket, key) if version_id is None else None
        if here is not None:
            return here
        version_id = version_id or self._pinned.get(f"s3://{bucket}/{key}")
        answer = self._client.backend.request("HEAD", _path(bucket, key), query=_version(version_id))
        if answer.status >= 400:  # a HEAD has no body that says which error it is
            if answer.status == 404:
                raise NoSuchObject(bucket, key)
            refuse(*answer)
        headers = answer.headers
        return ObjectInfo(
            bucket=bucket,
            key=key,
            size=int(headers["content-length"]),
            etag=headers["etag"].strip('"'),
            modified_at=float(headers.get("headrace-modified-at", "0")),
            sequencer=headers.get("headrace-sequencer", ""),
            content_type=headers.get("content-type"),
            version_id=headers.get("headrace-version-id"),
        )

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
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"[{start}, {end}) is no range of bytes")
        if version_id is None and self._look(bucket, key) is not None:
            return self._here.open(bucket, key, start=start, end=end, if_match=if_match)
        version_id = version_id or self._pinned.get(f"s3://{bucket}/{key}")
        info = self.head(bucket, key, version_id=version_id)
        if if_match is not None and info.etag != if_match:
            raise PreconditionFailed(bucket, key, if_match, info.etag)
        end = info.size if end is None else min(end, info.size)
        if start >= end:
            return io.BytesIO()
        headers = {"range": f"bytes={start}-{end - 1}"}
        stream = self._client.backend.stream(
            "GET", _path(bucket, key), query=_version(version_id), headers=headers
        )
        if stream.status >= 400:
            refuse(stream.status, stream.headers, stream.read(1 << 20))
        etag = stream.headers.get("etag", "").strip('"')
        if etag != info.etag:
            stream.close()
            raise PreconditionFailed(bucket, key, info.etag, etag)
        return cast(BinaryIO, io.BufferedReader(_Raw(stream), 1 << 18))

    def get(self, bucket: str, key: str, *, version_id: str | None = None) -> bytes:
        with self.open(bucket, key, version_id=version_id) as stream:
            return stream.read()

    def list(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> builtins.list[ObjectInfo]:
        if not 1 <= limit <= LIST_LIMIT_MAX:
            raise ValueError(f"limit is {limit}; it must be 1 to {LIST_LIMIT_MAX:,}")
        found: list[ObjectInfo] = []
        for info in self.iterate(bucket, prefix, after=after):
            found.append(info)
            if len(found) == limit:
                break
        return found

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        try:
            here = {info.key: info for info in self._here.iterate(bucket, prefix, after=after)}
        except NoSuchBucket:
            here = {}
        left = sorted(here, key=lambda key: key.encode(), reverse=True)
        for info in self._pages(bucket, prefix, after, missing=bool(here)):
            while left and left[-1].encode() < info.key.encode():
                yield here[left.pop()]
            if left and left[-1] == info.key:
                yield here[left.pop()]
            elif (bucket, info.key) not in self._gone:
                yield info
        while left:
            yield here[left.pop()]

    def _pages(self, bucket: str, prefix: str, after: str, *, missing: bool) -> Iterator[ObjectInfo]:
        while True:
            query = {"prefix": prefix, "cursor": after, "limit": str(_PAGE)}
            answer = self._client.backend.request("GET", f"/v1/objects/{quote(bucket, safe='')}", query=query)
            if answer.status == 404 and missing:
                return  # the bucket was made here
            if answer.status >= 400:
                refuse(*answer)
            page = json.loads(answer.body)
            for item in page["items"]:
                after = item["key"]
                yield _info(item)
            if page.get("next_cursor") is None:
                return

    # ---- writing ----

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
        if if_none_match and if_match is not None:
            raise ValueError("if_none_match and if_match exclude each other")
        if self._through and bucket != SYSTEM_BUCKET:
            return self._send(bucket, key, data, content_type, if_none_match, if_match)
        if if_none_match or if_match is not None:
            etag = self._etag(bucket, key)
            if etag != if_match:
                raise PreconditionFailed(bucket, key, if_match, etag)
        self._here.make_bucket(bucket)
        info = self._here.put(bucket, key, data, content_type=content_type)
        self._gone.discard((bucket, key))
        self.written.append(info)
        return info

    def writer(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> "_Writer":
        return _Writer(self, bucket, key, content_type, if_none_match, if_match)

    def delete(self, bucket: str, key: str) -> None:
        if self._through and bucket != SYSTEM_BUCKET:
            answer = self._client.backend.request("DELETE", _path(bucket, key))
            if answer.status >= 400:
                refuse(*answer)
            return
        if self._look(bucket, key) is not None:
            self._here.delete(bucket, key)
        self._gone.add((bucket, key))

    def _send(
        self,
        bucket: str,
        key: str,
        data: bytes | BinaryIO | Iterable[bytes],
        content_type: str | None,
        if_none_match: bool,
        if_match: str | None,
    ) -> ObjectInfo:
        headers = {"content-type": content_type or "application/octet-stream"}
        if if_none_match:
            headers["if-none-match"] = "*"
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            for piece in _pieces(data):
                spool.write(piece)
            headers["content-length"] = str(spool.tell())
            spool.seek(0)
            answer = self._client.backend.request(
                "PUT", _path(bucket, key), body=cast(BinaryIO, spool), headers=headers
            )
        if answer.status >= 400:
            refuse(*answer)
        return _info(json.loads(answer.body))

    # ---- inside ----

    def _look(self, bucket: str, key: str) -> ObjectInfo | None:
        """What was written here. Raises NoSuchObject for what was deleted here."""
        try:
            return self._here.head(bucket, key)
        except (NoSuchBucket, NoSuchObject):
            if (bucket, key) in self._gone:
                raise NoSuchObject(bucket, key) from None
            return None

    def _etag(self, bucket: str, key: str) -> str | None:
        try:
            return self.head(bucket, key).etag
        except (NoSuchBucket, NoSuchObject):
            return None


class _Writer:
    """A stream into one object, held here until its end."""

    def __init__(
        self,
        store: NodeObjects,
        bucket: str,
        key: str,
        content_type: str | None,
        if_none_match: bool,
        if_match: str | None,
    ) -> None:
        self._put = partial(
            store.put,
            bucket,
            key,
            content_type=content_type,
            if_none_match=if_none_match,
            if_match=if_match,
        )
        self._file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)
        self._info: ObjectInfo | None = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        return self._file.write(data)

    @property
    def info(self) -> ObjectInfo:
        if self._info is None:
            raise ValueError("the object has not been committed")
        return self._info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._info = self._put(cast(BinaryIO, self._file))


class _Raw(io.RawIOBase):
    """An answer of the API as a file that is read forward."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _pieces(data: bytes | BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
    elif hasattr(data, "read"):
        while piece := data.read(1 << 20):
            yield piece
    else:
        yield from data


def _info(item: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        bucket=item["bucket"],
        key=item["key"],
        size=item["size"],
        etag=item["etag"],
        modified_at=item["modified_at"],
        sequencer=item.get("sequencer", ""),
        content_type=item.get("content_type"),
        version_id=item.get("version_id"),
    )


def _version(version_id: str | None) -> dict[str, str] | None:
    return None if version_id is None else {"version_id": version_id}


def _path(bucket: str, key: str) -> str:
    return f"/v1/objects/{quote(bucket, safe='')}/{quote(key)}"
