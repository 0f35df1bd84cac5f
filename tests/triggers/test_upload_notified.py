"""Uploads of which an object store tells: doubled, late, out of order, or never. Beside a real store."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trigger_bench import DEADLINE_S, Engine

from headrace.runtime.api.notifications import Notifications
from headrace.runtime.errors import NoSuchBucket, NoSuchObject, StoreUnavailable, Throttled
from headrace.runtime.model.event import UploadEvent
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.testing import ManualClock
from headrace.runtime.trigger import Notification
from headrace.triggers.upload import Upload
from headrace.triggers.upload.notified import MARKED_S, NotifiedUploads

NAME = "app.on_upload/upload/0"
NOW = 1_800_000_000.0
REMOVED = ("ObjectCreated:*", "ObjectRemoved:*")


class Bucket:
    """What an S3 server shows of one bucket: a listing with times in milliseconds, which knows no order."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectInfo] = {}
        self.pages = 0
        self.heads = 0

    def put(self, key: str, content: str, *, at: float) -> ObjectInfo:
        """Store an object; what a notification of it says."""
        stored = ObjectInfo(
            "inbox", key, len(content), f"etag-{content}", round(at, 3), f"{int(at * 1e9):016x}", metadata={}
        )
        self.objects[key] = stored
        return stored

    def remove(self, key: str, *, at: float) -> ObjectInfo:
        self.objects.pop(key, None)
        return ObjectInfo("inbox", key, 0, "", round(at, 3), f"{int(at * 1e9):016x}")

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Any:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                shown = self.objects[key]
                yield ObjectInfo(
                    bucket,
                    key,
                    shown.size,
                    shown.etag,
                    shown.modified_at,
                    f"{int(shown.modified_at * 1e9):016x}",
                )

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        self.heads += 1
        if key not in self.objects:
            raise NoSuchObject(bucket, key)
        return self.objects[key]


def told(info: ObjectInfo, name: str = "ObjectCreated:Put") -> Notification:
    return Notification(info, name, "minio:s3")


class Bench:
    """One trigger on one bucket, and what tells of it."""

    def __init__(self, engine: Engine, bucket: Bucket, clock: ManualClock) -> None:
        self.engine, self.bucket, self.clock = engine, bucket, clock
        self.notifications = Notifications()
        self.notifications.is_open = True

    async def start(self, trigger: Upload | None = None, *, name: str = NAME) -> NotifiedUploads:
        context = self.engine.context(name)
        context.subscribe = self.notifications.subscribe
        source = NotifiedUploads(trigger or Upload("inbox"), context)
        await source.start()
        return source

    async def tell(self, *notes: Notification | ObjectInfo) -> None:
        await self.notifications.tell(
            [told(note) if isinstance(note, ObjectInfo) else note for note in notes]
        )

    async def sweep(self, source: NotifiedUploads) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await source.swept.wait()
            source.swept.clear()
            await self.clock.advance(300)
            await source.swept.wait()

    async def ledger(self) -> list[str]:
        """The keys that the ledger has as objects."""
        return [row.key for row in await self.engine.store.ledger(NAME, "inbox") if row.etag]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def bench(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Bench]:
    engine, bucket = Engine(tmp_path, clock), Bucket()
    engine.objects = bucket  # type: ignore[assignment]
    await engine.store.start()
    yield Bench(engine, bucket, clock)
    await engine.store.stop()


Start = Callable[..., Awaitable[NotifiedUploads]]


@pytest.fixture
async def start(bench: Bench) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(trigger: Upload | None = None, *, name: str = NAME) -> NotifiedUploads:
            source = await bench.start(trigger, name=name)
            stack.push_async_callback(source.stop)
            return source

        yield start


async def test_a_notification_is_durable_when_it_is_answered(bench: Bench, start: Start) -> None:
    await start()
    await bench.tell(bench.bucket.put("a b/ü.csv", "1", at=NOW))

    assert bench.engine.keys == ["a b/ü.csv"]
    assert await bench.ledger() == ["a b/ü.csv"]
    [record] = bench.engine.events[0]["Records"]
    assert record["s3"]["object"]["key"] == "a+b/%C3%BC.csv"
    assert record["eventSource"] == "minio:s3"
    assert bench.bucket.heads == 0


async def test_doubled_deliveries_fire_once_even_at_the_same_time(bench: Bench, start: Start) -> None:
    await start()
    note = told(bench.bucket.put("a", "1", at=NOW))
    await asyncio.gather(*(bench.tell(note) for _ in range(20)))
    await bench.tell(note, note)

    assert bench.engine.keys == ["a"]


async def test_what_a_node_before_has_recorded_is_dropped_after_a_restart(bench: Bench, start: Start) -> None:
    source = await start()
    note = told(bench.bucket.put("a", "1", at=NOW))
    await bench.tell(note)
    await source.stop()
    await start()
    await bench.tell(note)

    assert bench.engine.keys == ["a"]


async def test_an_older_upload_that_is_told_late_does_not_fire(bench: Bench, start: Start) -> None:
    await start()
    first = bench.bucket.put("a", "1", at=NOW)
    second = bench.bucket.put("a", "22", at=NOW + 0.5)
    await bench.tell(second)
    await bench.tell(first)

    assert [UploadEvent(event).size for event in bench.engine.events] == [2]


async def test_what_is_never_told_is_found_by_a_sweep_and_late_news_of_it_are_dropped(
    bench: Bench, start: Start
) -> None:
    source = await start()
    first = bench.bucket.put("a", "1", at=NOW)
    await bench.sweep(source)
    assert bench.engine.keys == ["a"]
    await bench.tell(first)
    second = bench.bucket.put("a", "22", at=NOW + 400)
    await bench.sweep(source)
    await bench.tell(second)
    await bench.tell(first)

    assert [UploadEvent(event).size for event in bench.engine.events] == [1, 2]


async def test_an_overwrite_in_the_same_millisecond_is_found_by_a_sweep(bench: Bench, start: Start) -> None:
    source = await start()
    await bench.tell(bench.bucket.put("a", "1", at=NOW + 0.0001))
    bench.bucket.put("a", "22", at=NOW + 0.0003)
    await bench.sweep(source)
    await bench.sweep(source)

    assert [UploadEvent(event).size for event in bench.engine.events] == [1, 2]


async def test_every_version_fires_whatever_their_order(bench: Bench, start: Start) -> None:
    source = await start()
    versions = [
        ObjectInfo("inbox", "a", 1, f"e{n}", NOW + n, f"{int((NOW + n) * 1e9):016x}", None, f"v{n}")
        for n in (3, 1, 2)
    ]
    for info in versions:
        await bench.tell(info)
        await bench.tell(info)
    bench.bucket.objects["a"] = versions[0]
    await bench.sweep(source)

    assert [event["Records"][0]["s3"]["object"]["versionId"] for event in bench.engine.events] == [
        "v3", "v1", "v2"
    ]  # fmt: skip


async def test_only_what_passes_the_filters_is_recorded(bench: Bench, start: Start) -> None:
    await start(Upload("inbox", suffix=".csv", min_size=2, events=["ObjectCreated:Put"]))
    await bench.tell(bench.bucket.put("a.txt", "22", at=NOW))
    await bench.tell(bench.bucket.put("a.csv", "1", at=NOW))
    await bench.tell(told(bench.bucket.put("b.csv", "22", at=NOW), "ObjectCreated:Copy"))
    await bench.tell(bench.bucket.put("c.csv", "22", at=NOW))
    await bench.tell(told(bench.bucket.remove("c.csv", at=NOW + 1), "ObjectRemoved:Delete"))

    assert bench.engine.keys == ["c.csv"]
    assert await bench.ledger() == ["c.csv"]


async def test_what_cannot_be_accepted_now_is_to_come_again(bench: Bench, start: Start) -> None:
    await start()
    note = told(bench.bucket.put("a", "1", at=NOW))
    for error in (Throttled("the queue"), StoreUnavailable("down")):
        bench.engine.refuse.append(error)
        with pytest.raises(type(error)):
            await bench.tell(note)
    await bench.tell(note)

    assert bench.engine.keys == ["a"]


async def test_what_can_never_be_accepted_is_reported_and_holds_nothing_up(
    bench: Bench, start: Start
) -> None:
    await start()
    bench.engine.refuse.append(NoSuchObject("inbox", "a"))
    await bench.tell(bench.bucket.put("a", "1", at=NOW), bench.bucket.put("b", "1", at=NOW))

    assert bench.engine.keys == ["b"]
    assert (await bench.engine.wait_report("was not accepted"))["key"] == "a"


async def test_existing_objects_are_skipped_and_late_news_of_them_dropped(bench: Bench, start: Start) -> None:
    old = bench.bucket.put("old", "1", at=NOW - 10)
    source = await start()
    await bench.tell(old)
    await bench.sweep(source)

    assert bench.engine.keys == []


async def test_news_of_an_object_that_is_no_upload_does_not_fire(bench: Bench, start: Start) -> None:
    await start()
    stored = bench.bucket.put("a", "1", at=NOW)
    await bench.tell(told(stored, "ObjectCreated:PutTagging"), told(stored, "ObjectAccessed:Get"))

    assert bench.engine.keys == []


async def test_what_is_in_a_bucket_that_is_made_after_the_start_fires(bench: Bench, start: Start) -> None:
    there = bench.bucket.iterate

    def missing(bucket: str, prefix: str = "", *, after: str = "") -> Any:
        raise NoSuchBucket(bucket)

    bench.bucket.iterate = missing  # type: ignore[method-assign]
    await start()
    await bench.engine.wait_report("does not exist yet")
    await bench.engine.wait_report("a sweep failed")
    for _ in range(3):
        await bench.clock.advance(30)
        await asyncio.to_thread(lambda: None)
    bench.bucket.iterate = there  # type: ignore[method-assign]
    bench.bucket.put("a", "1", at=NOW + 100)
    async with asyncio.timeout(DEADLINE_S):
        while not bench.engine.events:
            await bench.clock.advance(30)
            await asyncio.to_thread(lambda: None)

    assert bench.engine.keys == ["a"]
    assert sum("a sweep failed" in message for message, _ in bench.engine.reports) == 1


# ---- removals ----


async def test_a_removal_fires_once_however_often_it_is_told_and_swept(bench: Bench, start: Start) -> None:
    source = await start(Upload("inbox", events=REMOVED))
    await bench.tell(bench.bucket.put("a", "1", at=NOW))
    gone = told(bench.bucket.remove("a", at=NOW + 1), "ObjectRemoved:Delete")
    await bench.tell(gone)
    await bench.tell(gone)
    await bench.sweep(source)
    await bench.tell(gone)

    assert [event["Records"][0]["eventName"] for event in bench.engine.events] == [
        "ObjectCreated:Put", "ObjectRemoved:Delete"
    ]  # fmt: skip
    assert "size" not in bench.engine.events[1]["Records"][0]["s3"]["object"]


async def test_a_removal_that_is_never_told_is_found_by_a_sweep_and_late_news_of_it_are_dropped(
    bench: Bench, start: Start
) -> None:
    source = await start(Upload("inbox", events=REMOVED))
    await bench.tell(bench.bucket.put("a", "1", at=NOW))
    gone = told(bench.bucket.remove("a", at=NOW + 1), "ObjectRemoved:Delete")
    await bench.sweep(source)
    await bench.sweep(source)
    await bench.tell(gone)

    assert [event["Records"][0]["eventName"] for event in bench.engine.events] == [
        "ObjectCreated:Put", "ObjectRemoved:Delete"
    ]  # fmt: skip


async def test_a_trigger_of_removals_only_hears_of_nothing_else(bench: Bench, start: Start) -> None:
    source = await start(Upload("inbox", events="ObjectRemoved:*"))
    bench.bucket.put("a", "1", at=NOW)
    await bench.sweep(source)
    await bench.tell(bench.bucket.put("b", "1", at=NOW + 301))
    bench.bucket.remove("a", at=NOW + 302)
    await bench.sweep(source)
    await bench.tell(told(bench.bucket.remove("b", at=NOW + 601), "ObjectRemoved:DeleteMarkerCreated"))

    assert bench.engine.keys == ["a", "b"]


async def test_an_object_that_comes_again_after_its_removal_fires_again(bench: Bench, start: Start) -> None:
    source = await start(Upload("inbox", events=REMOVED))
    for at in (NOW, NOW + 1000):
        await bench.tell(bench.bucket.put("a", "1", at=at))
        await bench.tell(told(bench.bucket.remove("a", at=at + 1), "ObjectRemoved:Delete"))
    bench.bucket.put("a", "1", at=NOW + 2000)
    await bench.sweep(source)

    assert len(bench.engine.events) == 5


async def test_the_same_object_uploaded_again_after_a_removal_that_only_a_sweep_saw_fires_again(
    bench: Bench, start: Start
) -> None:
    source = await start()
    first = bench.bucket.put("a", "1", at=NOW)
    await bench.sweep(source)
    bench.bucket.remove("a", at=NOW + 1)
    await bench.sweep(source)
    assert await bench.ledger() == []
    await bench.tell(first)  # late news of what a sweep has fired, and another found gone
    bench.bucket.put("a", "1", at=NOW + 700)
    await bench.sweep(source)

    assert bench.engine.keys == ["a", "a"]


async def test_marks_of_what_has_gone_leave_the_ledger_in_the_end(
    bench: Bench, start: Start, clock: ManualClock
) -> None:
    source = await start()
    for number in range(20):
        await bench.tell(bench.bucket.put(f"{number}", "1", at=NOW))
    bench.bucket.objects.clear()
    await bench.sweep(source)
    assert len(await bench.engine.store.ledger(NAME, "inbox")) == 20
    await clock.advance(MARKED_S)
    await bench.sweep(source)

    assert await bench.engine.store.ledger(NAME, "inbox") == []


async def test_an_object_that_a_filter_passes_over_by_now_is_not_taken_for_removed(
    bench: Bench, start: Start
) -> None:
    source = await start(Upload("inbox", events=REMOVED, max_size=1))
    await bench.tell(bench.bucket.put("a.csv", "1", at=NOW))
    await bench.tell(bench.bucket.put("a.txt", "1", at=NOW))
    bench.bucket.put("a.csv", "22", at=NOW + 1)
    await bench.sweep(source)
    await source.stop()
    source = await start(Upload("inbox", events=REMOVED, suffix=".csv"))
    await bench.sweep(source)

    assert not [event for event in bench.engine.events if "Removed" in event["Records"][0]["eventName"]]


# ---- large buckets, several nodes ----


async def test_a_sweep_goes_on_where_a_node_before_stopped(bench: Bench, start: Start) -> None:
    keys = [f"{number:06}" for number in range(30_000)]
    for key in keys:
        bench.bucket.put(key, "1", at=NOW - 10)
    source = await start()  # records them all as old
    await source.swept.wait()
    await source.stop()
    for key in (keys[10], keys[25_000]):
        bench.bucket.put(key, "22", at=NOW + 10)

    listed = bench.bucket.iterate

    def breaks(bucket: str, prefix: str = "", *, after: str = "") -> Any:
        for info in listed(bucket, prefix, after=after):
            if info.key == keys[27_500]:
                raise StoreUnavailable("the listing broke")
            yield info

    bench.bucket.iterate = breaks  # type: ignore[method-assign]
    source = await start()
    await bench.engine.wait_report("a sweep failed")
    await source.stop()
    assert bench.engine.keys == [keys[10], keys[25_000]]
    begun: list[str] = []

    def watched(bucket: str, prefix: str = "", *, after: str = "") -> Any:
        begun.append(after)
        return listed(bucket, prefix, after=after)

    bench.bucket.iterate = watched  # type: ignore[method-assign]
    bench.bucket.put(keys[20], "333", at=NOW + 20)
    bench.bucket.put(keys[28_000], "333", at=NOW + 20)
    source = await start()
    async with asyncio.timeout(DEADLINE_S):
        await source.swept.wait()

    assert begun == [keys[19_999], ""]
    assert bench.engine.keys[2:] == [keys[28_000], keys[20]]


async def test_two_nodes_that_sweep_and_hear_the_same_fire_once(
    bench: Bench, start: Start, clock: ManualClock
) -> None:
    first, second = await start(), await start()
    notes = [told(bench.bucket.put(f"{number}", "1", at=NOW)) for number in range(200)]
    for note in notes[:100]:
        await bench.tell(note)
    await asyncio.gather(first.swept.wait(), second.swept.wait())
    for source in (first, second):
        source.swept.clear()
    await clock.advance(300)
    await asyncio.gather(first.swept.wait(), second.swept.wait())
    for note in notes:
        await bench.tell(note)

    assert sorted(bench.engine.keys, key=int) == [f"{number}" for number in range(200)]


# ---- any history ----

_steps = st.lists(
    st.tuples(
        st.sampled_from("put tell drop twice sweep restart remove".split()),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_steps, st.randoms(use_true_random=False))
async def test_what_exists_in_the_end_has_fired_exactly_once_whatever_happened(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], chance: random.Random
) -> None:
    clock, bucket = ManualClock(NOW), Bucket()
    engine = Engine(tmp_path_factory.mktemp("history"), clock)
    engine.objects = bucket  # type: ignore[assignment]
    await engine.store.start()
    bench = Bench(engine, bucket, clock)
    source = await bench.start()
    undelivered: list[Notification] = []
    uploads = 0
    try:
        for what, key, number in steps:
            if what == "put":
                uploads += 1
                undelivered.append(told(bucket.put(f"k{key}", f"content {uploads}", at=clock.now())))
                await clock.advance(0.0015)
            elif what == "remove":
                bucket.remove(f"k{key}", at=clock.now())
            elif what in ("tell", "twice", "drop") and undelivered:
                note = undelivered.pop(number % len(undelivered))
                if what != "drop":
                    await bench.tell(note)
                if what == "twice":
                    undelivered.append(note)
            elif what == "sweep":
                await bench.sweep(source)
            elif what == "restart":
                await source.stop()
                source = await bench.start()
        chance.shuffle(undelivered)
        for note in undelivered[: len(undelivered) // 2]:
            await bench.tell(note)
        await bench.sweep(source)
        for note in undelivered:
            await bench.tell(note)
        await bench.sweep(source)
    finally:
        await source.stop()
        await engine.store.stop()
    fired = [(UploadEvent(event).key, UploadEvent(event).etag) for event in engine.events]

    assert len(fired) == len(set(fired)), "an upload fired twice"
    assert {(info.key, info.etag) for info in bucket.objects.values()} <= set(fired)


# ---- loops ----


async def test_the_upload_after_the_last_that_is_allowed_is_buried_with_the_loop_named(
    bench: Bench, start: Start
) -> None:
    source = await start(Upload("inbox", max_hops=2))
    for hops in (1, 2, 3):
        stored = bench.bucket.put(f"told-{hops}", "1", at=NOW)
        trail = {"headrace-trail": f"{hops} app.first app.on_upload"}
        bench.bucket.objects[stored.key] = stored = msgspec.structs.replace(stored, metadata=trail)
        await bench.tell(stored)
        bench.bucket.objects[f"swept-{hops}"] = msgspec.structs.replace(stored, key=f"swept-{hops}")
    await bench.sweep(source)

    assert bench.engine.keys == ["told-1", "told-2", "swept-1", "swept-2"]
    assert bench.engine.events[1]["headrace"] == {"hops": 2, "functions": ("app.first", "app.on_upload")}
    assert [UploadEvent(event).key for event, _ in bench.engine.buried] == ["told-3", "swept-3"]
    error = bench.engine.buried[0][1]
    assert error["code"] == "upload_loop"
    assert "app.first > app.on_upload > app.on_upload" in error["message"]
    await bench.tell(stored)
    assert len(bench.engine.buried) == 2


@pytest.mark.parametrize("trail", ["", "x app.f", "3", "-1 app.f", "9999999999 app.f", "3  ", "½ app.f"])
async def test_metadata_that_is_no_trail_stops_nothing(bench: Bench, start: Start, trail: str) -> None:
    await start(Upload("inbox", max_hops=0))
    stored = bench.bucket.put("a", "1", at=NOW)
    await bench.tell(msgspec.structs.replace(stored, metadata={"headrace-trail": trail}))

    assert bench.engine.keys == (["a"] if trail != "3  " else [])


async def test_metadata_is_in_the_event_when_it_is_asked_for(bench: Bench, start: Start) -> None:
    await start(Upload("inbox", metadata=True, tags=True))
    given = {"origin": "shop 3", "headrace-trail": "1 app.f"}
    stored = msgspec.structs.replace(
        bench.bucket.put("a", "1", at=NOW), metadata=given, content_type="text/csv"
    )
    await bench.tell(stored)

    about = bench.engine.events[0]["Records"][0]["s3"]["object"]
    assert about["userMetadata"] == {"origin": "shop 3"}
    assert about["contentType"] == "text/csv"
    assert about["tags"] == {}
