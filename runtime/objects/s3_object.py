"""What an S3 server says of objects, as ObjectInfo: from headers, and from the XML of a listing.

Imports the floor and this room. The sequencer is the modification time in nanoseconds, as exactly as the
answer gave it: headers give whole seconds, listings milliseconds, and MinIO's notifications the nanoseconds.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import msgspec

from headrace.runtime.objects.protocol import ObjectInfo

_SLICE_BYTES = 32 << 10
_NEVER = "1970-01-01T00:00:00Z"
PUT_MARK = "x-amz-meta-headrace-put"
"""The header of a random mark, by which an upload knows its own object again; never shown to callers."""

_META = "x-amz-meta-"
_UNKNOWN_TYPE = "binary/octet-stream"  # what servers say where none was given


class ListedPage(msgspec.Struct, frozen=True):
    """One answer to ListObjectsV2; `more` is the token of the next page, None on the last."""

    objects: list[ObjectInfo]
    more: str | None


def from_headers(bucket: str, key: str, headers: Mapping[str, str], *, size: int) -> ObjectInfo:
    """The object whose HEAD, GET or PUT was answered with `headers`, by any letter case."""
    changed = parsedate_to_datetime(headers.get("last-modified") or headers["date"]).timestamp()
    content_type = headers.get("content-type") or None
    return ObjectInfo(
        bucket,
        key,
        size,
        etag_in(headers),
        changed,
        _sequencer(changed),
        None if content_type == _UNKNOWN_TYPE else content_type,
        headers.get("x-amz-version-id"),
        {
            name[len(_META) :].lower(): text
            for name, text in headers.items()
            if name[: len(_META)].lower() == _META and name.lower() != PUT_MARK
        },
    )


def etag_in(headers: Mapping[str, str]) -> str:
    """The ETag without its quotes."""
    return headers.get("etag", "").removeprefix("W/").strip('"')


def parse_page(bucket: str, data: bytes) -> ListedPage:
    """The answer to ListObjectsV2 or ListObjectVersions with encoding-type=url; without delete markers."""
    parser = ElementTree.XMLParser()
    for start in range(0, len(data), _SLICE_BYTES):  # between two of which another thread may go on
        parser.feed(data[start : start + _SLICE_BYTES])
    page = parser.close()
    space = page.tag[: page.tag.rfind("}") + 1]
    # Asked for encoded keys, a server says whether it did encode them: without that, a plus is a plus.
    encoded = page.findtext(f"{space}EncodingType") == "url"
    names = [f"{space}{name}" for name in ("Key", "Size", "ETag", "LastModified", "VersionId")]
    found = [
        _listed(bucket, element, *names, encoded=encoded)
        for kind in ("Contents", "Version")
        for element in page.iterfind(f"{space}{kind}")
    ]
    return ListedPage(found, page.findtext(f"{space}NextContinuationToken") or None)


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


def _listed(
    bucket: str, element: ElementTree.Element, key: str, size: str, etag: str, changed: str, version: str,
    *, encoded: bool,
) -> ObjectInfo:  # fmt: skip
    text = element.findtext(key, "")
    if encoded and ("%" in text or "+" in text):
        text = unquote_plus(text)
    at = datetime.fromisoformat(element.findtext(changed, _NEVER)).timestamp()
    return ObjectInfo(
        bucket,
        text,
        int(element.findtext(size, "0")),
        element.findtext(etag, "").strip('"'),
        at,
        _sequencer(at),
        version_id=element.findtext(version),
    )


def _sequencer(at: float) -> str:
    # In a float, this century's moments are exact to less than a microsecond, and to no more.
    return f"{max(round(at * 1e6), 0) * 1000:016x}"
