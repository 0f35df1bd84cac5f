"""A node under a steady load with random kills: what it uses stays bounded, and nothing is lost or doubled.

Short by default; `make test-full` runs it for `$SOAK_S` seconds on each store, 1,800 when it is not set. With
`$SOAK_REPORT` every sample of what was used is added to that file, a JSON document a line.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from headrace.runtime.errors import HeadraceError
from headrace.runtime.store.firing import FIRED_KEPT, FORGET_EVERY
from headrace.runtime.store.steps import DEPLOYMENTS_KEPT
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("soak_functions.py")
RATE = 200
STEP_S = 0.25
LIMITED = 5  # a step, of the function that has limits
KEPT_ROWS = 500
KEPT_DEAD_S = 2.0
SHORT_S = 12.0
FULL_S = float(os.environ.get("SOAK_S", "1800"))
REPORT = os.environ.get("SOAK_REPORT")
FUNCTIONS = 5
TABLES = ("meta", "counter", "idempotency", "deployment", "node", "fired", "gate", "closure", "cursor", "job")
MIB = 1 << 20
JOURNAL = 24 * MIB  # SQLite writes a log of 16 MiB before it begins it anew


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a database holds at one moment; sizes in bytes."""

    rows: dict[str, int]
    """By table; `live` and `ended` for the two kinds of invocations."""
    size: int
    """Of the database, without its journal."""
    free: int
    """Of that, what is in no use: SQLite's free list."""
    dead: dict[str, int]
    """Rows that PostgreSQL has still to clear away, by table."""
    sizes: dict[str, int]
    """By table, with its indexes; of PostgreSQL."""


Look = Callable[[], Contents]


def counting() -> str:
    return " UNION ALL ".join(
        [
            "SELECT 'live', count(*) FROM invocation WHERE status IN (0, 1)",
            "SELECT 'ended', count(*) FROM invocation WHERE status IN (2, 3, 4)",
            *(f"SELECT '{table}', count(*) FROM {table}" for table in TABLES),
        ]
    )


def sqlite_contents(path: Path) -> Contents:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        rows = dict(db.execute(counting()).fetchall())
        [page] = db.execute("PRAGMA page_size").fetchone()
        [pages] = db.execute("PRAGMA page_count").fetchone()
        [free] = db.execute("PRAGMA freelist_count").fetchone()
    return Contents(rows, page * pages, page * free, {}, {})


def postgres_contents(url: str) -> Contents:
    with psycopg.connect(url, autocommit=True) as db:
        rows = dict(db.execute(counting()).fetchall())  # type: ignore[arg-type]
        [size] = db.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
        found = db.execute(
            "SELECT relname, n_dead_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables"
        ).fetchall()
    return Contents(
        rows, size, 0, {name: dead for name, dead, _ in found}, {name: held for name, _, held in found}
    )


class Use:
    """What the node, its workers and its store use at one moment."""

    def __init__(self, node: Serving, at: float, held: Contents) -> None:
        process = psutil.Process(node.pid)
        zygote = node.zygote()
        workers = zygote.children()
        self.at = at
        self.held = held
        self.processes = 2 + len(workers)
        self.handles = process.num_fds()
        self.zygote_handles = zygote.num_fds()
        self.worker_handles = max((worker.num_fds() for worker in workers), default=0)
        self.resident = process.memory_info().rss
        self.zygote_resident = zygote.memory_info().rss
        self.worker_resident = max((worker.memory_info().rss for worker in workers), default=0)
        self.disk = sum(file.stat().st_size for file in node.data.rglob("*") if file.is_file())

    def document(self) -> dict[str, Any]:
        return {**vars(self), "held": dataclasses.asdict(self.held)}


def strike(node: Serving, chance: random.Random) -> str:
    """Kill a worker, the zygote, or the node; a killed node is started again."""
    what = chance.choices(["worker", "zygote", "node"], [6, 2, 1])[0]
    if what == "node":
        node.restart()
        return what
    try:
        victims = node.workers() if what == "worker" else [node.zygote()]
        victims[0].send_signal(signal.SIGKILL)
    except (psutil.NoSuchProcess, ValueError, IndexError):
        return "nobody"  # it is being started again
    return what


class Soak:
    """One soak: `run`, then `check`."""

    def __init__(self, node: Serving, look: Look, chance: random.Random) -> None:
        self._node = node
        self._look = look
        self._chance = chance
        self.accepted = {"soak.mixed": 0, "soak.limited": 0, "soak.once": 0}
        self.uses: list[Use] = []
        self.kills: list[str] = []
        self.began = time.monotonic()

    def run(self, seconds: float) -> None:
        """Put at a fixed rate; every now and then kill something; four times prove the books meanwhile."""
        next_kill = self._chance.uniform(1, 3)
        step = proofs = 0
        while (elapsed := time.monotonic() - self.began) < seconds:
            self._put(int((elapsed + STEP_S) * RATE), step)
            if elapsed >= next_kill:
                self.kills.append(strike(self._node, self._chance))
                next_kill = elapsed + self._chance.uniform(1, 3)
            step += 1
            if step % 4 == 0:
                self._sample(elapsed)
            if elapsed > (proofs + 1) * seconds / 5:
                proofs += 1
                self._prove()
            time.sleep(max(0.0, (step * STEP_S) - (time.monotonic() - self.began)))

    def _put(self, due: int, step: int) -> None:
        for name, payloads in (
            ("soak.mixed", [{"n": n} for n in range(self.accepted["soak.mixed"], due)]),
            ("soak.limited", [{"n": n} for n in range(LIMITED)]),
        ):
            if payloads:
                self._node.client.call("POST", f"/v1/functions/{name}/invoke-many", body=payloads)
                self.accepted[name] += len(payloads)
        same = {
            self._node.client.submit("soak.once", {"n": step}, idempotency_key=f"step {step}").invocation_id
            for _ in range(2)
        }
        assert len(same) == 1
        self.accepted["soak.once"] += 1

    def _sample(self, at: float) -> None:
        try:
            use = Use(self._node, at, self._look())
        except (psutil.NoSuchProcess, FileNotFoundError, AssertionError, ValueError):
            return  # something ended while it was looked at
        self.uses.append(use)
        if REPORT is not None:
            with open(REPORT, "a") as report:
                report.write(json.dumps(use.document()) + "\n")

    def _prove(self) -> None:
        verdict = self._node.client.verify()
        assert verdict["balanced"], verdict["problems"]

    # ---- what must hold ----

    def check(self) -> None:
        """The account, once all has ended; then what was used."""

        def ended() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._node.client.stats()["functions"]
            except HeadraceError:
                return None
            done = (
                found[name]["succeeded"] + found[name]["dead"] == of for name, of in self.accepted.items()
            )
            return found if all(done) else None

        books = wait_until(ended, f"the end of {self.accepted}", within_s=60)
        bad = sum(n % 50 == 0 for n in range(self.accepted["soak.mixed"]))
        for name, accepted in self.accepted.items():
            dead = bad if name == "soak.mixed" else 0
            book = books[name]
            assert (book["accepted"], book["succeeded"], book["dead"]) == (accepted, accepted - dead, dead)
        self._node.check_books()
        self._prove()
        self.check_processes()
        self.check_rows()
        self.check_disk()

    def check_processes(self) -> None:
        for what in ("handles", "zygote_handles", "worker_handles"):
            early, late = self.halves(what)
            assert late <= early + 20, f"{what} grew from {early} to {late}"
        assert max(use.processes for use in self.uses) <= 2 + 2 + 8 + 2
        for what in ("resident", "zygote_resident", "worker_resident"):
            early, late = self.halves(what)
            assert late <= early * 1.3 + 16 * MIB, f"{what} grew from {early} to {late} bytes"

    def check_rows(self) -> None:
        starts = 1 + self.kills.count("node")
        last = self.uses[-1].held.rows
        assert last["deployment"] <= min(starts, DEPLOYMENTS_KEPT + 1)
        assert last["fired"] <= FIRED_KEPT + FORGET_EVERY
        assert max(use.held.rows["node"] for use in self.uses) <= 2 + starts
        assert last["gate"] <= 1
        assert last["counter"] <= FUNCTIONS * min(starts + 1, 16)  # retention counts in the first shard
        assert last["meta"] <= 5 + starts  # what a killed node leaves is removed after a day
        for table in ("cursor", "closure", "job"):
            assert last[table] <= 10, (table, last)
        for table in ("live", "ended", "idempotency"):
            early, late = self.halves("rows", table)
            assert late <= early * 1.5 + 2_000, f"{table} grew from {early} to {late} rows"

    def check_disk(self) -> None:
        early, late = self.halves("disk")
        assert late <= early * 1.5 + JOURNAL, f"the data folder grew from {early} to {late} bytes"
        early, late = self.halves("size")
        assert late <= early * 1.5 + 8 * MIB, f"the database grew from {early} to {late} bytes"
        for table in self.uses[-1].held.dead:
            early, late = self.halves("dead", table)
            assert late <= early * 1.5 + 20_000, f"{table} has {late} dead rows after {early}"

    def halves(self, what: str, table: str | None = None) -> tuple[int, int]:
        """The most of it in the first half of the samples, and in the second."""

        def value(use: Use) -> int:
            found: Any = getattr(use, what, None)
            if found is None:
                found = getattr(use.held, what)
            return int(found if table is None else found.get(table, 0))

        half = len(self.uses) // 2
        return max(map(value, self.uses[:half])), max(map(value, self.uses[half:]))

    def summary(self) -> str:
        lines = [
            f"{what}: {self.halves(what)}"
            for what in (
                "handles", "zygote_handles", "worker_handles", "resident", "zygote_resident",
                "worker_resident", "disk", "size", "free",
            )
        ]  # fmt: skip
        held = self.uses[-1].held
        lines += [f"rows of {table}: {self.halves('rows', table)}" for table in held.rows]
        lines += [f"dead rows of {table}: {self.halves('dead', table)}" for table in held.dead]
        lines += [f"bytes of {table}: {self.halves('sizes', table)}" for table in held.sizes]
        return "\n".join(lines)


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[tuple[str, ...], Look]]:
    """The flags of a node on each store, and how to look into its database."""
    if request.param == "sqlite":
        yield (), lambda: sqlite_contents(tmp_path / "data" / "headrace.db")
    else:
        url = request.getfixturevalue("postgres_url")
        yield ("--store", url), lambda: postgres_contents(url)


@pytest.mark.timeout(150)
def test_a_short_soak_with_kills_loses_and_doubles_nothing(
    tmp_path: Path, stored: tuple[tuple[str, ...], Look]
) -> None:
    run(tmp_path, SHORT_S, *stored, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(FULL_S + 600)
def test_a_long_soak_with_kills_stays_bounded(tmp_path: Path, stored: tuple[tuple[str, ...], Look]) -> None:
    run(tmp_path, FULL_S, *stored, seed=random.randrange(1 << 30))


def run(folder: Path, seconds: float, flags: tuple[str, ...], look: Look, *, seed: int) -> None:
    env = {
        "HEADRACE_KEPT_SUCCEEDED_ROWS": str(KEPT_ROWS),
        "HEADRACE_KEPT_DEAD_S": str(KEPT_DEAD_S),
        "HEADRACE_KEPT_LOGS_BYTES": str(MIB),
        "HEADRACE_KEPT_EVERY_S": "0.5",
        "HEADRACE_RECYCLE_AFTER": "300",
    }
    with serving(CODE, folder=folder, env=env, flags=flags) as node:
        soak = Soak(node, look, random.Random(seed))
        soak.run(seconds)
        print(f"seed {seed}: {soak.accepted} accepted, kills {soak.kills}\n{soak.summary()}")
        assert soak.kills
        soak.check()

        def few() -> bool:
            page = node.client.call("GET", "/v1/invocations", query={"status": "succeeded", "limit": "1000"})
            return len(page["items"]) <= KEPT_ROWS

        wait_until(few, f"retention down to {KEPT_ROWS} rows")
        node.check_books()


@pytest.mark.timeout(90)
def test_one_round_of_retention_removes_all_that_is_out_of_date(
    tmp_path: Path, stored: tuple[tuple[str, ...], Look]
) -> None:
    flags, look = stored
    every_s, count = 6.0, 5_000
    env = {"HEADRACE_KEPT_SUCCEEDED_ROWS": "0", "HEADRACE_KEPT_EVERY_S": str(every_s)}
    with serving(CODE, folder=tmp_path, env=env, flags=flags) as node:
        for at in range(0, count, 1_000):
            body = [{"n": 50 * n + 1} for n in range(at, at + 1_000)]
            node.client.call("POST", "/v1/functions/soak.mixed/invoke-many", body=body)
        wait_until(lambda: look().rows["live"] == 0, "the end of all", within_s=40)
        before = look().rows["ended"]
        wait_until(lambda: look().rows["ended"] < before, "the first round", within_s=2 * every_s)
        wait_until(lambda: look().rows["ended"] < KEPT_ROWS, "the end of that round", within_s=every_s * 0.8)
        node.check_books()
