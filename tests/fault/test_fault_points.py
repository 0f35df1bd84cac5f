"""Fault points: what HEADRACE_FAULT may say, and that only what it names happens, once, where it is meant."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtime import fault
from headrace.runtime.fault import IN_WORKERS, POINTS, Fault, InvalidFault, from_environment
from tests.serving import ROOT, clean_environment, run_command

_CALL = re.compile(r"""\breach\(f?"([a-z.{}]+)"\)""")


def test_nothing_is_asked_for_by_default() -> None:
    assert from_environment({}) is None
    assert not fault.armed
    assert fault.problem == ""
    for name in POINTS:
        fault.reach(name)


def test_a_fault_strikes_the_nth_time_that_its_point_is_reached_and_at_no_other() -> None:
    struck: list[signal.Signals] = []
    found = Fault("claim:3", strike=struck.append)
    for name in ("claim", "commit.before", "claim", "send"):
        found.reach(name)
    assert struck == []
    found.reach("claim")
    assert struck == [signal.SIGKILL]
    found.reach("claim")
    assert struck == [signal.SIGKILL]


def test_a_fault_may_stop_the_process_instead() -> None:
    struck: list[signal.Signals] = []
    Fault("retry.after:stop", strike=struck.append).reach("retry.after")
    Fault("retry.after:1:stop", strike=struck.append).reach("retry.after")
    assert struck == [signal.SIGSTOP, signal.SIGSTOP]


def test_of_all_processes_only_the_first_is_struck_when_that_is_asked_for(tmp_path: Path) -> None:
    struck: list[signal.Signals] = []
    once = tmp_path / "once"
    for _ in range(3):
        Fault("start", once=str(once), strike=struck.append).reach("start")
    assert struck == [signal.SIGKILL]
    assert once.read_text().split()[0] == "start"


@pytest.mark.parametrize(
    "text", ["nowhere", "commit", "claim:0", "claim:x", "claim:1:2", "claim:1:stop:1", ":1"]
)
def test_a_fault_that_means_nothing_is_refused_with_the_points_there_are(text: str) -> None:
    with pytest.raises(InvalidFault, match=r"commit\.before") as caught:
        Fault(text)
    assert repr(text) in str(caught.value)


def test_a_process_ends_by_sigkill_at_the_very_call() -> None:
    code = (
        "from headrace.runtime.fault import reach\n"
        "reach('send'); print('once', flush=True); reach('send'); print('twice', flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment({"HEADRACE_FAULT": "send:2"}),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "once\n")


def test_a_node_does_not_start_with_a_fault_that_means_nothing(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("from headrace import App\napp = App('a')\n")
    done = run_command(
        "serve", code, "--port", "0", "--data", tmp_path / "data", env={"HEADRACE_FAULT": "nowhere:2"}
    )
    assert done.returncode != 0
    assert "HEADRACE_FAULT is 'nowhere:2'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_point_is_reached_somewhere_and_nothing_else_is() -> None:
    called: set[str] = set()
    for folder in ("runtime", "triggers"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in _CALL.findall(path.read_text(encoding="utf-8")):
                sides = ("before", "after") if "{side}" in name else ("",)
                called.update(name.replace("{side}", side) for side in sides)
    assert called == set(POINTS)
    assert len(set(POINTS)) == len(POINTS)
    assert set(IN_WORKERS) < set(POINTS)
