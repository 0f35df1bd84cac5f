"""A real node in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OPTIONS = ["--port", "0", "--workers", "2", "--log-format", "json"]
FUNCTIONS = '''
import time
from headrace import App, Lines

app = App("shop")

@app.function()
def echo(event):
    return event

@app.function(retries=0)
def fail(event):
    """Raises what it is told."""
    print("about to fail")
    raise ValueError(event["why"])

@app.function(timeout=60, retries=0)
def wait_for(event):
    """Returns once the file is there."""
    from pathlib import Path
    while not Path(event["file"]).exists():
        time.sleep(0.01)
    return "there"

@app.function(reserved_concurrency=0)
def never(event):
    return None

def add(a, b):
    return a + b

@app.job(split=Lines(chunk="1 KiB"), reduce=add, output="results")
def lengths(chunk):
    """Counts the bytes of the lines."""
    return sum(len(line) for line in chunk.records())

@app.job(split=Lines(chunk="1 KiB"), reduce=add)
def broken(chunk):
    raise ValueError("bad chunk")
'''


class RunningNode(NamedTuple):
    url: str
    token: str
    data: Path


def serving(folder: Path) -> Iterator[RunningNode]:
    """A node that serves FUNCTIONS from `folder`, which must exist, until the caller is done with it."""
    functions = folder / "functions"
    functions.mkdir()
    (functions / "shop.py").write_text(FUNCTIONS, encoding="utf-8")
    data = folder / "data"
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "serve", str(functions), *OPTIONS, "--data", str(data)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:  # ends when the node dies; the test's own time limit bounds the rest
            said.append(line)
            if '"serving ' in line:
                break
        assert process.poll() is None, "".join(said)
        node = json.loads((data / "node.json").read_text(encoding="utf-8"))
        yield RunningNode(node["url"], (data / "token").read_text(encoding="utf-8").strip(), data)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=40)
        finally:
            process.kill()
