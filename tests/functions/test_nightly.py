"""The nightly report, over results that a store really holds."""

import json
import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from example_context import context_over

from functions import nightly
from headrace import Context, ScheduleEvent


def event(due: str) -> ScheduleEvent:
    return ScheduleEvent.of("nightly.report/0", due=due, id="1")


def put_result(context: Context, folder: Path, job: str, *, at: str, **found: Any) -> None:
    """A job's result, as of the moment `at`."""
    context.objects.make_bucket("results")
    context.objects.put("results", f"{job}/result.json", json.dumps(found).encode())
    moment = datetime.fromisoformat(at).timestamp()
    os.utime(folder / "results" / job / "result.json", (moment, moment))


def counts(reviews: int, mean: float | None) -> dict[str, Any]:
    return {"reviews": reviews, "positive": reviews, "neutral": 0, "negative": 0, "mean_compound": mean}


def test_yesterdays_results_are_added_up_and_no_others(tmp_path: Path) -> None:
    context = context_over(tmp_path)
    put_result(context, tmp_path, "before", at="2026-07-09T23:59:59+02:00", **counts(100, 1.0))
    put_result(context, tmp_path, "first", at="2026-07-10T00:00:00+02:00", **counts(10, 0.5))
    put_result(context, tmp_path, "last", at="2026-07-10T23:59:59+02:00", **counts(30, -0.1))
    put_result(context, tmp_path, "after", at="2026-07-11T00:00:00+02:00", **counts(100, 1.0))

    found = nightly.report(event("2026-07-11T01:00:00Z"), context)

    assert found["jobs"] == ["first", "last"]
    assert (found["day"], found["reviews"], found["positive"]) == ("2026-07-10", 40, 40)
    assert found["mean_compound"] == pytest.approx(0.05)
    assert json.loads(context.objects.get("reports", "2026-07-10.json")) == found


def test_the_same_due_instant_gives_the_same_report(tmp_path: Path) -> None:
    context = context_over(tmp_path)
    put_result(context, tmp_path, "job", at="2026-07-10T12:00:00+02:00", **counts(10, 0.5))

    nightly.report(event("2026-07-11T01:00:00Z"), context)
    first = context.objects.get("reports", "2026-07-10.json")
    nightly.report(event("2026-07-11T01:00:00Z"), context)

    assert context.objects.get("reports", "2026-07-10.json") == first
    assert len(context.objects.list("reports")) == 1


def test_a_day_without_results_is_reported_as_such(tmp_path: Path) -> None:
    found = nightly.report(event("2026-07-11T01:00:00Z"), context_over(tmp_path))

    assert (found["jobs"], found["reviews"], found["mean_compound"]) == ([], 0, None)


def test_results_of_other_jobs_and_empty_ones_do_no_harm(tmp_path: Path) -> None:
    context = context_over(tmp_path)
    put_result(context, tmp_path, "other", at="2026-07-10T12:00:00+02:00", words=5)
    put_result(context, tmp_path, "empty", at="2026-07-10T12:00:00+02:00", **counts(0, None))
    context.objects.put("results", "empty/manifest.json", b"[]")

    found = nightly.report(event("2026-07-11T01:00:00Z"), context)

    assert (found["jobs"], found["reviews"]) == (["empty"], 0)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-07-10", 24)])
def test_a_day_is_as_long_as_its_clock_changes_make_it(day: str, hours: int) -> None:
    first = date.fromisoformat(day)
    following = date.fromordinal(first.toordinal() + 1)

    assert nightly.midnight(following) - nightly.midnight(first) == hours * 3600
    assert nightly.midnight(date(2026, 1, 1)) == datetime(2025, 12, 31, 23, tzinfo=UTC).timestamp()
