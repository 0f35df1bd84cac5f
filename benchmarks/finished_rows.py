#!/usr/bin/env python3
"""What finished rows cost: `finished_rows.py [--ended N] [--store URL] [--rounds N] [--out FILE]`.

Two databases of one PostgreSQL server: one has no finished rows, one has N, 1,000,000 when it is not said.
An embedded node works on each, and by turns each has 20,000 no-op invocations accepted (in calls of 1,000,
each durable before the next) and lets them run. `enqueue_ratio` and `dispatch_ratio` are the rates with N
over those with none, as medians over rounds. `--store` is the address of a server's database whose user may
create others; without it a server is started.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), HERE, os.path.join(HERE, "contestants")]
import backlog  # noqa: E402 - found through the path above
import benchlib as bl  # noqa: E402 - found through the path above
import headrace_peer  # noqa: E402 - found through the path above
import run  # noqa: E402 - found through the path above
import services  # noqa: E402 - found through the path above

SAMPLE = 20_000
FILL = 100_000
KINDS = ("none", "many")


@contextlib.contextmanager
def server(url, work):
    """The address of a server's database: the one given, or a server of this run's own."""
    if url:
        yield url
        return
    svc = services.Services(work)
    try:
        yield svc.get("postgres")["pg"]
    finally:
        svc.close()


def fill(url, count):
    """Add invocations that have succeeded, as old as an hour, with their counters; then tell the planner."""
    import psycopg

    ended_at = time.time() - 3600
    with psycopg.connect(url, autocommit=True) as db:
        for first in range(1, count + 1, FILL):
            last = min(first + FILL - 1, count)
            db.execute(
                "INSERT INTO invocation (id, accepted_at, due_at, expires_at, started_at, ended_at, attempts,"
                " priority, status, function, flow, node, payload, result)"
                " SELECT n, %(at)s, %(at)s, %(at)s + 60, %(at)s, %(at)s, 1, 0, 2, %(name)s, %(name)s, 'old',"
                " '1'::bytea, '1'::bytea FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n",
                {"at": ended_at, "name": backlog.NAME, "first": first, "last": last},
            )
        db.execute(
            "INSERT INTO counter VALUES (%s, 0, %s, %s, 0, 0, 0, 0, 0, 0) ON CONFLICT (function, shard)"
            " DO UPDATE SET accepted = counter.accepted + excluded.accepted,"
            " succeeded = counter.succeeded + excluded.succeeded",
            (backlog.NAME, count, count),
        )
        db.execute("VACUUM ANALYZE")


def database(url, name):
    """Make a database beside the given one. Returns its address."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        db.execute(f"CREATE DATABASE {name}")
    return url.rsplit("/", 1)[0] + "/" + name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store")
    parser.add_argument("--work-dir", default=None)
    parser.add_argument("--out")
    args = parser.parse_args()
    run.prompt_wakeups()
    work = tempfile.mkdtemp(prefix="finished-", dir=args.work_dir)
    os.environ["HEADRACE_KEPT_SUCCEEDED_ROWS"] = str(args.ended * 10)
    rates = {(what, kind): [] for what in ("enqueue", "dispatch") for kind in KINDS}
    with server(args.store, work) as url, contextlib.ExitStack() as stack:
        clients = {}
        for kind in KINDS:
            held = database(url, f"finished_{kind}")
            os.mkdir(os.path.join(work, kind))
            cfg = bl.Cfg(work=os.path.join(work, kind), name="headrace-pg", pg=held)
            clients[kind], _ = stack.enter_context(headrace_peer.embedded(cfg))
            if kind == "many":
                t = time.perf_counter()
                fill(held, args.ended)
                print(f"filled in {time.perf_counter() - t:.0f} s", file=sys.stderr, flush=True)
            for future in clients[kind].submit_many(backlog.NAME, range(2_000)):
                future.result()
            clients[kind].pause(backlog.NAME)
        for number in range(args.rounds):
            for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                rates["enqueue", kind].append(backlog.enqueue(clients[kind], SAMPLE))
                rates["dispatch", kind].append(backlog.dispatch(clients[kind], SAMPLE))
        for kind, client in clients.items():
            book = client.stats()["functions"][backlog.NAME]
            ended = 2_000 + args.rounds * SAMPLE + (args.ended if kind == "many" else 0)
            bl.check(book["succeeded"] == ended == book["accepted"], f"{kind}: the books do not hold {ended}")
    out = {"ended": args.ended, "rounds": args.rounds}
    for what in ("enqueue", "dispatch"):
        for kind in KINDS:
            out[f"{what}_{kind}"] = round(statistics.median(rates[what, kind]))
        out[f"{what}_ratio"] = round(out[f"{what}_many"] / out[f"{what}_none"], 3)
    print(json.dumps(out, indent=1))
    if args.out:
        bl.merge_json(args.out, "finished_rows", out)


if __name__ == "__main__":
    main()
