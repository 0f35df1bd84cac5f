"""FolderWatch: tells, within a fraction of a millisecond, which files of a folder have been finished.

Imports watchdog and the key rules of the object stores. A created or modified file is no finished one: what
counts is that its writer closed it, or that it was renamed into place. Watchdog also reports every file below
a directory that was renamed or made, whatever its writer still does; those reports are ignored, and the
directory itself is handed on, to be looked through. The kernel drops events when its queue is full, without a
word that reaches us on every version, so a burst that could have filled it is reported as a loss, which a
sweep makes good.
"""

import asyncio
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from headrace.runtime.objects.key import is_temporary_name, key_of_path

NOTICES_MAX = 65_536
"""Notices that wait for the event loop; more are a loss."""

BURST = 4_096
BURST_S = 5.0
"""So many events in so many seconds may have filled the kernel's queue, which holds 16,384 by default."""

_LINUX = sys.platform == "linux"
_FINISHED = (FileClosedEvent, FileMovedEvent)
_DIRECTORIES = (DirCreatedEvent, DirMovedEvent)
_UNSURE = (FileCreatedEvent, FileModifiedEvent)

# Watchdog writes each event to its log at the level DEBUG, at a cost that a burst feels.
logging.getLogger("watchdog").setLevel(logging.INFO)


class Happening(Enum):
    """What a notice says of its key."""

    FINISHED = auto()
    """The file was closed by its writer, or renamed into place."""

    UNSURE = auto()
    """The file changed, and this platform cannot tell whether its writer is done."""

    DIRECTORY = auto()
    """A directory appeared; the key ends with a slash."""


Notice = tuple[Happening, str]


class Listener(Protocol):
    """Who is told; called on the event loop."""

    def __call__(self, notices: list[Notice], /, *, lost: bool) -> None: ...


class FolderWatch:
    """Watches the folder of one bucket, with all folders below it.

    Args:
        path: the bucket's folder; it may be a link.
        listener: gets keys whose names are not temporary, in order; `lost` says that some may be missing.
    """

    def __init__(self, path: str, listener: Listener) -> None:
        self._path = path
        self._listener = listener
        self._armed: _Armed | None = None

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch; when this returns, nothing that happens from then on is missed. Blocks: call it in
        a thread.

        Raises: OSError when the folder is missing or the system's limit of watches is reached.
        """
        folder = os.path.realpath(self._path)
        status = os.stat(folder)
        handler = _Handler(folder, loop, self._listener)
        self._armed = _Armed(folder, (status.st_dev, status.st_ino), handler)
        try:
            _OBSERVER.add(folder, handler)
        except BaseException:
            self._armed = None
            raise

    def disarm(self) -> None:
        """Stop watching; nobody is told anything after this. Blocks. Twice is harmless."""
        armed, self._armed = self._armed, None
        if armed is not None:
            armed.handler.silent = True
            _OBSERVER.remove(armed.folder, armed.handler)

    def is_stale(self) -> bool:
        """Whether the folder that is watched is no longer the bucket's: it was removed or replaced."""
        try:
            status = os.stat(os.path.realpath(self._path))
        except OSError:
            return self._armed is not None
        return self._armed is None or self._armed.identity != (status.st_dev, status.st_ino)


def is_being_written(path: str | bytes) -> bool | None:
    """Whether a program of this machine has the file open for writing; None where the system does not say.

    Linux grants a read lease on a file only if nobody has it open for writing; it is given back at once.
    Source: fcntl(2), "Leases".
    """
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A writer that opens the file in the instant of the lease has a signal sent to us. The usual one,
        # SIGIO, would end the process; SIGURG does nothing.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None  # another user's file, or a file system without leases
    else:
        return False
    finally:
        os.close(descriptor)


class _Handler(FileSystemEventHandler):
    """Carries notices from watchdog's thread to the event loop, a batch a turn."""

    def __init__(self, folder: str, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._base = os.fsencode(folder) + b"/"
        self._loop, self._listener = loop, listener
        self._waiting: deque[Notice] = deque()
        self._lock = threading.Lock()
        self._lost = False
        self._woken = False
        self._burst = 0
        self._burst_began = 0.0
        self.silent = False

    def dispatch(self, event: FileSystemEvent) -> None:
        notice = self._notice(event)
        lost = self._may_have_lost()
        if notice is None and not lost:
            return
        with self._lock:
            if notice is not None:
                if len(self._waiting) < NOTICES_MAX:
                    self._waiting.append(notice)
                else:
                    lost = True
            self._lost |= lost
            wake, self._woken = not self._woken, True
        if wake:
            with suppress(RuntimeError):  # the loop is closed: the node is gone, and this thread soon too
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            notices, self._waiting = list(self._waiting), deque()
            lost, self._lost, self._woken = self._lost, False, False
        if not self.silent:
            self._listener(notices, lost=lost)

    def _notice(self, event: FileSystemEvent) -> Notice | None:
        if event.is_synthetic:
            return None
        if isinstance(event, _DIRECTORIES):
            happening = Happening.DIRECTORY
        elif isinstance(event, _FINISHED):
            happening = Happening.FINISHED if _LINUX else Happening.UNSURE
        elif isinstance(event, _UNSURE):
            happening = Happening.UNSURE
        else:
            return None
        moved = isinstance(event, FileMovedEvent | DirMovedEvent)
        path = os.fsencode((event.dest_path if moved else event.src_path) or b"")
        if not path.startswith(self._base):
            return None  # it was moved away
        try:
            key = key_of_path(path[len(self._base) :].decode().split("/"))
        except UnicodeDecodeError:
            return None
        if key is None or is_temporary_name(key):
            return None
        return happening, key + "/" if happening is Happening.DIRECTORY else key

    def _may_have_lost(self) -> bool:
        now = time.monotonic()
        if now - self._burst_began > BURST_S:
            self._burst, self._burst_began = 0, now
        self._burst += 1
        if self._burst < BURST:
            return False
        self._burst, self._burst_began = 0, now
        return True


@dataclass(frozen=True, slots=True)
class _Armed:
    folder: str
    identity: tuple[int, int]
    handler: _Handler


@dataclass(slots=True)
class _Watched:
    watch: ObservedWatch
    handlers: int


@dataclass(slots=True)
class _SharedObserver:
    """One observer for all watches of this process: the system grants each user few, 128 by default."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    observer: BaseObserver | None = None
    watched: dict[str, _Watched] = field(default_factory=dict)

    def add(self, folder: str, handler: _Handler) -> None:
        with self.lock:
            known = self.watched.get(folder)
            if known is not None and self.observer is not None:
                self.observer.add_handler_for_watch(handler, known.watch)
                known.handlers += 1
                return
            if self.observer is None:
                self.observer = _new_observer()
                self.observer.start()
            events: list[type[FileSystemEvent]] = [*_FINISHED, *_DIRECTORIES, *(() if _LINUX else _UNSURE)]
            try:
                watch = self.observer.schedule(handler, folder, recursive=True, event_filter=events)
            except BaseException:
                self._rest()
                raise
            self.watched[folder] = _Watched(watch, 1)

    def remove(self, folder: str, handler: _Handler) -> None:
        with self.lock:
            known, observer = self.watched.get(folder), self.observer
            if known is None or observer is None:
                return
            known.handlers -= 1
            if known.handlers:
                observer.remove_handler_for_watch(handler, known.watch)
                return
            del self.watched[folder]
            observer.unschedule(known.watch)
            self._rest()

    def _rest(self) -> None:
        if not self.watched and self.observer is not None:
            self.observer.stop()
            self.observer.join()
            self.observer = None


def _new_observer() -> BaseObserver:
    if _LINUX:
        from watchdog.observers.inotify import InotifyObserver

        # Full events say "moved" of a file that came from outside; otherwise that looks like one just
        # created.
        return InotifyObserver(generate_full_events=True)
    make: Callable[[], BaseObserver] = Observer
    return make()


_OBSERVER = _SharedObserver()
