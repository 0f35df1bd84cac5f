"""What a test has go wrong, and that nothing is lost or done twice by it."""

import pytest
import sample_app

from headrace.runtime.errors import NodeStopping, NoSuchObject, StorageFull, StoreUnavailable, WrongState
from headrace.runtime.model.invocation import Status
from headrace.testing import AppUnderTest, Faults, VirtualClock

pytestmark = pytest.mark.headrace(sample_app.app)

HOUR_S = 3600


@pytest.mark.parametrize("passed", range(6))
def test_an_upload_is_received_once_whichever_commit_fails(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults, passed: int
) -> None:
    headrace_faults.fail_store(2, after=passed)
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    headrace_clock.advance(HOUR_S)

    assert headrace_app.results("sample.received") == [{"key": "a.txt", "size": 5}]
    headrace_faults.clear()
    headrace_app.verify()


def test_a_full_disk_is_the_callers_answer(headrace_app: AppUnderTest, headrace_faults: Faults) -> None:
    headrace_faults.fail_store(error=StorageFull("disk"))

    with pytest.raises(StorageFull):
        headrace_app.submit("sample.slowly", {"value": 1})

    assert headrace_faults.left == 0
    headrace_app.submit("sample.slowly", {"value": 1})
    headrace_app.run_until_idle()
    assert headrace_app.results("sample.slowly") == [2]


def test_a_job_ends_right_although_commits_fail_all_along(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    for _ in range(10):
        headrace_faults.fail_store(1, after=3)
    headrace_app.put("texts", "big", "line of text\n" * 1000)
    headrace_app.run_until_idle()
    headrace_clock.advance(HOUR_S)

    assert headrace_app.results("sample.count") == [1000]
    headrace_faults.clear()
    headrace_app.verify()


def test_an_upload_whose_notification_is_lost_is_found_by_the_next_sweep(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    headrace_faults.lose_notifications()
    headrace_app.put("inbox", "lost.txt", "1")
    headrace_app.put("inbox", "told.txt", "2")
    headrace_app.run_until_idle()
    assert [result["key"] for result in headrace_app.results("sample.received")] == ["told.txt"]

    headrace_clock.advance(300)

    assert [result["key"] for result in headrace_app.results("sample.received")] == ["told.txt", "lost.txt"]


def test_a_notification_that_comes_twice_runs_the_function_once(
    headrace_app: AppUnderTest, headrace_faults: Faults
) -> None:
    headrace_faults.repeat_notifications(3)
    for number in range(3):
        headrace_app.put("inbox", f"{number}.txt", "x")
        headrace_app.run_until_idle()

    assert len(headrace_app.invocations("sample.received")) == 3


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_of_the_worker_costs_one_attempt(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults, after: bool
) -> None:
    headrace_faults.crash_worker("sample.received", after=after)
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    assert headrace_app.results("sample.received") == []
    headrace_clock.advance(120)

    [ended] = headrace_app.invocations("sample.received")
    assert (ended.status, ended.attempts) == (Status.SUCCEEDED, 2)
    headrace_app.verify()


def test_crashes_without_end_make_a_dead_letter(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    headrace_faults.crash_worker("sample.received", 3)
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    headrace_clock.advance(HOUR_S)

    assert [failure["code"] for failure in headrace_app.failures("sample.received")] == ["worker_crashed"]


def test_buckets_that_fail_are_the_functions_failure_and_spare_the_test(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    headrace_app.put("data", "k", "1\n2\n")
    headrace_faults.fail_objects(2)
    assert headrace_app.get("data", "k") == b"1\n2\n"
    assert headrace_faults.left == 2

    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    headrace_clock.advance(HOUR_S)

    assert headrace_app.results("sample.received") == [{"key": "a.txt", "size": 5}]
    with pytest.raises(NoSuchObject):
        headrace_app.get("data", "other")


def test_a_node_that_is_killed_loses_nothing_that_was_accepted(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    ids = [headrace_app.submit("sample.slowly", {"value": n}) for n in range(40)]
    headrace_app.put("inbox", "before.txt", "1")
    headrace_app.crash()
    headrace_app.put("inbox", "meanwhile.txt", "2")
    with pytest.raises(WrongState, match="without a node"):
        headrace_app.submit("sample.slowly", {"value": 1})
    headrace_clock.advance(HOUR_S)

    headrace_app.restart()

    assert sorted(headrace_app.results("sample.slowly")) == sorted(2 * n for n in range(40))
    assert {headrace_app.client.invocation(id)["attempts"] for id in ids} == {1}
    assert len(headrace_app.results("sample.received")) == 2
    headrace_app.verify()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("passed", range(9))
def test_a_node_that_dies_over_any_commit_doubles_nothing_and_loses_nothing(
    headrace_app: AppUnderTest,
    headrace_clock: VirtualClock,
    headrace_faults: Faults,
    passed: int,
    recorded: bool,
) -> None:
    headrace_faults.crash_node(after=passed, recorded=recorded)
    headrace_app.put("texts", "big", "line of text\n" * 300)
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    headrace_clock.advance(3 * HOUR_S)
    assert not headrace_app.is_up
    headrace_app.restart()
    headrace_clock.advance(24 * HOUR_S)

    assert headrace_app.results("sample.count") == [300]
    assert headrace_app.results("sample.received") == [{"key": "a.txt", "size": 5}]
    assert len(headrace_app.results("sample.nightly")) == 2
    headrace_app.verify()


def test_a_call_under_which_the_node_dies_says_so(
    headrace_app: AppUnderTest, headrace_faults: Faults
) -> None:
    headrace_faults.crash_node(recorded=True)
    with pytest.raises((NodeStopping, StoreUnavailable)):
        headrace_app.submit("sample.slowly", {"value": 4})
    with pytest.raises(WrongState, match="without a node"):
        headrace_app.invoke("sample.slowly", {"value": 4})
    headrace_app.restart()

    assert headrace_app.results("sample.slowly") == [8]  # it was recorded, though nobody could know


def test_moments_that_pass_while_the_node_is_down_follow_the_misfire_policy(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_app.crash()
    headrace_clock.advance(5 * 24 * HOUR_S)
    headrace_app.restart()

    late = len(headrace_app.results("sample.nightly"))
    headrace_clock.advance(24 * HOUR_S)

    assert late in (0, 1)  # `once` and `skip`; see the schedule's own tests
    assert len(headrace_app.results("sample.nightly")) == late + 1


def test_faults_are_counted_within_bounds(headrace_faults: Faults) -> None:
    for times in (-1, 1_000_000):
        with pytest.raises(ValueError, match="times"):
            headrace_faults.fail_store(times)
    headrace_faults.fail_objects(2, after=3)
    headrace_faults.crash_worker("sample.received", 2)
    assert headrace_faults.left == 4
    headrace_faults.clear()
    assert headrace_faults.left == 0
