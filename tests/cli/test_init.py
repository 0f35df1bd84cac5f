"""`headrace init`: what it writes, what it refuses, and that what it writes runs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace.runtime.cli.init import FILES, STARTER, WouldOverwrite, run_init
from headrace.runtime.errors import InvalidSettings
from headrace.runtime.settings import known_settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_project_is_written_and_the_next_commands_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "deep" / "my project"

    assert run_init(project) == 0

    assert files_in(project) == set(FILES)
    told = capsys.readouterr().out.splitlines()
    assert told[-4] == "Next:"
    assert told[-3] == f"  cd '{project}'"
    assert told[-2] == "  headrace dev functions/"
    assert told[-1].startswith("  curl localhost:8080/greet/Ada ")


def test_in_the_working_folder_there_is_nowhere_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")

    assert run_init(Path(".")) == 0

    assert " cd " not in capsys.readouterr().out
    assert files_in(tmp_path) == {*FILES, "notes.txt"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_written_where_one_of_its_files_exists(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")

    with pytest.raises(WouldOverwrite, match=f"{name} exists already"):
        run_init(tmp_path)

    assert files_in(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(WouldOverwrite):
        run_init(tmp_path)

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("taken", ["project", "project/functions"])
def test_a_file_where_a_folder_must_be_is_refused(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("mine")

    with pytest.raises(InvalidSettings, match=f"{taken} is not a folder"):
        run_init(tmp_path / "project")

    assert files_in(tmp_path) == {taken}


def test_every_file_of_the_starter_is_written_by_somebody() -> None:
    kept = {name for name in files_in(STARTER) if "__pycache__" not in name and ".pytest_cache" not in name}

    assert kept == set(FILES.values())


def test_the_settings_are_valid_as_they_are_and_with_every_comment_removed(tmp_path: Path) -> None:
    run_init(tmp_path, say=lambda line: None)
    file = tmp_path / "headrace.toml"
    load_settings(config=file, environ={})
    shown = [
        line.removeprefix("# ") for line in file.read_text().splitlines() if " = " in line or "[" in line[:1]
    ]

    file.write_text("\n".join(shown))
    settings = load_settings(config=file, environ={})

    assert settings.port == 8080
    assert set(tomllib.loads(file.read_text())) <= {name.split(".")[0] for name in known_settings()}


def test_the_projects_own_tests_pass(tmp_path: Path) -> None:
    run_init(tmp_path, say=lambda line: None)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_projects_functions_load_without_an_error(tmp_path: Path) -> None:
    run_init(tmp_path, say=lambda line: None)
    asked = "import sys; from headrace.runtime.code import request_for; "
    asked += "from headrace.runtime.loading import load; "
    asked += "m = load(request_for(['functions'])).manifest; "
    asked += "print(*[e.message for e in m.errors], sep='\\n', file=sys.stderr); "
    asked += "print(*sorted(f.name for f in m.functions if f.name.startswith('app.')))"

    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.stderr.strip() == ""
    assert done.stdout.split() == ["app.count_words", "app.greet", "app.hourly"]
