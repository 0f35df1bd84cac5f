"""Uploads: what appears in a real folder, watched by the real watcher, beside a real store."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from trigger_bench import DEADLINE_S, Engine

from headrace.runtime.errors import StorageFull, Throttled
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.testing import ManualClock
from headrace.triggers.upload import Upload
from headrace.triggers.upload import folder as folder_module
from headrace.triggers.upload.observer import ObserverWatch
from headrace.triggers.upload.source import UploadSource

Start = Callable[..., Awaitable[UploadSource]]


@pytest.fixture
def clock() -> ManualClock:
    """An hour ahead of the files, so that each of them has been quiet for long."""
    return ManualClock(time.time() + 3600)


@pytest.fixture
async def engine(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path, clock)
    await engine.store.start()
    yield engine
    await engine.store.stop()


@pytest.fixture
def inbox(tmp_path: Path, engine: Engine) -> Path:
    folder = tmp_path / "buckets" / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
async def start(engine: Engine) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(
            trigger: Upload | None = None, *, name: str = "app.on_upload/upload/0"
        ) -> UploadSource:
            source = (trigger or Upload("inbox")).source(engine.context(name))
            assert isinstance(source, UploadSource)
            stack.push_async_callback(source.stop)
            await source.start()
            return source

        yield start


def kernel_queue() -> int:
    """Notices that the kernel keeps for one watcher."""
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


async def sweep(source: UploadSource, clock: ManualClock) -> None:
    """Let the next sweep come, and end."""
    async with asyncio.timeout(DEADLINE_S):
        await source.swept.wait()
        source.swept.clear()
        await clock.advance(300)
        await source.swept.wait()


async def test_a_file_that_is_written_slowly_fires_once_and_whole(
    inbox: Path, engine: Engine, start: Start
) -> None:
    await start()
    with (inbox / "big.csv").open("wb") as file:
        for part in (b"a" * 10, b"b" * 20):
            file.write(part)
            file.flush()
            (inbox / f"mark-{file.tell()}").write_bytes(b"")
            await engine.wait_events(1 if len(part) == 10 else 2)
        assert engine.keys == ["mark-10", "mark-30"]
    await engine.wait_events(3)

    assert engine.keys[2:] == ["big.csv"]
    assert UploadEvent(engine.events[2]).size == 30


async def test_a_slow_writer_is_left_alone_by_sweeps(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    with (inbox / "big.csv").open("wb") as file:
        file.write(b"half")
        file.flush()
        source = await start(Upload("inbox", existing="run"))
        await sweep(source, clock)
        await sweep(source, clock)
        assert engine.events == []
        file.write(b"and half")
    await engine.wait_events(1)
    await sweep(source, clock)

    assert [UploadEvent(event).size for event in engine.events] == [12]


async def test_a_temporary_name_fires_when_it_is_renamed(inbox: Path, engine: Engine, start: Start) -> None:
    await start()
    for name in ("a.csv.part", ".a.csv.Xy12", "a.tmp", "a~"):
        (inbox / name).write_bytes(b"12345")
        os.rename(inbox / name, inbox / f"done-{len(name)}")
    await engine.wait_events(4)

    assert sorted(engine.keys) == ["done-10", "done-11", "done-2", "done-5"]


async def test_a_file_moved_in_from_elsewhere_fires(
    inbox: Path, engine: Engine, start: Start, tmp_path: Path
) -> None:
    await start()
    (tmp_path / "elsewhere").write_bytes(b"1")
    os.rename(tmp_path / "elsewhere", inbox / "moved")
    await engine.wait_events(1)

    assert engine.keys == ["moved"]


async def test_a_put_fires_with_the_shape_of_an_s3_event(inbox: Path, engine: Engine, start: Start) -> None:
    await start()
    info = await asyncio.to_thread(engine.objects.put, "inbox", "dir/a file.csv", b"1,2")
    await engine.wait_events(1)

    [record] = engine.events[0]["Records"]
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["eventTime"].endswith("Z")
    assert record["s3"]["bucket"]["name"] == "inbox"
    assert record["s3"]["object"] == {
        "key": "dir/a+file.csv",
        "size": 3,
        "eTag": info.etag,
        "sequencer": info.sequencer,
    }


async def test_an_overwritten_file_fires_again(inbox: Path, engine: Engine, start: Start) -> None:
    await start()
    (inbox / "a").write_bytes(b"1")
    await engine.wait_events(1)
    (inbox / "a").write_bytes(b"22")
    await engine.wait_events(2)
    await asyncio.to_thread(engine.objects.put, "inbox", "a", b"333")
    await engine.wait_events(3)

    assert [UploadEvent(event).size for event in engine.events] == [1, 2, 3]


async def test_an_empty_file_fires(inbox: Path, engine: Engine, start: Start) -> None:
    await start()
    (inbox / "empty").touch()
    await engine.wait_events(1)

    assert UploadEvent(engine.events[0]).size == 0


async def test_a_burst_fires_each_file_once(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    names = [f"{number:03}.csv" for number in range(300)]
    await asyncio.to_thread(lambda: [(inbox / name).write_bytes(name.encode()) for name in names])
    await engine.wait_events(300)
    await sweep(source, clock)

    assert sorted(engine.keys) == names


async def test_files_in_folders_made_at_once_fire(inbox: Path, engine: Engine, start: Start) -> None:
    await start()

    def make() -> None:
        for number in range(20):
            folder = inbox / f"{number}" / "deep" / "er"
            folder.mkdir(parents=True)
            (folder / "a.csv").write_bytes(b"1")
            (inbox / f"{number}" / "b.csv").write_bytes(b"2")

    await asyncio.to_thread(make)
    await engine.wait_events(40)

    assert sorted(engine.keys) == sorted(
        key for number in range(20) for key in (f"{number}/deep/er/a.csv", f"{number}/b.csv")
    )


async def test_a_folder_moved_in_with_its_files_fires_them(
    inbox: Path, engine: Engine, start: Start, tmp_path: Path
) -> None:
    await start()
    (tmp_path / "batch" / "x").mkdir(parents=True)
    (tmp_path / "batch" / "a").write_bytes(b"1")
    (tmp_path / "batch" / "x" / "b").write_bytes(b"2")
    os.rename(tmp_path / "batch", inbox / "batch")
    await engine.wait_events(2)
    (inbox / "batch" / "x" / "c").write_bytes(b"3")
    await engine.wait_events(3)

    assert sorted(engine.keys[:2]) + engine.keys[2:] == ["batch/a", "batch/x/b", "batch/x/c"]


async def test_a_half_file_in_a_renamed_folder_does_not_fire(
    inbox: Path, engine: Engine, start: Start
) -> None:
    await start()
    (inbox / ".incoming").mkdir()
    with (inbox / ".incoming" / "a").open("wb") as file:
        file.write(b"half")
        file.flush()
        os.rename(inbox / ".incoming", inbox / "incoming")
        (inbox / "incoming" / "mark").touch()
        await engine.wait_events(1)
        assert engine.keys == ["incoming/mark"]
        file.write(b"and half")
    await engine.wait_events(2)

    assert [UploadEvent(event).size for event in engine.events] == [0, 12]


async def test_a_restart_finds_what_arrived_meanwhile(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    for name in ("same", "changed"):
        (inbox / name).write_bytes(b"1")
    await engine.wait_events(2)
    await source.stop()
    (inbox / "changed").write_bytes(b"22")
    (inbox / "new").write_bytes(b"3")
    source = await start()
    await engine.wait_events(4)
    await sweep(source, clock)

    assert sorted(engine.keys[2:]) == ["changed", "new"]


async def test_a_file_that_just_arrived_is_looked_at_again_once_quiet(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    await source.stop()
    (inbox / "fresh").write_bytes(b"1")
    later = time.time() + 7200  # in the future even of the clock, as from another machine
    os.utime(inbox / "fresh", (later, later))
    source = await start()
    await source.swept.wait()
    assert engine.events == []
    async with asyncio.timeout(DEADLINE_S):
        while not engine.events:
            await clock.advance(1)
            await asyncio.to_thread(lambda: None)

    assert engine.keys == ["fresh"]


async def test_watch_and_sweeps_together_fire_once(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    for number in range(50):
        (inbox / f"{number}").write_bytes(b"1")
        if number % 10 == 0:
            await sweep(source, clock)
    await engine.wait_events(50)
    await sweep(source, clock)

    assert len(engine.keys) == len(set(engine.keys)) == 50


@pytest.mark.parametrize(
    "key",
    ["with space.csv", "grüße/日本 語.txt", "100%.txt", "my%20file.pdf", "a+b&c=d.csv", "😀", "dir//twice"],
)
async def test_keys_arrive_as_they_are(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock, key: str
) -> None:
    source = await start()
    await asyncio.to_thread(engine.objects.put, "inbox", key, b"1")
    await engine.wait_events(1)
    await sweep(source, clock)

    assert engine.keys == [key]
    assert [row.key for row in await engine.store.ledger("app.on_upload/upload/0", "inbox")] == [key]


async def test_only_what_passes_all_filters_fires(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    trigger = Upload("inbox", prefix="in/", suffix=".csv", glob="in/**/*.csv", min_size=2, max_size="1 KiB")
    source = await start(trigger)
    (inbox / "in" / "deep").mkdir(parents=True)
    sizes = {"in/a.csv": 2, "in/small.csv": 1, "in/large.csv": 1025, "in/b.txt": 5, "c.csv": 5}
    for name, size in {**sizes, "in/deep/d.csv": 9}.items():
        (inbox / name).write_bytes(b"x" * size)
    await engine.wait_events(2)
    await sweep(source, clock)

    assert sorted(engine.keys) == ["in/a.csv", "in/deep/d.csv"]


async def test_what_was_there_before_the_trigger_is_skipped_and_counted(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    for number in range(5):
        (inbox / f"{number}").write_bytes(b"1")
    source = await start()
    (inbox / "new").write_bytes(b"1")
    (inbox / "3").write_bytes(b"22")
    await engine.wait_events(2)
    await sweep(source, clock)

    assert sorted(engine.keys) == ["3", "new"]
    facts = await engine.wait_report("there before the trigger are skipped")
    assert facts["count"] == 5


async def test_what_was_there_before_the_trigger_runs_when_asked(
    inbox: Path, engine: Engine, start: Start
) -> None:
    for number in range(5):
        (inbox / f"{number}").write_bytes(b"1")
    await start(Upload("inbox", existing="run"))
    await engine.wait_events(5)

    assert sorted(engine.keys) == ["0", "1", "2", "3", "4"]


async def test_a_wider_filter_does_not_fire_old_objects_and_loses_no_new_ones(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(Upload("inbox", suffix=".csv"))
    (inbox / "old.txt").write_bytes(b"1")
    (inbox / "a.csv").write_bytes(b"1")
    await engine.wait_events(1)
    await source.stop()
    (inbox / "b.csv").write_bytes(b"1")
    source = await start(Upload("inbox"))
    await engine.wait_events(2)
    (inbox / "new.txt").write_bytes(b"1")
    await engine.wait_events(3)
    await sweep(source, clock)

    assert engine.keys == ["a.csv", "b.csv", "new.txt"]


@pytest.mark.parametrize("refusal", [Throttled("the queue of app.on_upload"), StorageFull("/data")])
async def test_uploads_that_cannot_be_accepted_are_held_back(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock, refusal: Throttled | StorageFull
) -> None:
    source = await start()
    engine.refuse.extend([refusal] * 150)
    for number in range(100):
        (inbox / f"{number}").write_bytes(b"1")
    await engine.wait_refused(1)
    async with asyncio.timeout(DEADLINE_S):
        while len(engine.events) < 100:
            await clock.advance(1)
            await asyncio.to_thread(lambda: None)
    await sweep(source, clock)

    assert len(engine.keys) == len(set(engine.keys)) == 100
    assert sum("held back" in message for message, _ in engine.reports) < 20


async def test_an_object_deleted_while_it_is_held_back_does_not_fire(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    await start()
    engine.refuse.append(Throttled("the queue"))
    (inbox / "gone").write_bytes(b"1")
    await engine.wait_refused(1)
    (inbox / "gone").unlink()
    (inbox / "stays").write_bytes(b"1")
    await engine.wait_events(1)
    await clock.advance(60)
    (inbox / "mark").write_bytes(b"1")
    await engine.wait_events(2)

    assert engine.keys == ["stays", "mark"]


async def test_a_deleted_object_that_comes_back_fires_again(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    (inbox / "a").write_bytes(b"1")
    await engine.wait_events(1)
    (inbox / "a").unlink()
    (inbox / "a").write_bytes(b"1")
    await engine.wait_events(2)
    (inbox / "a").unlink()
    await sweep(source, clock)
    assert await engine.store.ledger("app.on_upload/upload/0", "inbox") == []

    # Even one that is older than what had been there, since the sweep has forgotten that.
    (inbox.parent / "older").write_bytes(b"1")
    os.utime(inbox.parent / "older", (1_000_000_000, 1_000_000_000))
    os.rename(inbox.parent / "older", inbox / "a")
    await engine.wait_events(3)

    assert engine.keys == ["a", "a", "a"]


async def test_a_missing_bucket_is_made_and_said_so(engine: Engine, start: Start, tmp_path: Path) -> None:
    await start()
    assert (tmp_path / "buckets" / "inbox").is_dir()
    await engine.wait_report("has been made")
    (tmp_path / "buckets" / "inbox" / "a").write_bytes(b"1")
    await engine.wait_events(1)


async def test_a_bucket_that_was_replaced_is_watched_again(
    inbox: Path, engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start()
    os.rename(inbox, inbox.parent / "inbox-old")
    os.mkdir(inbox)
    (inbox / "a").write_bytes(b"1")
    await sweep(source, clock)
    await engine.wait_events(1)
    (inbox / "b").write_bytes(b"1")
    await engine.wait_events(2)

    assert engine.keys == ["a", "b"]


async def test_two_triggers_of_one_bucket_each_fire(inbox: Path, engine: Engine, start: Start) -> None:
    first = await start(name="one")
    await start(name="two")
    (inbox / "a").write_bytes(b"1")
    await engine.wait_events(2)
    await first.stop()
    (inbox / "b").write_bytes(b"1")
    await engine.wait_events(3)

    assert engine.keys == ["a", "a", "b"]


async def test_a_bucket_that_is_a_link_is_watched(engine: Engine, start: Start, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "buckets" / "inbox").symlink_to(tmp_path / "real")
    await start()
    (tmp_path / "real" / "a").write_bytes(b"1")
    await engine.wait_events(1)

    assert engine.keys == ["a"]


async def test_stopping_is_harmless_before_the_start_and_twice(inbox: Path, engine: Engine) -> None:
    source = Upload("inbox").source(engine.context())
    await source.stop()
    await source.start()
    await source.stop()
    await source.stop()
    (inbox / "a").write_bytes(b"1")

    assert engine.events == []


async def test_a_file_that_leaves_holds_nothing_up_and_does_not_fire(
    inbox: Path, engine: Engine, start: Start, tmp_path: Path
) -> None:
    await start()
    (inbox / "a").write_bytes(b"1")
    await engine.wait_events(1)
    os.rename(inbox / "a", tmp_path / "away")
    began = time.perf_counter()
    (inbox / "b").write_bytes(b"1")
    await engine.wait_events(2)

    assert time.perf_counter() - began < 0.4
    assert engine.keys == ["a", "b"]


async def test_a_folder_that_is_renamed_is_known_by_its_new_name(
    inbox: Path, engine: Engine, start: Start, tmp_path: Path, clock: ManualClock
) -> None:
    source = await start()
    (inbox / "old" / "deep").mkdir(parents=True)
    (inbox / "old" / "deep" / "a").write_bytes(b"1")
    await engine.wait_events(1)
    os.rename(inbox / "old", inbox / "new")
    await engine.wait_events(2)
    (inbox / "new" / "deep" / "b").write_bytes(b"1")
    await engine.wait_events(3)
    os.rename(inbox / "new", tmp_path / "gone")
    (tmp_path / "gone" / "deep" / "c").write_bytes(b"1")
    (inbox / "mark").write_bytes(b"1")
    await engine.wait_events(4)
    await sweep(source, clock)

    assert engine.keys == ["old/deep/a", "new/deep/a", "new/deep/b", "mark"]


async def test_what_an_overflow_of_the_kernels_queue_lost_is_found_at_once(
    inbox: Path, engine: Engine, start: Start
) -> None:
    source = await start(Upload("inbox", suffix=".csv"))
    async with asyncio.timeout(DEADLINE_S):
        await source.swept.wait()
    room = kernel_queue()
    if room > 50_000:
        pytest.skip(f"the kernel's queue holds {room:,} events, which takes too long to fill")
    noise = os.open(inbox / "noise", os.O_WRONLY | os.O_CREAT)
    os.close(noise)
    for _ in range(room // 2 + 10):  # the event loop is kept from reading meanwhile
        for name in ("noise", "other"):  # equal notices in a row would be one
            os.close(os.open(inbox / name, os.O_WRONLY | os.O_CREAT))
    (inbox / "folder").mkdir()
    (inbox / "lost.csv").write_bytes(b"1")
    await engine.wait_events(1)
    (inbox / "folder" / "later.csv").write_bytes(b"1")
    await engine.wait_events(2)

    assert engine.keys == ["lost.csv", "folder/later.csv"]


async def test_without_knowledge_of_closes_a_file_fires_once_it_has_been_quiet(
    inbox: Path, engine: Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "watch_folder", ObserverWatch)
    source = Upload("inbox").source(engine.context())
    await source.start()
    try:
        (inbox / "a").write_bytes(b"1")
        async with asyncio.timeout(DEADLINE_S):
            while not engine.events:
                await clock.advance(1)
                await asyncio.to_thread(lambda: None)
    finally:
        await source.stop()

    assert engine.keys == ["a"]
