"""Sets of uploads in a real folder, watched by the real watcher, beside a real store."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from trigger_bench import DEADLINE_S, Engine

from headrace import Count, Manifest, Marker, Quiet, UploadSet, UploadSetEvent
from headrace.runtime.errors import NoSuchObject, StorageFull
from headrace.runtime.testing import ManualClock
from headrace.triggers.uploadset import event as event_module
from headrace.triggers.uploadset import source as source_module
from headrace.triggers.uploadset.source import SetSource

Start = Callable[..., Awaitable[SetSource]]
NAME = "app.on_upload/uploadset/0"


@pytest.fixture
def clock() -> ManualClock:
    """An hour ahead of the files, so that each of them has been quiet for long."""
    return ManualClock(time.time() + 3600)


@pytest.fixture
async def engine(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path, clock)
    engine.objects.make_bucket("inbox")
    engine.objects.make_bucket("headrace-system")
    await engine.store.start()
    yield engine
    await engine.store.stop()


@pytest.fixture
async def start(engine: Engine) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(trigger: UploadSet, *, sweep_s: float = 300.0) -> SetSource:
            source = trigger.source(engine.context(NAME, sweep_s))
            assert isinstance(source, SetSource)
            stack.push_async_callback(source.stop)
            await source.start()
            return source

        yield start


def put(engine: Engine, *keys: str, data: bytes = b"1") -> None:
    for key in keys:
        engine.objects.put("inbox", key, data)


def days(complete: Any, **more: Any) -> UploadSet:
    return UploadSet("inbox", pattern="{day}/*.csv", complete=complete, **more)


def keys(event: dict[str, Any]) -> list[str]:
    return [file["key"] for file in UploadSetEvent(event).files()]


async def scan(source: SetSource, clock: ManualClock) -> None:
    """Let the next scan come, and end, with all that it wanted looked at."""
    async with asyncio.timeout(DEADLINE_S):
        await source.scanned.wait()
        source.scanned.clear()
        await clock.advance(300)
        await source.scanned.wait()
    await idle(source)


async def idle(source: SetSource) -> None:
    """Wait until nothing is being looked at."""
    async with asyncio.timeout(DEADLINE_S):
        await source.scanned.wait()
        while not source.is_idle:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)


async def test_a_set_fires_once_when_its_count_is_reached(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Count(3)))
    put(engine, "d1/a.csv", "d2/a.csv", "d1/b.csv", "d1/note.txt")
    await idle(source)
    assert engine.events == []
    put(engine, "d1/c.csv", data=b"123")
    await engine.wait_events(1)
    await scan(source, clock)
    await scan(source, clock)

    [event] = [UploadSetEvent(event) for event in engine.events]
    assert (event.bucket, event.set, event.by, event.count, event.size) == (
        "inbox",
        "d1",
        {"day": "d1"},
        3,
        5,
    )
    assert (event.complete, event.late, event.reason) == (True, False, "3 of 3 files")
    assert event["detail-type"] == UploadSetEvent.COMPLETE
    assert event["resources"] == [NAME]
    info = engine.objects.head("inbox", "d1/c.csv")
    assert event.files()[2] == {"bucket": "inbox", "key": "d1/c.csv", "etag": info.etag, "size": 3}


async def test_a_marker_completes_its_set(engine: Engine, start: Start) -> None:
    await start(days(Marker("_SUCCESS")))
    put(engine, "d1/a.csv", "d1/b.csv", "d2/a.csv", "d1/_SUCCESS")
    await engine.wait_events(1)

    assert keys(engine.events[0]) == ["d1/a.csv", "d1/b.csv"]


async def test_a_marker_alone_completes_an_empty_set(engine: Engine, start: Start) -> None:
    await start(days(Marker("done/{day}")))
    put(engine, "done/d1")
    await engine.wait_events(1)

    assert UploadSetEvent(engine.events[0]).files() == []


async def test_a_manifest_waits_for_the_files_that_it_names(engine: Engine, start: Start) -> None:
    source = await start(days(Manifest("manifest.json"), timeout="1 hour", incomplete="fire"))
    put(engine, "d1/a.csv", "d1/other.csv")
    put(engine, "d1/manifest.json", data=json.dumps(["a.csv", "b.csv"]).encode())
    await idle(source)
    assert engine.events == []
    put(engine, "d1/b.csv")
    await engine.wait_events(1)

    assert keys(engine.events[0]) == ["d1/a.csv", "d1/b.csv"]


async def test_a_manifest_that_cannot_be_read_holds_its_set_until_it_is_replaced(
    engine: Engine, start: Start
) -> None:
    source = await start(days(Manifest("manifest.json")))
    put(engine, "d1/a.csv")
    put(engine, "d1/manifest.json", data=b"{half")
    assert "not JSON" in str((await engine.wait_report("a manifest cannot be used"))["why"])
    await idle(source)
    assert engine.events == []
    put(engine, "d1/manifest.json", data=b"[]")
    await engine.wait_events(1)

    assert keys(engine.events[0]) == []


async def test_a_quiet_period_begins_anew_with_each_file(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Quiet("10 minutes")), sweep_s=3600)
    put(engine, "d1/a.csv")
    await wait_remembered(engine, 1)
    await idle(source)
    await clock.advance(599)
    await idle(source)
    put(engine, "d1/b.csv")
    await wait_remembered(engine, 2)
    await idle(source)
    await clock.advance(599)
    await idle(source)
    assert engine.events == []
    await clock.advance(2)
    await engine.wait_events(1)

    assert keys(engine.events[0]) == ["d1/a.csv", "d1/b.csv"]


async def wait_remembered(engine: Engine, files: int, name: str = "d1") -> None:
    """Wait until what is remembered of a set has so many files."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            row = await engine.store.ledger_entry(f"{NAME}/sets", "inbox", name)
            if row is not None and row.size == files:
                return
            await asyncio.sleep(0.005)


async def test_a_quiet_period_goes_on_over_a_restart(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Quiet("10 minutes")), sweep_s=3600)
    put(engine, "d1/a.csv")
    await wait_remembered(engine, 1)
    await source.stop()
    await clock.advance(400)
    again = await start(days(Quiet("10 minutes")), sweep_s=3600)
    await idle(again)
    assert engine.events == []
    await clock.advance(201)
    await engine.wait_events(1)


async def test_an_incomplete_set_becomes_a_dead_letter_when_its_time_is_up(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Count(3), timeout="1 hour"), sweep_s=3600)
    put(engine, "d1/a.csv")
    await wait_remembered(engine, 1)
    await clock.advance(1800)
    put(engine, "d1/b.csv")
    await wait_remembered(engine, 2)
    await clock.advance(1799)
    await idle(source)
    assert engine.buried == []
    await clock.advance(2)
    await engine.wait_buried(1)
    await clock.advance(3600)
    await idle(source)

    [(event, error)] = engine.buried
    assert error["code"] == "set_incomplete"
    assert "2 of 3 files" in error["message"]
    assert (event["detail"]["complete"], event["detail"]["missing-count"], keys(event)) == (
        False, 1, ["d1/a.csv", "d1/b.csv"],
    )  # fmt: skip
    assert engine.events == []


async def test_an_incomplete_set_fires_when_that_is_asked_for(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    await start(days(Marker("_SUCCESS"), timeout=60, incomplete="fire"))
    put(engine, "d1/a.csv")
    await wait_remembered(engine, 1)
    await clock.advance(61)
    await engine.wait_events(1)

    event = UploadSetEvent(engine.events[0])
    assert (event.complete, event["detail-type"]) == (False, UploadSetEvent.INCOMPLETE)
    assert event["detail"]["missing"] == ["d1/_SUCCESS"]


async def test_late_files_are_ignored_unless_something_else_is_said(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Count(1)))
    put(engine, "d1/a.csv")
    await engine.wait_events(1)
    put(engine, "d1/late.csv")
    await wait_remembered(engine, 2)
    await scan(source, clock)

    assert len(engine.events) == 1


@pytest.mark.parametrize(
    ("late", "found"),
    [("fire", ["d1/b.csv", "d1/late.csv"]), ("again", ["d1/a.csv", "d1/b.csv", "d1/late.csv"])],
)
async def test_late_files_fire_together(
    engine: Engine, start: Start, clock: ManualClock, late: str, found: list[str]
) -> None:
    source = await start(days(Count(2), late=late))
    put(engine, "d1/a.csv", "d1/b.csv")
    await engine.wait_events(1)
    put(engine, "d1/late.csv")
    put(engine, "d1/b.csv", data=b"replaced")
    await wait_remembered(engine, 3)
    await idle(source)
    await clock.advance(3)
    await engine.wait_events(2)
    await scan(source, clock)
    await scan(source, clock)

    assert len(engine.events) == 2
    event = UploadSetEvent(engine.events[1])
    assert keys(event) == found
    assert (event.late, event.set, event["detail"]["number"]) == (late == "fire", "d1", 2)


async def test_late_files_may_become_dead_letters(engine: Engine, start: Start, clock: ManualClock) -> None:
    source = await start(days(Count(1), late="dead"))
    put(engine, "d1/a.csv")
    await engine.wait_events(1)
    put(engine, "d1/late.csv")
    await wait_remembered(engine, 2)
    await idle(source)
    await clock.advance(3)
    await engine.wait_buried(1)

    assert engine.buried[0][1]["code"] == "late_files"
    assert keys(engine.buried[0][0]) == ["d1/late.csv"]


async def test_a_function_that_removes_what_it_has_read_is_not_called_again(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    source = await start(days(Count(1) | Marker("_SUCCESS"), late="again"))
    put(engine, "d1/a.csv", "d1/_SUCCESS")
    await engine.wait_events(1)
    await idle(source)
    engine.objects.delete("inbox", "d1/a.csv")
    await scan(source, clock)
    await scan(source, clock)
    assert len(engine.events) == 1

    engine.objects.delete("inbox", "d1/_SUCCESS")
    async with asyncio.timeout(DEADLINE_S):
        while (row := await engine.store.ledger_entry(f"{NAME}/sets", "inbox", "d1")) is not None:
            if '"seen":""' in row.etag:
                break
            await scan(source, clock)
    put(engine, "d1/a.csv")
    await engine.wait_events(2)

    assert UploadSetEvent(engine.events[1])["detail"]["number"] == 1


async def test_sets_from_before_the_trigger_are_passed_over(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    put(engine, "d1/a.csv", "d1/b.csv", "d2/a.csv")
    source = await start(days(Count(2)))
    await idle(source)
    assert engine.events == []
    assert (await engine.wait_report("are skipped"))["count"] == 1
    put(engine, "d2/b.csv")
    await engine.wait_events(1)
    await scan(source, clock)

    assert [UploadSetEvent(event).set for event in engine.events] == ["d2"]


@pytest.mark.parametrize(
    ("pattern", "complete", "keys"),
    [
        ("{day}-*.csv", Count(2), ["d1-a.csv", "d1-b.csv", "d2-a.csv"]),
        ("{day}/*.csv", Marker("done/{day}"), ["d1/a.csv", "d2/a.csv", "done/d1"]),
        ("{day}/*.csv", Marker("_SUCCESS"), ["d1/_SUCCESS", "d1/a.csv", "d2/a.csv"]),
        ("*/{day}.csv", Count(2), ["x/d1.csv", "x/d2.csv", "y/d1.csv"]),
    ],
)
async def test_wherever_the_files_of_a_set_lie_it_is_passed_over_once(
    engine: Engine,
    start: Start,
    pattern: str,
    complete: Any,
    keys: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(engine, *keys)
    trigger = UploadSet("inbox", pattern=pattern, complete=complete)
    source = await start(trigger)
    await idle(source)
    assert (await engine.wait_report("are skipped"))["count"] == 1
    await source.stop()
    engine.reports.clear()
    other = UploadSet("inbox", pattern=pattern, complete=complete, late="fire")
    monkeypatch.setattr(UploadSet, "definition", "another one")
    await idle(await start(other))

    assert engine.events == []
    assert not [message for message, _ in engine.reports if "are skipped" in message]


async def test_sets_from_before_the_trigger_run_when_that_is_asked_for(engine: Engine, start: Start) -> None:
    put(engine, "d1/a.csv", "d1/b.csv", "d2/a.csv")
    await start(days(Count(2), existing="run"))
    await engine.wait_events(1)

    assert UploadSetEvent(engine.events[0]).set == "d1"


async def test_what_came_while_no_node_ran_is_found_at_the_start(engine: Engine, start: Start) -> None:
    source = await start(days(Count(2)))
    put(engine, "d1/a.csv")
    await idle(source)
    await source.stop()
    put(engine, "d1/b.csv", "d3/a.csv", "d3/b.csv")
    await start(days(Count(2)))
    await engine.wait_events(2)

    assert sorted(UploadSetEvent(event).set for event in engine.events) == ["d1", "d3"]


async def test_a_file_that_is_still_written_holds_its_set(
    engine: Engine, start: Start, tmp_path: Path, clock: ManualClock
) -> None:
    source = await start(days(Marker("_SUCCESS")))
    folder = tmp_path / "buckets" / "inbox" / "d1"
    folder.mkdir()
    with (folder / "a.csv").open("wb") as file:
        file.write(b"half")
        file.flush()
        put(engine, "d1/_SUCCESS")
        await scan(source, clock)
        assert engine.events == []
        file.write(b" and half")
    await engine.wait_events(1)

    assert UploadSetEvent(engine.events[0]).files()[0]["size"] == 13


async def test_a_set_that_cannot_be_accepted_is_offered_again(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    engine.refuse.append(StorageFull("the disk"))
    await start(days(Count(1)))
    put(engine, "d1/a.csv")
    await engine.wait_refused(1)
    await engine.wait_report("held back")
    for _ in range(20):
        await clock.advance(1)
        if engine.events:
            break
        await asyncio.sleep(0.01)
    await engine.wait_events(1)


async def test_two_sources_on_one_store_fire_each_set_once(
    engine: Engine, start: Start, clock: ManualClock
) -> None:
    sources = [await start(days(Count(4))) for _ in range(2)]
    for file in "abcd":
        put(engine, *(f"d{day}/{file}.csv" for day in range(10)))
    await engine.wait_events(10)
    for source in sources:
        await idle(source)
    await scan(sources[0], clock)

    assert sorted(UploadSetEvent(event).set for event in engine.events) == [f"d{day}" for day in range(10)]


async def test_the_list_of_a_large_set_is_an_object(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr(event_module, "EVENT_FILES_MAX", 5)
    trigger = days(Marker("_SUCCESS"), late="fire")
    source = await start(trigger)
    put(engine, *(f"d1/{n:03}.csv" for n in range(40)), "d1/_SUCCESS")
    await engine.wait_events(1)

    event = UploadSetEvent(engine.events[0])
    assert event.list_url is not None
    assert (event.count, len(event["detail"]["files"])) == (40, 5)
    with pytest.raises(ValueError, match="files only"):
        event.files()
    assert [file["key"] for file in event.files(engine.objects)] == [f"d1/{n:03}.csv" for n in range(40)]
    assert trigger.job_input(event) == {"objects": event.list_url}

    await idle(source)
    system = [info.key for info in engine.objects.list("headrace-system")]
    assert len(system) == 2
    await clock.advance(31 * 86_400)
    await scan(source, clock)
    left = [info.key for info in engine.objects.list("headrace-system")]
    assert [key.rpartition("-")[2] for key in left] == ["known.json"]
    with pytest.raises(NoSuchObject):
        event.files(engine.objects)


async def test_a_scan_takes_many_sets_in_parts(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr(source_module, "SCAN_SETS_MAX", 5)
    monkeypatch.setattr(source_module, "WANTED_MAX", 4)
    put(engine, *(f"d{day:02}/a.csv" for day in range(30)))
    source = await start(days(Count(1), existing="run"))
    await engine.wait_events(30)
    await scan(source, clock)

    assert len({UploadSetEvent(event).set for event in engine.events}) == len(engine.events) == 30
