"""FolderStore: a directory whose folders are buckets and whose files are objects.

Imports the floor and this room. Files that users put there with `cp` or `mv` are objects like those that came
through `put`. What one would get wrong:

- A `put` appears by rename, so readers see the old bytes or the new. A `cp` writes in place: its half file is
  visible while it runs (an upload trigger waits for the close), and a reader that meets such a change gets
  PreconditionFailed.
- Links inside a bucket are never followed, wherever they point: they are not listed, read as absent, and
  nothing is stored through them or over them. A bucket itself may be a link or a mount that the operator
  made.
- `.DS_Store`, `.name.XXXX` and the like are objects; `is_temporary_name` says which of them a trigger should
  pass over.
- Special files, names with control characters and names that are not UTF-8 stand for no key and are passed
  over.
- A deleted object's directory stays, because somebody may drop files there; it goes when its name is needed
  as a key.

Beside the buckets lies `.tmp`, with unfinished uploads and the lock files that order writes to one key. A
bucket on a file system of its own has its unfinished uploads in `.headrace-tmp` inside it, since a rename
cannot cross file systems.
"""

import builtins
import errno
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from headrace.runtime.errors import InvalidBucketName, InvalidSettings, NoSuchObject, PreconditionFailed
from headrace.runtime.objects.folder_file import (
    UnchangedFile,
    check_content_type,
    describe,
    etag_of,
)
from headrace.runtime.objects.folder_listing import objects_in_order
from headrace.runtime.objects.folder_tree import (
    DEPTH_MAX,
    TEMPORARY,
    FolderTree,
    UnreadableStorage,
    file_status,
    flush,
    is_object,
    remove_empty_directories,
    writing,
)
from headrace.runtime.objects.folder_upload import FolderUpload, remember_deleted, remove_all_left_behind
from headrace.runtime.objects.key import KEY_BYTES_MAX, SYSTEM_BUCKET, check_bucket, check_key, file_names
from headrace.runtime.objects.protocol import LIST_LIMIT_MAX, BucketNotEmpty, ObjectInfo

_PIECE_BYTES = 1 << 20
_READ_BUFFER_BYTES = 128 << 10
_WINDOW = 65_536


class FolderStore:
    """An ObjectStore in a directory.

    Args:
        root: the directory of the buckets; made if absent.
        fsync: whether `put` and `delete` return only when the change outlives a power cut. Without it they
            still outlive the death of the process.

    Making one removes unfinished uploads of dead processes that are older than 24 hours. On storage that
    cannot be written it serves reads. Raises: InvalidSettings if `root` is no directory and none can be made.
    """

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = Path(root).absolute()
        self._tree = FolderTree(self.root, fsync=fsync)
        with suppress(OSError):  # read-only storage serves reads; what is missing shows at the first use
            os.makedirs(os.path.join(self._tree.root_bytes, TEMPORARY), exist_ok=True)
        if not self.root.is_dir():
            raise InvalidSettings(
                f"{self.root} is not a folder and cannot be made one", "Name another folder."
            )
        remove_all_left_behind(self._tree)

    def buckets(self) -> builtins.list[str]:
        try:
            with os.scandir(self._tree.root_bytes) as entries:
                names = [os.fsdecode(entry.name) for entry in entries if entry.is_dir()]
        except PermissionError as error:
            raise UnreadableStorage(str(self.root)) from error
        return sorted(name for name in names if name != SYSTEM_BUCKET and _is_bucket_name(name))

    def make_bucket(self, name: str) -> None:
        path = self._tree.bucket_path(name)
        with writing(str(self.root / name)):
            if not os.path.isdir(path):
                try:
                    os.makedirs(path, exist_ok=True)
                except FileExistsError:
                    raise InvalidBucketName(name, "a file or a broken link has this name") from None
                if self._tree.fsync:
                    with self._tree.open_root() as root:
                        flush(root)

    def remove_bucket(self, name: str) -> None:
        if next(self._walk(name, "", "", window=1), None) is not None:
            raise BucketNotEmpty(name)
        with writing(str(self.root / name)), self._tree.open_directory(name, []) as bucket:
            with os.scandir(bucket) as entries:
                for entry in entries:
                    if not remove_empty_directories(bucket, os.fsencode(entry.name), below=DEPTH_MAX):
                        raise BucketNotEmpty(name)
            try:
                os.rmdir(self._tree.bucket_path(name))
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                    raise BucketNotEmpty(name) from error
                raise
            if self._tree.fsync:
                with self._tree.open_root() as root:
                    flush(root)

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        _check_unversioned(bucket, key, version_id)
        descriptor, status = self._open_file(bucket, key)
        try:
            return describe(bucket, key, status, descriptor=descriptor)
        finally:
            os.close(descriptor)

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
        _check_unversioned(bucket, key, version_id)
        return io.BufferedReader(
            self._reader(bucket, key, start=start, end=end, if_match=if_match), _READ_BUFFER_BYTES
        )

    def get(self, bucket: str, key: str, *, version_id: str | None = None) -> bytes:
        _check_unversioned(bucket, key, version_id)
        with self._reader(bucket, key, start=0, end=None, if_match=None) as reader:
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
        with self.writer(
            bucket, key, content_type=content_type, if_none_match=if_none_match, if_match=if_match
        ) as upload:
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
    ) -> FolderUpload:
        if if_none_match and if_match is not None:
            raise ValueError("if_none_match and if_match exclude each other")
        return FolderUpload(
            self._tree,
            bucket,
            key,
            content_type=check_content_type(content_type),
            if_none_match=if_none_match,
            if_match=if_match,
        )

    def delete(self, bucket: str, key: str) -> None:
        *parents, name = file_names(key)
        path = self._tree.path(bucket, key)
        with writing(path):
            try:
                with (
                    self._tree.open_directory(bucket, parents) as parent,
                    self._tree.key_lock(bucket, key) as lock,
                ):
                    status = file_status(parent, name)
                    if status is None or not is_object(status):
                        return
                    os.unlink(name, dir_fd=parent)
                    remember_deleted(lock, status)
                    if self._tree.fsync:
                        flush(parent)
            except (FileNotFoundError, NotADirectoryError):
                return

    def list(
        self, bucket: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> builtins.list[ObjectInfo]:
        if not 1 <= limit <= LIST_LIMIT_MAX:
            raise ValueError(f"limit must be 1 to {LIST_LIMIT_MAX}, not {limit}")
        return builtins.list(itertools.islice(self._walk(bucket, prefix, after, window=limit), limit))

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._walk(bucket, prefix, after, window=_WINDOW)

    def _walk(self, bucket: str, prefix: str, after: str, *, window: int) -> Iterator[ObjectInfo]:
        if prefix:
            check_key(prefix[:KEY_BYTES_MAX])
        try:
            yield from objects_in_order(
                lambda names: self._tree.open_directory(bucket, names),
                lambda key, status: describe(bucket, key, status),
                prefix=prefix,
                after=after,
                window=window,
            )
        except PermissionError as error:
            raise UnreadableStorage(self._tree.path(bucket, os.fsdecode(error.filename or b""))) from error

    def _reader(
        self, bucket: str, key: str, *, start: int, end: int | None, if_match: str | None
    ) -> "UnchangedFile":
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no byte range: start {start}, end {end}")
        descriptor, status = self._open_file(bucket, key)
        try:
            etag = etag_of(status)
            if if_match is not None and if_match != etag:
                raise PreconditionFailed(bucket, key, if_match, etag)
            stop = status.st_size if end is None else min(end, status.st_size)
            if start:
                os.lseek(descriptor, start, os.SEEK_SET)
            return UnchangedFile(descriptor, bucket, key, status, left=max(0, stop - start))
        except BaseException:
            os.close(descriptor)
            raise

    def _open_file(self, bucket: str, key: str) -> tuple[int, os.stat_result]:
        *parents, name = file_names(key)
        try:
            with self._tree.open_directory(bucket, parents) as parent:
                # O_NONBLOCK: opening a named pipe would otherwise wait for a writer. Regular files ignore it.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise NoSuchObject(bucket, key) from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise UnreadableStorage(self._tree.path(bucket, key)) from error
            raise
        status = os.fstat(descriptor)
        if not is_object(status):
            os.close(descriptor)
            raise NoSuchObject(bucket, key)
        return descriptor, status


def _check_unversioned(bucket: str, key: str, version_id: str | None) -> None:
    if version_id is not None:
        raise NoSuchObject(bucket, key)


def _pieces(data: bytes | BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(data, bytes):
        return (data,)
    read = getattr(data, "read", None)
    return data if read is None else iter(lambda: read(_PIECE_BYTES), b"")


def _is_bucket_name(name: str) -> bool:
    try:
        check_bucket(name)
    except InvalidBucketName:
        return False
    return True
