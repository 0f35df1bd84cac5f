"""Functions for the crash matrix: every run leaves a line beside this file, every result names what it is of.

A test copies this file into its own folder, since user code gets no environment that could name one.
"""

import os
from pathlib import Path
from typing import Any

from headrace import App, Chunk, Context, Count, Items, RetryPolicy, Schedule, Upload, UploadSet

app = App("matrix")
RUNS = Path(__file__).with_name("runs")
SOON = RetryPolicy(retries=2, base_s=0.01, max_s=0.02)


def ran(what: str, context: Context) -> None:
    """One line by one write, which no kill can tear."""
    line = f"{context.invocation_id} {context.attempt} {what}\n".encode()
    descriptor = os.open(RUNS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line)
    os.close(descriptor)


@app.function(retries=SOON)
def square(n: int, context: Context) -> list[int]:
    ran(f"square {n}", context)
    return [n, n * n]


@app.function(retries=SOON)
def flaky(n: int, context: Context) -> list[int]:
    """Fails the first time it is tried."""
    ran(f"flaky {n}", context)
    if context.attempt == 1:
        raise RuntimeError("not at first")
    return [n, -n]


@app.function(retries=RetryPolicy(retries=1, base_s=0.01, max_s=0.02), on_failure="matrix.told")
def doomed(n: int, context: Context) -> None:
    ran(f"doomed {n}", context)
    raise ValueError(f"never {n}")


@app.function(retries=SOON)
def told(event: dict[str, Any], context: Context) -> int:
    """The destination of what is dead."""
    n: int = event["requestPayload"]["n"]
    ran(f"told {n}", context)
    return n


@app.on(Upload("inbox", existing="run"))
@app.function(retries=SOON)
def arrived(event: Any, context: Context) -> str:
    ran(f"arrived {event.key}", context)
    return str(event.key)


@app.on(UploadSet("pairs", pattern="{pair}/*", complete=Count(2), existing="run"))
@app.function(retries=SOON)
def paired(event: Any, context: Context) -> list[str]:
    ran(f"paired {event.set}", context)
    return [file["key"] for file in event.files()]


@app.on(Schedule("rate(1 second)", misfire="all", max_misfires=1000))
@app.function(retries=SOON)
def tick(event: Any, context: Context) -> str:
    ran(f"tick {event['time']}", context)
    return str(event["time"])


def add(a: int, b: int) -> int:
    return a + b


@app.job(split=Items(batch=1), reduce=add, retries=SOON)
def total(chunk: Chunk, context: Context) -> int:
    ran(f"total {next(iter(chunk.records()))}", context)
    return sum(chunk.records())
