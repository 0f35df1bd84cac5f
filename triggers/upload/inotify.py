"""InotifyWatch: Linux's own notices of a folder, read on the event loop.

Imports the C library and its own room. Watchdog is not used here, for what it did when measured (7.1.0): a
file moved out of the folder holds all notices back for 0.5 s, an overflow of the kernel's queue goes to a log
only, its queue has no bound, and a warning in its thread, which nested new folders cause, ends it unnoticed
where warnings are errors.

A watch belongs to a directory's inode, not to its path, and the kernel does not watch what is below. So the
watches of a directory that is moved away are dropped, and a directory that appears is watched anew, with all
below it.
"""

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from headrace.triggers.upload.watch import (
    Happening,
    InThread,
    Listener,
    Notice,
    directory_notice,
    file_notice,
)

NEW_DIRECTORIES_MAX = 16_384
"""Directories that wait to be watched; more are a loss."""

# Source: inotify(7) and <sys/inotify.h>, which are part of the kernel's stable interface.
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE = 0x08, 0x40, 0x80, 0x100
_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x4000_0000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK = 0x0100_0000, 0x0200_0000, 0x0400_0000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
_HEADER = struct.Struct("iIII")
_READ_BYTES = 16_384

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class InotifyWatch:
    """A FolderWatch on Linux. It reads a few hundred events at a time, so no turn of the loop is long."""

    def __init__(self, path: str, listener: Listener, in_thread: InThread) -> None:
        self._path = os.fsencode(path)
        self._listener, self._in_thread = listener, in_thread
        self._descriptor = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._folder = b""
        self._identity: tuple[int, int] | None = None
        self._paths: dict[int, bytes] = {}  # watch descriptor: path below the folder, with a slash at its end
        self._new: dict[bytes, None] = {}
        self._lost = False

    async def arm(self) -> None:
        await self.disarm()
        await self._in_thread(self._open)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)
        await self.extend()

    async def extend(self) -> None:
        if self._descriptor >= 0:
            new, self._new = list(self._new), {}
            await self._in_thread(self._watch_all, new)

    async def disarm(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(descriptor)
            self._loop = None
        self._paths, self._new, self._lost, self._identity = {}, {}, False, None
        await self._in_thread(os.close, descriptor)

    async def is_stale(self) -> bool:
        return self._lost or await self._in_thread(self._is_elsewhere)

    # ---- in a thread ----

    def _open(self) -> None:
        folder = os.path.realpath(self._path)
        status = os.stat(folder)
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise _error(folder)
        watch = _libc.inotify_add_watch(descriptor, folder, _MASK)
        if watch < 0:
            error = _error(folder)
            os.close(descriptor)
            raise error
        self._descriptor, self._folder, self._identity = descriptor, folder, (status.st_dev, status.st_ino)
        self._paths, self._new = {watch: b""}, {b"": None}

    def _watch_all(self, paths: list[bytes]) -> None:
        """Watch directories and all below them; what has gone meanwhile is passed over."""
        paths_of, descriptor = self._paths, self._descriptor
        refused: OSError | None = None
        waiting = paths
        while waiting and descriptor == self._descriptor:
            path = waiting.pop()
            # Without the last slash, after which the kernel would follow a link.
            place = os.path.join(self._folder, path).rstrip(b"/")
            watch = _libc.inotify_add_watch(descriptor, place, _MASK)
            if watch >= 0:
                # An event that is read before this line has an unknown watch and is dropped. Its file is
                # found all the same: who hears of a directory looks through it once it is watched.
                paths_of[watch] = path
                waiting.extend(path + name + b"/" for name in _directories(place))
            elif (error := _error(path)).errno not in (
                errno.ENOENT,
                errno.ENOTDIR,
                errno.EACCES,
                errno.ELOOP,
            ):
                refused = error
        if refused is not None:
            raise refused

    def _is_elsewhere(self) -> bool:
        try:
            status = os.stat(os.path.realpath(self._path))
        except OSError:
            return self._identity is not None
        return self._identity != (status.st_dev, status.st_ino)

    # ---- on the event loop ----

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        notices: list[Notice] = []
        at, lost = 0, False
        while at < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            if mask & _OVERFLOW:
                lost = True
            elif mask & _IGNORED:
                self._paths.pop(watch, None)
            elif (path := self._paths.get(watch)) is not None:
                notice = self._notice(mask, path + data[at - length : at].rstrip(b"\0"))
                if notice is not None:
                    notices.append(notice)
        if len(self._new) > NEW_DIRECTORIES_MAX:
            self._new.clear()
            lost = True
        self._lost |= lost
        if notices or lost:
            self._listener(notices, lost=lost)

    def _notice(self, mask: int, path: bytes) -> Notice | None:
        names = path.split(b"/")
        if not mask & _ISDIR:
            return file_notice(Happening.FINISHED, names) if mask & (_CLOSE_WRITE | _MOVED_TO) else None
        if names[-1].startswith(b"."):
            return None
        if mask & _MOVED_FROM:
            self._drop(path + b"/")
            return None
        notice = directory_notice(names)
        if notice is not None:
            self._new[path + b"/"] = None
        return notice

    def _drop(self, path: bytes) -> None:
        for watch, watched in list(self._paths.items()):
            if watched.startswith(path):
                del self._paths[watch]
                _libc.inotify_rm_watch(self._descriptor, watch)


def _directories(path: bytes) -> Iterator[bytes]:
    """The names of the directories in one, without hidden ones: nothing below those is an upload."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(b".") and entry.is_dir(follow_symlinks=False):
                    yield entry.name
    except OSError:
        return  # it went, or may not be read: a sweep would say so


def _error(path: bytes) -> OSError:
    number = ctypes.get_errno()
    if number == errno.ENOSPC:
        return OSError(
            number, "the limit of watches is reached (fs.inotify.max_user_watches)", os.fsdecode(path)
        )
    if number == errno.EMFILE:
        return OSError(
            number, "the limit of watchers is reached (fs.inotify.max_user_instances)", os.fsdecode(path)
        )
    return OSError(number, os.strerror(number), os.fsdecode(path))
