"""Captures: the file that a worker's file descriptors 1 and 2 are, and what is kept of it.

Imports nothing of Headrace. Worker and node share one open file, which has no name; it is read by position,
and written by appending only, so neither disturbs the other. A worker empties it after each invocation.
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

KEPT_BYTES = 1 << 20
PUNCH_ABOVE_BYTES = 8 << 20
_HALF = KEPT_BYTES // 2
_BLOCK = 1 << 16

# From linux/falloc.h.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def open_capture(folder: Path) -> int:
    """A new empty capture in `folder`, as a file descriptor that appends."""
    descriptor, path = tempfile.mkstemp(prefix="output-", dir=folder)
    os.close(descriptor)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.unlink(path)
    return descriptor


def size(descriptor: int) -> int:
    """Bytes written since it was emptied."""
    return os.lseek(descriptor, 0, os.SEEK_END)  # four times cheaper than fstat, and nobody uses the position


def empty(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)


def head_and_tail(descriptor: int) -> tuple[bytes, int]:
    """What is kept of the output, at most KEPT_BYTES and one line that says how much was cut, and its
    full size in bytes."""
    total = size(descriptor)
    if total <= KEPT_BYTES:
        return os.pread(descriptor, total, 0), total
    cut = total - 2 * _HALF
    head = os.pread(descriptor, _HALF, 0)
    tail = os.pread(descriptor, _HALF, total - _HALF)
    return head + f"\n[... {cut:,} bytes cut ...]\n".encode() + tail, total


def tail(descriptor: int) -> bytes:
    """The last KEPT_BYTES."""
    total = size(descriptor)
    return os.pread(descriptor, KEPT_BYTES, max(0, total - KEPT_BYTES))


def punch(descriptor: int, punched: int) -> int:
    """Give the disk back what lies between head and tail, so that endless printing cannot fill it.

    Args:
        punched: what the previous call returned for the same output, 0 at first.

    Returns: the offset up to which there is a hole now; `punched` again where the file system has no holes.
    """
    total = size(descriptor)
    start = max(punched, _HALF)
    end = (total - KEPT_BYTES) // _BLOCK * _BLOCK
    if end - start < KEPT_BYTES or not sys.platform.startswith("linux"):
        return punched
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(
        descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(end - start)
    )
    return end if done == 0 else punched
