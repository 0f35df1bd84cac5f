"""The nightly report, on a node whose time the test moves."""

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from functions import nightly
from headrace.testing import AppUnderTest, VirtualClock

pytestmark = pytest.mark.headrace(nightly.app, now="2026-07-09T12:00:00+02:00")


def put_result(app: AppUnderTest, job: str, *, at: str | None = None, **found: Any) -> None:
    """A job's result, as of the moment `at`."""
    if at is not None:
        app.clock.advance_to(at)
    app.put("results", f"{job}/result.json", json.dumps(found))


def counts(reviews: int, mean: float | None) -> dict[str, Any]:
    return {"reviews": reviews, "positive": reviews, "neutral": 0, "negative": 0, "mean_compound": mean}


def test_yesterdays_results_are_added_up_at_three_and_no_others(headrace_app: AppUnderTest) -> None:
    put_result(headrace_app, "before", at="2026-07-09T23:59:59+02:00", **counts(100, 1.0))
    put_result(headrace_app, "first", at="2026-07-10T00:00:00+02:00", **counts(10, 0.5))
    put_result(headrace_app, "last", at="2026-07-10T23:59:59+02:00", **counts(30, -0.1))
    put_result(headrace_app, "after", at="2026-07-11T00:00:00+02:00", **counts(100, 1.0))
    headrace_app.clock.advance_to("2026-07-11T02:59:59+02:00")
    assert headrace_app.keys("reports") == ["2026-07-09.json"]

    headrace_app.clock.advance(1)

    [_, found] = headrace_app.results("nightly.report")
    assert found["jobs"] == ["first", "last"]
    assert (found["day"], found["reviews"], found["positive"]) == ("2026-07-10", 40, 40)
    assert found["mean_compound"] == pytest.approx(0.05)
    assert json.loads(headrace_app.get("reports", "2026-07-10.json")) == found
    assert "report written" in headrace_app.output("nightly.report")


def test_the_same_due_instant_gives_the_same_report(headrace_app: AppUnderTest) -> None:
    put_result(headrace_app, "job", at="2026-07-10T12:00:00+02:00", **counts(10, 0.5))
    event = headrace_app.sample("nightly.report")
    headrace_app.clock.advance(86_400)
    first = headrace_app.get("reports", "2026-07-10.json")

    assert headrace_app.invoke("nightly.report", event)["day"] == "2026-07-10"
    assert headrace_app.get("reports", "2026-07-10.json") == first


def test_a_night_in_which_the_machine_was_off_is_made_up_for(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    put_result(headrace_app, "job", **counts(10, 0.5))
    headrace_app.crash()
    headrace_clock.advance_to("2026-07-10T09:00:00+02:00")
    headrace_app.restart()

    [found] = headrace_app.results("nightly.report")
    assert (found["day"], found["jobs"]) == ("2026-07-09", ["job"])


def test_a_report_that_could_not_be_written_is_written_by_the_next_attempt(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_app.faults.crash_worker("nightly.report", after=True)
    headrace_clock.advance(86_400)

    [found] = headrace_app.invocations("nightly.report")
    assert found.attempts == 2
    assert headrace_app.keys("reports") == ["2026-07-09.json"]


def test_a_day_without_results_is_reported_as_such(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_clock.advance(86_400)

    [found] = headrace_app.results("nightly.report")
    assert (found["jobs"], found["reviews"], found["mean_compound"]) == ([], 0, None)


def test_results_of_other_jobs_and_empty_ones_do_no_harm(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    put_result(headrace_app, "other", words=5)
    put_result(headrace_app, "empty", **counts(0, None))
    headrace_app.put("results", "empty/manifest.json", b"[]")
    headrace_clock.advance(86_400)

    [found] = headrace_app.results("nightly.report")
    assert (found["jobs"], found["reviews"]) == (["empty"], 0)


@pytest.mark.headrace(now="2026-01-01T12:00:00+01:00")
def test_each_night_of_a_year_has_its_report(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_clock.advance_to("2027-01-01T12:00:00+01:00")

    first = date(2026, 1, 1).toordinal()
    expected = [f"{date.fromordinal(day)}.json" for day in range(first, first + 365)]
    assert headrace_app.keys("reports") == expected
    headrace_app.verify()


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-07-10", 24)])
def test_a_day_is_as_long_as_its_clock_changes_make_it(day: str, hours: int) -> None:
    first = date.fromisoformat(day)
    following = date.fromordinal(first.toordinal() + 1)

    assert nightly.midnight(following) - nightly.midnight(first) == hours * 3600
    assert nightly.midnight(date(2026, 1, 1)) == datetime(2025, 12, 31, 23, tzinfo=UTC).timestamp()
