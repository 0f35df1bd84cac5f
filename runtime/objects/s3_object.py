"""What an S3 server says of objects, as ObjectInfo: from headers, and from the XML of a listing.

Imports the floor and this room. The sequencer is the modification time in nanoseconds, as exactly as the
answer gave it: headers give whole seconds, listings milliseconds, and MinIO's notifications the nanoseconds.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import msgspec

from headrace.runtime.objects.protocol import ObjectInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_META = "x-amz-meta-"
_UNKNOWN_TYPE = "binary/octet-stream"  # what servers say where none was given
_MICROSECOND = timedelta(microseconds=1)


class ListedPage(msgspec.Struct, frozen=True):
    """One answer to ListObjectsV2; `more` is the token of the next page, None on the last."""

    objects: list[ObjectInfo]
    more: str | None


def from_headers(bucket: str, key: str, headers: Mapping[str, str], *, size: int) -> ObjectInfo:
    """The object whose HEAD, GET or PUT was answered with `headers`, by any letter case."""
    changed = parsedate_to_datetime(headers.get("last-modified") or headers["date"])
    content_type = headers.get("content-type") or None
    return ObjectInfo(
        bucket,
        key,
        size,
        etag_in(headers),
        changed.timestamp(),
        _sequencer(changed),
        None if content_type == _UNKNOWN_TYPE else content_type,
        headers.get("x-amz-version-id"),
        {
            name[len(_META) :].lower(): text
            for name, text in headers.items()
            if name[: len(_META)].lower() == _META
        },
    )


def etag_in(headers: Mapping[str, str]) -> str:
    """The ETag without its quotes."""
    return headers.get("etag", "").removeprefix("W/").strip('"')


def parse_page(bucket: str, data: bytes) -> ListedPage:
    """The answer to ListObjectsV2 or ListObjectVersions with encoding-type=url; without delete markers."""
    objects, more = [], None
    page = ElementTree.fromstring(data)
    # Asked for encoded keys, a server says whether it did encode them: without that, a plus is a plus.
    encoded = any(child.tag.endswith("EncodingType") and child.text == "url" for child in page)
    for element in page:
        tag = element.tag.rpartition("}")[2]
        if tag in ("Contents", "Version"):
            objects.append(_listed(bucket, element, encoded=encoded))
        elif tag == "NextContinuationToken":
            more = element.text or None
    return ListedPage(objects, more)


def parse_buckets(data: bytes) -> Iterator[str]:
    """The names in the answer to ListBuckets."""
    for element in ElementTree.fromstring(data).iter():
        if element.tag.rpartition("}")[2] == "Bucket":
            for child in element:
                if child.tag.rpartition("}")[2] == "Name" and child.text:
                    yield child.text


def parse_tags(data: bytes) -> dict[str, str]:
    """The answer to GetObjectTagging."""
    tags = {}
    for element in ElementTree.fromstring(data).iter():
        if element.tag.rpartition("}")[2] == "Tag":
            of = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
            tags[of.get("Key", "")] = of.get("Value", "")
    return tags


def parse_field(data: bytes, name: str) -> str:
    """The text of one element below the root of an answer; empty if there is none."""
    for child in ElementTree.fromstring(data):
        if child.tag.rpartition("}")[2] == name:
            return child.text or ""
    return ""


def _listed(bucket: str, element: ElementTree.Element, *, encoded: bool) -> ObjectInfo:
    key, size, etag, changed, version = "", 0, "", _EPOCH, None
    for child in element:
        tag, text = child.tag.rpartition("}")[2], child.text or ""
        if tag == "Key":
            key = unquote_plus(text) if encoded else text
        elif tag == "Size":
            size = int(text)
        elif tag == "ETag":
            etag = text.strip('"')
        elif tag == "VersionId":
            version = text
        elif tag == "LastModified":
            changed = datetime.fromisoformat(text)
    return ObjectInfo(bucket, key, size, etag, changed.timestamp(), _sequencer(changed), version_id=version)


def _sequencer(changed: datetime) -> str:
    return f"{max((changed - _EPOCH) // _MICROSECOND, 0) * 1000:016x}"
