"""Whether a file is being written, by the word of the kernel.

Imports nothing of Headrace.
"""

import fcntl
import os
import signal
import sys


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
