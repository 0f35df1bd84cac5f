"""Watch: what is to be done about a worker, seen from outside while it runs user code.

Imports the floor and this room. It looks and judges; ending processes and reporting outcomes is the pool's.
"""

import signal
from enum import Enum
from typing import Any

from headrace.runtime.errors import Cancelled, FunctionTimeout, OutOfMemory
from headrace.runtime.pool import capture, limits, process
from headrace.runtime.pool.link import Doom, Link
from headrace.runtime.pool.placement import QUEUE_S

# A worker that holds work, runs none of it and says nothing is stopped or stuck. A spawned one may be
# importing.
STALL_S = 90.0
# How long a process that got SIGKILL may take to be reported dead, before the next stronger means.
ESCALATE_S = 3.0
OVERDUE_MIN_S = 0.010


class Means(Enum):
    """How a worker is ended."""

    TERMINATE = "SIGTERM, so that `finally` blocks run"
    KILL = "SIGKILL to its group, by the zygote"
    KILL_DIRECTLY = "the same by the node: the zygote does not answer"
    KILL_ZYGOTE = "the end of the zygote, which takes all workers along"


def doom_by_time(seq: int, function: str, timeout_s: float) -> Doom:
    message = f"{function} ran longer than its {timeout_s:g} s and was ended"
    return Doom(seq, "timeout", {"code": FunctionTimeout.code, "message": message})


def doom_by_memory(seq: int, function: str, used: int, limit: int) -> Doom:
    message = f"{function} and its processes used {used:,} bytes of memory; the limit is {limit:,}"
    error = {"code": OutOfMemory.code, "message": message, "bytes": used, "limit": limit}
    return Doom(seq, "out_of_memory", error)


def doom_by_wish(seq: int) -> Doom:
    return Doom(seq, "cancelled", cancelled())


def cancelled() -> dict[str, Any]:
    """The error of what was cancelled."""
    return {"code": Cancelled.code, "message": "it was cancelled"}


class Watch:
    """Judges workers, one look after another.

    Args:
        kill_grace_s: from SIGTERM to SIGKILL.
        recycle_growth_bytes: by how much a worker's anonymous memory may grow for good.
    """

    def __init__(self, *, kill_grace_s: float, recycle_growth_bytes: int) -> None:
        self.kill_grace_s = kill_grace_s
        self._recycle_growth_bytes = recycle_growth_bytes
        self._table = process.ProcessTable()

    def refresh(self) -> None:
        """Learn which processes there are; before looks that measure."""
        if process.LINUX:
            self._table.refresh()

    def look(self, link: Link, now: float, *, measure: bool) -> Means | None:
        """How a worker that holds something is to be ended now, or None.

        What it runs is doomed by then, with the reason. With `measure` its memory is looked at, which takes
        longer, and the middle of what it printed is given up when that is much.
        """
        executing = link.page.executing()
        if executing is None or executing[0] not in link.held:
            return self._look_at_silence(link, now)
        seq, started = executing
        attempt = link.held[seq]
        if link.doom is not None and link.doom.seq == seq:
            return self.next_means(link.doom, now) if now >= link.doom.next_at else None
        if seq in link.condemned:
            link.doom = doom_by_wish(seq)
        elif link.reading is not None and link.reading.overstays(seq, now, self.kill_grace_s):
            link.doom = doom_by_wish(seq)  # its caller has gone, and it goes on
        elif now - started > attempt.timeout_s:
            link.doom = doom_by_time(seq, attempt.function, attempt.timeout_s)
        elif measure:
            self._keep_output_small(link)
            used = self._used_bytes(link)
            if used > attempt.memory_bytes:
                link.doom = doom_by_memory(seq, attempt.function, used, attempt.memory_bytes)
                link.doom.means.pop(0)  # there is no time to be polite
            elif used > self._recycle_growth_bytes and attempt.estimate_s <= QUEUE_S:
                link.closing = True  # what such a quick function uses is mostly what was there before
        return self.next_means(link.doom, now) if link.doom is not None else None

    def next_means(self, doom: Doom, now: float) -> Means:
        """The next stronger means against what is doomed."""
        means = Means[doom.means.pop(0)] if len(doom.means) > 1 else Means[doom.means[0]]
        doom.next_at = now + (self.kill_grace_s if means is Means.TERMINATE else ESCALATE_S)
        return means

    def overdue(self, link: Link, now: float) -> bool:
        """Whether what runs takes so long that what waits behind it should not wait any more."""
        executing = link.page.executing()
        if executing is None or len(link.held) < 2:
            return False
        held = link.held.get(executing[0])
        return held is not None and now - executing[1] > OVERDUE_MIN_S + 2 * held.estimate_s

    def outgrown(self, link: Link) -> bool:
        """Whether a worker at rest has grown too much."""
        link.measured_at_done = link.done
        base = link.base_anonymous_bytes
        return bool(
            link.pid and base and limits.anonymous_bytes(link.pid) - base > self._recycle_growth_bytes
        )

    def _look_at_silence(self, link: Link, now: float) -> Means | None:
        sign = link.sign_of_life
        if sign != link.last_sign:
            link.last_sign, link.last_sign_at = sign, now
        return Means.KILL if now - link.last_sign_at > STALL_S else None

    def _used_bytes(self, link: Link) -> int:
        """Anonymous memory of the worker and its descendants above what the worker began with."""
        base = link.base_anonymous_bytes
        if link.pid is None or not base:
            return 0
        return sum(map(limits.anonymous_bytes, (link.pid, *self._table.descendants(link.pid)))) - base

    def _keep_output_small(self, link: Link) -> None:
        if capture.size(link.output) > capture.PUNCH_ABOVE_BYTES:
            link.punched = capture.punch(link.output, link.punched)
        else:
            link.punched = 0


def how_it_ended(code: int) -> str:
    """An exit code, negative for a signal, in words: `SIGSEGV` or `exit code 3`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
