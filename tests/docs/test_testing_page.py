"""The tests of the page on testing are run as a user would run them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import GUIDE, ROOT, blocks, cells

from headrace.testing import AppUnderTest, Faults, VirtualClock

TEXT = (GUIDE / "testing.md").read_text(encoding="utf-8")

# As in this folder's own conftest: an installation that is older than the plugin has no entry point of it.
CONFTEST = """
def pytest_configure(config):
    if not config.pluginmanager.hasplugin("headrace"):
        from headrace.runtime.testing import plugin
        config.pluginmanager.register(plugin, "headrace")
"""


def run_pytest(folder: Path) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(CONFTEST)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_the_pages_own_tests_pass(tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    [code] = blocks(TEXT, "python")
    (functions / "orders.py").write_text(code)
    (tmp_path / "test_orders.py").write_text("\n\n".join(blocks(TEXT, "py")))

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1\d passed", done.stdout, re.MULTILINE), done.stdout


def test_a_test_that_names_no_functions_is_told_how(tmp_path: Path) -> None:
    (tmp_path / "test_unmarked.py").write_text("def test_it(headrace_app):\n    pass\n")

    done = run_pytest(tmp_path)

    assert done.returncode != 0
    assert "pytest.mark.headrace(functions.app)" in done.stdout


def test_the_marker_of_a_test_adds_to_that_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(blocks(TEXT, "python")[0])
    (tmp_path / "test_marked.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.headrace('code.py', now='2040-05-06T00:00:00Z', sweep_s=7)\n"
        "@pytest.mark.headrace(sweep_s=50)\n"
        "def test_it(headrace_app, headrace_clock, headrace_faults):\n"
        "    assert str(headrace_clock) == '2040-05-06T00:00:00+00:00'\n"
        "    headrace_faults.lose_notifications()\n"
        "    headrace_app.put('inbox', 'a.csv', 'x')\n"
        "    headrace_clock.advance(49)\n"
        "    assert headrace_app.results('orders.imported') == []\n"
        "    headrace_clock.advance(1)\n"
        "    assert headrace_app.results('orders.imported') == [{'orders': 1}]\n"
    )

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_alone_imports_nothing_of_the_engine() -> None:
    script = (
        "import sys, headrace.runtime.testing.plugin\n"
        "print(sorted(name for name in sys.modules if name.startswith('headrace')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert set(re.findall(r"'([^']+)'", done.stdout)) == {
        "headrace", "headrace.runtime", "headrace.runtime.testing", "headrace.runtime.testing.plugin",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [AppUnderTest, VirtualClock, Faults])
def test_what_a_test_may_call_is_on_the_page(kind: type) -> None:
    inside = {
        AppUnderTest: {"start", "close", "settle", "next_due", "drive"},
        VirtualClock: {"monotonic", "sleep", "attach", "detach", "something_happened", "pass_to_next"},
        Faults: {"next_writes", "objects_error", "notices", "crash"},
    }[kind]
    public = {name for name in vars(kind) if not name.startswith("_")} - inside
    shown = " ".join(row[0] for row in cells(TEXT))

    assert {name for name in public if not re.search(rf"`{name}\b", shown)} <= {"objects"}
