"""Listings of an S3 server's buckets, page by page.

Imports the floor and this room. What one would get wrong: MinIO also takes a prefix and a starting point for
names of objects and refuses what no object could be named, `.` or `a//` for example, although keys may begin
with the one and sort behind the other. It is then asked for more, and what was not wanted is left out here.
"""

from collections.abc import Iterator

from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.s3_connection import Answer, S3Connection
from headrace.runtime.objects.s3_object import parse_page
from headrace.runtime.objects.s3_refusal import is_about_key, raise_refusal

PAGE_MAX = 1_000


def objects_in_order(
    connection: S3Connection, bucket: str, *, prefix: str, after: str, page: int
) -> Iterator[ObjectInfo]:
    """The objects whose keys begin with `prefix` and are greater than `after`, `page` in each request.

    Raises: NoSuchBucket.
    """
    query = {
        "list-type": "2",
        "encoding-type": "url",
        "prefix": prefix,
        "max-keys": str(min(page, PAGE_MAX)),
    }
    if after:
        query["start-after"] = after
    answer = _ask(connection, bucket, query)
    if is_about_key(answer):
        query |= {"prefix": _folder(prefix), "max-keys": str(PAGE_MAX)}
        query.pop("start-after", None)
        answer = _ask(connection, bucket, query)
        if is_about_key(answer):
            return  # a folder that no object can be in
    beyond = after.encode()
    while True:
        if not answer.ok:
            raise_refusal(connection, bucket, None, answer)
        found = parse_page(bucket, answer.data)
        for info in found.objects:
            if info.key.startswith(prefix) and info.key.encode() > beyond:
                yield info
        if found.more is None:
            return
        query.pop("start-after", None)
        answer = _ask(connection, bucket, query | {"continuation-token": found.more})


def _ask(connection: S3Connection, bucket: str, query: dict[str, str]) -> Answer:
    return connection.request("GET", f"/{bucket}", query=query)


def _folder(prefix: str) -> str:
    return prefix[: prefix.rfind("/") + 1]
