"""Functions for the crash tests. What they mark in files is how a test sees them from outside."""

import os
import signal
import time
from pathlib import Path

from headrace import App, Chunk, Context, Items, RetryPolicy

app = App("crash")


@app.function(memory="256 MiB")
def square(n: int) -> int:
    time.sleep(0.0004)  # so that some of ten thousand still wait when the node is killed
    return n * n


@app.function(retries=0, timeout=60)
def gated(number: int, folder: str, context: Context) -> dict[str, int]:
    """Mark that it has begun, then wait until the test opens the gate."""
    place = Path(folder)
    with (place / "began").open("a") as file:
        file.write(f"{number}\n")
    while not (place / "open").exists():
        time.sleep(0.005)
    return {"number": number, "attempt": context.attempt}


@app.function(retries=RetryPolicy(retries=2, base_s=0.01, max_s=0.02))
def kill_node(folder: str, context: Context) -> None:
    """Take the whole node down, each time that it is tried."""
    time.sleep(0.5)  # long enough for the claim to be recorded
    with (Path(folder) / "kills").open("a") as file:
        file.write(f"{context.attempt}\n")
    zygote = Path(f"/proc/{os.getppid()}/stat").read_text()
    os.kill(int(zygote.rpartition(")")[2].split()[1]), signal.SIGKILL)
    time.sleep(30)


def add(a: list[int], b: list[int]) -> list[int]:
    return a + b


@app.job(split=Items(batch=1), reduce=add, retries=0)
def steady(chunk: Chunk) -> list[int]:
    """One item a chunk, and no attempt to spare."""
    time.sleep(0.02)
    return [item * 2 for item in chunk.records()]
