"""ObjectStore: what every holder of buckets must do.

Imports the floor only. The methods block: worker processes call them directly, a node through a bounded pool
of threads. Every method may be called from any thread and any process at the same time, and an instance may
be pickled or carried over a fork.
"""

import builtins
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, Self, runtime_checkable

import msgspec

from headrace.runtime.errors import Conflict

LIST_LIMIT_MAX = 10_000
LINK_S = 3_600
LINK_S_MAX = 7 * 86_400
"""Seconds for which a link is good: by default, and at most, which is what S3 takes."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """What is known of one object without reading it.

    Attributes:
        size: bytes.
        etag: opaque; two contents of one key have different ETags. Whether putting the same bytes again
            changes it is the store's affair.
        modified_at: UTC epoch seconds.
        sequencer: 16 hexadecimal digits, which compare as text: of two states of one key the later's is never
            the smaller. A folder's always grows; of an S3 server, what `head` and `put` say is exact to a
            second and what a listing says to a millisecond.
        content_type: None where it is unknown, and in listings, which do not carry it.
        version_id: None in an unversioned bucket, and in listings.
        metadata: what was given along with the object, by lower-case names; None where it is unknown, and in
            listings. A folder keeps nothing of it but Headrace's own.
    """

    bucket: str
    key: str
    size: int
    etag: str
    modified_at: float
    sequencer: str
    content_type: str | None = None
    version_id: str | None = None
    metadata: Mapping[str, str] | None = None


class ObjectWriter(Protocol):
    """A stream into one object, which appears whole when the `with` block ends, or not at all."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take all of `data`; returns its length in bytes."""

    @property
    def info(self) -> ObjectInfo:
        """The object as it was committed. Raises: ValueError before the `with` block has ended cleanly."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or abort when the block raised; the errors of `ObjectStore.put` come from here."""


class ObjectStore(Protocol):
    """Buckets and their objects.

    Bucket names follow S3's rules. Keys are Unicode text of 1 to 1,024 UTF-8 bytes and mean nothing but
    themselves: no `..`, link or empty segment leads anywhere else. Every method that takes a name raises
    InvalidBucketName or InvalidKey when it breaks a rule, and NoSuchBucket when the bucket does not exist,
    unless it says otherwise. Methods that write raise StorageFull or ReadOnlyStorage when the storage
    refuses.
    """

    def buckets(self) -> builtins.list[str]:
        """The names of all buckets, sorted, without those that are Headrace's own."""

    def make_bucket(self, name: str) -> None:
        """Make a bucket; one that exists is left as it is."""

    def remove_bucket(self, name: str) -> None:
        """Remove an empty bucket. Raises: NoSuchBucket, BucketNotEmpty."""

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """Describe one object.

        Args:
            version_id: of a versioned bucket, the version to describe; None is the newest.

        Raises: NoSuchObject, also when a store without versions is asked for one.
        """

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
        """A buffered stream of the bytes in [start, end), as in `data[start:end]`; close it after use.

        All bytes come from one state of the object. If that state cannot be read to its end because somebody
        changed it in place, reading raises PreconditionFailed. Seeking is not promised.

        Args:
            start: byte offset, at least 0; beyond the object's end the stream is empty.
            end: byte offset, exclusive, at least `start`; None reads to the object's end.
            if_match: the ETag that the object must have.
            version_id: as for `head`.

        Raises: NoSuchObject; PreconditionFailed if `if_match` is another state; ValueError for a bad range.
        """

    def get(self, bucket: str, key: str, *, version_id: str | None = None) -> bytes:
        """The whole object, in memory; use `open` where the size is not known to be small.

        Raises: as `open`.
        """

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
        """Store an object whole, replacing what was there; nobody ever sees a part of it.

        Returns when the object is as durable as the store makes it. A stream is read in pieces, never held
        whole.

        Args:
            content_type: printable ASCII, at most 255 characters.
            if_none_match: only if the key has no object.
            if_match: only if the key's object has this ETag.

        Raises: PreconditionFailed, with None as the ETag of what is absent; ValueError if both conditions are
        given.
        """

    def writer(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> ObjectWriter:
        """`put` for a caller that produces the bytes itself, in a `with` block.

        The conditions hold at its end.
        """

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; an absent one is no error."""

    def list(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> builtins.list[ObjectInfo]:
        """One page of objects, in the order of their keys' UTF-8 bytes.

        Args:
            prefix: only keys that begin with it.
            after: only keys greater than it; give the last key of one page to get the next.
            limit: 1 to LIST_LIMIT_MAX; a page with fewer objects is the last.

        Raises: ValueError for a limit out of range.
        """

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """All that `list` would page through, in bounded memory and cheaper per object than by pages.

        What is put or deleted meanwhile may or may not be seen; what is there throughout is seen once.
        """


@runtime_checkable
class ObjectServer(Protocol):
    """What an object store can do besides when others reach it too, by HTTP; a folder cannot."""

    def link(
        self,
        bucket: str,
        key: str,
        *,
        method: Literal["GET", "PUT"] = "GET",
        expires_s: int = LINK_S,
        version_id: str | None = None,
    ) -> str:
        """A URL with which anybody may read or write one object until it expires; the object need not exist.

        Args:
            expires_s: 1 to LINK_S_MAX, from now.
            version_id: the version to read; None is the newest.

        Raises: ValueError for an expiry out of range.
        """

    def versions(self, bucket: str, key: str) -> builtins.list[ObjectInfo]:
        """The states of one key that a versioned bucket still has, newest first, at most 1,000; the present
        one of an unversioned bucket.
        """


@runtime_checkable
class Tagged(Protocol):
    """An ObjectStore that keeps tags beside objects."""

    def tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """The tags of an object. Raises: NoSuchObject."""


class BucketNotEmpty(Conflict):
    """A bucket that is to be removed still holds something: (bucket)."""

    code = "bucket_not_empty"
    hint = "Delete its objects first; in a folder, also links and files whose names are not valid UTF-8."

    def __str__(self) -> str:
        return f"the bucket {self.args[0]!r} is not empty"
