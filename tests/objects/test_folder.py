"""What is particular to buckets in a folder: users' files, links, crashes and sharing."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.errors import (
    InvalidBucketName,
    InvalidKey,
    InvalidSettings,
    NoSuchObject,
    PreconditionFailed,
    ReadOnlyStorage,
    StorageFull,
)
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.protocol import BucketNotEmpty

DAY_S = 24 * 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "buckets"


@pytest.fixture
def store(root: Path) -> FolderStore:
    store = FolderStore(root, fsync=False)
    store.make_bucket("data")
    return store


def listed(store: FolderStore, bucket: str = "data") -> list[str]:
    return [info.key for info in store.iterate(bucket)]


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def start(script: str, *arguments: object) -> "subprocess.Popen[bytes]":
    lines = "import sys\nfrom pathlib import Path\nfrom headrace.runtime.objects.folder import FolderStore\n"
    lines += "store = FolderStore(Path(sys.argv[1]), fsync=False)\n" + script
    command = [sys.executable, "-c", lines, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_files_that_users_drop_are_objects_and_objects_are_ordinary_files(
    store: FolderStore, root: Path
) -> None:
    (root / "data" / "in").mkdir()
    (root / "data" / "in" / "my%20file 100%.csv").write_bytes(b"dropped")
    (root / "data" / ".DS_Store").write_bytes(b"")
    store.put("data", "out/result.json", b"{}")

    assert listed(store) == [".DS_Store", "in/my%20file 100%.csv", "out/result.json"]
    assert store.get("data", "in/my%20file 100%.csv") == b"dropped"
    assert store.head("data", "in/my%20file 100%.csv").content_type == "text/csv"
    assert (root / "data" / "out" / "result.json").read_bytes() == b"{}"


def test_a_folder_made_by_hand_is_a_bucket_if_its_name_may_be_one(store: FolderStore, root: Path) -> None:
    (root / "by-hand").mkdir()
    (root / "Not_A_Bucket").mkdir()
    (root / "a-file").write_bytes(b"")
    assert store.buckets() == ["by-hand", "data"]
    with pytest.raises(InvalidBucketName):
        store.make_bucket("a-file")


def test_the_root_is_made_and_what_cannot_be_one_is_refused(tmp_path: Path) -> None:
    assert FolderStore(tmp_path / "not" / "there", fsync=False).buckets() == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidSettings, match="not a folder"):
        FolderStore(tmp_path / "file")


def test_durable_writes_give_the_same_objects(root: Path) -> None:
    store = FolderStore(root)
    store.make_bucket("data")
    first = store.put("data", "a/b", b"1")
    second = store.put("data", "a/b", b"2")
    store.put("data", "c", b"3", if_none_match=True)
    store.delete("data", "c")
    assert second.sequencer > first.sequencer
    assert listed(store) == ["a/b"]
    store.delete("data", "a/b")
    store.remove_bucket("data")
    assert list(root.iterdir()) == [root / ".tmp"]


@pytest.mark.parametrize("key", ["a" * 256, "a/" + "é" * 128 + "/b", "%00" * 86])
def test_a_segment_longer_than_a_file_name_may_be_is_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(InvalidKey, match="at most 255"):
        store.put("data", key, b"")


def test_a_key_beside_keys_below_it_is_refused(store: FolderStore) -> None:
    store.put("data", "a/b", b"")
    store.put("data", "c", b"")
    with pytest.raises(InvalidKey, match="objects below it"):
        store.put("data", "a", b"")
    with pytest.raises(InvalidKey, match="'c' is an object"):
        store.put("data", "c/d/e", b"")
    with pytest.raises(InvalidKey, match="objects below it"):
        store.put("data", "a", b"", if_none_match=True)
    with pytest.raises(NoSuchObject):
        store.get("data", "c/d")
    with pytest.raises(NoSuchObject):
        store.get("data", "a")
    store.delete("data", "a")
    store.delete("data", "c/d")
    assert listed(store) == ["a/b", "c"]


def test_an_empty_folder_stays_until_its_name_is_needed(store: FolderStore, root: Path) -> None:
    store.put("data", "in/deep/x", b"")
    store.delete("data", "in/deep/x")
    assert (root / "data" / "in" / "deep").is_dir()
    store.put("data", "in", b"now a file")
    assert listed(store) == ["in"]


def test_no_key_leads_out_of_its_bucket(store: FolderStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    store.make_bucket("other")
    store.put("other", "secret", b"other's")
    before = snapshot(tmp_path)
    keys = [
        "../other/secret",
        "../../secret",
        "/etc/passwd",
        str(tmp_path / "secret"),
        "x/../../other/secret",
        "..",
        ".",
        "..\x00",
        "%2E%2E/other/secret",
        "../.tmp/lock-00",
        ".headrace-tmp/x",
        "~root",
        "\\..\\..\\secret",
    ]
    for key in keys:
        with pytest.raises(NoSuchObject):
            store.get("data", key)
        store.delete("data", key)
        store.put("data", key, b"mine")
        assert store.get("data", key) == b"mine"
        assert listed(store) == [key]
        store.delete("data", key)

    after = snapshot(tmp_path)
    outside = {name for name in after if not name.startswith(("buckets/data", "buckets/.tmp"))}
    assert {name: after[name] for name in outside} == {
        name: text for name, text in before.items() if not name.startswith(("buckets/data", "buckets/.tmp"))
    }


def test_links_inside_a_bucket_are_not_followed(store: FolderStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("outside")
    (root / "data" / "to-folder").symlink_to(outside)
    (root / "data" / "to-file").symlink_to(outside / "secret")
    (root / "data" / "to-nothing").symlink_to(outside / "nothing")
    (root / "data" / "loop").symlink_to(root / "data")
    store.put("data", "real", b"")

    assert listed(store) == ["real"]
    for key in ("to-folder/secret", "to-file", "to-nothing", "loop/real"):
        with pytest.raises(NoSuchObject):
            store.get("data", key)
        with pytest.raises(InvalidKey, match="link"):
            store.put("data", key, b"overwritten")
        store.delete("data", key)
    assert [info.key for info in store.list("data", prefix="to-folder/")] == []
    assert snapshot(outside) == {"secret": "outside"}
    with pytest.raises(BucketNotEmpty):
        store.remove_bucket("data")
    store.delete("data", "real")
    with pytest.raises(BucketNotEmpty):
        store.remove_bucket("data")


def test_a_bucket_may_be_a_link_to_another_file_system(store: FolderStore, root: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == root.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        (root / "mounted").symlink_to(elsewhere)
        store.put("mounted", "a/b", b"1")
        store.put("mounted", "a/b", b"2", content_type="text/plain")
        assert "mounted" in store.buckets()
        assert listed(store, "mounted") == ["a/b"]
        assert store.get("mounted", "a/b") == b"2"
        assert sorted(os.listdir(elsewhere)) == [".headrace-tmp", "a"]


def test_what_is_no_regular_file_with_a_readable_name_is_passed_over(store: FolderStore, root: Path) -> None:
    os.mkfifo(root / "data" / "pipe")
    (root / "data" / "line\nbreak").write_bytes(b"")
    (root / "data" / ".headrace-part").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root / "data") + b"/\xff")).write_bytes(b"")
    assert listed(store) == []
    with pytest.raises(NoSuchObject):
        store.head("data", "pipe")
    with pytest.raises(InvalidKey, match="special file"):
        store.put("data", "pipe", b"")


def test_a_reader_of_a_file_that_is_written_in_place_fails(store: FolderStore, root: Path) -> None:
    body = b"a" * 1_000_000
    store.put("data", "k", body)
    stream = store.open("data", "k")
    assert stream.read(10) == body[:10]
    with (root / "data" / "k").open("r+b") as file:
        file.seek(900_000)
        file.write(b"b")
    with pytest.raises(PreconditionFailed):
        stream.read()
    stream.close()

    stream = store.open("data", "k")
    os.truncate(root / "data" / "k", 10)
    with pytest.raises(PreconditionFailed):
        stream.read()
    stream.close()


def test_an_overwrite_is_later_even_than_a_file_from_the_future(store: FolderStore, root: Path) -> None:
    store.put("data", "k", b"")
    os.utime(root / "data" / "k", (4e9, 4e9))
    future = store.head("data", "k")
    assert store.put("data", "k", b"").sequencer > future.sequencer
    store.delete("data", "k")
    assert store.put("data", "k", b"").modified_at < 3.9e9


def test_of_two_processes_that_overwrite_a_key_no_reader_sees_a_mix(store: FolderStore, root: Path) -> None:
    script = """
body = sys.argv[2].encode() * 300_000
for _ in range(150):
    store.put("data", "k", body)
"""
    store.put("data", "k", b"c" * 300_000)
    writers = [start(script, root, letter) for letter in "ab"]
    seen, sequencers = set(), []
    try:
        while any(writer.poll() is None for writer in writers):
            sequencers.append(store.head("data", "k").sequencer)
            with store.open("data", "k") as stream:
                body = b"".join(iter(lambda: stream.read(65_536), b""))  # called before the next turn
            assert body == body[:1] * 300_000
            whole = store.get("data", "k")
            assert whole == whole[:1] * 300_000
            seen |= {body[:1], whole[:1]}
            [info] = store.list("data")
            assert info.size == 300_000
        assert [writer.wait(30) for writer in writers] == [0, 0]
    finally:
        _end(writers)
    assert seen >= {b"a", b"b"}
    assert sequencers == sorted(sequencers)
    assert not list((root / ".tmp").glob("upload-*"))


def test_writers_in_two_processes_never_share_a_sequencer(store: FolderStore, root: Path) -> None:
    script = """
for _ in range(200):
    print(store.put("data", "k", b"x").sequencer)
"""
    writers = [start(script, root) for _ in range(2)]
    printed = [writer.communicate(timeout=60)[0].split() for writer in writers]
    _end(writers)
    assert len(set(printed[0]) | set(printed[1])) == 400
    assert [sorted(own) for own in printed] == printed


@pytest.fixture
def uploading(store: FolderStore, root: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in the middle of an upload of the key `k`; a line on its input lets it finish."""
    store.put("data", "k", b"old")
    script = """
with store.writer("data", "k") as writer:
    writer.write(b"half" * 100_000)
    print("half way", flush=True)
    sys.stdin.readline()
"""
    process = start(script, root)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half way\n"
    yield process
    _end([process])


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


def test_a_killed_writer_leaves_no_visible_half_and_is_cleaned_up_after_a_day(
    store: FolderStore, root: Path, uploading: "subprocess.Popen[bytes]"
) -> None:
    uploading.send_signal(signal.SIGKILL)
    uploading.wait(30)

    assert store.get("data", "k") == b"old"
    assert listed(store) == ["k"]
    [left] = (root / ".tmp").glob("upload-*")
    FolderStore(root)
    assert left.exists()
    _make_older(left, DAY_S + 60)
    FolderStore(root)
    assert not left.exists()
    assert store.get("data", "k") == b"old"


def test_a_slow_upload_of_a_live_process_is_not_cleaned_up(
    store: FolderStore, root: Path, uploading: "subprocess.Popen[bytes]"
) -> None:
    [under_way] = (root / ".tmp").glob("upload-*")
    _make_older(under_way, 3 * DAY_S)
    FolderStore(root)
    uploading.communicate(b"\n", timeout=30)
    assert store.get("data", "k") == b"half" * 100_000


def _make_older(path: Path, seconds: float) -> None:
    before = path.stat().st_mtime - seconds
    os.utime(path, (before, before))


def test_a_writer_killed_at_any_moment_leaves_a_whole_object(store: FolderStore, root: Path) -> None:
    script = """
turn = 0
while True:
    turn += 1
    store.put("data", "k", b"%d " % (turn % 10) * 50_000)
    print(turn, flush=True)
"""
    for kill_after in (1, 2, 3, 5, 8):
        process = start(script, root)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        _end([process])
        body = store.get("data", "k")
        assert body == body[:2] * 50_000
        assert listed(store) == ["k"]


@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull),
        (errno.EROFS, ReadOnlyStorage), (errno.EACCES, ReadOnlyStorage),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_refusal_of_the_system_is_told_and_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, refusal: type[Exception], call: str
) -> None:
    store = FolderStore(root)
    store.make_bucket("data")
    store.put("data", "k", b"old")
    real = getattr(os, call)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if call == "open" and not (isinstance(arguments[1], int) and arguments[1] & os.O_CREAT):
            return real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(refusal, match="data/k"):
            store.put("data", "k", b"new")

    assert store.get("data", "k") == b"old"
    assert not list((root / ".tmp").glob("upload-*"))


def test_a_put_if_absent_does_without_hard_links(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store.put("data", "k", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        store.put("data", "k", b"2", if_none_match=True)
    assert store.get("data", "k") == b"1"


def test_a_listing_of_a_crowded_folder_needs_no_more_memory_than_its_window(
    store: FolderStore, root: Path
) -> None:
    names = [f"{number * 7919 % 3000:04d}" for number in range(3000)]
    for name in names:
        (root / "data" / name).touch()
    (root / "data" / "0500-folder").mkdir()
    (root / "data" / "0500-folder" / "x").touch()
    expected = sorted([*names, "0500-folder/x"])

    paged: list[str] = []
    while page := store.list("data", after=paged[-1] if paged else "", limit=700):
        paged += [info.key for info in page]
    assert paged == expected
    assert listed(store) == expected


def test_a_listing_that_is_dropped_half_way_leaves_no_file_open(store: FolderStore) -> None:
    for number in range(300):
        store.put("data", f"{number % 3}/{number}", b"")
    before = len(os.listdir("/dev/fd"))
    listings = [store.iterate("data") for _ in range(20)]
    assert [next(listing).key for listing in listings] == ["0/0"] * 20
    assert len(os.listdir("/dev/fd")) == before
