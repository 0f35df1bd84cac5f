#!/usr/bin/env python3
"""Several nodes on one PostgreSQL: `cluster.py [--nodes 1,2,4] [--workers N] [--count N] [--store URL]`.

Each cluster is so many `headrace serve` processes on a database of its own; they take turns, so that every
figure is a ratio of one run. No-op invocations are counted by the database, not by the clients:

- `drain`: all wait for a paused function, which is resumed: claims, runs and ends.
- `through`: each node is given its share in calls of 1,000 while it runs them: acceptance as well.
- `one_door`: the same, but one node is given all of them; the others find them by the database.

`cores` is what the server's processes, the nodes and their workers used of the machine's cores during
`through`, and names the limit: where they sum up to all cores, the largest of them. `share` is the smallest
part that one node ran during `drain`, over an even part.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), HERE, os.path.join(HERE, "contestants")]
import benchlib as bl  # noqa: E402 - found through the path above
import finished_rows  # noqa: E402 - found through the path above
import psutil  # noqa: E402 - found through the path above
import psycopg  # noqa: E402 - found through the path above
import run  # noqa: E402 - found through the path above

from headrace import Client  # noqa: E402 - found through the path above

NAME = "bench.f"
CALL = 1_000
LIMIT_S = 120
MODES = ("drain", "through", "one_door")


class Cluster:
    """So many nodes on one database."""

    def __init__(self, url, nodes, workers, work, stack):
        self.size = nodes
        self.url = finished_rows.database(url, f"cluster_{nodes}")
        self.db = stack.enter_context(psycopg.connect(self.url, autocommit=True))
        self.processes, self.clients = [], []
        folder = os.path.join(work, f"cluster{nodes}")
        os.mkdir(folder)
        for number in range(nodes):
            port, data = bl.free_port(), os.path.join(folder, f"node{number}")
            command = [
                sys.executable, "-m", "headrace", "serve",
                os.path.join(HERE, "contestants", "headrace_functions.py"),
                "--data", data, "--objects", os.path.join(folder, "buckets"), "--store", self.url,
                "--port", port, "--workers", str(workers),
            ]  # fmt: skip
            [process] = stack.enter_context(bl.running([command], os.path.join(folder, f"{number}.log")))
            bl.wait_port(port, proc=process)
            self.processes.append(psutil.Process(process.pid))
            while not os.path.exists(os.path.join(data, "node.json")):
                bl.check(process.poll() is None, "a node ended before it was ready")
                time.sleep(0.02)
            with open(os.path.join(data, "token")) as file:
                token = file.read().strip()
            self.clients.append(stack.enter_context(Client(f"http://127.0.0.1:{port}", token)))

    def counted(self):
        """(accepted, succeeded) by the books of all nodes, and what succeeded by node."""
        rows = self.db.execute(
            "SELECT shard, sum(accepted)::bigint, sum(succeeded)::bigint FROM counter GROUP BY shard"
        ).fetchall()
        return sum(row[1] for row in rows), sum(row[2] for row in rows), {row[0]: row[2] for row in rows}

    def cpu(self):
        """Seconds of CPU that the server, the nodes and the workers have used so far."""
        server = [pid for [pid] in self.db.execute("SELECT pid FROM pg_stat_activity").fetchall()]
        workers = [child for node in self.processes for child in node.children(recursive=True)]
        return {
            "postgresql": sum(used(psutil.Process(pid)) for pid in server if psutil.pid_exists(pid)),
            "nodes": sum(map(used, self.processes)),
            "workers": sum(map(used, workers)),
        }

    def put(self, count, doors):
        """Have `count` accepted through so many of the nodes, each in a thread of its own."""

        def give(client, calls):
            for _ in range(calls):
                client.call("POST", f"/v1/functions/{NAME}/invoke-many", body=[0] * CALL)

        share = count // CALL // doors
        threads = [threading.Thread(target=give, args=(client, share)) for client in self.clients[:doors]]
        for thread in threads:
            thread.start()
        return threads

    def all_ended(self, target):
        end = time.perf_counter() + LIMIT_S
        while (ended := self.counted()[1]) < target:
            bl.check(time.perf_counter() < end, f"{ended} of {target} ended in {LIMIT_S} s")
            time.sleep(0.005)
        bl.check(ended == target, f"{ended} ended, not {target}")

    def measure(self, mode, count):
        """One measure: invocations a second, cores in use, and the smallest share."""
        doors = self.size if mode != "one_door" else 1
        accepted, ended, before = self.counted()
        bl.check(accepted == ended, "something is left of the last measure")
        if mode == "drain":
            self.clients[0].pause(NAME)
            for thread in self.put(count, doors):
                thread.join()
            bl.check(self.counted()[0] == accepted + count, "not all were accepted")
        cpu = self.cpu()
        t = time.perf_counter()
        if mode == "drain":
            self.clients[0].resume(NAME)
        else:
            threads = self.put(count, doors)
        self.all_ended(ended + count)
        t = time.perf_counter() - t
        cores = {what: (value - cpu[what]) / t for what, value in self.cpu().items()}
        if mode != "drain":
            for thread in threads:
                thread.join()
        ran = [now - before.get(shard, 0) for shard, now in self.counted()[2].items()]
        ran = sorted(ran, reverse=True)[: self.size] + [0] * max(0, self.size - len(ran))
        return count / t, cores, min(ran) * self.size / count


def used(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--workers", type=int, default=1, help="of each node")
    parser.add_argument("--count", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store")
    parser.add_argument("--work-dir", default=None)
    parser.add_argument("--out")
    args = parser.parse_args()
    run.prompt_wakeups()
    sizes = [int(size) for size in args.nodes.split(",")]
    bl.check(all(args.count % (CALL * size) == 0 for size in sizes), "--count must be whole calls a node")
    work = tempfile.mkdtemp(prefix="cluster-", dir=args.work_dir)
    found = {size: {mode: [] for mode in MODES} for size in sizes}
    with finished_rows.server(args.store, work) as url, contextlib.ExitStack() as stack:
        clusters = [Cluster(url, size, args.workers, work, stack) for size in sizes]
        for cluster in clusters:
            cluster.measure("through", args.count)  # untimed
        for number in range(args.rounds):
            for mode in MODES:
                for cluster in clusters if number % 2 == 0 else clusters[::-1]:
                    found[cluster.size][mode].append(cluster.measure(mode, args.count))
                    rate, cores, share = found[cluster.size][mode][-1]
                    shown = {what: round(value, 2) for what, value in cores.items()}
                    print(
                        f"{cluster.size} nodes, {mode}: {rate:,.0f}/s, cores {shown}, share {share:.2f}",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
        for cluster in clusters:
            verdict = cluster.clients[-1].verify(objects=False)
            bl.check(verdict["balanced"], f"the books do not balance: {verdict['problems'][:3]}")
    out = {"count": args.count, "workers_a_node": args.workers, "rounds": args.rounds, "clusters": {}}
    first = {mode: statistics.median(one[0] for one in found[sizes[0]][mode]) for mode in MODES}
    for size in sizes:
        made = out["clusters"][str(size)] = {}
        for mode in MODES:
            rate = statistics.median(one[0] for one in found[size][mode])
            made[mode] = round(rate)
            made[f"{mode}_ratio"] = round(rate / first[mode], 2)
        ones = found[size]["through"]
        made["cores"] = {
            what: round(statistics.median(one[1][what] for one in ones), 2) for what in ones[0][1]
        }
        made["share"] = round(statistics.median(one[2] for one in found[size]["drain"]), 2)
    print(json.dumps(out, indent=1))
    if args.out:
        bl.merge_json(args.out, "cluster", out)


if __name__ == "__main__":
    main()
