"""Functions that do what no function should. Each is killed, refused or contained."""

import ctypes
import os
import re
import signal
import sys
import time

from headrace import App

app = App("bad")


@app.function(timeout=1, retries=0)
def loop_in_c() -> None:
    """A regular expression that never ends and never lets Python handle a signal."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@app.function(timeout=20, retries=0, memory="96 MiB")
def allocate() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))


@app.function(timeout=20, retries=0, memory="96 MiB")
def allocate_in_children() -> None:
    """The memory of what a function starts is the function's."""
    for _ in range(4):
        if os.fork() == 0:
            kept = [bytearray(os.urandom(1 << 20)) for _ in range(48)]
            time.sleep(600)
            os._exit(len(kept))
    time.sleep(600)


@app.function(retries=0)
def leave() -> None:
    os._exit(7)


@app.function(retries=0)
def exit_politely() -> None:
    sys.exit(3)


@app.function(retries=0)
def read_nowhere() -> None:
    ctypes.string_at(8)


@app.function(timeout=1, retries=0)
def fork_and_hang() -> None:
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
            os._exit(0)
    time.sleep(600)


@app.function(retries=0)
def leave_a_daemon() -> str:
    """It returns, and leaves a process that has left its session behind."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return "done"


@app.function(timeout=60, retries=0)
def print_a_lot() -> str:
    line = b"x" * 1023 + b"\n"
    os.write(1, b"the first line\n")
    for _ in range(100):
        os.write(1, line * 1024)
    os.write(1, b"the last line\n")
    return "printed"


@app.function(retries=0)
def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


@app.function(retries=0)
def complain() -> None:
    raise LookupError("no such kettle")


@app.function(retries=0)
def not_a_number() -> dict[str, list[float]]:
    return {"values": [1.0, float("nan")]}


@app.function(retries=0)
def an_object() -> object:
    return {"it": object()}


@app.function(retries=0)
def huge(bytes: int) -> str:
    return "h" * bytes


@app.function(retries=0)
def close_everything() -> str:
    """Close the descriptors that it does not own."""
    os.closerange(3, 256)
    return "closed"


@app.function(retries=1)
def kill_zygote() -> None:
    """End the process that all workers are forked from, each time that it is tried."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


@app.function
def neighbour(n: int) -> int:
    return n + 1
