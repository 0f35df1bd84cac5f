"""Headrace itself: embedded in the client's process (`headrace`; `headrace-pg` with its store in PostgreSQL),
and served over HTTP (`headrace-http`).

W3 comes in three: `headrace` and `headrace-rows` and `headrace-records` differ only in how the mapped
function reads its
chunk (`chunk.bytes()` and its own csv reader as in the limit, `chunk.rows()`, `chunk.records()`).
"""

import contextlib
import os
import sqlite3
import sys
import time
import urllib.request

import benchlib as bl

_D = {
    "venv": "project",
    "dist": "headrace",
    "durable": "yes (SQLite WAL, synchronous=FULL: fsync before the acknowledgement)",
    "rerun": "yes: at once, in another worker; after a power cut, at the next start",
}
CONTESTANTS = {
    "headrace": {
        **_D,
        "workloads": ["w1", "w3", "w4", "w5", "w7", "w8"],
        "role": "embedded: the node is a thread of the client",
    },
    "headrace-pg": {
        **_D,
        "workloads": ["w1", "w4", "w8"],
        "services": ["postgres"],
        "role": "embedded, the store in PostgreSQL",
        "durable": "yes (PostgreSQL synchronous_commit=on: its fsync before the acknowledgement)",
    },
    "headrace-minio": {
        **_D,
        "workloads": ["w5"],
        "services": ["minio"],
        "role": "headrace serve; the bucket sends to both its webhook targets",
    },
    "headrace-minio-immediate": {
        **_D,
        "workloads": ["w5"],
        "services": ["minio"],
        "role": "headrace serve; the bucket sends to the target without a queue only",
    },
    "headrace-rows": {**_D, "workloads": ["w3"], "role": "embedded, chunk.rows()"},
    "headrace-records": {**_D, "workloads": ["w3"], "role": "embedded, chunk.records()"},
    "headrace-http": {
        **_D,
        "workloads": ["w1", "w2", "w4", "w7", "w8"],
        "role": "headrace serve; Client(url)",
        "w2_durable": "no: a synchronous call is answered or failed, never kept",
        "w2_rerun": "no",
    },
}


@contextlib.contextmanager
def embedded(cfg, app=None):
    """An embedded node with two workers, its data in the run's own folder; gives its client and that
    folder."""
    from headrace_functions import app as plain

    from headrace.runtime.errors import InvalidSettings

    data = os.path.join(cfg.work, "data")
    store = {"store": cfg.pg} if cfg.name == "headrace-pg" else {}
    node = (app or plain).node(data=data, workers=2, **store)
    try:
        client = node.start()
    except InvalidSettings as error:
        if not store:
            raise
        raise bl.NotRun(f"this version has no PostgreSQL store: {error}") from None
    try:
        yield client, data
    finally:
        node.stop()


def serve(cfg, port, data):
    """`headrace serve` of the functions file, as a context that ends it."""
    functions = os.path.join(bl.here(cfg), "headrace_functions.py")
    cmd = [
        sys.executable,
        "-m",
        "headrace",
        "serve",
        functions,
        "--data",
        data,
        "--port",
        port,
        "--workers",
        "2",
    ]
    return bl.running([cmd], os.path.join(cfg.work, "serve.log"))


@contextlib.contextmanager
def served(cfg):
    """A served node that answers, and a client of it over HTTP."""
    from headrace import Client

    port, data = bl.free_port(), os.path.join(cfg.work, "data")
    with serve(cfg, port, data) as [process]:
        bl.wait_port(port, proc=process)
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            bl.check(process.poll() is None, "the node ended before its first answer")
            time.sleep(0.02)
        with open(os.path.join(data, "token")) as file:
            token = file.read().strip()
        with Client(url, token) as client:
            yield client, data, port


def _answers(url):
    try:
        return bl.http_json(f"{url}/", {"name": "x"}) == {"greeting": "hello x"}
    except OSError:
        return False


def _ready(url):
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def node(cfg):
    """The contestant's own way to a node: (client, data)."""
    if cfg.name == "headrace-http":
        with served(cfg) as (client, data, _):
            yield client, data
    else:
        with embedded(cfg) as pair:
            yield pair


# ---- W1 ----


def w1(cfg):
    n = cfg.n
    with node(cfg) as (client, _):
        for _ in range(2):
            [x.result() for x in [client.submit("bench.f", i) for i in range(250)]]
        t = time.perf_counter()
        futures = [client.submit("bench.f", i) for i in range(n)]
        submitted = time.perf_counter() - t
        out = [x.result() for x in futures]
        t = time.perf_counter() - t
    return bl.w1_result(n, t, out, submit_rate=n / submitted)


# ---- W2 ----


def w2(cfg):
    import w2lib

    with served(cfg) as (_, _, port):
        return w2lib.measure(cfg, port)


# ---- W3 ----


def w3(cfg):
    import w3lib

    path, expect = w3lib.data(cfg)
    job = {"headrace": "bench.count_bytes", "headrace-rows": "bench.count_rows"}.get(
        cfg.name, "bench.count_records"
    )
    with embedded(cfg) as (client, data):
        client.make_bucket("bench")
        bucket = os.path.join(data, "buckets", "bench")
        os.link(path, os.path.join(bucket, "reviews.csv"))  # the object is there before the clock starts
        with open(path, "rb") as source, open(os.path.join(bucket, "warm.csv"), "wb") as small:
            start, end = w3lib.ranges(path, 1)[0]
            source.seek(start)
            small.write(source.read(end - start))
        client.submit_job(job, "s3://bench/warm.csv").result()
        t = time.perf_counter()
        handle = client.submit_job(job, "s3://bench/reviews.csv")
        out = handle.result()
        t = time.perf_counter() - t
        chunks = handle.status()["chunks"]
    return w3lib.result(cfg, t, out, expect, chunks)


# ---- W4 ----


def w4(cfg):
    n = cfg.n
    payloads = [bl.payload_1k(i) for i in range(n)]
    times, counted, before = {}, {}, 0
    with node(cfg) as (client, data):
        client.submit("bench.keep", {"warm": 1}).wait_accepted()
        before = waiting(cfg, data, "bench.keep")

        def count(mode):
            nonlocal before
            now = waiting(cfg, data, "bench.keep")
            counted[mode], before = now - before, now

        t = time.perf_counter()
        for payload in payloads:
            client.submit("bench.keep", payload).wait_accepted()
        times["seq"] = time.perf_counter() - t
        count("seq")
        times["conc16"] = bl.threads16(lambda i: client.submit("bench.keep", payloads[i]).wait_accepted(), n)
        count("conc16")
        t = time.perf_counter()
        sent = [client.submit_many("bench.keep", payloads[at : at + 1000]) for at in range(0, n, 1000)]
        for futures in sent:
            for future in futures:
                future.wait_accepted()
        times["bulk"] = time.perf_counter() - t
        count("bulk")
    note = "bulk: calls of 1,000, the next ones sent before the first is acknowledged"
    return bl.w4_result(n, times, counted, note=note)


def waiting(cfg, data, function):
    """Waiting invocations of a function by the database itself."""
    count = f"select count(*) from invocation where function = '{function}' and status = 0"
    if cfg.name == "headrace-pg":
        import psycopg

        with psycopg.connect(cfg.pg) as db:
            return db.execute(count).fetchone()[0]
    db = sqlite3.connect(f"file:{os.path.join(data, 'headrace.db')}?mode=ro", uri=True)
    with contextlib.closing(db):
        return db.execute(count).fetchone()[0]


# ---- W5 ----


def w5(cfg):
    """The bucket is a folder, as in watchdog-inotify, or of MinIO; the function runs in a worker process,
    durably accepted before."""
    import w5lib

    if cfg.name.startswith("headrace-minio"):
        return w5_minio(cfg)

    from headrace import App, Upload

    app, log = App("uploads"), w5lib.seen_file(cfg)

    @app.on(Upload("drop"))
    @app.function
    def seen(event):
        os.environ["BENCH_SEEN"] = log
        w5lib.seen(event.key)

    with embedded(cfg, app) as (client, data):
        folder = os.path.join(data, "buckets", "drop")

        def put(key):
            with open(os.path.join(folder, key), "wb") as file:
                file.write(b"x" * 1024)

        client.put_object("s3://drop/warm", b"x")
        end = time.time() + 10
        while not os.path.exists(log):
            bl.check(time.time() < end, "the warm-up upload gave no event")
            time.sleep(0.01)
        return w5lib.measure(cfg, None, put)


def w5_minio(cfg):
    import shutil

    import w5lib

    w5lib.client(cfg).make_bucket("benchw5")
    functions = os.path.join(cfg.work, "uploads.py")
    shutil.copy(os.path.join(bl.here(cfg), "headrace_uploads.py"), functions)
    data, log = os.path.join(cfg.work, "data"), os.path.join(cfg.work, "serve.log")
    command = [sys.executable, "-m", "headrace", "serve", functions, "--data", data, "--workers", "2"]
    command += ["--port", cfg.minio_hook, "--objects", f"s3://{cfg.minio}?tls=false"]
    environment = {
        "AWS_ACCESS_KEY_ID": "benchuser",
        "AWS_SECRET_ACCESS_KEY": "benchpass",
        "HEADRACE_TOKENS": "bench:admin:bench-token",
    }
    with bl.running([command], log, **environment) as [process]:
        bl.wait_port(cfg.minio_hook, proc=process)
        while not _ready(f"http://127.0.0.1:{cfg.minio_hook}"):
            bl.check(process.poll() is None, "the node ended before it was ready")
            time.sleep(0.02)
        return w5lib.measure(cfg, "HEADRACE" if cfg.name.endswith("immediate") else "HEADRACE HEADRACEQ")


# ---- W7 ----


def w7(cfg):
    """A new data folder for each start, so that making the database is part of it."""
    import w7lib

    if cfg.name == "headrace":
        return w7lib.cold(cfg, os.path.abspath(__file__), "cold")
    starts = iter(range(1_000))
    port = bl.free_port()

    def once():
        ctx = serve(cfg, port, os.path.join(cfg.work, f"data{next(starts)}"))
        return (
            ctx,
            lambda: bl.http_json(f"http://127.0.0.1:{port}/", {"name": "x"}) == {"greeting": "hello x"},
        )

    return w7lib.cold_http(cfg, once)


def cold():
    """One script from its start to its first result: what `python script.py` costs a user."""
    import tempfile

    with tempfile.TemporaryDirectory() as work, embedded(bl.Cfg(work=work, name="headrace")) as (client, _):
        print("COLD" if client.invoke("bench.f", 1) == 1 else "WRONG", flush=True)


# ---- W8 ----


def w8(cfg):
    import w8lib

    with node(cfg) as (client, _):
        return w8lib.measure(cfg, lambda i: client.submit("bench.started", i).result())


if __name__ == "__main__":
    if sys.argv[1:] == ["cold"]:
        cold()
    else:
        bl.main(globals())
