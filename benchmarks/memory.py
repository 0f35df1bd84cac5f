#!/usr/bin/env python3
"""What a node costs in memory: `memory.py [--queued N] [--pandas] [--out FILE]`. Linux only.

Figures are proportional set sizes (a page that three processes share counts a third for each), summed over
the node and all
its descendants, and each worker's private pages: what one more worker would cost. The peer of the same run
is a Python process
that has done nothing but start (`python -c pass`, held open).
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "contestants")]
import benchlib as bl  # noqa: E402 - found through the path above
import startup  # noqa: E402 - found through the path above

BATCH = 1000
QUEUE_S = 240  # the most seconds that filling the queue may take


def memory_of(pid):
    """(proportional, private) bytes of one process; zeros when it is gone."""
    total = private = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    total = int(line.split()[1]) * 1024
                elif line.startswith(("Private_Clean:", "Private_Dirty:")):
                    private += int(line.split()[1]) * 1024
    except OSError:
        return 0, 0
    return total, private


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""


def tree(root):
    """The process and its descendants, parents first."""
    children = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.split("/")[2]))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def mib(size):
    return round(size / 2**20, 1)


def sizes(root):
    """The node's memory: `pss_mib` of all, `node_mib`, `zygote_mib`, each worker's `private_mib`, and how
    workers began."""
    pids = tree(root)
    zygote = next((pid for pid in pids[1:] if "pool.zygote" in command_of(pid)), None)
    workers = [pid for pid in pids[1:] if pid != zygote]
    return {
        "pss_mib": mib(sum(memory_of(pid)[0] for pid in pids)),
        "node_mib": mib(memory_of(root)[0]),
        "zygote_mib": mib(memory_of(zygote)[0]) if zygote else None,
        "workers": len(workers),
        "worker_private_mib": [mib(memory_of(pid)[1]) for pid in workers],
        "start": "spawn" if any("pool.worker" in command_of(pid) for pid in workers) else "fork",
    }


def settled(root):
    """`sizes` once two readings a second apart are within 1%."""
    before = sizes(root)
    for _ in range(15):
        time.sleep(1)
        now = sizes(root)
        if abs(now["pss_mib"] - before["pss_mib"]) <= before["pss_mib"] / 100:
            return now
        before = now
    return before


def bare():
    """An idle interpreter, in the same figures' unit."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.3)
        size = memory_of(process.pid)[0]
        process.communicate(b"\n")
    return {"pss_mib": mib(size)}


def served(functions, data, log):
    port = bl.free_port()
    command = [*startup.HEADRACE, "serve", functions, "--data", data, "--port", port, "--workers", "2"]
    return port, bl.running([command], log)


def call(port, data, method, path, body=b""):
    with open(os.path.join(data, "token")) as file:
        token = file.read().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def with_backlog(work, queued):
    """An idle node, then the same one with so many invocations waiting for a paused function."""
    data = os.path.join(work, "data")
    port, running = served(startup.FUNCTIONS, data, os.path.join(work, "serve.log"))
    with running as [process]:
        startup.wait_answer(process, port, pause_s=0.05)
        idle = settled(process.pid)
        call(port, data, "POST", "/v1/functions/bench.f/pause")
        batch = b"[" + b",".join(b"%d" % i for i in range(BATCH)) + b"]"
        began, done = time.perf_counter(), 0
        while done < queued and time.perf_counter() - began < QUEUE_S:
            call(port, data, "POST", "/v1/functions/bench.f/invoke-many", batch)
            done += BATCH
        spent = time.perf_counter() - began
        full = settled(process.pid)
        full["queued"], full["enqueued_per_s"] = done, round(done / spent)
        full["database_mib"] = mib(os.path.getsize(os.path.join(data, "headrace.db")))
    return idle, full


def with_pandas(work):
    """A node whose code imports pandas, which is put into a folder of its own, never into the project's
    environment."""
    packages = os.path.join(os.environ.get("BENCH_DIR") or work, "pandas")
    if not os.path.isdir(packages):
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            packages,
            "-r",
            os.path.join(HERE, "requirements-pandas.txt"),
        ]
        subprocess.run(command, check=True)
    functions, data = os.path.join(work, "with_pandas.py"), os.path.join(work, "pandas-data")
    with open(functions, "w") as file:
        file.write(
            f"import sys\nsys.path.insert(0, {packages!r})\nimport pandas\n"
            'from headrace import App, Http\napp = App("frames")\n\n\n'
            '@app.on(Http("POST", "/"))\n@app.function\ndef hello(body: dict) -> dict:\n'
            '    names = pandas.DataFrame([body])["name"]\n'
            '    return {"greeting": "hello " + str(names[0])}\n'
        )
    port, running = served(functions, data, os.path.join(work, "pandas.log"))
    with running as [process]:
        startup.wait_answer(process, port, pause_s=0.05)
        for _ in range(20):  # so that each worker has run the function
            bl.http_json(f"http://127.0.0.1:{port}/", {"name": "x"})
        return settled(process.pid)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument(
        "--pandas", action="store_true", help="also measure an app that imports pandas (installs it aside)"
    )
    parser.add_argument("--out", help="JSON file to merge the figures into")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as work:
        figures = {"python, idle": bare()}
        figures["node, idle"], figures["node, backlog"] = with_backlog(work, args.queued)
        if args.pandas:
            figures["node, pandas"] = with_pandas(work)
    peer = figures["python, idle"]["pss_mib"]
    print(f"{'process':16} {'PSS MiB':>8} {'ratio':>7}  node  zygote  private per worker")
    for name, found in figures.items():
        found["ratio"] = round(found["pss_mib"] / peer, 2)
        more = ""
        if "workers" in found:
            private = ", ".join(f"{size:g}" for size in found["worker_private_mib"])
            more = f"{found['node_mib']:5g}  {found['zygote_mib']:6g}  {private} ({found['start']})"
        if "queued" in found:
            more += f"; {found['queued']:,} queued at {found['enqueued_per_s']:,}/s"
            more += f", database {found['database_mib']:g} MiB"
        print(f"{name:16} {found['pss_mib']:8.1f} {found['ratio']:6.2f}x  {more}")
    print(json.dumps({"memory": figures}))
    if args.out:
        bl.merge_json(args.out, "memory", {"peer": "python, idle", "figures": figures})


if __name__ == "__main__":
    main()
