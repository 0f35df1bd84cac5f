"""The log segments: what was printed is found again, after rotation, after a crash, until it is too old."""

import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.errors import StorageFull
from headrace.runtime.store.logs import LogEntry, LogStore


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path / "logs", segment_bytes=2000)
    store.start()
    yield store
    store.stop()


def fill(logs: LogStore, count: int, *, first: int = 1, function: str = "app.f") -> None:
    for id in range(first, first + count):
        logs.append(id, 1, function, float(id), b"line %d\n" % id, 9, "ok")


def files(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "logs").glob(f"*{suffix}"))


def test_every_attempt_is_read_back_whole(logs: LogStore) -> None:
    logs.append(7, 1, "app.é", 5.5, b"\x00\xff first", 2_000_000, "error")
    fill(logs, 200, first=100)
    logs.append(7, 2, "app.é", 6.5, b"", 0, "ok")

    assert logs.read(7) == [
        LogEntry(invocation_id=7, attempt=1, function="app.é", at=5.5, output=b"\x00\xff first",
                 total_bytes=2_000_000, outcome="error"),
        LogEntry(invocation_id=7, attempt=2, function="app.é", at=6.5, output=b"",
                 total_bytes=0, outcome="ok"),
    ]  # fmt: skip
    assert logs.read(8) == []
    assert logs.health()["segments"] > 3


def test_only_the_segment_being_written_is_indexed_in_memory(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 300)
    indexed = [segment.pairs is not None for segment in logs._segments]
    assert indexed == [False] * (len(indexed) - 1) + [True]
    assert len(files(tmp_path, ".idx")) == len(indexed) - 1


def test_a_missing_or_damaged_index_is_made_again(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 300)
    first, second, *_ = files(tmp_path, ".idx")
    first.unlink()
    second.write_bytes(b"short")

    assert all(len(logs.read(id)) == 1 for id in range(1, 301))
    assert first.exists()


def test_a_torn_record_is_cut_off_and_the_rest_is_kept(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 5)
    logs.stop()
    [path] = files(tmp_path, ".log")
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, len(whole) - 12, -1):
        path.write_bytes(whole[:cut])
        again = LogStore(tmp_path / "logs")
        again.start()
        fill(again, 1, first=50)
        assert [len(again.read(id)) for id in (1, 4, 5, 50)] == [1, 1, 0, 1]
        again.stop()


def test_garbage_at_the_end_is_cut_off(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 3)
    logs.stop()
    [path] = files(tmp_path, ".log")
    with path.open("ab") as file:
        file.write(b"\x00" * 4096)
    again = LogStore(tmp_path / "logs")
    again.start()
    assert [entry.invocation_id for entry in again.tail()[0]] == [1, 2, 3]
    again.stop()


def test_a_restart_goes_on_where_it_was(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 100)
    logs.stop()
    logs.stop()
    again = LogStore(tmp_path / "logs", segment_bytes=2000)
    again.start()
    fill(again, 100, first=101)
    assert [entry.invocation_id for entry in again.tail(limit=1000)[0]] == list(range(1, 201))
    again.stop()


def test_following_misses_nothing_and_repeats_nothing(logs: LogStore) -> None:
    fill(logs, 50)
    newest, position = logs.tail(limit=3)
    seen: list[int] = []
    for round in range(10):
        fill(logs, 37, first=1000 + round * 37, function="app.g" if round % 2 else "app.f")
        while True:
            entries, position = logs.tail(after_position=position, limit=10)
            seen += [entry.invocation_id for entry in entries]
            if not entries:
                break

    assert [entry.invocation_id for entry in newest] == [48, 49, 50]
    assert seen == list(range(1000, 1370))


def test_following_one_function_moves_past_the_others(logs: LogStore) -> None:
    _, position = logs.tail()
    fill(logs, 100)
    fill(logs, 2, first=500, function="app.g")
    entries, position = logs.tail(function="app.g", after_position=position, limit=10)

    assert [entry.invocation_id for entry in entries] == [500, 501]
    assert logs.tail(after_position=position) == ([], position)
    assert [entry.invocation_id for entry in logs.tail(function="app.f", limit=2)[0]] == [99, 100]


def test_text_is_found_the_newest_first(logs: LogStore) -> None:
    fill(logs, 100)
    fill(logs, 10, first=200, function="app.g")
    assert [entry.invocation_id for entry in logs.search("line 9")] == [*range(99, 89, -1), 9]
    assert [entry.invocation_id for entry in logs.search("line 20", function="app.g", limit=2)] == [209, 208]
    assert logs.search("nothing") == []


def test_old_segments_go_whole(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 300)
    before = logs.health()
    removed = logs.expire(before=150.0, bytes_max=10**9)
    assert removed > 0
    assert logs.read(1) == []
    assert len(logs.read(150)) == 1
    assert logs.health()["segments"] == before["segments"] - removed
    assert len(files(tmp_path, ".log")) == logs.health()["segments"]


def test_the_oldest_segments_go_above_the_limit_in_bytes(logs: LogStore) -> None:
    fill(logs, 300)
    logs.expire(before=0.0, bytes_max=5000)
    assert logs.health()["bytes"] <= 5000
    assert len(logs.read(300)) == 1


def test_even_the_segment_being_written_goes_when_all_of_it_is_old(logs: LogStore) -> None:
    fill(logs, 3)
    logs.expire(before=1000.0, bytes_max=10**9)
    assert logs.tail() == ([], logs.tail()[1])
    fill(logs, 1, first=9)
    assert len(logs.read(9)) == 1


def test_a_full_disk_drops_output_and_goes_on(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 2)
    logs.flush()
    [path] = files(tmp_path, ".log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 40, hard))
    try:
        fill(logs, 3, first=10)
        with pytest.raises(StorageFull):
            logs.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    fill(logs, 1, first=20)

    assert logs.dropped == 3
    assert [entry.invocation_id for entry in logs.tail()[0]] == [1, 2, 20]


def test_many_threads_write_and_read_at_once(logs: LogStore) -> None:
    wrong: list[int] = []

    def work(thread: int) -> None:
        for id in range(thread * 1000, thread * 1000 + 150):
            logs.append(id, 1, "f", 1.0, b"x" * 30, 30, "ok")
            if len(logs.read(id)) != 1:
                wrong.append(id)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(logs.tail(limit=10_000)[0]) == 600


@given(st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=300), st.text(max_size=20)), max_size=40))
def test_whatever_is_appended_is_read(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int,
bytes, str]]) -> None:  # fmt: skip
    logs = LogStore(tmp_path_factory.mktemp("logs"), segment_bytes=500)
    logs.start()
    for id, output, function in entries:
        logs.append(id, 1, function, 1.0, output, len(output), "ok")
    for id in range(1, 10):
        expected = [(output, function) for known, output, function in entries if known == id]
        assert [(entry.output, entry.function) for entry in logs.read(id)] == expected
    logs.stop()
