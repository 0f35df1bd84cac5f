"""Names: the rules for bucket names and keys, and the file name that stands for one segment of a key.

Imports the floor only. `file_name` and `segment_of` are each other's inverse over all legal names: a file
that somebody drops into a bucket has exactly one key, nearly always its own name, and no two keys share a
file. So a `%` is escaped only where the name would otherwise read as one of our escapes: `100%.txt` and
`my%20file.pdf` are keys and file names alike.
"""

import re
from collections.abc import Iterable

from headrace.runtime.errors import InvalidBucketName, InvalidKey

SYSTEM_BUCKET = "headrace-system"
RESERVED_PREFIX = ".headrace-"
PROBES = ".headrace-probe/"
"""Keys of objects that only try out whether notifications arrive; they never trigger."""
KEY_BYTES_MAX = 1024
SEGMENT_BYTES_MAX = 255

_EMPTY = "%"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPABLE = re.compile(r"[%\x00-\x1f\x7f]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_TEMPORARY_SUFFIXES = (".part", ".partial", ".filepart", ".tmp", ".crdownload", "~")


def check_bucket(name: str) -> str:
    """The name, if it may name a bucket.

    Raises: InvalidBucketName.
    Source: "General purpose bucket naming rules", Amazon S3 User Guide; MinIO also refuses a dot beside a
    hyphen.
    """
    if _BUCKET.fullmatch(name) is None:
        raise InvalidBucketName(
            name,
            "it must be 3 to 63 lower-case letters, digits, dots and hyphens, ending in no dot or hyphen",
        )
    if any(pair in name for pair in ("..", ".-", "-.")):
        raise InvalidBucketName(name, "a dot must stand between letters or digits")
    if _ADDRESS.fullmatch(name):
        raise InvalidBucketName(name, "it looks like an IP address")
    if name.startswith(("xn--", "sthree-", "amzn-s3-demo-")) or name.endswith(
        ("-s3alias", "--ol-s3", "--x-s3", "--table-s3", ".mrap")
    ):
        raise InvalidBucketName(name, "S3 reserves names that begin or end like this")
    return name


def check_key(key: str) -> bytes:
    """The key's UTF-8 bytes, if every store can hold it.

    Raises: InvalidKey if it is empty, longer than KEY_BYTES_MAX bytes or not encodable in UTF-8.
    """
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidKey(key, "it holds half a surrogate pair, which UTF-8 cannot encode") from None
    if not encoded:
        raise InvalidKey(key, "it is empty")
    if len(encoded) > KEY_BYTES_MAX:
        raise InvalidKey(key, f"it is {len(encoded)} bytes long, and at most {KEY_BYTES_MAX} are allowed")
    return encoded


def file_names(key: str) -> list[bytes]:
    """The directory names and the file name, relative to the bucket's folder, under which a key is stored.

    Raises: InvalidKey as `check_key`, and if a segment's name is longer than SEGMENT_BYTES_MAX bytes.
    """
    check_key(key)
    names = [file_name(segment) for segment in key.split("/")]
    for name in names:
        if len(name) > SEGMENT_BYTES_MAX:
            raise InvalidKey(
                key,
                f"a segment's file name is {len(name)} bytes long; at most {SEGMENT_BYTES_MAX} are allowed",
            )
    return names


def file_name(segment: str) -> bytes:
    """The file name of one segment of a key; the segment holds no slash."""
    return (_escape(segment) if _needs_escape(segment) else segment).encode()


def segment_of(name: str) -> str | None:
    """The segment that a file name stands for, or None if no segment has that file name."""
    if _is_unusable(name):
        return None
    if "%" in name:
        segment = _unescape(name)
        if _escape(segment) == name and _needs_escape(segment):
            return segment
    return name


def key_of_path(names: Iterable[str]) -> str | None:
    """The key of a file, from its directories' names below the bucket and its own; None if it has none.

    The inverse of `file_names`, for those who are told of files by path, as a watcher of a folder is.
    """
    segments = []
    for name in names:
        segment = segment_of(name)
        if segment is None:
            return None
        segments.append(segment)
    try:
        key = "/".join(segments)
        check_key(key)
    except InvalidKey:
        return None
    return key


def is_temporary_name(key: str) -> bool:
    """Whether a key looks like a file that a program is still writing, so that a trigger should pass it over.

    True if any segment begins with a dot (rsync's `.name.XXXXXX`, editors' swap files), or the last ends like
    a partial download (`.part`, `.partial`, `.filepart`, `.tmp`, `.crdownload`) or a backup (`~`), in any
    letter case. Such keys are objects like all others: they are listed and read.
    """
    return key.startswith(".") or "/." in key or key.lower().endswith(_TEMPORARY_SUFFIXES)


def _is_unusable(name: str) -> bool:
    # A file system could hold control characters, but a shell, a log line and a listing could not.
    return name in ("", ".", "..") or name.startswith(RESERVED_PREFIX) or _CONTROL.search(name) is not None


def _needs_escape(segment: str) -> bool:
    """Whether a segment cannot be a file name, or is the escaped form of another that needs escaping."""
    while not _is_unusable(segment):
        if "%" not in segment:
            return False
        original = _unescape(segment)
        if original == segment or _escape(original) != segment:
            return False
        segment = original
    return True


def _escape(segment: str) -> str:
    if not segment:
        return _EMPTY
    escaped = _ESCAPABLE.sub(lambda match: f"%{ord(match[0]):02X}", segment)
    if segment in (".", "..") or segment.startswith(RESERVED_PREFIX):
        return "%2E" + escaped[1:]
    return escaped


def _unescape(name: str) -> str:
    return "" if name == _EMPTY else _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)
