"""The database goes away under nodes that work, and under nodes that are just recovering: every invocation is
accounted for, also those that were being accepted at that moment.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from postgres_server import PostgresServer, server_programs
from test_several_nodes import CODE, check_never_two_at_once, ends, nodes, put, runs_of

from headrace.runtime.errors import HeadraceError
from tests.serving import Serving, serving, wait_until

MIB = 1 << 20
LEASE_S = 2.0


class Caller:
    """Brings invocations one by one, each with an idempotency key; what was not answered it brings again."""

    def __init__(self, node: Serving, folder: Path, name: str) -> None:
        self.ids: list[str] = []
        self.refused: Counter[str] = Counter()
        self._node, self._folder, self._name = node, folder, name
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def more(self, count: int) -> None:
        """Return when so many more are acknowledged."""
        wanted = len(self.ids) + count
        wait_until(lambda: len(self.ids) >= wanted, f"{count} more acknowledged", within_s=60)

    def _run(self) -> None:
        while not self._ending.is_set():
            n = len(self.ids)
            try:
                answer = self._node.client.backend.request(
                    "POST",
                    "/v1/functions/cluster.work/invoke",
                    query={"mode": "async"},
                    body=json.dumps({"folder": str(self._folder), "n": n}).encode(),
                    headers={"Content-Type": "application/json", "Idempotency-Key": f"{self._name}-{n}"},
                )
            except HeadraceError as error:
                self.refused[error.code] += 1
                continue
            body = json.loads(answer.body)
            if answer.status == 202:
                self.ids.append(body["invocation_id"])
            else:
                self.refused[body["error"]["code"]] += 1


def check_account(node: Serving, folder: Path, ids: list[str], results: list[int]) -> None:
    """Each of `ids` ended once with its result, there are no others, and no more runs than attempts, but for
    those that a lost lease repeats.
    """
    ended = ends(node.client, ids, within_s=60)
    assert [end["result"] for end in ended] == results
    there = list(node.client.invocations(function="cluster.work"))
    assert Counter(one["invocation_id"] for one in there) == Counter(ids)
    books = node.check_books()["functions"]["cluster.work"]
    assert (books["accepted"], books["succeeded"]) == (len(ids), len(ids))
    runs = runs_of(folder)
    check_never_two_at_once(runs)
    assert {run.id for run in runs} >= set(ids)


def job_ends(node: Serving, id: str, total: int) -> None:
    def look() -> Any:
        found = node.client.call("GET", f"/v1/jobs/{id}")
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    job = wait_until(look, "the job's end", within_s=60)
    assert (job["status"], job["result"]) == ("succeeded", total)


def stopped(node: Serving) -> bool:
    return bool(psutil.Process(node.pid).status() == psutil.STATUS_STOPPED)


# ---- it comes back at once ----


@pytest.mark.parametrize(
    "crash", [pytest.param(False, marks=pytest.mark.slow), True], ids=["restart", "crash"]
)
def test_restarts_of_the_database_in_mid_flight_lose_and_double_nothing(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path, crash: bool
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.005} for n in range(500)]
        job = two.client.submit_job("cluster.total", list(range(60)))
        ids = put(one.client, "cluster.work", payloads)
        with Caller(one, tmp_path, "one") as caller, Caller(two, tmp_path, "two") as another:
            for _ in range(2):
                caller.more(20)
                another.more(20)
                postgres_server.restart(crash=crash)
            caller.more(20)
            another.more(20)
        assert set(caller.refused) | set(another.refused) <= {"store_unavailable", "in_progress"}
        results = [n * n for part in (ids, caller.ids, another.ids) for n in range(len(part))]
        check_account(two, tmp_path, [*ids, *caller.ids, *another.ids], results)
        job_ends(one, job.id, sum(range(60)))


# ---- while a node recovers ----


@pytest.mark.parametrize(
    "point", [pytest.param("commit.before", marks=pytest.mark.slow), "commit.after",
              pytest.param("claim", marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_crash_of_the_database_while_a_restarted_node_recovers_loses_nothing(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path, point: str
) -> None:
    """The node is killed in mid-flight; its successor stands still at a named point of its recovery, and
    there the database crashes as well.
    """
    flags = ("--store", postgres_url)
    env = {"HEADRACE_NODE_LEASE_S": str(LEASE_S)}
    with serving(CODE, folder=tmp_path, flags=flags, env=env) as first:
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.004} for n in range(400)]
        job = first.client.submit_job("cluster.total", list(range(30)))
        ids = put(first.client, "cluster.work", payloads)
        wait_until(lambda: len(runs_of(tmp_path)) >= 40, "40 runs")
        first.kill()

        env["HEADRACE_FAULT"] = f"{point}:2:stop"
        second = Serving(CODE, folder=tmp_path, flags=flags, env=env)
        try:
            second.launch()
            process = psutil.Process(second.pid)
            wait_until(lambda: stopped(second), f"the node to stop at {point}")
            postgres_server.restart(crash=True)
            process.send_signal(signal.SIGCONT)
            second.wait_ready()
            check_account(second, tmp_path, ids, [n * n for n in range(400)])
            job_ends(second, job.id, sum(range(30)))
        except BaseException:
            print(second.words()[-3000:])
            raise
        finally:
            second.signal(signal.SIGCONT)
            second.close()


def test_a_crash_of_the_database_while_a_node_rejoins_after_its_lease_loses_nothing(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.01} for n in range(500)]
        ids = put(one.client, "cluster.work", payloads)
        wait_until(lambda: {run.node for run in runs_of(tmp_path)} >= {str(one.pid), str(two.pid)}, "both")
        two.signal(signal.SIGSTOP)
        wait_until(lambda: _leases(postgres_url) == 1, "the end of its lease")
        two.signal(signal.SIGCONT)
        postgres_server.restart(crash=True)
        wait_until(lambda: _leases(postgres_url) == 2, "its new lease")
        check_account(two, tmp_path, ids, [n * n for n in range(500)])
        check_account(one, tmp_path, ids, [n * n for n in range(500)])


def test_a_database_that_is_gone_for_longer_than_the_lease_is_waited_for(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with nodes(2, postgres_url, tmp_path) as (one, two):
        payloads = [{"folder": str(tmp_path), "n": n, "seconds": 0.005} for n in range(400)]
        ids = put(one.client, "cluster.work", payloads)
        wait_until(lambda: len(runs_of(tmp_path)) >= 40, "40 runs")
        postgres_server.stop(crash=True)
        try:
            for node in (one, two):
                wait_until(lambda node=node: "the lease has run out" in node.words(), "the end of the lease")
                assert node.client.backend.request("GET", "/healthz").status == 200
        finally:
            postgres_server.start()
        check_account(two, tmp_path, ids, [n * n for n in range(400)])
        attempts = {one["attempts"] for one in two.client.invocations()}
        assert attempts == {1}, "the database's absence has cost attempts"


def _leases(url: str) -> int:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url) as db:
        [count] = db.execute("SELECT count(*) FROM node").fetchone() or (0,)
        return int(count)
    return 0


# ---- its disk is full ----


Resize = Callable[[str], None]


@pytest.fixture(params=["tables", "journal"])
def small_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[PostgresServer, Resize]]:
    """A server whose tables, or whose journal, are on a file system of its own; and what resizes that."""
    programs = server_programs()
    if programs is None:
        request.getfixturevalue("postgres_server")  # says what is missing
        return
    # The server's own user must be able to come there.
    place = Path("/tmp") / f"headrace-small-{tmp_path.name}-{psutil.Process().pid}"
    place.mkdir()

    def mount(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            pytest.skip(f"needs root that may mount file systems: {done.stderr.strip()}")

    try:
        mount("-t", "tmpfs", "-o", "size=512m", "tmpfs", str(place))
    except BaseException:
        place.rmdir()
        raise
    try:
        small = {"data": place / "data"} if request.param == "tables" else {"journal": place / "journal"}
        shutil.chown(place, "postgres", "postgres")
        server = PostgresServer(programs, **small)
        try:
            server.start()
            yield server, lambda size: mount("-o", f"remount,size={size}", str(place))
        finally:
            server.remove()
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)
        place.rmdir()


def test_a_full_disk_of_the_database_refuses_what_is_new_and_loses_nothing(
    small_server: tuple[PostgresServer, Resize], tmp_path: Path
) -> None:
    server, resize = small_server
    url = server.database()
    env = {"HEADRACE_NODE_LEASE_S": str(LEASE_S)}
    with serving(CODE, folder=tmp_path, flags=("--store", url), env=env) as node:
        ids = put(node.client, "cluster.work", [{"folder": str(tmp_path), "n": n} for n in range(50)])
        ends(node.client, ids)
        resize(f"{server.small_bytes() + 6 * MIB}")
        refused: Counter[tuple[int, str]] = Counter()
        chance = random.Random(1)  # what it makes cannot be compressed

        def refusal() -> bool:
            n = len(ids)
            answer = node.client.backend.request(
                "POST",
                "/v1/functions/cluster.work/invoke",
                query={"mode": "async"},
                body=json.dumps(
                    {"folder": str(tmp_path), "n": n, "seconds": 0, "pad": chance.randbytes(80_000).hex()}
                ).encode(),
                headers={"Content-Type": "application/json"},
            )
            body = json.loads(answer.body)
            if answer.status == 202:
                ids.append(body["invocation_id"])
                return False
            refused[answer.status, body["error"]["code"]] += 1
            return True

        wait_until(refusal, "a refusal", within_s=60)
        assert set(refused) <= {(507, "storage_full"), (503, "store_unavailable")}
        assert node.client.backend.request("GET", "/healthz").status == 200
        resize("512m")
        if not server.running:  # a server without room for its journal ends itself
            server.start()
        wait_until(lambda: not refusal(), "an acceptance", within_s=60)
        ended = ends(node.client, ids, within_s=60)
        assert {end["status"] for end in ended} == {"succeeded"}
        check_account(node, tmp_path, ids, [n * n for n in range(len(ids))])
