"""FolderTree: a folder store's directories, walked so that no link or race leads out of a bucket.

Imports the floor and the key rules. Every step opens one name relative to the directory before it and refuses
links, so a path is never looked up as text, where somebody could swap a directory for a link between the
check and the use.
"""

import errno
import fcntl
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.runtime.errors import HeadraceError, NoSuchBucket, ReadOnlyStorage, Retryable, StorageFull
from headrace.runtime.objects.key import KEY_BYTES_MAX, RESERVED_PREFIX, check_bucket

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

TEMPORARY = b".tmp"
TEMPORARY_IN_BUCKET = (RESERVED_PREFIX + "tmp").encode()
DEPTH_MAX = KEY_BYTES_MAX // 2
_STRIPES = 64


class UnreadableStorage(Retryable):
    """A file or directory cannot be read: (path)."""

    code = "unreadable_storage"
    hint = "Give the user that runs Headrace the right to read it, or take it out of the bucket."

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be read"


class FolderTree:
    """Where a folder store keeps its buckets, as directories to be opened.

    Args:
        root: the directory of the buckets, absolute.
        fsync: whether a change must outlive a power cut.
    """

    def __init__(self, root: Path, *, fsync: bool) -> None:
        self.root, self.fsync = root, fsync
        self.root_bytes = os.fsencode(root)

    @contextmanager
    def open_directory(self, bucket: str, names: Iterable[bytes]) -> Iterator[int]:
        """The directory at the end of `names` below the bucket. Raises: NoSuchBucket, and as `step_into`."""
        directory = self.open_bucket(bucket)
        try:
            for name in names:
                deeper = step_into(directory, name)
                os.close(directory)
                directory = deeper
            yield directory
        finally:
            os.close(directory)

    def open_bucket(self, bucket: str) -> int:
        """The bucket's directory, for the caller to close; it may be a link. Raises: NoSuchBucket."""
        try:
            return os.open(self.bucket_path(bucket), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchBucket(bucket) from None

    @contextmanager
    def open_root(self) -> Iterator[int]:
        root = os.open(self.root_bytes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)

    def bucket_path(self, bucket: str) -> bytes:
        return os.path.join(self.root_bytes, check_bucket(bucket).encode())

    def path(self, bucket: str, key: str) -> str:
        """What to call the place of a key in an error; never opened."""
        return f"{self.root}/{bucket}/{key}"

    @contextmanager
    def key_lock(self, bucket: str, key: str) -> Iterator[int]:
        """Hold the lock that orders the writes of all processes to one key, shared with a few other keys.

        No deadline: its holder makes a few system calls, and its death releases it.
        """
        stripe = zlib.crc32(f"{bucket}/{key}".encode()) % _STRIPES
        path = os.path.join(self.root_bytes, TEMPORARY, b"lock-%02d" % stripe)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            lock = os.open(path, flags, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)


def step_into(directory: int, name: bytes) -> int:
    """Open a directory inside another; the caller closes it.

    Raises: FileNotFoundError if there is none; NotADirectoryError if it is something else, such as a link.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from None
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
        raise


def step_into_new(directory: int, name: bytes, *, durable: bool) -> int:
    """`step_into`, making the directory first if there is none; `durable` makes it outlive a power cut."""
    try:
        return step_into(directory, name)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        pass
    else:
        if durable:
            flush(directory)
    return step_into(directory, name)


def file_status(directory: int, name: bytes) -> os.stat_result | None:
    """The status of an entry, not following a link; None if there is none."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def remove_empty_directories(parent: int, name: bytes, *, below: int) -> bool:
    """Remove a directory that holds nothing but directories; False if there is anything else in it.

    `below` bounds the depth, and so the open descriptors. Directories on the way may go even if the last
    stays: an empty directory holds no object.
    """
    if below == 0:
        return False
    try:
        directory = step_into(parent, name)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    return False
                if not remove_empty_directories(directory, os.fsencode(entry.name), below=below - 1):
                    return False
    finally:
        os.close(directory)
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        if error.errno != errno.ENOENT:
            raise
    return True


def flush(descriptor: int) -> None:
    """Return when a file or directory is on the disk itself."""
    if sys.platform == "darwin":
        # On macOS fsync stops at the disk's own cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns the operating system's refusals to write below `path` into StorageFull and ReadOnlyStorage."""
    try:
        yield
    except OSError as error:
        refusal = _refusal(error, path)
        if refusal is None:
            raise
        raise refusal from error


def _refusal(error: OSError, path: str) -> HeadraceError | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(path)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyStorage(path)
    return None


def is_object(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)
