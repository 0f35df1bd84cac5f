"""ObserverWatch: notices of a folder by watchdog, for platforms other than Linux.

Imports watchdog and its own room. FSEvents and kqueue tell that a file changed, but not that its writer
closed it, so every notice of a file is unsure: whoever hears it waits until the file has been quiet.
"""

import asyncio
import contextlib
import os
import threading

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
from watchdog.observers.api import BaseObserver

from headrace.triggers.upload.watch import (
    Happening,
    InThread,
    Listener,
    Notice,
    directory_notice,
    file_notice,
)

WAITING_MAX = 16_384
"""Notices that wait for the event loop; more are a loss."""

_DIRECTORIES = (DirCreatedEvent, DirMovedEvent)
_FILES = (FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileClosedEvent)


class ObserverWatch:
    """A FolderWatch on any platform that watchdog knows."""

    def __init__(self, path: str, listener: Listener, in_thread: InThread) -> None:
        self._path = path
        self._listener, self._in_thread = listener, in_thread
        self._observer: BaseObserver | None = None
        self._handler: _Handler | None = None
        self._identity: tuple[int, int] | None = None

    async def arm(self) -> None:
        await self.disarm()
        await self._in_thread(self._begin, asyncio.get_running_loop())

    async def extend(self) -> None:
        pass  # watchdog watches new directories by itself

    async def disarm(self) -> None:
        observer, self._observer = self._observer, None
        if self._handler is not None:
            self._handler.silent = True
        if observer is not None:
            await self._in_thread(_end, observer)

    async def is_stale(self) -> bool:
        handler = self._handler
        return handler is None or handler.has_lost or await self._in_thread(self._is_elsewhere)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        folder = os.path.realpath(self._path)
        status = os.stat(folder)
        handler, observer = _Handler(folder, loop, self._listener), Observer()
        observer.schedule(handler, folder, recursive=True)
        observer.start()
        self._handler, self._observer, self._identity = handler, observer, (status.st_dev, status.st_ino)

    def _is_elsewhere(self) -> bool:
        if self._observer is None or not self._observer.is_alive():
            return True
        try:
            status = os.stat(os.path.realpath(self._path))
        except OSError:
            return True
        return self._identity != (status.st_dev, status.st_ino)


class _Handler(FileSystemEventHandler):
    """Carries notices from watchdog's thread to the event loop, a batch a turn."""

    def __init__(self, folder: str, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._base = os.fsencode(folder) + b"/"
        self._loop, self._listener = loop, listener
        self._waiting: list[Notice] = []
        self._lock = threading.Lock()
        self.has_lost = False
        self.silent = False

    def dispatch(self, event: FileSystemEvent) -> None:
        notice = self._notice(event)
        if notice is None:
            return
        with self._lock:
            wake = not self._waiting
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append(notice)
            else:
                self.has_lost = True
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and this thread ends soon too
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            notices, self._waiting = self._waiting, []
        if not self.silent:
            self._listener(notices, lost=self.has_lost)

    def _notice(self, event: FileSystemEvent) -> Notice | None:
        if not isinstance(event, (*_DIRECTORIES, *_FILES)):
            return None
        moved = isinstance(event, FileMovedEvent | DirMovedEvent)
        path = os.fsencode((event.dest_path if moved else event.src_path) or b"")
        if not path.startswith(self._base):
            return None  # it was moved away
        names = path[len(self._base) :].split(b"/")
        return (
            directory_notice(names)
            if isinstance(event, _DIRECTORIES)
            else file_notice(Happening.UNSURE, names)
        )


def _end(observer: BaseObserver) -> None:
    observer.stop()
    observer.join()
