"""Processes: what Linux tells of them in /proc and what prctl asks for, with nothing outside the standard
library.

Imports nothing of Headrace. Elsewhere the questions have empty answers and the requests do nothing: there, a
worker's end is noticed by its sockets, and descendants that leave its process group are not found.
"""

import contextlib
import ctypes
import os
import signal
import sys

LINUX = sys.platform.startswith("linux")

# Bound here, so that a forked worker need not. The numbers are from linux/prctl.h.
_prctl = ctypes.CDLL(None).prctl if LINUX else None
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36

# A worker's oom_score_adj is this plus its slot. It is inherited over fork and exec, and cannot be lowered
# without privilege, so it tells whose descendant a process is even after it left the session and lost its
# parents.
TAG_BASE = 300
SLOTS_MAX = 600


def die_with_parent(parent: int, signum: signal.Signals) -> None:
    """Ask for `signum` when the thread that started this process ends; exit at once if `parent` is gone
    already."""
    if _prctl is not None:
        _prctl(_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents end."""
    if _prctl is not None:
        _prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tag(slot: int) -> None:
    """Mark this process and what it will start as of `slot`, 0 to SLOTS_MAX - 1; also the kernel's first
    victims."""
    with contextlib.suppress(OSError):
        # Every new worker does this, and the bare calls take a third of the time of `open`.
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, str(TAG_BASE + slot).encode())
        os.close(descriptor)


def tag_of(pid: int) -> int | None:
    """The slot that a process is marked with, or None."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "rb") as file:
            slot = int(file.read()) - TAG_BASE
    except (OSError, ValueError):
        return None
    return slot if 0 <= slot < SLOTS_MAX else None


def parent_and_session(pid: int) -> tuple[int, int] | None:
    """A live or zombie process's parent and session, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[1]), int(fields[3])) if len(fields) > 3 else None


def all_pids() -> list[int]:
    """Every process that /proc shows."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def kill_one(pid: int) -> None:
    """SIGKILL for one process, if it is there and ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_group(pid: int, signum: int = signal.SIGKILL) -> None:
    """Signal a process group and, should it not have made its group yet, its leader."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signum)


def marked(mark: str) -> list[int]:
    """Processes that were started with `mark`, NAME=VALUE, in their environment, or forked from such;
    this one excepted."""
    wanted = b"\0" + mark.encode() + b"\0"
    found = []
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if wanted in b"\0" + environment and pid != os.getpid():
            found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    """The children of a process, of all its threads. Source: proc(5), /proc/pid/task/tid/children."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # the thread or the process has ended
    return found


class ProcessTable:
    """Who is whose child. Most kernels tell it of one process, and it costs nothing that there are thousands
    of others; for the rest a refresh reads new processes only, and all of them now and then.
    """

    def __init__(self, *, reread_every: int = 20, asks_kernel: bool | None = None) -> None:
        if asks_kernel is None:
            asks_kernel = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
        self._asks_kernel = asks_kernel
        self._parents: dict[int, int] = {}
        self._children: dict[int, list[int]] = {}
        self._reread_every = reread_every
        self._refreshes = 0

    def refresh(self) -> None:
        """Look again."""
        if self._asks_kernel:
            return
        known = self._parents if self._refreshes % self._reread_every else {}
        self._refreshes += 1
        self._parents, self._children = {}, {}
        for pid in all_pids():
            parent = known.get(pid)
            if parent is None:
                found = parent_and_session(pid)
                parent = found[0] if found else 0
            self._parents[pid] = parent
            self._children.setdefault(parent, []).append(pid)

    def descendants(self, root: int) -> list[int]:
        """All processes below `root`, now or as of the last refresh."""
        found: list[int] = []
        ahead = [root]
        seen = {root}  # a number that was used again between two refreshes could make a circle
        while ahead:
            above = ahead.pop()
            for pid in _children(above) if self._asks_kernel else self._children.get(above, ()):
                if pid not in seen:
                    seen.add(pid)
                    found.append(pid)
                    ahead.append(pid)
        return found
