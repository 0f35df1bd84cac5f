"""Overlaps on a real node: functions and a job that take longer than their schedule's period."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.serving import Serving, wait_until

CODE = """
import time
from headrace import App, Items, Schedule

app = App("slow")

def each_second(overlap, **given):
    return Schedule("rate(1 second)", overlap=overlap, **given)

def take(event, seconds):
    begin = time.time()
    time.sleep(seconds)
    return [begin, time.time(), event["time"]]

@app.on(each_second("skip"))
@app.function
def skips(event):
    return take(event, 1.5)

@app.on(each_second("queue"))
@app.function
def queues(event):
    return take(event, 1.5)

@app.on(Schedule("rate(2 seconds)", overlap="cancel"))
@app.function(retries=0)
def cancels(event):
    return take(event, 60)

@app.on(Schedule("rate(2 seconds)", overlap="cancel", input=[1]))
@app.job(split=Items())
def job(chunk):
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("overlaps")
    (folder / "app.py").write_text(CODE)
    found = Serving(folder / "app.py", folder=folder, workers=5).start()
    yield found
    found.kill()
    found.close()


def fates(serving: Serving, name: str) -> list[dict[str, Any]]:
    """What became of the moments, oldest first."""
    found = serving.client.schedules.get(f"slow.{name}", last=1000)
    return list(reversed(found["last"]))


def runs(serving: Serving, name: str, count: int) -> list[list[Any]]:
    """Begin, end and moment of the first runs that succeeded."""

    def look() -> list[list[Any]]:
        records = serving.client.invocations(function=f"slow.{name}", status="succeeded")
        found = sorted(record["result"] for record in records)
        return found if len(found) >= count else []

    return wait_until(look, f"{count} runs of {name}")[:count]


def test_runs_that_would_overlap_are_skipped(serving: Serving) -> None:
    found = runs(serving, "skips", 3)
    causes = Counter(fate["cause"] for fate in fates(serving, "skips"))

    assert all(earlier[1] <= later[0] for earlier, later in pairwise(found))
    assert causes["skipped"] >= 2
    assert set(causes) <= {"due", "missed", "skipped"}


def test_one_run_waits_for_the_one_before_it(serving: Serving) -> None:
    found = runs(serving, "queues", 3)
    fired = [fate for fate in fates(serving, "queues") if fate["id"]]

    assert all(earlier[1] <= later[0] for earlier, later in pairwise(found))
    assert any(fate["fired_at"] - fate["due_at"] > 0.3 for fate in fired)


def test_an_earlier_run_is_ended_by_the_next_one(serving: Serving) -> None:
    def cancelled() -> list[dict[str, Any]]:
        return list(serving.client.invocations(function="slow.cancels", status="cancelled"))

    ended = wait_until(lambda: cancelled()[1:], "two runs to be cancelled")
    by_id = {fate["id"]: fate for fate in fates(serving, "cancels") if fate["id"]}
    later = sorted(fate["fired_at"] for fate in by_id.values())

    for record in ended:
        after = [moment for moment in later if moment > by_id[record["invocation_id"]]["fired_at"]]
        assert record["ended_at"] <= after[0] + 0.05
    running = [each for each in serving.client.invocations(function="slow.cancels")
               if each["status"] in ("waiting", "running")]  # fmt: skip
    assert len(running) <= 1


def test_a_job_is_ended_by_the_next_one(serving: Serving) -> None:
    def cancelled() -> list[dict[str, Any]]:
        return list(serving.client.jobs(function="slow.job", status="cancelled"))

    ended = wait_until(cancelled, "a job to be cancelled")
    ids = {fate["id"] for fate in fates(serving, "job")}

    assert {job["job_id"] for job in ended} <= ids


def test_the_books_balance_after_all_of_it(serving: Serving) -> None:
    assert serving.client.verify()["balanced"]
