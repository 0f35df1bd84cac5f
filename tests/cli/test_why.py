"""`headrace why` against a real node: one screen that names what holds a thing, and what changes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, run_command, wait_until

CODE = """
import time
from pathlib import Path
from headrace import App, Schedule

app = App("shop")

@app.function(retries=3)
def fail(event):
    print("about to fail")
    raise ValueError("bad")

@app.function(timeout=60)
def wait_for(event):
    while not Path(event).exists():
        time.sleep(0.01)

@app.function(reserved_concurrency=0)
def never(event):
    return None

@app.on(Schedule("rate(1 hour)", name="hourly"))
@app.function
def tick(event):
    return None
"""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("why")
    (folder / "app.py").write_text(CODE)
    found = Serving(folder / "app.py", folder=folder, workers=1).start()
    yield found
    found.kill()
    found.close()


def why(serving: Serving, name: str) -> str:
    done = run_command("why", name, env={"HEADRACE_DATA": str(serving.data)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def facts(serving: Serving, name: str) -> dict[str, Any]:
    done = run_command("why", name, "--json", env={"HEADRACE_DATA": str(serving.data)})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_limit_is_named_with_what_raises_it(serving: Serving) -> None:
    id = serving.client.submit("shop.never").wait_accepted(10)
    shown = why(serving, id)

    assert shown.startswith(f"invocation {id} of shop.never: waiting\n")
    assert "concurrency  nothing of shop.never may run: its reserved_concurrency is 0" in shown
    assert "-> raise reserved_concurrency of shop.never" in shown
    assert len(shown.splitlines()) <= 24


def test_a_failed_attempt_is_shown_with_its_backoff_or_the_next_attempt(serving: Serving) -> None:
    id = serving.client.submit("shop.fail").wait_accepted(10)
    wait_until(lambda: serving.client.invocation(id)["attempts"], "the first attempt")

    assert "attempt 1" in why(serving, id)


def test_a_busy_worker_is_named_with_what_it_does(serving: Serving, tmp_path: Path) -> None:
    client = serving.client
    running = client.submit("shop.wait_for", str(tmp_path / "go")).wait_accepted(10)
    wait_until(lambda: client.invocation(running)["status"] == "running", "the worker to be busy")
    waiting = client.submit("shop.wait_for", str(tmp_path / "go")).wait_accepted(10)
    try:
        found = facts(serving, waiting)
        assert found["held_by"][-1]["by"] == "workers"
        assert "the one worker is busy (shop.wait_for for" in found["held_by"][-1]["detail"]
        assert facts(serving, running)["held_by"][0]["by"] == "running"
        assert "headrace invocations cancel" in why(serving, running)
    finally:
        (tmp_path / "go").touch()


def test_a_paused_function_is_named_until_it_is_resumed(serving: Serving) -> None:
    serving.client.pause("shop.fail")
    try:
        assert why(serving, "shop.fail").startswith("function shop.fail: paused\nshop.fail is paused")
    finally:
        serving.client.resume("shop.fail")
    assert facts(serving, "shop.fail")["state"] == "open"


def test_a_schedule_says_when_it_fires_next(serving: Serving) -> None:
    wait_until(lambda: serving.client.call("GET", "/v1/schedules")["items"], "the schedule")
    found = facts(serving, "hourly")

    assert (found["kind"], found["id"], found["state"]) == (
        "schedule",
        "shop.tick/schedule/hourly",
        "waiting",
    )
    assert found["held_by"][0]["by"] == "not_due"


def test_an_unknown_name_is_one_line(serving: Serving) -> None:
    done = run_command("why", "nobody", env={"HEADRACE_DATA": str(serving.data)})

    assert done.returncode == 1
    assert done.stderr.startswith("error: no invocation, job, schedule or function is named 'nobody'. ")
    assert done.stderr.count("\n") == 1
