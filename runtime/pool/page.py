"""The page: a little memory that a worker and its node both see, without a system call.

Imports nothing of Headrace. It says which item the worker executes and since when, lets the node take back
what the worker has not begun, and holds finished results until they are sent, so that none is lost with the
process.

**Why nothing runs twice.** Items bear growing numbers (`seq`). Before it executes an item the worker writes
BEGUN = seq, then reads REVOKE, and skips the item when seq >= REVOKE. A node that wants items back writes
REVOKE, then reads BEGUN. Between the write and the read, both sides pass a full memory barrier, so at least
one of them sees the other's write (Dekker's argument): an item above the BEGUN that the node read is one
whose worker will see REVOKE, and the node may place it elsewhere at once. Of an item up to that BEGUN the
node waits to hear: the worker reports it as run or as skipped. REVOKE is lifted only after the worker has
reported on everything it was ever sent.

**Why STARTED is written after the barrier and zeroed at the end.** It alone says that user code runs: a
worker that dies while STARTED is 0 dies of nobody's code. Read as STARTED, BEGUN, STARTED again, it belongs
to that BEGUN when both readings agree.

**Results.** The worker appends encoded results to an area of the page and publishes their size and number in
one word. Whoever sends them first zeroes that word, then raises GENERATION, then reuses the area; a copy is
good when GENERATION was the same before and after. The node copies only once STARTED of a later item is
there, or the worker is dead.

One word is eight aligned bytes, which all supported machines write whole.
"""

import mmap
import os
import tempfile
import threading
from pathlib import Path

BEGUN, STARTED, REVOKE, DOOMED, BASE_ANON, GENERATION, PUBLISHED, CLOSED = range(8)
WORDS = 8
RESULTS_AT = WORDS * 8
PAGE_BYTES = 128 << 10
RESULTS_BYTES = PAGE_BYTES - RESULTS_AT
NEVER = (1 << 63) - 1

_LOCK = threading.Lock()
_acquire, _release = _LOCK.acquire, _LOCK.release

if os.uname().machine in ("x86_64", "i686"):

    def fence() -> None:
        """A full memory barrier: the atomic exchange by which an uncontended lock is taken is one on this
        processor."""
        _acquire()
        _release()

else:

    def fence() -> None:
        """A full memory barrier.

        An uncontended lock, taken and released twice: an acquire and a release may each be passed from one
        side, but a release is never passed by a later acquire, which the second pair adds.
        """
        _acquire()
        _release()
        _acquire()
        _release()


def open_memory(folder: Path, size: int) -> int:
    """A file descriptor of `size` zero bytes that have no name: in memory where the system can, else a
    file in `folder`."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("headrace", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Page:
    """One side's view of the shared page behind `descriptor`, which stays the caller's to close."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self._whole = memoryview(self._map)
        self.words = self._whole[:RESULTS_AT].cast("Q")
        self.reals = self._whole[:RESULTS_AT].cast("d")
        self.results = self._whole[RESULTS_AT:]

    @classmethod
    def make(cls, folder: Path) -> tuple["Page", int]:
        """A new page that revokes nothing, and the descriptor to hand to its worker."""
        descriptor = open_memory(folder, PAGE_BYTES)
        page = cls(descriptor)
        page.words[REVOKE] = NEVER
        return page, descriptor

    def close(self) -> None:
        """Unmap; no view of it may be used afterwards."""
        self.words.release()
        self.reals.release()
        self.results.release()
        self._whole.release()
        self._map.close()

    def executing(self) -> tuple[int, float] | None:
        """The number of the item whose user code runs now and when it began (CLOCK_MONOTONIC seconds), or
        None."""
        for _ in range(8):
            started = self.reals[STARTED]
            if not started:
                return None
            fence()
            begun = self.words[BEGUN]
            fence()
            if self.reals[STARTED] == started:
                return begun, started
        return None  # items end faster than we read: none of them is worth asking about

    def begun(self) -> int:
        """The number of the last item that was begun, whether or not its user code still runs."""
        return self.words[BEGUN]

    def revoke_after_begun(self) -> int:
        """Take back what is not begun. Returns the highest number that may have been; above it nothing
        will run."""
        self.words[REVOKE] = min(self.words[REVOKE], self.words[BEGUN] + 1)  # the worker may have, before us
        fence()
        return self.words[BEGUN]

    def doom(self, seq: int) -> None:
        """Name the item that a coming SIGTERM is meant for."""
        self.words[DOOMED] = seq

    def close_stream(self, seq: int) -> None:
        """Say that nobody reads what the item `seq` streams any more; its worker looks after each piece."""
        self.words[CLOSED] = seq

    def lift(self) -> None:
        """End a revocation; only when the worker has reported on everything it was sent."""
        self.words[REVOKE] = NEVER

    def published(self, *, dead: bool) -> tuple[int, bytes]:
        """How many finished results wait to be sent, and their encodings, one after another.

        Only for a worker that is dead, or that has been executing an item since before the call; (0, b"")
        when they were sent meanwhile.
        """
        generation = self.words[GENERATION]
        fence()
        if not dead and not self.reals[STARTED]:
            return 0, b""
        word = self.words[PUBLISHED]
        copy = bytes(self.results[: word & 0xFFFFFFFF])
        fence()
        if self.words[GENERATION] != generation:
            return 0, b""
        return word >> 32, copy
