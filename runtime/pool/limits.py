"""Limits: how much anonymous memory a worker and its descendants may use, and how that is measured.

Imports nothing of Headrace. RLIMIT_DATA refuses what one process asks for too much at once; sampling sees the
whole process tree. RLIMIT_AS is never used, since numpy and Arrow reserve far more address space than they
touch.
"""

import contextlib
import os
import resource

from headrace.runtime.pool.process import LINUX

_PAGE = os.sysconf("SC_PAGE_SIZE")


def in_force() -> str:
    """How memory is limited on this machine, for operators."""
    return "rlimit+sampling" if LINUX else "none"


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is backed by no file; 0 when there is no such process, or no
    /proc."""
    try:
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        return 0
    try:
        fields = os.read(descriptor, 128).split()
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def limit_growth(growth_bytes: int) -> None:
    """Let this process's private writable memory grow by `growth_bytes` from now, whatever limit was set
    before."""
    if not LINUX:
        return
    used = _data_bytes()
    if not used:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + growth_bytes
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _data_bytes() -> int:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmData:"):
                    return int(line.split()[1]) << 10
    except OSError:
        return 0
    return 0
