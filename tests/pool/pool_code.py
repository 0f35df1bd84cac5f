"""The user code of the pool's tests, and its loaders, as `code.Loaded` describes them."""

import asyncio
import ctypes
import dataclasses
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pydantic

from headrace.runtime.errors import InvalidEvent, RetryAfter
from headrace.runtime.model.spec import FunctionSpec, Manifest


class Loaded:
    def __init__(self, entries: dict[str, Any], **manifest: Any) -> None:
        self.entries = entries
        self.manifest = Manifest(
            version="1",
            functions=tuple(
                FunctionSpec(name=name, module=__name__, file=__file__, line=1) for name in entries
            ),
            **manifest,
        )


class Point(pydantic.BaseModel):
    x: float
    y: float = 0.0


@dataclasses.dataclass
class Pair:
    left: object
    right: object


def echo(event, context):
    return event


def slow(event, context):
    """Sleep, after telling the outside that it runs."""
    time.sleep(event)
    return event


def wait_for(event, context):
    """Touch one file, then run until another exists."""
    Path(event["begun"]).touch()
    while not Path(event["until"]).exists():
        time.sleep(0.002)
    return os.getpid()


def append(event, context):
    """Leave a line in a file for every time it runs, then take its time."""
    with open(event["file"], "a") as file:
        file.write(f"{event['line']}\n")
    time.sleep(event.get("seconds", 0))
    if event.get("die"):
        os._exit(9)
    return event["line"]


def append_or_wait(event, context):
    """Leave a line in a file, and ask to be tried again later when told so."""
    append(event, context)
    if event.get("later"):
        raise RetryAfter(event["later"], event.get("key"))


def fail(event, context):
    def inner():
        raise ValueError(event)

    inner()


def fail_with_cause(event, context):
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("wrapped") from error


def refuse(event, context):
    raise InvalidEvent("refuse", [{"loc": "body.x", "msg": "missing"}])


def leave(event, context):
    sys.exit(event)


def interrupt(event, context):
    raise KeyboardInterrupt


def shapes(event, context):
    return {
        "model": Point(x=1),
        "pair": Pair(1, (2, 3)),
        "bytes": b"\x00\xff",
        "none": None,
    }


def not_finite(event, context):
    return {"rows": [{"score": 1.0}, {"score": None}, {"score": float("nan")}]}


def not_json(event, context):
    return {"rows": [1, {"what": object()}]}


def big(event, context):
    return "x" * event


async def asynchronous(event, context):
    await asyncio.sleep(0)
    left = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    return {"event": event, "loop": id(asyncio.get_running_loop()), "left": left.done()}


async def asynchronous_sleep(event, context):
    try:
        await asyncio.sleep(3600)
    finally:
        print("cleaned up")


def talk(event, context):
    print("from print")
    print("to stderr", file=sys.stderr)
    os.write(1, b"from os.write\n")
    ctypes.CDLL(None).dprintf(1, b"from C\n")
    subprocess.run(["echo", "from echo"], check=True)
    context.log.info("logged", rows=3)
    logging.getLogger("lib").warning("by logging")
    print("no newline", end="")
    return None


def flood(event, context):
    line = "x" * 999
    print("the first line")
    for _ in range(event):
        print(line)
    print("the last line", flush=True)


def flood_raw(event, context):
    """Print for ever, in large pieces."""
    piece = b"y" * (1 << 20)
    while True:
        os.write(1, piece)


def close_streams(event, context):
    print("before closing")
    sys.stdout.close()
    sys.stderr.close()


def tell(event, context):
    for done in range(event + 1):
        context.progress(done, event, "on the way")
    return context.remaining()


def open_files(event=None, context=None):
    found = []
    for descriptor in range(256):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    return found


def who(event, context):
    return {
        "id": context.invocation_id,
        "attempt": context.attempt,
        "function": context.function,
        "remaining": context.remaining(),
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "random": random.random(),
        "environment": dict(os.environ),
        "descriptors": open_files(),
    }


def scratch(event, context):
    folder = context.scratch()
    (folder / "file").write_text("x")
    assert context.scratch() == folder
    if event == "die":
        os._exit(1)
    return str(folder)


def store(event, context):
    context.objects.put("bucket", "key", b"data")
    return context.objects.get("bucket", "key")


def make_client(url, token):
    return [url, token]


def client(event, context):
    return context.client


def loop_in_c(event, context):
    sum(range(10**15))


def backtrack(event, context):
    re.match(r"(a+)+$", "a" * 64 + "b")


def ignore_the_end(event, context):
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            print("not now")


def end_well(event, context):
    try:
        time.sleep(3600)
    finally:
        print("the finally block ran")


def hung_children(event, context):
    """Children in the group, outside it, and one that was left by its parent; then hang."""
    with open(event, "w") as pids:
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        pids.write(f"{child}\n")
        pids.write(f"{subprocess.Popen(['sleep', '3600']).pid}\n")
        pids.write(f"{subprocess.Popen(['sleep', '3600'], start_new_session=True).pid}\n")
        shell = subprocess.run(
            ["setsid", "sh", "-c", "sleep 3600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True
        )
        pids.write(shell.stdout.decode())
    Path(event + ".complete").touch()
    time.sleep(3600)


def fork_and_return(event, context):
    """A child that returns from the function as its parent does."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return "parent" if child else "child"


def terminate_child(event, context):
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hog(event, context):
    return len(bytearray(event))


def hog_slowly(event, context):
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 10)) * 4096)
        time.sleep(0.01)


def hog_in_children(event, context):
    """Two processes, each below the limit."""
    program = f"import time; kept = bytearray(b'x') * {event}; time.sleep(3600)"
    for child in [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]:
        child.wait()


_kept = []


def keep(event, context):
    """Grow for good."""
    _kept.append(b"x" * event)
    return os.getpid()


def end_process(event, context):
    print("goodbye", flush=True)
    os._exit(event)


def segfault(event, context):
    ctypes.string_at(0)


def close_wire(event, context):
    """Write into every socket the process has."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff" * 4096)
        except OSError:
            continue


ENTRIES = {
    name: value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and name[0] != "_" and name.islower()
}


def load(argument):
    return Loaded(ENTRIES)


def load_loudly(argument):
    print("printed by the import")
    os.write(2, b"written by the import\n")
    return Loaded({"echo": lambda event, context: argument.decode()})


def load_with_thread(argument):
    threading.Thread(target=threading.Event().wait, name="metrics", daemon=True).start()
    return Loaded(ENTRIES)


def load_numpy(argument):
    import numpy

    square = numpy.ones((200, 200))
    square @ square

    def multiply(event, context):
        return float((square @ square).sum())

    def numbers(event, context):
        return [numpy.float32(1.5), numpy.int64(2), numpy.arange(3), numpy.random.random()]

    def not_a_number(event, context):
        return {"mean": numpy.float32("nan")}

    return Loaded({"multiply": multiply, "numbers": numbers, "not_a_number": not_a_number})


def load_badly(argument):
    raise ImportError("no module named pandas")


def load_for_ever(argument):
    subprocess.Popen(["sleep", "3600"])
    while True:
        signal.pause()


def load_to_death(argument):
    print("about to die", flush=True)
    os._exit(3)
