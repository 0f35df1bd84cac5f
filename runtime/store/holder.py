"""Holder: the one process that may use a data folder, kept by a lock on a file beside the database.

Imports the floor only. The lock is flock(2)'s: the kernel drops it when the last copy of the descriptor is
closed, so a killed process leaves nothing behind; but a child that inherited it keeps it, which is how a node
waits for the zygote of the node before it.
"""

import asyncio
import fcntl
import os
import socket
from pathlib import Path

from headrace.runtime.errors import DataInUse, ReadOnlyStorage

PATIENCE_S = 5.0
"""How long `take` waits for processes of a node that has just ended."""

_PAUSE_S = 0.05


class Holder:
    """The lock of one data folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def fd(self) -> int | None:
        """The locked descriptor while held: a child that inherits it holds the folder as well."""
        return self._fd

    async def take(self) -> None:
        """Take the lock and name this process in the file. Raises DataInUse, ReadOnlyStorage."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ReadOnlyStorage(str(self._path.parent)) from error
        try:
            for _ in range(int(PATIENCE_S / _PAUSE_S)):
                if self._lock(fd):
                    break
                await asyncio.sleep(_PAUSE_S)
            else:
                holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
                raise DataInUse(str(self._path.parent), holder or "another process")
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            os.close(fd)
            raise ReadOnlyStorage(str(self._path)) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def drop(self) -> None:
        """Give the lock up. The file stays: two processes must not lock two files of one name."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @staticmethod
    def _lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
