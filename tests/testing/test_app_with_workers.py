"""The same app with worker processes and buckets in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.runtime.errors import BadRequest, StoreUnavailable, WorkerCrashed
from headrace.testing import AppUnderTest

CODE = """
import os
from headrace import App, Lines, RetryPolicy, Schedule, Upload

app = App("apart")

@app.function
def pid():
    return os.getpid()

@app.function(retries=0)
def dies():
    os._exit(3)

@app.on(Upload("inbox"))
@app.function
def received(event, context):
    return len(context.objects.get(event.bucket, event.key))

@app.function
def calls(context):
    return context.client.invoke("apart.pid") == os.getpid()

@app.function(retries=RetryPolicy(retries=1, base_s=600, max_s=600))
def flaky(context):
    if context.attempt == 1:
        raise RuntimeError("at first")
    return context.attempt

@app.on(Schedule("rate(1 day)"))
@app.function
def daily(event):
    return event["time"]

def add(a, b):
    return a + b

@app.job(split=Lines(chunk="1 KiB"), reduce=add, initial=0)
def count(chunk):
    return sum(1 for _ in chunk.records())
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppUnderTest]:
    code = tmp_path_factory.mktemp("code") / "apart.py"
    code.write_text(CODE)
    with AppUnderTest(code, workers=2) as app:
        yield app


def test_functions_run_in_worker_processes(apart: AppUnderTest) -> None:
    assert apart.invoke("apart.pid") != os.getpid()


def test_uploads_into_a_folder_and_jobs_are_waited_for(apart: AppUnderTest) -> None:
    apart.put("inbox", "a.txt", "hello")
    apart.put("data", "k", "line of text\n" * 1000)
    apart.submit_job("apart.count", "s3://data/k")
    apart.run_until_idle()

    assert apart.results("apart.received") == [5]
    assert apart.results("apart.count") == [1000]
    apart.verify()


def test_time_is_still_the_tests_own(apart: AppUnderTest) -> None:
    apart.submit("apart.flaky")
    apart.run_until_idle()
    assert apart.results("apart.flaky") == []

    apart.clock.advance(2 * 86_400)

    assert apart.results("apart.flaky") == [2]
    assert len(apart.results("apart.daily")) == 2


def test_a_worker_that_dies_is_the_functions_failure(apart: AppUnderTest) -> None:
    with pytest.raises(WorkerCrashed):
        apart.invoke("apart.dies")
    apart.submit("apart.dies")
    apart.run_until_idle()

    assert [failure["exit_code"] for failure in apart.failures("apart.dies")] == [3]


def test_a_function_in_a_worker_reaches_the_node_by_its_client(apart: AppUnderTest) -> None:
    assert apart.invoke("apart.calls") is False


def test_a_killed_node_leaves_its_work_to_the_next(apart: AppUnderTest, tmp_path: Path) -> None:
    ids = [apart.submit("apart.pid") for _ in range(20)]
    apart.crash()
    apart.restart()

    assert all(apart.client.invocation(id)["status"] == "succeeded" for id in ids)
    apart.verify()


def test_faults_that_need_this_process_are_refused(apart: AppUnderTest) -> None:
    for ask in (apart.faults.lose_notifications, apart.faults.fail_objects):
        with pytest.raises(BadRequest, match="workers"):
            ask()
    with pytest.raises(BadRequest, match="process of its own"):
        apart.faults.crash_worker("apart.pid")
    apart.faults.fail_store()
    with pytest.raises(StoreUnavailable):
        apart.submit("apart.pid")


async def test_workers_live_on_between_the_steps_of_an_async_test(tmp_path: Path) -> None:
    code = tmp_path / "apart.py"
    code.write_text(CODE)
    with AppUnderTest(code, workers=1) as app:
        first = app.invoke("apart.pid")
        app.put("inbox", "a.txt", "hello")
        app.run_until_idle()

        assert app.results("apart.received") == [5]
        assert app.invoke("apart.pid") == first != os.getpid()
