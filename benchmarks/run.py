#!/usr/bin/env python3
"""Benchmarks beside peers; see README.md.

`run.py` alone measures Headrace beside limits and peers and prints the ratios, in about twenty minutes; with
`--docs` it rewrites the tables of docs/performance.md too. A peer that cannot be installed, or whose service
is not here, is left out with the reason. `run.py --list`, `run.py --workload w1 --contestant ray`,
`run.py --all`.
"""

import argparse
import ast
import compileall
import glob
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(HERE, "contestants")]
import benchlib as bl  # noqa: E402 - found through the path above
import services  # noqa: E402 - found through the path above
import table  # noqa: E402 - found through the path above

# Per workload: default parameters, rounds, seconds one run may take, the headline metric and which way is
# better.
WORKLOADS = {
    "w1": {
        "params": {"n": 10000},
        "rounds": 3,
        "timeout": 420,
        "metric": "rate",
        "better": "high",
        "unit": "invocations/s",
    },
    "w2": {
        "params": {"seconds": 10},
        "rounds": 3,
        "timeout": 120,
        "metric": "rps32",
        "better": "high",
        "unit": "requests/s",
    },
    "w3": {
        "params": {"mib": 256, "chunk_mib": 4},
        "rounds": 2,
        "timeout": 420,
        "metric": "seconds",
        "better": "low",
        "unit": "s",
    },
    "w4": {
        "params": {"n": 10000},
        "rounds": 3,
        "timeout": 420,
        "metric": "seq",
        "better": "high",
        "unit": "jobs/s",
    },
    "w5": {
        "params": {"n": 300, "burst": 2000},
        "rounds": 2,
        "timeout": 300,
        "metric": "p50_ms",
        "better": "low",
        "unit": "ms",
    },
    "w6": {
        "params": {"steps": 100, "workflows": 20, "items": 200},
        "rounds": 3,
        "timeout": 300,
        "metric": "chain_steps_per_s",
        "better": "high",
        "unit": "steps/s",
    },
    "w7": {
        "params": {"n": 5},
        "rounds": 1,
        "timeout": 300,
        "metric": "p50_ms",
        "better": "low",
        "unit": "ms",
    },
    "w8": {
        "params": {"n": 300, "idle_ms": 20},
        "rounds": 3,
        "timeout": 120,
        "metric": "p50_ms",
        "better": "low",
        "unit": "ms",
    },
}

# Durable peers that pip installs within a minute, some with a service that most machines have a package of.
DURABLE_PEERS = [
    "huey-sqlite",
    "dramatiq-redis-aof",
    "procrastinate-pg",
    "pgqueuer-pg",
    "dbos-sqlite",
    "dbos-pg",
]
# What `run.py` alone measures, and docs/performance.md shows.
REPORT = {
    "w1": ["headrace", "headrace-http", "headrace-pg", "processpool", "mp-imap", *DURABLE_PEERS],
    "w2": ["headrace-http", "starlette-1", "functions-framework"],
    "w3": ["headrace", "headrace-rows", "headrace-records", "mp-pool-ranges", "single-process"],
    "w4": [
        "headrace",
        "headrace-http",
        "headrace-pg",
        "sqlite-full",
        "sqlite-full-group",
        "pg-raw",
        *DURABLE_PEERS,
    ],
    "w5": [
        "headrace",
        "watchdog-inotify",
        "headrace-minio",
        "minio-webhook-bare",
        "minio-webhook-bare-both",
        "functions-framework",
        "functions-framework-noqueue",
    ],
    "w7": ["headrace", "headrace-http", "functions-framework", "python-spawn-site"],
    "w8": ["headrace", "headrace-http", "headrace-pg", "pipe-wake", "fsync-pipe-wake"],
}
INSTALL_S = 300
DOCUMENT = os.path.join(REPOSITORY, "docs", "performance.md")


def contestants():
    out = {}
    for path in sorted(glob.glob(os.path.join(HERE, "contestants", "*.py"))):
        for node in ast.parse(open(path).read()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_D":
                base = ast.literal_eval(node.value)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CONTESTANTS":
                for k, v in zip(node.value.keys, node.value.values, strict=False):
                    d = {}
                    for kk, vv in zip(v.keys, v.values, strict=False):
                        d.update(base) if kk is None else d.__setitem__(
                            ast.literal_eval(kk), ast.literal_eval(vv)
                        )
                    out[k.value] = dict(d, file=path)
    return out


def python_of(work, venv):
    if venv in (
        "stdlib",
        "project",
    ):  # "project": the environment that runs this file, with the repository installed
        return sys.executable
    return os.path.join(work, f"venv-{venv}", "bin", "python")


def setup_venv(work, venv):
    if venv == "project":  # contestants write no bytecode; a start must not pay for compiling the sources
        for room in ("headrace", "runtime", "triggers"):
            compileall.compile_dir(os.path.join(REPOSITORY, room), quiet=2)
        return
    if os.path.exists(python_of(work, venv)):
        return
    d = os.path.join(work, f"venv-{venv}")
    requirements = os.path.join(HERE, f"requirements-{venv}.txt")
    install = [f"{d}/bin/pip", "install", "-q", "--retries", "1", "--timeout", "15", "-r", requirements]
    try:
        subprocess.run([sys.executable, "-m", "venv", d], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(install, check=True, timeout=INSTALL_S)
    except (OSError, subprocess.SubprocessError) as e:
        shutil.rmtree(d, ignore_errors=True)
        raise bl.NotRun(f"pip could not install requirements-{venv}.txt ({type(e).__name__})") from e


def version_of(work, spec):
    if spec["dist"] == "python":
        return platform.python_version()
    code = f"import importlib.metadata as m; print(m.version({spec['dist']!r}))"
    try:
        r = subprocess.run([python_of(work, spec["venv"]), "-c", code], capture_output=True, text=True)
    except FileNotFoundError:
        return "?"  # it could not be installed
    return r.stdout.strip() or "?"


class TreeRss(threading.Thread):
    """Peak memory of a process and all its descendants, as the sum of proportional set sizes, 4 samples a
    second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.procs, self.halt = pid, 0, 0, threading.Event()

    def run(self):
        while not self.halt.wait(0.25):
            kids = {}
            for d in os.listdir("/proc"):
                if d.isdigit():
                    try:
                        s = open(f"/proc/{d}/stat").read()
                        kids.setdefault(int(s[s.rindex(")") + 2 :].split()[1]), []).append(int(d))
                    except OSError:
                        pass
            todo, tree = [self.pid], []
            while todo:
                p = todo.pop()
                tree.append(p)
                todo += kids.get(p, [])
            total = 0
            for p in tree:
                try:
                    for line in open(f"/proc/{p}/smaps_rollup"):
                        if line.startswith("Pss:"):
                            total += int(line.split()[1]) * 1024
                            break
                except OSError:
                    pass
            self.peak, self.procs = max(self.peak, total), max(self.procs, len(tree))


def fsync_ms(folder, n=60):
    """Median of n appends of 1 KiB with fdatasync: the disk's speed changes by the second, so each run is
    bracketed."""
    path, lat = os.path.join(folder, "fsync-probe"), []
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for _ in range(n):
        t = time.perf_counter()
        os.write(fd, b"x" * 1024)
        os.fdatasync(fd)
        lat.append(time.perf_counter() - t)
    os.close(fd)
    os.unlink(path)
    return round(statistics.median(lat) * 1e3, 3)


def prompt_wakeups():
    """Ask for nice -10 and a 0.2 ms scheduler slice, inherited by every service and contestant. On a
    machine that others
    use too, a process that wakes (from an fsync, a socket) otherwise waits out a busy neighbour's tick of
    up to 4 ms,
    which is then what a sequential figure measures. Needs root and Linux 6.12 or later; without them
    nothing changes."""
    if os.environ.get("BENCH_PLAIN_SCHED"):
        return False
    import ctypes
    import struct

    attr = struct.pack("IIQiIQQQ", 48, 0, 0, -10, 0, 200_000, 0, 0)
    ok = platform.machine() == "x86_64" and ctypes.CDLL(None).syscall(314, 0, attr, 0) == 0  # sched_setattr
    if not ok:
        print(
            "could not ask for prompt wake-ups: latencies will show the machine's other load", file=sys.stderr
        )
    return ok


def cpu_jiffies():
    """(all, niced, idle) of the machine so far; run.py itself runs at negative nice, so niced time is other
    people's."""
    v = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return sum(v), v[1], v[3] + v[4]


def run_once(args, svc, name, spec, wl, params, timeout):
    work = tempfile.mkdtemp(prefix=f"run-{name}-", dir=args.work_dir)
    try:
        env = {}
        for s in spec.get("services", []) + spec.get(f"{wl}_services", []):
            env.update(svc.get(s))
    except Exception as e:
        return {"ok": False, "not_run": f"service: {e}"[:300]}
    cfg = dict(params, **env, work=work, bench_dir=HERE, root=args.work_dir)
    log = os.path.join(work, "stderr.log")
    paths = [os.path.join(HERE, "contestants"), HERE]
    if spec["venv"] == "project":
        paths.append(REPOSITORY)  # what stands beside this file is measured, not what happens to be installed
    before, cpu = fsync_ms(work), cpu_jiffies()
    t = time.time()
    with open(log, "wb") as err:
        p = subprocess.Popen(
            [python_of(args.work_dir, spec["venv"]), spec["file"], name, wl],
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=work,
            start_new_session=True,
            env=dict(
                os.environ,
                BENCH_CFG=json.dumps(cfg),
                PYTHONUNBUFFERED="1",
                PYTHONPATH=os.pathsep.join(paths),
                PYTHONDONTWRITEBYTECODE="1",
            ),
        )
        rss = TreeRss(p.pid) if wl == "w3" else None
        if rss:
            rss.start()
        try:
            out, _ = p.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            out = b""
        finally:
            try:
                os.killpg(p.pid, signal.SIGKILL)  # what is left of the group that this run started
            except (ProcessLookupError, PermissionError):
                pass
        if p.poll() is None:
            p.kill()
            more, _ = p.communicate()
            out = out or more
    lines = [x for x in out.decode(errors="replace").splitlines() if x.startswith("RESULT ")]
    res = (
        json.loads(lines[-1][7:]) if lines else {"ok": False, "error": f"no result in {timeout} s or it died"}
    )
    if rss:
        rss.halt.set()
        res["peak_pss_mib"], res["peak_procs"] = round(rss.peak / 2**20), rss.procs
    res["wall"] = round(time.time() - t, 2)
    cpu2 = cpu_jiffies()
    res["others_cpu_pct"] = round(100 * (cpu2[1] - cpu[1]) / max(1, cpu2[0] - cpu[0]), 1)
    res["fsync_before_ms"], res["fsync_after_ms"] = before, fsync_ms(work)
    res["at"] = time.strftime("%H:%M:%S", time.gmtime(t))
    if not res.get("ok") and "error" in res:
        tail = open(log, errors="replace").read()[-1500:].strip()
        print(f"    {res['error']}\n    {tail[-1200:]}", file=sys.stderr)
    else:
        subprocess.run(["rm", "-rf", work])
    return res


def summarise(runs, metrics):
    ok = [r for r in runs if r.get("ok")]
    out = {"runs": len(runs), "ok": len(ok)}
    for m in metrics:
        v = [r[m] for r in ok if isinstance(r.get(m), (int, float)) and not isinstance(r.get(m), bool)]
        if v:
            out[m] = {"min": min(v), "median": statistics.median(v), "max": max(v)}
    return out


def choose(args, known):
    """The contestants of each workload that is to run, by name."""
    workloads = args.workload or (list(WORKLOADS) if args.all else list(REPORT))
    wanted = {wl: [k for k, v in known.items() if wl in v["workloads"]] for wl in workloads}
    if args.contestant:
        return {wl: [k for k in names if k in args.contestant] for wl, names in wanted.items()}
    if args.workload or args.all:
        return wanted
    return {wl: [k for k in known if k in REPORT[wl]] for wl in workloads}


def measure(args, known, svc, wl, names, data):
    """Every round of one workload, contestants taking turns; the results go into `data`."""
    w, runs, params = WORKLOADS[wl], {k: [] for k in names}, {}
    absent = {}
    for venv in dict.fromkeys(known[k]["venv"] for k in names):
        try:
            setup_venv(args.work_dir, venv)
        except bl.NotRun as e:
            absent[venv] = str(e)
    for k in names:
        if known[k]["venv"] in absent:
            runs[k].append({"ok": False, "not_run": absent[known[k]["venv"]]})
            print(f"{wl} {k} left out: {absent[known[k]['venv']]}", file=sys.stderr, flush=True)
        params[k] = {**w["params"], **known[k].get(f"{wl}_params", {})}
        params[k].update({a: json.loads(b) for a, b in (s.split("=", 1) for s in args.set)})
    for rnd in range(args.rounds or w["rounds"]):
        for k in names:
            if runs[k] and not runs[k][-1].get("ok"):
                continue
            r = run_once(args, svc, k, known[k], wl, params[k], w["timeout"])
            runs[k].append(r)
            shown = {a: (round(b, 3) if isinstance(b, float) else b) for a, b in r.items()}
            print(f"{wl} {k} #{rnd + 1} {json.dumps(shown)}", file=sys.stderr, flush=True)
    for k in names:
        spec = known[k]
        if args.append:
            runs[k] = data["results"].get(wl, {}).get(k, {}).get("runs", []) + runs[k]
        keys = sorted({a for r in runs[k] for a in r})
        said = {a: spec.get(f"{wl}_{a}", spec.get(a)) for a in ("durable", "rerun", "role")}
        data["results"].setdefault(wl, {})[k] = {
            "version": version_of(args.work_dir, spec),
            "package": spec["dist"],
            **{a: b for a, b in said.items() if b is not None},
            "params": params[k],
            "headline": {"metric": w["metric"], "unit": w["unit"], "better": w["better"]},
            "summary": summarise(runs[k], keys),
            "runs": runs[k],
        }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--workload", action="append", default=[], choices=list(WORKLOADS))
    ap.add_argument("--contestant", action="append", default=[])
    ap.add_argument("--all", action="store_true", help="every workload and every contestant: hours")
    ap.add_argument("--list", action="store_true", help="workloads and their contestants")
    ap.add_argument("--rounds", type=int)
    ap.add_argument("--set", action="append", default=[], help="override a parameter, as n=1000")
    ap.add_argument("--work-dir", default=os.environ.get("BENCH_DIR"))
    ap.add_argument("--out", help="JSON file to merge results into")
    ap.add_argument("--append", action="store_true", help="add to a contestant's earlier runs in --out")
    ap.add_argument(
        "--docs", action="store_true", help="measure start and memory too; rewrite docs/performance.md"
    )
    args = ap.parse_args()
    known = contestants()
    if args.list:
        for wl in WORKLOADS:
            print(wl, " ".join(sorted(k for k, v in known.items() if wl in v["workloads"])))
        return
    args.work_dir = os.path.abspath(args.work_dir or tempfile.mkdtemp(prefix="bench-"))
    os.makedirs(args.work_dir, exist_ok=True)
    out = os.path.abspath(args.out or os.path.join(args.work_dir, "results.json"))
    data = {"results": {}}
    if os.path.exists(out):
        with open(out) as file:
            data = json.load(file)
    data["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    data["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }
    chosen = choose(args, known)
    prompt_wakeups()
    svc = services.Services(args.work_dir)
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))  # so that a stopped run stops its services too
    try:
        for wl, names in chosen.items():
            measure(args, known, svc, wl, names, data)
            with open(out, "w") as file:
                json.dump(data, file, indent=1, sort_keys=True)
    finally:
        svc.close()
    print(f"{table.machine(data)[0]}\nResults: {out}")
    for wl in chosen:
        print(
            "\n".join(["", f"## {table.TABLES[wl]['title']}", "", *table.compared(wl, data["results"][wl])])
        )
    if args.docs:
        for script in (["startup.py"], ["memory.py", "--pandas"]):
            command = [sys.executable, os.path.join(HERE, script[0]), *script[1:], "--out", out]
            subprocess.run(command, check=True, env={**os.environ, "BENCH_DIR": args.work_dir})
        with open(out) as file:
            table.rewrite(DOCUMENT, json.load(file))


if __name__ == "__main__":
    main()
