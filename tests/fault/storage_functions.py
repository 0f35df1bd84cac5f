"""Functions for the storage tests. A test copies this file into its folder, where each run leaves a line."""

import os
from pathlib import Path

from headrace import App, Chunk, Context, Items, RetryPolicy

app = App("kept")
RUNS = Path(__file__).with_name("runs")


def ran(what: str) -> None:
    descriptor = os.open(RUNS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{what}\n".encode())
    os.close(descriptor)


@app.function(retries=RetryPolicy(retries=2, base_s=0.01, max_s=0.02))
def echo(n: int, pad: str, context: Context) -> list[int]:
    ran(f"echo {n}")
    print("printed", n)  # so that there are logs to keep as well
    return [n, len(pad)]


def add(a: int, b: int) -> int:
    return a + b


@app.job(split=Items(batch=1), reduce=add, retries=2)
def total(chunk: Chunk) -> int:
    [item] = chunk.records()
    ran(f"total {item}")
    return int(item)
