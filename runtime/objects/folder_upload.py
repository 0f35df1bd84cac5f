"""FolderUpload: a hidden file that becomes an object at once and whole.

Imports the floor and this room's tree, file and key rules. The order of steps is what makes it safe: the
bytes are on the disk before the name is, and the name is before `put` returns. Writes to one key take turns
under a lock, so that a condition still holds when the rename comes and a later state has the later time.
"""

import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from headrace.runtime.errors import InvalidKey, PreconditionFailed
from headrace.runtime.objects.folder_file import describe, etag_of, remember_content_type, remember_trail
from headrace.runtime.objects.folder_tree import (
    DEPTH_MAX,
    TEMPORARY,
    TEMPORARY_IN_BUCKET,
    FolderTree,
    file_status,
    flush,
    is_object,
    remove_empty_directories,
    step_into_new,
    writing,
)
from headrace.runtime.objects.key import file_names
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.trail import present_trail

_LEFT_BEHIND_AFTER_NS = 24 * 3600 * 10**9
_MADE_UP_DATE_NS = 10**9
_PIECE_BYTES = 1 << 20
_PUBLISH_TRIES = 5
_numbers = itertools.count()


class FolderUpload:
    """An ObjectWriter into a hidden file, which gets its name when the `with` block ends cleanly."""

    def __init__(
        self,
        tree: FolderTree,
        bucket: str,
        key: str,
        *,
        content_type: str | None,
        if_none_match: bool,
        if_match: str | None,
    ) -> None:
        self._bucket, self._key = bucket, key
        self._if_none_match, self._if_match = if_none_match, if_match
        self._tree, self._content_type = tree, content_type
        self._path = tree.path(bucket, key)
        *self._parents, self._name = file_names(key)
        self._upload: tuple[int, int, bytes] | None = None
        self._info: ObjectInfo | None = None

    def __enter__(self) -> Self:
        if self._upload is not None or self._info is not None:
            raise ValueError("a writer serves one with block")
        with writing(self._path):
            self._upload = _open_hidden(self._tree, self._bucket)
        if self._content_type is not None:
            remember_content_type(self._upload[0], self._content_type)
        if (trail := present_trail()) is not None:
            remember_trail(self._upload[0], trail)
        return self

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if self._upload is None:
            raise ValueError("the writer is not open")
        with memoryview(data).cast("B") as rest, writing(self._path):
            done = 0
            while done < len(rest):
                done += os.write(self._upload[0], rest[done : done + _PIECE_BYTES])
            return done

    @property
    def info(self) -> ObjectInfo:
        if self._info is None:
            raise ValueError("nothing is committed yet")
        return self._info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._upload is None:
            return
        descriptor, directory, temporary = self._upload
        self._upload = None
        try:
            if error is None:
                with writing(self._path):
                    self._info = self._publish(descriptor, directory, temporary)
        finally:
            if self._info is None:
                # Absent if the error came after the rename; a later cleaning takes what stays now.
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
            os.close(descriptor)
            os.close(directory)

    def _publish(self, descriptor: int, directory: int, temporary: bytes) -> ObjectInfo:
        """Give a finished upload its name."""
        if self._tree.fsync:
            flush(descriptor)
        for tries_left in reversed(range(_PUBLISH_TRIES)):
            try:
                with self._open_parent() as parent:
                    with self._tree.key_lock(self._bucket, self._key) as lock:
                        self._check_place(parent)
                        self._make_later(descriptor, lock, file_status(parent, self._name))
                        self._move(directory, temporary, parent)
                    if self._tree.fsync:
                        flush(parent)
            except FileNotFoundError:
                # A put of one of the parents' names removed the directories while they were empty.
                if not tries_left:
                    raise
            else:
                break
        status = os.fstat(descriptor)
        return describe(self._bucket, self._key, status, descriptor=descriptor)

    @contextmanager
    def _open_parent(self) -> Iterator[int]:
        directory = self._tree.open_bucket(self._bucket)
        try:
            for depth, name in enumerate(self._parents, 1):
                try:
                    deeper = step_into_new(directory, name, durable=self._tree.fsync)
                except NotADirectoryError:
                    taken = "/".join(self._key.split("/")[:depth])
                    why = f"{taken!r} is an object or a link, so no key can go on below it"
                    raise InvalidKey(self._key, why) from None
                except OSError as error:
                    if error.errno == errno.ENAMETOOLONG:
                        raise InvalidKey(self._key, "a segment is too long for this file system") from error
                    raise
                os.close(directory)
                directory = deeper
            yield directory
        finally:
            os.close(directory)

    def _check_place(self, parent: int) -> None:
        status = file_status(parent, self._name)
        if status is not None and not is_object(status):
            if not remove_empty_directories(parent, self._name, below=DEPTH_MAX):
                why = "a folder with objects below it, a link or a special file has this name"
                raise InvalidKey(self._key, why)
            status = None
        found = None if status is None else etag_of(status)
        if self._if_match is not None and found != self._if_match:
            raise PreconditionFailed(self._bucket, self._key, self._if_match, found)
        if self._if_none_match and found is not None:
            raise PreconditionFailed(self._bucket, self._key, None, found)

    def _make_later(self, descriptor: int, lock: int, replaced: os.stat_result | None) -> None:
        """Move an upload's time past that of what it replaces, or of what was deleted, where needed."""
        mine = os.fstat(descriptor)
        floor = max(os.fstat(lock).st_mtime_ns, replaced.st_mtime_ns if replaced is not None else 0)
        if mine.st_mtime_ns <= floor:
            os.utime(descriptor, ns=(mine.st_atime_ns, floor + 1))
            if self._tree.fsync:
                flush(descriptor)

    def _move(self, directory: int, temporary: bytes, parent: int) -> None:
        if self._if_none_match:
            try:
                # A `cp` heeds no lock of ours; unlike a rename, a link fails if one got there since.
                os.link(temporary, self._name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                status = file_status(parent, self._name)
                found = None if status is None else etag_of(status)
                raise PreconditionFailed(self._bucket, self._key, None, found) from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                # No hard links here (exFAT, some shares): the lock still orders Headrace's own writes.
            else:
                os.unlink(temporary, dir_fd=directory)
                return
        try:
            os.rename(temporary, self._name, src_dir_fd=directory, dst_dir_fd=parent)
        except (IsADirectoryError, FileExistsError):
            raise InvalidKey(self._key, "a folder of this name appeared") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidKey(self._key, "a segment is too long for this file system") from error
            raise


def remember_deleted(lock: int, deleted: os.stat_result) -> None:
    """Leave in the lock's time a floor for the sequencer of a key that comes back."""
    os.utime(lock)
    now_ns = os.fstat(lock).st_mtime_ns
    # A date far ahead was made up by somebody, and must not become that of all keys which share this lock.
    if now_ns < deleted.st_mtime_ns < now_ns + _MADE_UP_DATE_NS:
        os.utime(lock, ns=(deleted.st_mtime_ns, deleted.st_mtime_ns))


def _open_hidden(tree: FolderTree, bucket: str) -> tuple[int, int, bytes]:
    """A new hidden file on the bucket's file system: its descriptor, its directory's, and its name."""
    with tree.open_directory(bucket, []) as within, tree.open_root() as root:
        if os.fstat(within).st_dev == os.fstat(root).st_dev:
            directory = step_into_new(root, TEMPORARY, durable=False)
        else:
            directory = step_into_new(within, TEMPORARY_IN_BUCKET, durable=False)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        while True:
            name = b"upload-%d-%d" % (os.getpid(), next(_numbers))
            # The name may be taken: by a dead process with this id, or a live one in another container.
            with suppress(FileExistsError):
                descriptor = os.open(name, flags, 0o666, dir_fd=directory)
                break
        # Held until the descriptor closes or the process dies: who cleans up leaves a locked file alone.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor, directory, name
    except BaseException:
        os.close(directory)
        raise


def remove_all_left_behind(tree: FolderTree) -> None:
    """Remove dead processes' unfinished uploads older than 24 hours, as far as storage allows."""
    places = [os.path.join(tree.root_bytes, TEMPORARY)]
    with suppress(OSError), os.scandir(tree.root_bytes) as entries:
        places += [os.path.join(entry.path, TEMPORARY_IN_BUCKET) for entry in entries if entry.is_dir()]
    for place in places:
        # What cannot be removed now is hidden and harmless.
        with suppress(OSError):
            _clean_directory(place)


def _clean_directory(place: bytes) -> None:
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Ask the file system for the time: on a share it is another machine's, and so are the files' dates.
        clock = os.open(
            b"clock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=directory
        )
        try:
            os.utime(clock)
            now_ns = os.fstat(clock).st_mtime_ns
        finally:
            os.close(clock)
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name.startswith(b"upload-"):
                    _remove_left_behind(directory, name, before_ns=now_ns - _LEFT_BEHIND_AFTER_NS)
    finally:
        os.close(directory)


def _remove_left_behind(directory: int, name: bytes, *, before_ns: int) -> None:
    """Remove an unfinished upload if it was last written before a moment and no live process has it open."""
    status = file_status(directory, name)
    if status is None or not is_object(status) or status.st_mtime_ns >= before_ns:
        return
    with suppress(FileNotFoundError):
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
        except BlockingIOError:
            pass  # a slow upload that is still going on
        finally:
            os.close(descriptor)
