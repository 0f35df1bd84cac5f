"""Functions for the tests of several nodes: each notes when it starts and ends, by one monotonic clock."""

import os
import time
from pathlib import Path
from typing import Any

from headrace import App, Chunk, Context, Items, RetryPolicy

app = App("cluster")


def node() -> str:
    """The process id of this worker's node: the parent of the process that forked it."""
    return Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]


NODE = ""


def note(folder: str, what: str, id: str, attempt: int) -> None:
    """One line in a file of this process: the write is one system call, so lines are whole."""
    global NODE
    NODE = NODE or node()
    line = f"{time.monotonic():.6f} {what} {id} {attempt} {NODE}\n"
    with (Path(folder) / f"log-{os.getpid()}").open("a") as file:
        file.write(line)


def timed(folder: str, seconds: float, context: Context) -> None:
    note(folder, "start", context.invocation_id, context.attempt)
    time.sleep(seconds)
    note(folder, "end", context.invocation_id, context.attempt)


@app.function(retries=RetryPolicy(retries=5, base_s=0.01, max_s=0.05))
def work(folder: str, n: int, context: Context, seconds: float = 0.0, pad: str = "") -> int:
    timed(folder, seconds, context)
    return n * n


@app.function(retries=RetryPolicy(retries=5, base_s=0.01, max_s=0.05), reserved_concurrency=3)
def three(folder: str, n: int, context: Context, seconds: float = 0.02) -> int:
    timed(folder, seconds, context)
    return n


@app.function(retries=0)
def gated(folder: str, context: Context) -> int:
    """Runs until the test opens the gate."""
    note(folder, "start", context.invocation_id, context.attempt)
    while not (Path(folder) / "open").exists():
        time.sleep(0.005)
    note(folder, "end", context.invocation_id, context.attempt)
    return os.getpid()


def add(a: int, b: int) -> int:
    return a + b


@app.job(split=Items(batch=1), reduce=add, retries=RetryPolicy(retries=3, base_s=0.01, max_s=0.05))
def total(chunk: Chunk) -> int:
    time.sleep(0.02)
    return sum(item for item in chunk.records())


@app.function
def echo(event: Any) -> Any:
    return event


@app.function(retries=RetryPolicy(retries=3, base_s=0.01, max_s=0.05))
def by_turns(folder: str, context: Context) -> list[Any]:
    """Each attempt runs until the test opens its own gate, and says whose it was."""
    note(folder, "start", context.invocation_id, context.attempt)
    while not (Path(folder) / f"open-{context.attempt}").exists():
        time.sleep(0.005)
    note(folder, "end", context.invocation_id, context.attempt)
    return [NODE, context.attempt]
