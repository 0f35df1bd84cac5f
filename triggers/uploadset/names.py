"""Manifests: the lists of files that writers leave beside them.

Imports the room's conditions only. Source of the known shapes: "Using a manifest to specify data files",
Amazon Redshift Database Developer Guide (`entries`, `url`, `meta.content_length`); "Locating your inventory
list", Amazon S3 User Guide (`files`, `key`, `size`).
"""

import json
from collections.abc import Mapping
from typing import Any

from headrace.triggers.uploadset.condition import FILES_MAX, Named

MANIFEST_BYTES_MAX = 64 << 20
_NAMES = ("key", "url", "name", "path")
_SIZES = ("size", "content_length")
_ETAGS = ("etag", "eTag", "ETag")


class BadManifest(ValueError):
    """Why a manifest cannot be used."""


def read_manifest(data: bytes, *, bucket: str, folder: str) -> list[Named]:
    """The files that a manifest names.

    It is a JSON array, or an object with one under `files` or `entries`; or text with a name on each line, of
    which empty ones and those that begin with `#` are skipped. An item is a name, or an object with it as
    `key`, `url`, `name` or `path`, and maybe `size` or `meta.content_length` in bytes, and `etag`, which then
    must be as it says. A name is an address `s3://BUCKET/KEY`, a whole key if it begins with `folder` (which
    ends with a slash or is empty), and else a key below it.

    Raises: BadManifest.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadManifest(f"it is not UTF-8: {error}") from None
    items = _items(text)
    if len(items) > FILES_MAX:
        raise BadManifest(f"it names {len(items):,} files; a set has at most {FILES_MAX:,}")
    return [_named(item, bucket, folder) for item in items]


def _items(text: str) -> list[Any]:
    if not text.lstrip().startswith(("[", "{")):
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"it is not JSON: {error}") from None
    if isinstance(found, dict):
        found = found.get("files", found.get("entries"))
    if not isinstance(found, list):
        raise BadManifest("it is neither a list nor an object with `files` or `entries`")
    return found


def _named(item: Any, bucket: str, folder: str) -> Named:
    facts: Mapping[str, Any] = {"key": item} if isinstance(item, str) else item
    if not isinstance(facts, Mapping):
        raise BadManifest(f"an item is {_shown(item)}, neither a name nor an object with one")
    name = _first(facts, _NAMES)
    if not isinstance(name, str) or not name:
        raise BadManifest(f"an item has no {', '.join(_NAMES[:-1])} or {_NAMES[-1]}: {_shown(item)}")
    meta = facts.get("meta")
    size = _first({**(meta if isinstance(meta, Mapping) else {}), **facts}, _SIZES)
    etag = _first(facts, _ETAGS)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise BadManifest(f"the size of {name!r} is {_shown(size)}, not a number of bytes")
    if etag is not None and not isinstance(etag, str):
        raise BadManifest(f"the ETag of {name!r} is {_shown(etag)}, not text")
    return Named(_key(name, bucket, folder), size, etag)


def _key(name: str, bucket: str, folder: str) -> str:
    if not name.startswith(("s3://", "s3a://", "s3n://")):
        return name if folder and name.startswith(folder) else folder + name
    where, _, key = name.partition("://")[2].partition("/")
    if where != bucket or not key:
        raise BadManifest(f"it names {name}, which is no file of the bucket {bucket}")
    return key


def _first(facts: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((facts[name] for name in names if facts.get(name) is not None), None)


def _shown(value: Any) -> str:
    return repr(value)[:100]
