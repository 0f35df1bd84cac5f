"""Fault points: named places in the life of an event at which a test ends the process.

Imports the standard library only. `HEADRACE_FAULT=POINT[:N][:stop]`, read once when this module is imported,
ends the process by SIGKILL as it reaches POINT for the N-th time (default the first), or stops it by SIGSTOP.
`HEADRACE_FAULT_ONCE=PATH` lets that happen in one process only, whichever is first to make that file: its
successors live. Without the variable `reach` is a function that does nothing.

A point named `….before` lies before the write that it is about is handed to the store; `….after` lies where
that write is durable and nothing in memory, and no caller, has been told of it.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping

POINTS = (
    "accept",  # new invocations are about to be handed to the store
    "commit.before",  # the transaction is written, not committed
    "commit.after",  # the transaction is durable, nobody has been answered
    "claim",  # the store has given claims that nobody runs yet
    "send",  # a frame of work is in a worker's socket
    "start",  # a worker has read a frame and begun nothing of it
    "run.before",  # a worker is about to call the function
    "run.after",  # the function has returned, its result is not encoded
    "result.send",  # a worker is about to send results
    "result.receive",  # the node has read results and done nothing with them
    "complete.before",  # the end of an invocation
    "complete.after",
    "retry.before",  # the end of an attempt that another one will follow
    "retry.after",
    "dead.before",  # the end of an invocation as a dead letter, with what its destination is told
    "dead.after",
    "plan.before",  # a job's plan: all of its chunks
    "plan.after",
    "chunk.before",  # the end of a chunk
    "chunk.after",
    "reduce",  # a reduce has been accepted with the last of its children, and nobody has been woken for it
    "final.before",  # a job becomes succeeded, failed or cancelled; its output is in its bucket
    "final.after",
    "cursor.before",  # a trigger records under which declaration it begins
    "cursor.after",
    "ledger.before",  # an upload's event with its row of the ledger
    "ledger.after",
    "set.before",  # a set's event with what is remembered of the set
    "set.after",
    "fire.before",  # a schedule's event with the instant that it is for
    "fire.after",
)

IN_WORKERS = ("start", "run.before", "run.after", "result.send")
"""The points at which a worker ends, and not the node."""

VARIABLES = ("HEADRACE_FAULT", "HEADRACE_FAULT_ONCE")


class InvalidFault(ValueError):
    """HEADRACE_FAULT does not say where and when."""


class Fault:
    """One fault that waits for its moment. `reach` may be called by any thread.

    Args:
        text: `POINT[:N][:stop]`, as in HEADRACE_FAULT.
        once: the file that only one process makes; "" lets each process do it.
        strike: what is done with the signal; this process is sent it by default.

    Raises: InvalidFault.
    """

    def __init__(
        self, text: str, *, once: str = "", strike: Callable[[signal.Signals], None] | None = None
    ) -> None:
        self.point, *rest = text.split(":")
        self.signum = signal.SIGKILL
        if rest and rest[-1] == "stop":
            self.signum = signal.SIGSTOP
            rest.pop()
        number = rest.pop(0) if rest else "1"
        if self.point not in POINTS or rest or not number.isdecimal() or int(number) < 1:
            raise InvalidFault(
                f"HEADRACE_FAULT is {text!r}; write POINT, POINT:N or POINT:N:stop with N from 1 and one of"
                f" the points {', '.join(POINTS)}"
            )
        self._left = int(number)
        self._once = once
        self._strike = strike or _strike
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        """This process is at the point of that name."""
        if name != self.point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0 and self._is_first():
                self._strike(self.signum)

    def _is_first(self) -> bool:
        if not self._once:
            return True
        try:
            descriptor = os.open(self._once, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(descriptor, f"{self.point} {os.getpid()}\n".encode())
        os.close(descriptor)
        return True


def _strike(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


def _reach_nothing(name: str) -> None:
    """This process is at the point of that name, and no fault was asked for."""


def from_environment(environ: Mapping[str, str]) -> Fault | None:
    """The fault that the variables ask for, or None. Raises InvalidFault."""
    text = environ.get("HEADRACE_FAULT", "")
    return Fault(text, once=environ.get("HEADRACE_FAULT_ONCE", "")) if text else None


def _here() -> tuple[Fault | None, str]:
    try:
        return from_environment(os.environ), ""
    except InvalidFault as error:
        return None, str(error)


_fault, problem = _here()
"""`problem` says what is wrong with the variable, or nothing: a start refuses it, an import cannot."""

reach: Callable[[str], None] = _reach_nothing if _fault is None else _fault.reach
armed = _fault is not None
"""Whether a fault was asked for: a loop that runs in microseconds asks this once, and then need not call."""
