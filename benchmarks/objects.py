#!/usr/bin/env python3
"""What objects on MinIO cost through Headrace's store, beside bare urllib3 and MinIO's client:
`objects.py [--rounds N] [--mib N]`.

Every figure is of a process of its own, and the contestants take turns. CPU is of the reading process alone,
without its start and imports; wall time is MinIO's too.
"""

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(1, os.path.join(HERE, "contestants"))
import benchlib as bl  # noqa: E402 - found through the path above
from services import Services  # noqa: E402

os.environ["PYTHONPATH"] = os.path.dirname(HERE)  # the repository that holds this file, wherever it is
KEYS = {"AWS_ACCESS_KEY_ID": "benchuser", "AWS_SECRET_ACCESS_KEY": "benchpass"}
PIECE = 1 << 20
SMALL = 300


def store_of(address):
    from headrace.runtime.objects.url import open_store

    return open_store(f"s3://{address}?tls=false")


def minio_of(address):
    from minio import Minio

    return Minio(address, *KEYS.values(), secure=False, region="us-east-1")


def drained(stream):
    size = 0
    while piece := stream(PIECE):
        size += len(piece)
    return size


def bare_stream(address, size):
    import urllib3

    link, pool = store_of(address).link("bench", "large"), urllib3.PoolManager()

    def run():
        with pool.request("GET", link, preload_content=False) as answer:
            return drained(lambda amount: answer.read(amount, decode_content=False))

    return run


def minio_stream(address, size):
    client = minio_of(address)

    def run():
        with client.get_object("bench", "large") as answer:
            return drained(answer.read)

    return run


def headrace_stream(address, size):
    store = store_of(address)

    def run():
        with store.open("bench", "large") as stream:
            return drained(stream.read)

    return run


def minio_ranges(address, size):
    client = minio_of(address)

    def run():
        total = 0
        for start in range(0, size, 8 * PIECE):
            with client.get_object("bench", "large", start, 8 * PIECE) as answer:
                total += len(answer.read())
        return total

    return run


def headrace_ranges(address, size):
    store = store_of(address)

    def run():
        total = 0
        for start in range(0, size, 8 * PIECE):
            with store.open("bench", "large", start=start, end=start + 8 * PIECE) as stream:
                total += len(stream.read())
        return total

    return run


def minio_small(address, size):
    client = minio_of(address)

    def run():
        total = 0
        for number in range(SMALL):
            client.put_object("bench", f"small-{number % 8}", io.BytesIO(b"x" * 1000), 1000)
            with client.get_object("bench", f"small-{number % 8}") as answer:
                total += len(answer.read())
        return total

    return run


def headrace_small(address, size):
    store = store_of(address)

    def run():
        total = 0
        for number in range(SMALL):
            store.put("bench", f"small-{number % 8}", b"x" * 1000)
            total += len(store.get("bench", f"small-{number % 8}"))
        return total

    return run


def headrace_import(address, size):
    return lambda: store_of(address) and 0


def minio_import(address, size):
    return lambda: minio_of(address) and 0


RUNS = {
    "stream in 1 MiB": [
        ("bare urllib3", bare_stream),
        ("minio", minio_stream),
        ("headrace", headrace_stream),
    ],
    "ranges of 8 MiB": [("minio", minio_ranges), ("headrace", headrace_ranges)],
    f"{SMALL} puts and gets of 1 kB": [("minio", minio_small), ("headrace", headrace_small)],
    "import and client": [("minio", minio_import), ("headrace", headrace_import)],
}


def child(what, name, address, size):
    """One measured run, in this process: prints seconds of CPU and of the clock."""
    run = dict(RUNS[what])[name](address, size)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    total = run()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    bl.check(total in (size, SMALL * 1000, 0), f"{name} read {total} bytes")
    print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(KEYS)
    if args.child:
        child(*args.child[:3], int(args.child[3]))
        return
    size = args.mib << 20
    with tempfile.TemporaryDirectory() as work:
        services = Services(work)
        try:
            address = services.get("minio")["minio"]
            store = store_of(address)
            store.make_bucket("bench")
            store.put("bench", "large", (os.urandom(PIECE) for _ in range(args.mib)))
            measure(args.rounds, address, size)
        finally:
            services.close()


def measure(rounds, address, size):
    print(f"{size >> 20} MiB, medians of {rounds} rounds; ratios are to the first of each kind")
    print(f"{'what':30} {'by':14} {'CPU ms':>8} {'ratio':>7} {'wall ms':>8} {'ratio':>7}")
    for what, contestants in RUNS.items():
        found = {name: [] for name, _ in contestants}
        for turn in range(rounds + 1):
            for name, _ in contestants:
                command = [sys.executable, __file__, "--child", what, name, address, str(size)]
                shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                if turn:
                    found[name].append([float(each) * 1e3 for each in shown.split()])
        peer = None
        for name, times in found.items():
            cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
            peer = peer or (cpu, wall)
            ratios = f"{cpu:8.1f} {cpu / peer[0]:6.2f}x {wall:8.1f} {wall / peer[1]:6.2f}x"
            print(f"{what:30} {name:14} {ratios}")


if __name__ == "__main__":
    main()
