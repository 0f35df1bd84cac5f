"""A bucket's folder as a sequence of objects in the order of their keys.

Imports the floor, the protocol and the key rules. Two things are easily got wrong. A directory sorts as its
name with a slash after it, so `a-b` comes before `a/b` although `a` comes before `a-b`. And a directory with
a million files must not be held in memory: each scan keeps a window of the smallest names that are still to
come, and the next scan goes on from there.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from headrace.runtime.objects.key import KEY_BYTES_MAX, SEGMENT_BYTES_MAX, file_name, segment_of
from headrace.runtime.objects.protocol import ObjectInfo

_STAT_BATCH = 256

OpenDirectory = Callable[[list[bytes]], AbstractContextManager[int]]
Describe = Callable[[str, os.stat_result], ObjectInfo]


def objects_in_order(
    open_directory: OpenDirectory, describe: Describe, *, prefix: str, after: str, window: int
) -> Iterator[ObjectInfo]:
    """The objects whose keys begin with `prefix` and are greater than `after`, in order.

    No file descriptor is open while the caller holds a value. Links, special files and names that stand for
    no key are passed over; what disappears meanwhile is too.

    Args:
        open_directory: opens a directory, given its file names below the bucket, without following links.
        describe: makes the value from a key and its file's status.
        window: the most names held in memory for each level of directories.
    """
    # `str` compares by code point, which is the order of UTF-8 bytes, so keys need no encoding to be
    # compared.
    base, slash, _ = prefix.rpartition("/")
    start = base + slash
    names = [file_name(segment) for segment in base.split("/")] if slash else []
    levels = [_Level(start, names, _Range(start, prefix, after), window)]
    while levels:
        level = levels[-1]
        try:
            if not level.waiting and not level.refill(open_directory):
                levels.pop()
                continue
            if level.waiting[-1].endswith("/"):
                below = level.base + level.waiting.pop()
                segment = below[len(level.base) : -1]
                names = [*level.names, file_name(segment)]
                levels.append(_Level(below, names, _Range(below, prefix, after), window))
                continue
            found = level.take_files(open_directory, describe)
        except (FileNotFoundError, NotADirectoryError):
            levels.pop()
            continue
        yield from found


class _Range:
    """Which of one directory's entries can hold keys that are asked for."""

    def __init__(self, base: str, prefix: str, after: str) -> None:
        self._begins = prefix[len(base) :]
        self._nothing = after > base and not after.startswith(base)
        self._after = after[len(base) :] if after.startswith(base) else None
        # A character is at most four bytes: only far down can a key be longer than keys may be.
        self._deep = 4 * len(base) + SEGMENT_BYTES_MAX > KEY_BYTES_MAX
        self._base = base

    def holds(self, entry: str) -> bool:
        """Whether an entry, a directory's name ending with a slash, is or may hold what is asked for."""
        if self._nothing or not entry.startswith(self._begins):
            return False
        if self._after is not None and entry <= self._after:
            if not (entry.endswith("/") and self._after.startswith(entry)):
                return False
        if self._deep and len((self._base + entry).encode()) > KEY_BYTES_MAX:
            return False
        return bool(self._base or entry)  # the empty key is none


class _Level:
    """One directory on the way down: the entries to come, greatest first, and where the next scan goes on."""

    def __init__(self, base: str, names: list[bytes], wanted: _Range, window: int) -> None:
        self.base, self.names, self._wanted, self._window = base, names, wanted, window
        self.waiting: list[str] = []
        self._done: str | None = None
        self._complete = False

    def refill(self, open_directory: OpenDirectory) -> bool:
        """Scan for the next window of entries; False if there are none."""
        if self._complete:
            return False
        kept: list[str] = []
        ceiling: str | None = None
        with open_directory(self.names) as directory, os.scandir(directory) as entries:
            for entry in entries:
                name = _entry_name(entry)
                if name is None or (self._done is not None and name <= self._done):
                    continue
                if (ceiling is not None and name >= ceiling) or not self._wanted.holds(name):
                    continue
                kept.append(name)
                if len(kept) >= 2 * self._window:
                    kept.sort()
                    del kept[self._window :]
                    ceiling = kept[-1]
        kept.sort()
        self._complete = ceiling is None and len(kept) <= self._window
        del kept[self._window :]
        if kept:
            self._done = kept[-1]
        kept.reverse()
        self.waiting = kept
        return bool(kept)

    def take_files(self, open_directory: OpenDirectory, describe: Describe) -> list[ObjectInfo]:
        """Describe the files that come before the next directory, at most a batch of them."""
        found = []
        with open_directory(self.names) as directory:
            for _ in range(min(_STAT_BATCH, self._window)):
                if not self.waiting or self.waiting[-1].endswith("/"):
                    break
                name = self.waiting.pop()
                try:
                    status = os.stat(file_name(name), dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(describe(self.base + name, status))
        return found


def _entry_name(entry: os.DirEntry[str]) -> str | None:
    name = entry.name
    if not name.isascii():
        try:
            name = os.fsencode(name).decode()
        except UnicodeDecodeError:
            return None
    segment = segment_of(name)
    if segment is None:
        return None
    if entry.is_file(follow_symlinks=False):
        return segment
    return segment + "/" if entry.is_dir(follow_symlinks=False) else None
