#!/usr/bin/env python3
"""What a long backlog costs: `backlog.py [--queued N] [--work-dir DIR] [--out FILE]`. Linux only.

One embedded node, two workers, SQLite at full sync. The rates of enqueueing (in calls of 1,000, each durable
before the next) and of dispatching (no-op invocations that end per second) are taken with 10,000 waiting,
then with N, in the same process and by the same code; `enqueue_ratio` and `dispatch_ratio` are the latter
over the former. `node_mib` is the proportional set size of the node's process, the client in it, at its
largest. The backlog is counted in the database itself, and what ran is counted by the books.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), HERE, os.path.join(HERE, "contestants")]
import benchlib as bl  # noqa: E402 - found through the path above
import headrace_peer  # noqa: E402 - found through the path above
from memory import memory_of, mib  # noqa: E402 - found through the path above

NAME = "bench.f"
CALL = 1_000
SMALL = 10_000
SAMPLE = 40_000


def enqueue(client, count):
    """Have `count` accepted, durably, 1,000 at a time. Returns the rate, as the median over calls."""
    took = []
    for _ in range(count // CALL):
        t = time.perf_counter()
        for future in client.submit_many(NAME, range(CALL)):
            future.wait_accepted()
        took.append(time.perf_counter() - t)
    return CALL / statistics.median(took)


def succeeded(client):
    return client.stats()["functions"].get(NAME, {}).get("succeeded", 0)


def dispatch(client, count):
    """Let `count` of the backlog run and end. Returns the rate."""
    before = succeeded(client)
    t = time.perf_counter()
    client.resume(NAME)
    while (done := succeeded(client) - before) < count:
        bl.check(time.perf_counter() - t < 300, f"only {done} of {count} ended in 300 s")
        time.sleep(0.01)
    took = time.perf_counter() - t
    client.pause(NAME)
    return done / took


def settled(client):
    """Wait until what the workers held when the function was paused has ended; how many have in all."""
    last = -1
    while (now := succeeded(client)) != last:
        last = now
        time.sleep(0.3)
    return now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--queued", type=int, default=10_000_000)
    parser.add_argument("--work-dir", default=None)
    parser.add_argument("--out")
    args = parser.parse_args()
    work = tempfile.mkdtemp(prefix="backlog-", dir=args.work_dir)
    cfg = bl.Cfg(work=work, name="headrace")
    out, peak = {"queued": args.queued}, 0

    def look():
        nonlocal peak
        peak = max(peak, memory_of(os.getpid())[0])

    with headrace_peer.embedded(cfg) as (client, data):
        for future in client.submit_many(NAME, range(2_000)):
            future.result()
        client.pause(NAME)
        look()
        out["node_mib_idle"] = mib(peak)
        enqueue(client, SMALL)
        out["enqueue_small"] = enqueue(client, SAMPLE)
        out["dispatch_small"] = dispatch(client, SAMPLE)
        look()
        out["node_mib_small"] = mib(peak)
        accepted, shown = SMALL + SAMPLE, time.perf_counter()
        t = time.perf_counter()
        while accepted < args.queued + SAMPLE:
            enqueue(client, 20 * CALL)
            accepted += 20 * CALL
            if time.perf_counter() - shown > 15:
                shown = time.perf_counter()
                look()
                print(f"{accepted:,} after {shown - t:.0f} s, {mib(peak)} MiB", file=sys.stderr, flush=True)
        out["fill_rate"] = (accepted - SMALL - SAMPLE) / (time.perf_counter() - t)
        done = settled(client)
        out["backlog"] = headrace_peer.waiting(cfg, data, NAME)
        bl.check(out["backlog"] == accepted + 2_000 - done, "the store does not hold what was accepted")
        out["enqueue_large"] = enqueue(client, SAMPLE)
        look()
        out["dispatch_large"] = dispatch(client, SAMPLE)
        look()
        out["node_mib"] = mib(peak)
        out["database_mib"] = mib(os.path.getsize(os.path.join(data, "headrace.db")))
    for what in ("enqueue", "dispatch"):
        out[f"{what}_ratio"] = round(out[f"{what}_large"] / out[f"{what}_small"], 3)
    out = {key: round(value, 1) if value > 100 else value for key, value in out.items()}
    print(json.dumps(out, indent=1))
    if args.out:
        bl.merge_json(args.out, "backlog", out)


if __name__ == "__main__":
    main()
