"""`headrace schedule` against a real node: a day of an operator's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, run_command, wait_until

CODE = """
from headrace import App, Schedule

app = App("reports")

@app.on(Schedule("0 0 1 1 *", name="yearly", start="2000-01-01T00:00:00", misfire="skip"))
@app.function
def count(event):
    return event.due.year
"""
NAME = "reports.count/schedule/yearly"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("schedule")
    (folder / "app.py").write_text(CODE)
    found = Serving(folder / "app.py", folder=folder, workers=1).start()
    wait_until(lambda: list(found.client.schedules.list()), "the schedule")
    yield found
    found.kill()
    found.close()


def said(serving: Serving, *arguments: str) -> str:
    done = run_command("schedule", *arguments, env={"HEADRACE_DATA": str(serving.data)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(serving: Serving, *arguments: str) -> Any:
    return json.loads(said(serving, *arguments, "--json"))


def test_the_list_has_names_states_and_next_moments(serving: Serving) -> None:
    [heading, line] = said(serving, "list").splitlines()

    assert heading.split() == ["NAME", "STATE", "DEFINITION", "NEXT", "LAST"]
    assert line.startswith(f"{NAME}  active  0 0 1 1 *; UTC; from 2000-01-01T00:00:00Z  2")
    assert line.count("-01-01T00:00:00Z") == 6


def test_next_prints_moments_one_a_line(serving: Serving) -> None:
    found = said(serving, "next", "yearly", "-n", "2", "--after", "2030-06-01")

    assert found.splitlines() == ["2031-01-01T00:00:00Z", "2032-01-01T00:00:00Z"]


def test_a_paused_schedule_says_so_and_resumes_also_over_a_restart(serving: Serving) -> None:
    assert said(serving, "pause", "yearly") == f"{NAME} is paused.\n"
    serving.kill()
    serving.start()
    assert "  paused  " in said(serving, "list")
    done = run_command("why", NAME, env={"HEADRACE_DATA": str(serving.data)})
    assert f"headrace schedule resume {NAME}" in done.stdout
    assert said(serving, "resume", "reports.count") == f"{NAME} goes on.\n"
    assert document(serving, "show", "yearly")["state"] == "active"


def test_a_run_for_an_instant_is_made_once_and_a_backfill_fires_the_others(serving: Serving) -> None:
    id = said(serving, "run", "yearly", "--due", "2003-01-01T00:00:00Z").strip()
    assert serving.client.invocation(id, wait_s=20)["result"] == 2003
    again = run_command(
        "schedule", "run", "yearly", "--due", "2003-01-01", env={"HEADRACE_DATA": str(serving.data)}
    )
    assert (again.returncode, again.stderr.startswith("error: ")) == (1, True)

    years = ("--from", "2001-01-01", "--until", "2006-12-31")
    dry = said(serving, "backfill", "yearly", *years, "--dry-run").splitlines()
    assert dry == [f"{year}-01-01T00:00:00Z" for year in (2001, 2002, 2004, 2005, 2006)]
    found = document(serving, "backfill", "yearly", *years, "--concurrency", "2", "--wait")
    assert (found["status"], found["fired"], found["present"]) == ("done", 5, 1)
    results = [each["result"] for each in serving.client.invocations(function="reports.count")]
    assert sorted(results) == [2001, 2002, 2003, 2004, 2005, 2006]
    assert found["id"] in said(serving, "backfills", "yearly")
    assert "2006-01-01T00:00:00Z" in said(serving, "show", "yearly")


def test_a_backfill_survives_kills_and_fires_each_instant_once(serving: Serving, tmp_path: Path) -> None:
    id = said(serving, "backfill", "yearly", "--from", "2007-01-01", "--until", "2020-12-31").strip()
    for _ in range(3):
        serving.kill()
        serving.start()
    found = wait_until(lambda: _ended(serving, id), "the end of the backfill")

    assert (found["status"], found["fired"]) == ("done", 14)
    results = [each["result"] for each in serving.client.invocations(function="reports.count")]
    assert sorted(year for year in results if year >= 2007) == list(range(2007, 2021))


def test_a_cancelled_backfill_ends(serving: Serving) -> None:
    serving.client.call("POST", "/v1/functions/reports.count/pause")
    id = said(serving, "backfill", "yearly", "--from", "2021-01-01").strip()
    said(serving, "cancel", id, "--running")
    serving.client.call("POST", "/v1/functions/reports.count/resume")

    assert serving.client.schedules.get_backfill(id)["status"] == "cancelled"


def _ended(serving: Serving, id: str) -> dict[str, Any] | None:
    found = serving.client.schedules.get_backfill(id)
    return found if found["ended_at"] is not None else None
