"""Functions with limits, which note when they begin and end in a file."""

import os
import time

from headrace import App, RetryAfter

app = App("limited")


def note(path: str, *words: object) -> None:
    """Append one line, whole, whichever process writes at the same time."""
    line = " ".join(map(str, (f"{time.time():.6f}", *words))) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@app.function(retries=0)
def closing(log: str, n: int, close_s: float = 0.0) -> int:
    note(log, "began", n)
    if close_s and not os.path.exists(f"{log}.closed"):
        with open(f"{log}.closed", "w") as file:
            file.write(f"{time.time():.6f}")
        raise RetryAfter(close_s)
    return n


@app.function(retries=0, concurrency_key="key")
def keyed(log: str, key: str, n: int) -> int:
    note(log, "began", key, n)
    time.sleep(0.004)
    note(log, "ended", key, n)
    return n


@app.function(retries=0, rate="40/s:5")
def paced(log: str, n: int) -> int:
    note(log, "began", n)
    return n


@app.function(retries=0, memory="48 MiB", memory_max="400 MiB")
def hungry(log: str, bytes: int) -> int:
    note(log, "began")
    return len(bytearray(bytes))
