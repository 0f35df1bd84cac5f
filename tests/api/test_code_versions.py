"""Snapshots of the user's code, and which of them are kept for how long."""

import asyncio
import io
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headrace import App
from headrace.runtime.code import CodeRequest, request_for, request_for_app
from headrace.runtime.model.invocation import Invocation, Record, Status
from headrace.runtime.model.spec import FunctionSpec, Manifest
from headrace.runtime.model.write import Deployed
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.snapshot import ChangedMeanwhile, read_about, take, unpack
from headrace.runtime.store.protocol import Deployment
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.versions import Versions, versions_in_use

LATE = 4e9
NOW = 1_800_000_000.0
OLD = 1_000_000_000.0


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "functions"
    for name, text in {
        "app.py": "import words\n",
        "words.py": "HELLO = 1\n",
        "words/list.txt": "a\n",
        "__pycache__/app.pyc": "no",
        ".git/config": "no",
        "tests/test_app.py": "no",
        "old.pyc": "no",
        ".env": "SECRET=1",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def names(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return sorted(archive.namelist())


def test_a_snapshot_holds_sources_and_data_files_and_nothing_hidden(code: Path) -> None:
    found = take(request_for([str(code)]), version="v", functions=["a.f"], loaded_at=LATE)

    assert names(found.data) == ["0/app.py", "0/words.py", "0/words/list.txt", "headrace.json"]
    assert read_about(found.data) == found.about
    assert (found.about.functions, found.about.kept) == (("a.f",), True)


def test_equal_code_gives_equal_bytes(code: Path) -> None:
    argument = request_for([str(code)])
    first = take(argument, version="v", functions=[], loaded_at=LATE)
    os.utime(code / "app.py", (1, 1))

    assert take(argument, version="v", functions=[], loaded_at=LATE).data == first.data


def test_a_folder_of_the_nodes_own_is_left_out(code: Path) -> None:
    (code / "state").mkdir()
    (code / "state" / "big.db").write_text("x")
    found = take(
        request_for([str(code)]), version="v", functions=[], loaded_at=LATE, without=(code / "state",)
    )

    assert "0/state/big.db" not in names(found.data)


def test_a_file_is_kept_with_the_python_files_beside_it(code: Path) -> None:
    found = take(request_for([str(code / "app.py")]), version="v", functions=[], loaded_at=LATE)

    assert names(found.data) == ["0/app.py", "0/words.py", "headrace.json"]
    assert found.about.roots[0].place == "0/app.py"


def test_a_module_is_kept_under_its_name() -> None:
    found = take(request_for(["json"]), version="v", functions=[], loaded_at=LATE)

    assert "0/json/__init__.py" in names(found.data)


def test_code_that_is_too_large_is_named_and_not_kept(code: Path) -> None:
    found = take(request_for([str(code)]), version="v", functions=["a.f"], loaded_at=LATE, bytes_max=10)

    assert not found.about.kept
    assert "are not kept" in found.about.note
    assert names(found.data) == ["headrace.json"]


def test_a_file_saved_after_the_loading_began_is_no_part_of_that_version(code: Path) -> None:
    with pytest.raises(ChangedMeanwhile):
        take(request_for([str(code)]), version="v", functions=[], loaded_at=OLD)


def test_what_was_taken_can_be_laid_out_again(code: Path, tmp_path: Path) -> None:
    found = take(request_for([str(code)]), version="v", functions=[], loaded_at=LATE)
    place = tmp_path / "again"
    place.mkdir()
    argument = unpack(found.data, place)

    assert (place / "0" / "words" / "list.txt").read_text() == "a\n"
    assert str(place / "0") in argument.decode()


@pytest.mark.parametrize("name", ["../out.py", "/out.py", "0/../../out.py"])
def test_a_zip_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    about = take(request_for([]), version="v", functions=[], loaded_at=LATE)
    buffer = io.BytesIO(about.data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, "bad")
    place = tmp_path / "in"
    place.mkdir()

    with pytest.raises(ValueError, match="outside"):
        unpack(buffer.getvalue(), place)
    assert not (tmp_path / "out.py").exists()


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="no snapshot"):
        read_about(b"not a zip")


# ---- which are kept ----


def test_a_version_is_in_use_from_its_deployment_to_the_next_of_its_machine() -> None:
    deployments = [
        Deployment(node="a#3", version="v4", since=NOW),
        Deployment(node="b#1", version="v3", since=NOW - 100),
        Deployment(node="a#2", version="v2", since=NOW - 200),
        Deployment(node="a#1", version="v1", since=NOW - 300),
    ]

    assert versions_in_use(deployments, before=NOW - 50) == {"v4", "v3", "v2"}
    assert versions_in_use(deployments, before=NOW - 250) == {"v4", "v3", "v2", "v1"}


class Shelf:
    """The versions of a real store and real buckets."""

    def __init__(self, store: SqliteStore, objects: FolderStore) -> None:
        self.store = store
        self.objects = objects
        self.versions = Versions(store, objects, in_thread=asyncio.to_thread)

    async def deploy(self, version: str, code: Path, *, at: float, function: str = "a.f") -> str:
        spec = FunctionSpec(name=function, module="", file="", line=0)
        return await self.versions.record(
            "a#1", Manifest(version=version, functions=(spec,)), argument=request_for([str(code)]),
            loaded_at=LATE, now=at,
        )  # fmt: skip


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    store = SqliteStore(tmp_path / "h.db")
    await store.start()
    objects = FolderStore(tmp_path / "buckets", fsync=False)
    objects.make_bucket("headrace-system")
    yield Shelf(store, objects)
    await store.stop()


async def test_a_version_is_stored_once(shelf: Shelf, code: Path) -> None:
    assert await shelf.deploy("v1", code, at=NOW) == ""
    first = shelf.objects.head("headrace-system", "code/v1.zip").sequencer
    await shelf.deploy("v1", code, at=NOW + 1)

    assert shelf.objects.head("headrace-system", "code/v1.zip").sequencer == first
    assert len(await shelf.store.deployments(before=NOW + 2)) == 2
    assert read_about(await shelf.versions.zipped("v1")).version == "v1"


async def test_the_version_that_ran_is_the_one_served_when_the_attempt_began(
    shelf: Shelf, code: Path
) -> None:
    await shelf.deploy("v1", code, at=NOW)
    await shelf.deploy("v2", code, at=NOW + 100)
    invocation = Invocation(1, "a.f", "a.f", b"", NOW, NOW, NOW + 1)

    for started_at, version in ((NOW + 50, "v1"), (NOW + 150, "v2"), (None, "v2")):
        record = Record(invocation=invocation, status=Status.DEAD, attempts=1, started_at=started_at)
        found = await shelf.versions.that_ran(record, now=NOW + 200)
        assert found is not None
        assert found.version == version


async def test_of_nodes_with_other_versions_the_one_that_ran_it_counts(shelf: Shelf, code: Path) -> None:
    await shelf.deploy("v1", code, at=NOW)
    await shelf.store.apply([Deployed("b#1", "v2", NOW + 10)], now=NOW + 10)
    record = Record(
        invocation=Invocation(1, "a.f", "a.f", b"", NOW, NOW, NOW + 1), status=Status.DEAD, attempts=1,
        started_at=NOW + 20, node="a#1",
    )  # fmt: skip
    found = await shelf.versions.that_ran(record, now=NOW + 30)

    assert found is not None
    assert found.version == "v1"


async def test_versions_that_have_a_function_are_found(shelf: Shelf, code: Path) -> None:
    await shelf.deploy("v1", code, at=NOW, function="a.gone")
    await shelf.deploy("v2", code, at=NOW + 1)

    assert [each.version for each in await shelf.versions.having("a.gone", now=NOW + 2)] == ["v1"]


async def test_a_version_that_served_nowhere_within_the_kept_time_is_removed(
    shelf: Shelf, code: Path
) -> None:
    await shelf.deploy("v1", code, at=NOW)
    await shelf.deploy("v2", code, at=NOW + 100)
    written = shelf.objects.head("headrace-system", "code/v1.zip").modified_at

    assert await shelf.versions.collect(before=NOW + 50, now=NOW + 200) == 0  # v1 served until NOW + 100
    # The files' own times are those of the machine: the kept time ends after them too.
    later = max(NOW, written) + 10_000
    assert await shelf.versions.collect(before=later, now=later) == 1
    assert await shelf.versions.about("v1") is None
    assert await shelf.versions.about("v2") is not None


async def test_deployments_are_bounded(shelf: Shelf) -> None:
    for at in range(1_010):
        shelf.store.submit([Deployed("a#1", f"v{at}", NOW + at)], lambda result: None, now=NOW + at)
    await shelf.store.apply([], now=NOW)

    assert len(await shelf.store.deployments(before=NOW + 2_000, limit=5_000)) == 1_001


def test_an_app_of_a_program_is_kept_as_it_was_sent(tmp_path: Path) -> None:
    argument = request_for_app(App("shop"))
    found = take(argument, version="v", functions=[], loaded_at=LATE)
    again = msgspec.json.decode(unpack(found.data, tmp_path), type=CodeRequest)

    assert names(found.data) == ["app.pickle", "headrace.json"]
    assert again.pickled == msgspec.json.decode(argument, type=CodeRequest).pickled
