"""A user's functions on a whole node, driven by the test."""

import time
from pathlib import Path

import pytest
import sample_app

from headrace.runtime.errors import InvalidEvent, InvocationFailed, LoadFailed, UnknownFunction
from headrace.runtime.model.invocation import Status
from headrace.testing import AppUnderTest, VirtualClock

pytestmark = pytest.mark.headrace(sample_app.app)

DAY_S = 86_400


def test_an_uploaded_file_reaches_the_function(headrace_app: AppUnderTest) -> None:
    headrace_app.put("inbox", "a b.txt", "hello")
    headrace_app.put("inbox", "a.csv", b"not wanted")

    headrace_app.run_until_idle()

    assert headrace_app.results("sample.received") == [{"key": "a b.txt", "size": 5}]
    assert headrace_app.output("sample.received") == "received a b.txt\n"
    headrace_app.verify()


def test_an_uploaded_file_starts_a_job_whose_result_is_written(headrace_app: AppUnderTest) -> None:
    headrace_app.put("texts", "big", "line of text\n" * 1000)

    headrace_app.run_until_idle()

    assert headrace_app.results("sample.count") == [1000]
    [key] = [key for key in headrace_app.keys("counts") if key.endswith("result.json")]
    assert headrace_app.get("counts", key) == b"1000"
    headrace_app.verify()


def test_a_schedule_fires_at_its_moment_when_time_passes(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_clock.advance(2 * 3600 - 1)
    assert headrace_app.results("sample.nightly") == []
    headrace_clock.advance(1)

    assert headrace_app.results("sample.nightly") == ["2030-01-01T02:00:00Z"]
    [fired] = headrace_app.invocations("sample.nightly")
    assert fired.started_at == headrace_clock.now()


def test_a_schedule_a_year_ahead_fires_at_once_when_a_year_passes(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_clock.advance_to("2031-06-02T00:00:00+02:00")

    assert headrace_app.results("sample.once") == ["2031-06-01T12:00:00Z"]
    assert len(headrace_app.results("sample.nightly")) == 365 + 152
    assert {event["time"][11:] for event in headrace_app.events("sample.nightly")} == {
        "01:00:00Z",
        "02:00:00Z",
    }
    headrace_app.verify()


def test_a_set_of_uploads_is_complete_when_its_quiet_time_has_passed(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    began = headrace_clock.now()
    for number in range(3):
        headrace_app.put("days", f"monday/{number}.csv", "1")
        headrace_clock.advance(500)
    assert headrace_app.results("sample.day") == []

    headrace_clock.advance(DAY_S)

    [fired] = headrace_app.invocations("sample.day")
    assert fired.started_at == pytest.approx(began + 2 * 500 + 600, abs=60)
    headrace_app.put("days", "tuesday/0.csv", "1")
    headrace_app.put("days", "tuesday/done", "")
    headrace_app.run_until_idle()
    assert len(headrace_app.results("sample.day")) == 2


def test_a_failed_attempt_is_made_again_when_its_time_has_come(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    id = headrace_app.submit("sample.flaky", {"fails": 2})
    headrace_app.run_until_idle()
    [waiting] = headrace_app.invocations("sample.flaky")
    assert (waiting.status, waiting.attempts) == (Status.WAITING, 1)

    headrace_clock.advance(3600)

    assert headrace_app.results("sample.flaky") == [3]
    assert headrace_app.client.invocation(id)["attempts"] == 3
    headrace_app.verify()


def test_what_fails_for_good_is_a_failure(headrace_app: AppUnderTest, headrace_clock: VirtualClock) -> None:
    headrace_app.submit("sample.flaky", {"fails": 9})
    headrace_clock.advance(3 * 3600)

    [failure] = headrace_app.failures("sample.flaky")
    assert (failure["type"], failure["message"]) == ("RuntimeError", "attempt 4 fails")
    assert headrace_app.results("sample.flaky") == []


def test_a_delayed_invocation_runs_exactly_when_it_is_due(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    began = headrace_clock.now()
    headrace_app.submit("sample.slowly", {"value": 4}, delay_s=5000.5)
    headrace_app.run_until_idle()
    assert headrace_app.results("sample.slowly") == []

    headrace_clock.advance(30 * DAY_S)

    [ran] = headrace_app.invocations("sample.slowly")
    assert ran.started_at == pytest.approx(began + 5000.5, abs=0.002)


def test_a_function_may_ask_for_time(headrace_app: AppUnderTest, headrace_clock: VirtualClock) -> None:
    headrace_app.submit("sample.later", {"seconds": 100})
    headrace_clock.advance(99)
    assert headrace_app.results("sample.later") == []
    headrace_clock.advance(2)
    assert headrace_app.results("sample.later") == ["done"]


def test_a_call_gives_the_result_or_raises_what_the_function_raised(headrace_app: AppUnderTest) -> None:
    assert headrace_app.invoke("sample.slowly", {"value": 21}) == 42
    with pytest.raises(InvocationFailed, match="attempt 1 fails"):
        headrace_app.invoke("sample.flaky", {"fails": 1})
    with pytest.raises(InvalidEvent):
        headrace_app.invoke("sample.slowly", {"value": "many"})
    with pytest.raises(UnknownFunction):
        headrace_app.invoke("sample.slow")


def test_an_http_call_is_routed_validated_and_answered(headrace_app: AppUnderTest) -> None:
    made = headrace_app.http("POST", "/notes/a%20b", json={"text": "hi"}, headers={"X-By": "me"})
    refused = headrace_app.http("POST", "/notes/x", json={"text": ""})
    missing = headrace_app.http("GET", "/notes")

    assert (made.status, made.json()) == (200, {"name": "a b", "text": "hi", "by": "me"})
    assert made.headers["content-type"] == "application/json"
    assert refused.status == 422
    assert "text" in refused.text
    assert missing.status in (404, 405)


def test_a_function_may_call_another_by_its_client(headrace_app: AppUnderTest) -> None:
    assert headrace_app.invoke("sample.calling", {"value": 4}) == 9

    headrace_app.submit("sample.submitting", {"values": [1, 2, 3]})
    headrace_app.run_until_idle()

    assert sorted(headrace_app.results("sample.slowly")) == [2, 4, 6]


def test_a_job_is_submitted_by_the_test(headrace_app: AppUnderTest) -> None:
    headrace_app.put("data", "k", "1\n2\n3\n")
    id = headrace_app.submit_job("sample.count", "s3://data/k")
    headrace_app.run_until_idle()

    assert headrace_app.client.job(id).result() == 3


def test_the_client_maps_over_items(headrace_app: AppUnderTest) -> None:
    futures = [headrace_app.client.submit("sample.slowly", {"value": n}) for n in range(5)]

    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]


async def test_an_async_test_may_use_it_too(headrace_app: AppUnderTest, headrace_clock: VirtualClock) -> None:
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()
    headrace_clock.advance(DAY_S)

    assert headrace_app.invoke("sample.calling", {"value": 1}) == 3
    assert len(headrace_app.results("sample.received")) == 1
    assert len(headrace_app.results("sample.nightly")) == 1


def test_functions_run_in_the_tests_own_thread(
    headrace_app: AppUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_app, "add", lambda a, b: a + b)  # as a breakpoint would be seen, too
    monkeypatch.setattr("builtins.print", lambda text: None)
    headrace_app.put("inbox", "a.txt", "hello")
    headrace_app.run_until_idle()

    assert headrace_app.output("sample.received") == ""


def test_a_test_takes_well_under_a_tenth_of_a_second() -> None:
    durations = []
    for _ in range(6):  # the machine does other things as well, and the first one imports
        began = time.perf_counter()
        with AppUnderTest(sample_app.app) as app:
            app.put("inbox", "a.txt", "hello")
            app.run_until_idle()
            app.clock.advance(DAY_S)
            assert len(app.results("sample.received")) == 1
        durations.append(time.perf_counter() - began)

    assert min(durations) < 0.3, "it takes 30 ms on an idle machine"


def test_code_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("from headrace import App\napp = App(1)\n")

    with pytest.raises(LoadFailed, match="broken"), AppUnderTest(broken):
        pass


def test_a_clean_start_finds_what_the_node_before_it_left(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_app.submit("sample.flaky", {"fails": 1})
    headrace_app.run_until_idle()
    headrace_app.restart()
    headrace_clock.advance(3600)

    assert headrace_app.results("sample.flaky") == [2]
    headrace_app.verify()


def test_dead_letters_go_where_the_function_says(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_app.submit("sample.told", {"text": "x"})
    headrace_app.run_until_idle()

    [key] = headrace_app.keys("failed")
    assert b"RuntimeError" in headrace_app.get("failed", key)
    headrace_app.verify()
