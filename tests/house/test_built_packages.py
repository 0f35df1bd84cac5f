"""What is built holds real files: in the tree, two of its folders are symlinks."""

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]


def modules(folder: Path) -> set[str]:
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def expected_files() -> set[str]:
    engine = {
        f"headrace/{name}" for room in ("runtime", "triggers", "functions") for name in modules(ROOT / room)
    }
    front = ("__init__.py", "__main__.py", "py.typed", "testing.py")
    return engine | {f"headrace/{name}" for name in front}


def build(source: Path, target: str, into: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [built] = into.iterdir()
    return built


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        symlinks = [info.filename for info in archive.infolist() if (info.external_attr >> 28) == 0o12]
        assert symlinks == []
        return {
            name for name in archive.namelist() if not PurePosixPath(name).parts[0].endswith(".dist-info")
        }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


def test_the_wheel_holds_real_files_and_only_headrace(wheel: Path) -> None:
    assert wheel_files(wheel) == expected_files()


def test_the_wheel_carries_the_licence_the_command_and_the_triggers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [entry_points] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        declared = configparser.ConfigParser()
        declared.optionxform = str  # type: ignore[assignment,method-assign]
        declared.read_string(archive.read(entry_points).decode())
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())

    assert dict(declared["console_scripts"]) == {"headrace": "headrace.runtime.cli:main"}
    assert dict(declared["headrace.triggers"]) == {
        "upload": "headrace.triggers.upload:Upload",
        "schedule": "headrace.triggers.schedule:Schedule",
        "http": "headrace.triggers.http:Http",
        "uploadset": "headrace.triggers.uploadset:UploadSet",
    }
    assert dict(declared["pytest11"]) == {"headrace": "headrace.runtime.testing.plugin"}


def test_the_sdist_holds_real_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])): m for m in archive.getmembers()}

    assert expected_files() <= set(members)
    assert [name for name, member in members.items() if member.issym() or member.islnk()] == []


def test_a_wheel_built_from_the_sdist_is_the_same(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()

    assert wheel_files(build(source, "wheel", tmp_path / "wheel")) == expected_files()
