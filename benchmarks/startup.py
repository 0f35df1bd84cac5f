#!/usr/bin/env python3
"""What starting costs, each as a ratio to `python -c pass` of the same run: `startup.py [--rounds N] [--out
FILE]`.

The commands take turns in every round, and the medians are compared. `serve` is timed from just before its
process starts to
the first right answer of a user's route, polled every 3 ms: with a new data folder each time, and with one
that was used before.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "contestants"))
import benchlib as bl  # noqa: E402 - found through the path above

FUNCTIONS = os.path.join(HERE, "contestants", "headrace_functions.py")
HEADRACE = [sys.executable, "-m", "headrace"]
os.environ["PYTHONPATH"] = os.path.dirname(HERE)  # the repository that holds this file, wherever it is
PEER = "python -c pass"


def timed(command, **env):
    """Milliseconds of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={**os.environ, **env}
    )
    return (time.perf_counter() - began) * 1e3


def serve(data, port):
    return [*HEADRACE, "serve", FUNCTIONS, "--data", data, "--port", str(port), "--workers", "2"]


def first_answer(data):
    """Milliseconds from a node's start to its first answer."""
    port = bl.free_port()
    began = time.perf_counter()
    with bl.running([serve(data, port)]) as [process]:
        wait_answer(process, port, pause_s=0.003)
        return (time.perf_counter() - began) * 1e3


def wait_answer(process, port, *, pause_s):
    url, end = f"http://127.0.0.1:{port}/", time.perf_counter() + 60
    while True:
        with contextlib.suppress(OSError):
            bl.check(bl.http_json(url, {"name": "x"}) == {"greeting": "hello x"}, "wrong answer")
            return
        bl.check(process.poll() is None, "the node ended before its first answer")
        bl.check(time.perf_counter() < end, "no answer in 60 s")
        time.sleep(pause_s)


def measure(rounds, work):
    """Milliseconds of every round, by what was started; one uncounted round warms the page cache."""
    port, data = bl.free_port(), os.path.join(work, "served")
    empty = os.path.join(work, "empty.py")
    with open(empty, "w") as file:
        file.write("import headrace\n")
    with bl.running([serve(data, port)]) as [process]:
        wait_answer(process, port, pause_s=0.05)
        known = {"HEADRACE_DATA": data, "HEADRACE_URL": f"http://127.0.0.1:{port}"}
        fresh = iter(range(rounds + 1))
        steps = {
            PEER: lambda: timed([sys.executable, "-c", "pass"]),
            "python -c 'import headrace'": lambda: timed([sys.executable, empty]),
            "headrace --help": lambda: timed([*HEADRACE, "--help"]),
            "headrace invoke": lambda: timed([*HEADRACE, "invoke", "bench.f", "--payload", "1"], **known),
            "headrace serve, new data": lambda: first_answer(os.path.join(work, f"new{next(fresh)}")),
            "headrace serve, same data": lambda: first_answer(os.path.join(work, "same")),
        }
        times = {name: [] for name in steps}
        for turn in range(rounds + 1):
            for name, step in steps.items():
                spent = step()
                if turn:
                    times[name].append(spent)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="JSON file to merge the figures into")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        times = measure(args.rounds, work)
    peer = statistics.median(times[PEER])
    figures = {
        name: {
            "ratio": round(statistics.median(spent) / peer, 2),
            "ms": {
                "min": round(min(spent), 1),
                "median": round(statistics.median(spent), 1),
                "max": round(max(spent), 1),
            },
        }
        for name, spent in times.items()
    }
    print(f"{'started':28} {'ratio':>7} {'p50 ms':>8} {'min':>8} {'max':>8}   ({args.rounds} rounds)")
    for name, found in figures.items():
        ms = found["ms"]
        print(f"{name:28} {found['ratio']:6.2f}x {ms['median']:8.1f} {ms['min']:8.1f} {ms['max']:8.1f}")
    print(json.dumps({"startup": figures}))
    if args.out:
        bl.merge_json(args.out, "startup", {"peer": PEER, "rounds": args.rounds, "figures": figures})


if __name__ == "__main__":
    main()
