"""The crash matrix: a real node, killed by SIGKILL at one named point, started again, and its books.

Work of every kind is brought to it: plain invocations, some that are retried and some that end dead and are
told of, uploads, sets of them, a schedule, and a job with a tree of reduces. Whatever the caller was not told
of is brought again, as callers do: with its idempotency key, or after a look whether it is there.
"""

import itertools
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from headrace import Client
from headrace.runtime.errors import HeadraceError, Unreachable
from headrace.runtime.fault import IN_WORKERS, POINTS
from headrace.runtime.model.ids import read_id
from tests.serving import Serving, wait_until

CODE = Path(__file__).with_name("matrix_functions.py")
AT = {
    "accept": 3, "commit.before": 8, "commit.after": 8, "claim": 2, "send": 4, "start": 3, "run.before": 12,
    "run.after": 12, "result.send": 3, "result.receive": 4, "complete.before": 30, "complete.after": 30,
    "retry.before": 2, "retry.after": 2, "dead.before": 2, "dead.after": 2, "chunk.before": 10,
    "chunk.after": 10, "ledger.before": 5, "ledger.after": 5, "set.before": 2, "set.after": 2,
    "fire.before": 2, "fire.after": 2,
}  # fmt: skip
"""At which time the point is fatal, where that is not the first."""

AT_POSTGRES = {"commit.before": 18, "commit.after": 18}
"""There a start commits as well: its lease, and what its triggers remember."""

SQUARES, BATCH = 100, 25
FLAKY, DOOMED = 6, 4
UPLOADS, UPLOADS_WHILE_DOWN = 6, 3
PAIRS = 4
ITEMS = 40
JOB_PARTS = 1 + 40 + 3 + 1
"""The plan, the chunks, and the reduces of sixteen at a time above them."""

RETRIES = {"square": 2, "flaky": 2, "doomed": 1, "told": 2, "arrived": 2, "paired": 2, "tick": 2, "total": 2}
LEASE_S = 2.0
DEATH_S = 20.0
END_S = 30.0
RECOVERY_S_MAX = 20.0


class Finding(msgspec.Struct):
    """What was seen of one case.

    `acknowledged` had been accepted when it was killed, `accepted` in the end; `again` counts runs beyond
    those that attempts account for; `ready_s` and `recovery_s` are the seconds from the restart to the first
    healthy answer, and to the end of all that had been accepted.
    """

    point: str
    store: str
    killed: str
    acknowledged: int
    accepted: int
    again: int
    attempts_most: int
    ready_s: float
    recovery_s: float


class Case:
    """One point on one store, in a folder of its own. `run` it once."""

    def __init__(self, point: str, *, store: str, url: str, folder: Path, at: int | None = None) -> None:
        assert point in POINTS
        self.point, self.store = point, store
        self.in_worker = point in IN_WORKERS
        self._folder = folder
        self._once = folder / "struck"
        usual = AT.get(point, 1) if store == "sqlite" else {**AT, **AT_POSTGRES}.get(point, 1)
        code = folder / CODE.name
        shutil.copy(CODE, code)
        self.node = Serving(
            code,
            folder=folder,
            workers=2,
            flags=("--store", url),
            env={
                "HEADRACE_FAULT": f"{point}:{at or usual}",
                "HEADRACE_FAULT_ONCE": str(self._once),
                "HEADRACE_NODE_LEASE_S": str(LEASE_S),
                "HEADRACE_SWEEP_S": "1",
            },
        )
        self._inbox = self.node.data / "buckets" / "inbox"
        self._pairs = self.node.data / "buckets" / "pairs"
        self._acknowledged: set[str] = set()
        self._squares: set[int] = set()
        self._uncertain: list[int] = []
        self._single: dict[str, str] = {}
        self._uploads: list[str] = []
        self._job = ""

    def run(self) -> Finding:
        try:
            finding = self._run()
        except BaseException as error:
            error.add_note(self.node.words()[-4000:])
            raise
        finally:
            self.node.close()
        shutil.rmtree(self.node.data)
        return finding

    def _run(self) -> Finding:
        node = self.node
        node.launch()
        died_at_start = not self._is_ready()
        if not died_at_start:
            self._bring(node.client)
        if self.in_worker:
            wait_until(self._once.exists, f"a worker to end at {self.point}", within_s=DEATH_S)
            began = time.monotonic()
            ready_s = 0.0
        else:
            if not died_at_start:
                assert node.wait_ended(DEATH_S) == -signal.SIGKILL
            self._upload(UPLOADS_WHILE_DOWN)
            began = time.monotonic()
            node.start()
            ready_s = time.monotonic() - began
        assert self._once.read_text().split()[0] == self.point
        acknowledged = len(self._acknowledged)
        wait_until(lambda: self._open_work(node.client) == 0, "the end of what was accepted", within_s=END_S)
        recovery_s = time.monotonic() - began
        assert recovery_s < RECOVERY_S_MAX

        self._bring(node.client)
        if self.in_worker:
            self._upload(UPLOADS_WHILE_DOWN)
        old = self._open_ticks(node.client)
        wait_until(
            lambda: self._all_there(node.client) and old.isdisjoint(self._open_ticks(node.client)),
            "the end of all work",
            within_s=END_S,
        )
        again, attempts_most, accepted = self._account(node.client)
        killed = "a worker" if self.in_worker else "the node, as it started" if died_at_start else "the node"
        return Finding(
            self.point, self.store, killed, acknowledged, accepted, again, attempts_most, ready_s, recovery_s
        )

    def _is_ready(self) -> bool:
        """Whether the node became ready; else it has ended."""
        try:
            self.node.wait_ready()
        except Unreachable:  # it had just told that it was ready
            assert self.node.wait_ended(DEATH_S) == -signal.SIGKILL
            return False
        except AssertionError as error:
            if self._once.exists() and f"ended with {-signal.SIGKILL:d}" in str(error):
                return False
            raise
        return True

    # ---- what is brought ----

    def _bring(self, client: Client) -> None:
        """Bring all that was not acknowledged, until the node is gone."""
        try:
            for start in range(0, SQUARES, BATCH):
                if start not in self._squares:
                    self._bring_batch(client, start)
            for name, count in (("flaky", FLAKY), ("doomed", DOOMED)):
                for n in range(count):
                    if f"{name}-{n}" not in self._single:
                        self._bring_single(client, name, n)
            self._upload(UPLOADS - len(self._uploads))
            self._put_pairs()
            if not self._job:
                self._bring_job(client)
        except (HeadraceError, AssertionError):
            if self._is_gone():
                return
            raise

    def _is_gone(self) -> bool:
        try:
            wait_until(lambda: not self.node.alive, "the node to be gone", within_s=5)
        except AssertionError:
            return False
        return not self.in_worker

    def _bring_batch(self, client: Client, start: int) -> None:
        """A list of events, accepted as one. It has no key: brought twice, it may be there twice."""
        payloads = [{"n": n} for n in range(start, start + BATCH)]
        if start in self._uncertain:
            there = {n for n, _ in self._results(client, "square")}
            assert there.isdisjoint(range(start, start + BATCH)) or there >= set(range(start, start + BATCH))
            if start in there:
                self._squares.add(start)
                return
        self._uncertain.append(start)
        found = client.call("POST", "/v1/functions/matrix.square/invoke-many", body=payloads)
        self._acknowledged.update(found["invocation_ids"])
        self._squares.add(start)

    def _bring_single(self, client: Client, name: str, n: int) -> None:
        answer = client.backend.request(
            "POST",
            f"/v1/functions/matrix.{name}/invoke",
            query={"mode": "async"},
            body=json.dumps({"n": n}).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": f"{name}-{n}"},
        )
        assert answer.status == 202, answer.body
        id = self._single[f"{name}-{n}"] = json.loads(answer.body)["invocation_id"]
        self._acknowledged.add(id)

    def _bring_job(self, client: Client) -> None:
        found = [job["job_id"] for job in client.jobs()]
        assert len(found) <= 1
        self._job = found[0] if found else client.submit_job("matrix.total", list(range(ITEMS))).id

    def _upload(self, count: int) -> None:
        """Put objects into the folder as a program would that knows nothing of the node."""
        for _ in range(count):
            name = f"file-{len(self._uploads)}.txt"
            self._put(self._inbox / name)
            self._uploads.append(name)

    def _put_pairs(self) -> None:
        """Put the sets' files there that are not yet, one of each pair after the other."""
        for half in ("a", "b"):
            for number in range(PAIRS):
                path = self._pairs / str(number) / half
                if not path.exists():
                    self._put(path)

    def _put(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / path.name
        temporary.write_text(f"of {path.name}")
        # Written a while ago: nobody needs to wait whether it is whole.
        os.utime(temporary, times=(temporary.stat().st_mtime - 60,) * 2)
        temporary.rename(path)

    # ---- what is seen ----

    def _open_work(self, client: Client) -> int:
        """Invocations that have not ended, but for the schedule's, which never stop coming."""
        functions = self.node.check_books()["functions"]
        return sum(
            of["waiting"] + of["running"] for name, of in functions.items() if name != "matrix.tick"
        ) + sum(1 for job in client.jobs() if job["status"] in ("planning", "running"))

    def _all_there(self, client: Client) -> bool:
        functions = self.node.check_books()["functions"]
        return (
            functions["matrix.arrived"]["accepted"] >= len(self._uploads)
            and functions["matrix.told"]["accepted"] >= DOOMED
            and functions["matrix.paired"]["accepted"] >= PAIRS
            and self._open_work(client) == 0
        )

    def _open_ticks(self, client: Client) -> set[str]:
        found = client.invocations(function="matrix.tick")
        return {one["invocation_id"] for one in found if one["status"] in ("waiting", "running")}

    def _results(self, client: Client, name: str) -> Iterator[Any]:
        return (one["result"] for one in client.invocations(function=f"matrix.{name}") if one["result"])

    def _account(self, client: Client) -> tuple[int, int, int]:
        """Check every invocation there is. Runs beyond the attempts, the most attempts, and all accepted."""
        ended: dict[str, dict[str, Any]] = {}
        by_function: dict[str, list[dict[str, Any]]] = {}
        for one in client.invocations():
            name = one["function"].removeprefix("matrix.")
            if name == "tick" and one["status"] in ("waiting", "running"):
                # Newest first: what came after one that has not ended is not looked at either.
                by_function.pop(name, None)
                continue
            assert one["invocation_id"] not in ended
            ended[one["invocation_id"]] = one
            by_function.setdefault(name, []).append(one)
        assert self._acknowledged <= set(ended), "an acknowledged invocation is gone"
        expected = {
            "square": sorted([n, n * n] for n in range(SQUARES)),
            "flaky": sorted([n, -n] for n in range(FLAKY)),
            "told": list(range(DOOMED)),
            "arrived": sorted(self._uploads),
            "paired": [[f"{number}/a", f"{number}/b"] for number in range(PAIRS)],
        }
        for name, results in expected.items():
            assert {one["status"] for one in by_function[name]} == {"succeeded"}, name
            assert sorted(one["result"] for one in by_function[name]) == results, name
        assert Counter(one["error"]["message"] for one in by_function["doomed"]) == {
            f"never {n}": 1 for n in range(DOOMED)
        }
        assert {(one["status"], one["attempts"]) for one in by_function["doomed"]} == {("dead", 2)}
        self._check_ticks(by_function.get("tick", []))
        self._check_job(client, by_function["total"])
        books = self.node.check_books()["functions"]
        counts = {"doomed": DOOMED, "total": JOB_PARTS, **{name: len(all) for name, all in expected.items()}}
        assert {name: books[f"matrix.{name}"]["accepted"] for name in counts} == counts
        return (*self._check_runs(ended), sum(of["accepted"] for of in books.values()))

    def _check_ticks(self, ticks: list[dict[str, Any]]) -> None:
        """Every second that has passed fired once."""
        assert {one["status"] for one in ticks} <= {"succeeded"}
        moments = sorted(datetime.fromisoformat(one["result"]).timestamp() for one in ticks)
        missing = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert set(missing) <= {1.0}, missing

    def _check_job(self, client: Client, parts: list[dict[str, Any]]) -> None:
        job = client.job(self._job).status()
        assert (job["status"], job["result"]) == ("succeeded", sum(range(ITEMS))), job
        assert {one["status"] for one in parts} == {"succeeded"}
        assert len(parts) == JOB_PARTS

    def _check_runs(self, ended: dict[str, dict[str, Any]]) -> tuple[int, int]:
        """A kill of the node may repeat what it was running, once and for free, and so may the loss of its
        lease on a machine that is too busy to renew it; nothing else may.
        """
        lost = self.node.words().count("than its lease") + self.node.words().count("lease has run out")
        free = lost + (0 if self.in_worker else 1)
        lines = [line.split(" ", 2) for line in (self._folder / "runs").read_text().splitlines()]
        runs = Counter(id for id, _, _ in lines)
        again = 0
        for id, one in ended.items():
            name = one["function"].removeprefix("matrix.")
            assert 1 <= one["attempts"] <= RETRIES[name] + 1, one
            beyond = runs[id] - one["attempts"]
            assert beyond <= free, (one, runs[id])
            again += max(beyond, 0)
        assert all(read_id(id) is not None for id in runs)
        return again, max(one["attempts"] for one in ended.values())
