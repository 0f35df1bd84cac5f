"""Deploys: an old and a new node overlap on one database, with different code; nothing is lost or doubled."""

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from test_several_nodes import check_never_two_at_once, ends, put, runs_of

from headrace import Client
from headrace.runtime.store.holder import PATIENCE_S
from headrace.runtime.store.version import SCHEMA
from tests.serving import Serving, run_command, wait_until

LEASE_S = 2.0
NOTES = Path(__file__).with_name("cluster_functions.py").read_text().partition("def timed(")[0]
COMMON = (
    NOTES.replace('App("cluster")', 'App("deploy")')
    + """

ONCE = RetryPolicy(retries=5, base_s=0.01, max_s=0.05)


def ran(folder: str, seconds: float, context: Context) -> None:
    note(folder, "start", context.invocation_id, context.attempt)
    time.sleep(seconds)
    note(folder, "end", context.invocation_id, context.attempt)


@app.function(retries=ONCE)
def kept(folder: str, n: int, context: Context, seconds: float = 0.0) -> int:
    ran(folder, seconds, context)
    return n * n


@app.function(retries=0)
def gated(folder: str, context: Context) -> str:
    note(folder, "start", context.invocation_id, context.attempt)
    while not (Path(folder) / "open").exists():
        time.sleep(0.005)
    note(folder, "end", context.invocation_id, context.attempt)
    return "through"


def add(a: int, b: int) -> int:
    return a + b


@app.job(split=Items(batch=1), reduce=add, retries=ONCE)
def total(chunk: Chunk) -> int:
    time.sleep(0.01)
    return sum(item for item in chunk.records())
"""
)
OLD = """

@app.function(retries=ONCE)
def changed(folder: str, n: int, context: Context, seconds: float = 0.0) -> list[Any]:
    ran(folder, seconds, context)
    return ["old", n, NODE]


@app.function(retries=ONCE)
def removed(folder: str, n: int, context: Context, seconds: float = 0.0) -> int:
    ran(folder, seconds, context)
    return -n
"""
NEW = """

@app.function(retries=ONCE)
def changed(folder: str, n: int, context: Context, seconds: float = 0.0) -> list[Any]:
    ran(folder, seconds, context)
    return ["new", n, NODE]


@app.function(retries=ONCE)
def added(folder: str, n: int, context: Context, seconds: float = 0.0) -> int:
    ran(folder, seconds, context)
    return n + 1
"""

Make = Callable[..., Serving]


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Make]:
    """Makes nodes of one release: `release("a", OLD, store=…)`, not started."""
    made: list[Serving] = []

    def make(place: str, code: str, *, store: str | None = None, workers: int = 2) -> Serving:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "functions.py").write_text(COMMON + code)
        flags = ("--objects", str(tmp_path / "buckets"), *(("--store", store) if store else ()))
        env = {"HEADRACE_NODE_LEASE_S": str(LEASE_S)}
        node = Serving(folder / "functions.py", folder=folder, workers=workers, flags=flags, env=env)
        made.append(node)
        return node

    try:
        yield make
    except BaseException:
        for node in made:
            print(node.words()[-3000:])
        raise
    finally:
        (tmp_path / "open").touch()
        with contextlib.ExitStack() as stack:
            for node in made:
                stack.callback(node.close)


def batch(folder: Path, count: int, seconds: float = 0.0) -> list[dict[str, Any]]:
    return [{"folder": str(folder), "n": n, "seconds": seconds} for n in range(count)]


def records(client: Client, ids: list[str]) -> list[dict[str, Any]]:
    found = {one["invocation_id"]: one for one in client.invocations()}
    return [found[id] for id in ids]


def check_ran_once(folder: Path, ended: list[dict[str, Any]]) -> None:
    """Each of these succeeded, by its first attempt, which is the only run there was of it."""
    assert {(one["status"], one["attempts"]) for one in ended} == {("succeeded", 1)}
    runs = runs_of(folder)
    times = Counter(run.id for run in runs)
    assert {times[one["invocation_id"]] for one in ended} == {1}
    check_never_two_at_once(runs)


# ---- two releases on one database ----


def test_what_only_one_release_has_runs_there_and_waits_while_it_is_gone(
    postgres_url: str, tmp_path: Path, release: Make
) -> None:
    old, new = release("old", OLD, store=postgres_url), release("new", NEW, store=postgres_url)
    old.start()
    new.start()
    added = put(new.client, "deploy.added", batch(tmp_path, 60))
    assert [end["result"] for end in ends(new.client, added)] == [n + 1 for n in range(60)]
    by_new = str(new.pid)
    assert {run.node for run in runs_of(tmp_path) if run.id in set(added)} == {by_new}
    answer = old.client.backend.request("POST", "/v1/functions/deploy.added/invoke", body=b"{}",
                                        headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status == 404

    changed = put(old.client, "deploy.changed", batch(tmp_path, 100, 0.01))
    first = put(old.client, "deploy.removed", batch(tmp_path, 150, 0.04))
    wait_until(lambda: set(first) & {run.id for run in runs_of(tmp_path)}, "a run of what was removed")
    assert old.stop() == 0
    waiting = [one for one in records(new.client, first) if one["status"] == "waiting"]
    assert len(waiting) > 50
    assert {one["attempts"] for one in waiting} == {0}
    # What both have goes on with the release that is left, and each result is of the one that ran it.
    done = ends(new.client, changed)
    ran_on = {run.id: run.node for run in runs_of(tmp_path)}
    for n, end in enumerate(done):
        node = ran_on[end["invocation_id"]]
        assert end["result"] == ["new" if node == by_new else "old", n, node]
    books = new.check_books()["functions"]["deploy.removed"]
    assert books["waiting"] == len(waiting)
    assert by_new not in {ran_on.get(id) for id in first}

    again = release("again", OLD, store=postgres_url)
    again.start()
    ended = ends(again.client, first)
    assert [end["result"] for end in ended] == [-n for n in range(150)]
    check_ran_once(tmp_path, [*ended, *done])
    new.check_books()


def test_a_node_that_is_told_to_end_hands_over_a_thousand_invocations_and_a_job(
    postgres_url: str, tmp_path: Path, release: Make
) -> None:
    old, new = release("old", OLD, store=postgres_url), release("new", NEW, store=postgres_url)
    old.start()
    new.start()
    by_old = str(old.pid)
    job = old.client.submit_job("deploy.total", list(range(300)))
    ids = put(old.client, "deploy.kept", batch(tmp_path, 1000, 0.015))
    wait_until(lambda: by_old in {run.node for run in runs_of(tmp_path)}, "a run on the old node")
    old.signal(signal.SIGTERM)
    assert old.wait_ended() == 0

    ended = ends(new.client, ids)
    assert [end["result"] for end in ended] == [n * n for n in range(1000)]
    check_ran_once(tmp_path, ended)
    assert 0 < sum(run.node == by_old for run in runs_of(tmp_path)) < 1000
    found = wait_until(lambda: _ended_job(new.client, job.id), "the job's end")
    assert (found["status"], found["result"]) == ("succeeded", sum(range(300)))
    parts = list(new.client.invocations(function="deploy.total"))
    assert {(part["status"], part["attempts"]) for part in parts} == {("succeeded", 1)}
    books = new.check_books()["functions"]
    assert books["deploy.kept"]["accepted"] == books["deploy.kept"]["succeeded"] == 1000
    assert books["deploy.total"]["accepted"] == books["deploy.total"]["succeeded"] == len(parts)


@pytest.mark.slow
def test_a_rolling_deploy_under_load_refuses_nobody_who_asks_the_other_node(
    postgres_url: str, tmp_path: Path, release: Make
) -> None:
    """Two nodes are replaced one after the other, while a caller goes on with whichever is there."""
    nodes = [release(f"old{n}", OLD, store=postgres_url).start() for n in range(2)]
    ids: list[str] = []
    for turn in range(2):
        ids += put(nodes[0].client, "deploy.changed", batch(tmp_path, 100, 0.01))
        nodes.append(release(f"new{turn}", NEW, store=postgres_url).start())
        leaving = nodes.pop(0)
        ids += put(leaving.client, "deploy.changed", batch(tmp_path, 100, 0.01))
        leaving.signal(signal.SIGTERM)
        ids += put(nodes[0].client, "deploy.changed", batch(tmp_path, 100, 0.01))
        assert leaving.wait_ended() == 0
    ended = ends(nodes[0].client, ids)
    check_ran_once(tmp_path, ended)
    assert {end["result"][0] for end in ended} == {"old", "new"}
    last = ends(nodes[1].client, put(nodes[0].client, "deploy.changed", batch(tmp_path, 20)))
    assert {end["result"][0] for end in last} == {"new"}
    nodes[1].check_books()


# ---- releases of different schemas ----


def test_a_release_that_cannot_read_the_database_any_more_is_refused_and_others_go_on(
    postgres_url: str, tmp_path: Path, release: Make
) -> None:
    node = release("new", NEW, store=postgres_url)
    node.start()
    newer = SCHEMA + 2
    with psycopg.connect(postgres_url, autocommit=True) as db:
        # Expanded: a newer schema that this release still can use.
        db.execute("UPDATE meta SET value = %s WHERE key = 'schema'", (str(newer),))
    expanded = release("expanded", NEW, store=postgres_url)
    expanded.start()
    assert ends(expanded.client, put(expanded.client, "deploy.added", batch(tmp_path, 5)))
    assert expanded.stop() == 0
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("UPDATE meta SET value = %s WHERE key = 'min_reader'", (str(newer),))

    done = run_command("serve", tmp_path / "new" / "functions.py", "--port", "0",
                       "--data", tmp_path / "refused" / "data", "--store", postgres_url)  # fmt: skip
    assert done.returncode == 1
    assert f"has schema {newer}, which this release ({SCHEMA}) cannot read" in done.stderr
    assert "Install the newer release" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "refused" / "data" / "node.json").exists()
    assert ends(node.client, put(node.client, "deploy.added", batch(tmp_path, 5)))
    node.check_books()


# ---- SQLite: one node at a time ----


def test_a_new_node_on_sqlite_waits_for_the_old_one_to_drain_and_goes_on(
    tmp_path: Path, release: Make
) -> None:
    old = release("one", OLD, workers=1)
    old.start()
    [held] = put(old.client, "deploy.gated", [{"folder": str(tmp_path)}])
    wait_until(lambda: runs_of(tmp_path), "the run to begin")
    ids = put(old.client, "deploy.kept", batch(tmp_path, 200))
    old.signal(signal.SIGTERM)
    wait_until(lambda: "stopping: what runs may end" in old.words(), "the drain")

    new = release("one", NEW, workers=1)
    new.launch()
    wait_until(lambda: _opens(new, "node.lock"), "the new node to ask for the data")
    (tmp_path / "open").touch()
    assert old.wait_ended() == 0
    new.wait_ready()
    ended = ends(new.client, [held, *ids])
    assert [end["result"] for end in ended] == ["through", *[n * n for n in range(200)]]
    check_ran_once(tmp_path, ended)
    new.check_books()


def test_a_new_node_on_sqlite_is_refused_in_plain_words_when_the_old_one_drains_for_long(
    tmp_path: Path, release: Make
) -> None:
    old = release("one", OLD, workers=1)
    old.start()
    [held] = put(old.client, "deploy.gated", [{"folder": str(tmp_path)}])
    wait_until(lambda: runs_of(tmp_path), "the run to begin")
    ids = put(old.client, "deploy.kept", batch(tmp_path, 50))
    old.signal(signal.SIGTERM)
    wait_until(lambda: "stopping: what runs may end" in old.words(), "the drain")

    done = run_command("serve", tmp_path / "one" / "functions.py", "--port", "0", "--data", old.data,
                       timeout_s=PATIENCE_S + 20)  # fmt: skip
    assert done.returncode == 1
    assert f"is held by process {old.pid} on" in done.stderr
    assert "Stop that node" in done.stderr
    assert "Traceback" not in done.stderr
    assert old.alive
    (tmp_path / "open").touch()
    assert old.wait_ended() == 0

    new = release("one", NEW, workers=1)
    new.start()
    ended = ends(new.client, [held, *ids])
    check_ran_once(tmp_path, ended)
    new.check_books()


def _ended_job(client: Client, id: str) -> dict[str, Any] | None:
    found: dict[str, Any] = client.call("GET", f"/v1/jobs/{id}")
    return found if found["status"] in ("succeeded", "failed", "cancelled") else None


def _opens(node: Serving, name: str) -> bool:
    """Whether the node's process has this file of its data folder open."""
    links = Path(f"/proc/{node.pid}/fd")
    with contextlib.suppress(OSError):
        return any(link.resolve() == (node.data / name).resolve() for link in links.iterdir())
    return False
