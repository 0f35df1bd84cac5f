"""Functions that share one node: many slow chunks, quick calls, and one whose concurrency is limited."""

import os
import time
from pathlib import Path

from headrace import App, Chunk, Items, RetryPolicy

app = App("fair")


def add(a: int, b: int) -> int:
    return a + b


@app.job(split=Items(batch=1), reduce=add)
def chunks(chunk: Chunk) -> int:
    time.sleep(0.004)
    return sum(chunk.records())


@app.function
def quick(n: int) -> int:
    return n + 1


@app.function(reserved_concurrency=2, retries=RetryPolicy(retries=5, base_s=0.01, max_s=0.02))
def limited(marks: str) -> int:
    """Mark when it begins and ends; each mark is one write, so that marks of several processes never mix."""
    with Path(marks).open("ab", buffering=0) as file:
        file.write(f"{time.monotonic()} {os.getpid()} begin\n".encode())
        time.sleep(0.03)
        file.write(f"{time.monotonic()} {os.getpid()} end\n".encode())
    return os.getpid()


@app.function
def idle(event: object) -> None:
    """Paused by the test, so that its backlog grows."""
