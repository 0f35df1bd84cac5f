"""References into the object store, on a real store and real buckets."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_values import apply, put, request

from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.spec import JobSpec
from headrace.runtime.model.write import JobPut, Settle
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.store.offline import OfflineStore
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.store.survey import UNREFERENCED_S, Survey
from headrace.runtime.store.verify import Verifier
from headrace.runtime.testing import ManualClock

NOW = 1_800_000_000.0
SYSTEM = "headrace-system"


class Place:
    """A store and its buckets, with one invocation whose payload and result are objects, and a job."""

    def __init__(self, store: SqliteStore, objects: FolderStore) -> None:
        self.store, self.objects = store, objects
        self.ids = Ids(lambda: NOW, node=1)
        self.id, self.job = self.ids.next(), self.ids.next()
        self.payload, self.result = "payloads/p.json", f"results/{show_id(self.id)}/2.json"
        self.chunk = f"jobs/{show_id(self.job)}/chunks/000000.1-ab.json"

    async def fill(self) -> None:
        await self.store.join("n", until=NOW + 100, now=NOW)
        ref = f"s3://{SYSTEM}/"
        times = {"accepted_at": NOW, "due_at": NOW, "expires_at": NOW + 100}
        await put(self.store, request(self.id, payload=b"", payload_ref=ref + self.payload, **times), now=NOW)
        [claim] = await self.store.claim("n", flow="app.f", limit=1, now=NOW)
        spec = JobSpec(split={"kind": "lines"}, reduce="tree")
        await apply(
            self.store,
            Settle(claim, Status.SUCCEEDED, b"", ref + self.result, started_at=NOW),
            JobPut(self.job, "app.job", spec, {"items": []}, NOW),
            now=NOW,
        )
        for key in (self.payload, self.result, self.chunk):
            self.objects.put(SYSTEM, key, b"{}")

    def survey(self) -> Survey:
        return Survey(self.store, self.objects, in_thread=asyncio.to_thread)

    def later(self) -> float:
        """A moment at which all objects that are there are old."""
        newest = max(info.modified_at for info in self.objects.iterate(SYSTEM))
        return newest + UNREFERENCED_S + 1


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    objects = FolderStore(tmp_path / "buckets", fsync=False)
    objects.make_bucket(SYSTEM)
    store = SqliteStore(tmp_path / "headrace.db")
    await store.start()
    found = Place(store, objects)
    await found.fill()
    yield found
    await store.stop()


async def test_what_rows_name_is_there(place: Place) -> None:
    survey = place.survey()
    found = await survey.check(now=place.later())

    assert (found.checked, found.missing, found.gone, found.unreferenced) == (2, 0, 0, 0)
    assert survey.problems == []


async def test_an_object_that_is_gone_is_named_with_its_row(place: Place) -> None:
    place.objects.delete(SYSTEM, place.payload)
    survey = place.survey()
    found = await survey.check(now=NOW)

    [problem] = survey.problems
    assert (problem.check, problem.function, problem.id) == ("object", "app.f", show_id(place.id))
    assert f"s3://{SYSTEM}/{place.payload}: there is no such object" in problem.message
    assert found.missing == 1


async def test_an_output_that_its_owner_removed_is_no_problem(place: Place) -> None:
    times = {"accepted_at": NOW, "due_at": NOW, "expires_at": NOW + 100}
    await put(place.store, request(place.ids.next(), payload_ref="s3://mine/x", **times), now=NOW)
    survey = place.survey()
    found = await survey.check(now=NOW)

    assert (found.checked, found.missing, found.gone, survey.problems) == (3, 0, 1, [])


async def test_objects_without_a_row_are_listed_and_collected_a_day_later(place: Place) -> None:
    stray = [f"results/{show_id(place.id)}/1.json", "payloads/none.json", "jobs/00000000000000aa/x.json"]
    for key in stray:
        place.objects.put(SYSTEM, key, b"12345")
    place.objects.put(SYSTEM, "else/where", b"1")
    young, old = place.later() - 10, place.later()

    assert (await place.survey().check(now=young)).unreferenced == 0
    assert await place.survey().collect(now=young) == 0
    found = await place.survey().check(now=old)
    assert (found.unreferenced, found.unreferenced_bytes) == (3, 15)
    assert sorted(found.unreferenced_keys) == sorted(stray)

    assert await place.survey().collect(now=old) == 3
    kept = {info.key for info in place.objects.iterate(SYSTEM)}
    assert kept == {place.payload, place.result, place.chunk, "else/where"}
    assert await place.survey().collect(now=old) == 0


async def test_a_verdict_tells_of_books_rows_and_objects(place: Place) -> None:
    clock = ManualClock(NOW)
    verifier = Verifier(place.store, place.objects, clock=clock, in_thread=asyncio.to_thread)
    assert verifier.last is None
    first = await verifier.verify()
    assert (first.balanced, verifier.last) == (True, first)
    place.objects.delete(SYSTEM, place.result)

    assert (await verifier.verify(objects=False)).balanced
    assert (await verifier.verify(function="app.f")).objects is None
    verdict = await verifier.verify()
    assert (verdict.balanced, verdict.found, verifier.last) == (False, {"object": 1}, verdict)
    document = verdict.document()
    assert document["total"]["accepted"] == document["functions"]["app.f"]["accepted"] == 1
    assert document["problems"][0]["id"] == show_id(place.id)


async def test_the_data_of_a_killed_node_is_audited_and_not_changed(place: Place) -> None:
    times = {"accepted_at": NOW, "due_at": NOW, "expires_at": NOW + 100}
    await put(place.store, request(place.ids.next(), **times), now=NOW)
    path = place.store.path
    await place.store.stop()
    before = path.read_bytes()
    offline = OfflineStore(path)
    await offline.start()
    try:
        verifier = Verifier(offline, place.objects, clock=ManualClock(NOW), in_thread=asyncio.to_thread)
        verdict = await verifier.verify()
    finally:
        await offline.stop()

    assert (verdict.balanced, verdict.audit.checked_rows) == (True, 2)
    assert path.read_bytes() == before


async def test_a_store_that_stops_breaks_off_what_is_read(place: Place) -> None:
    reading = threading.Event()

    def forever(db: sqlite3.Connection) -> None:
        reading.set()
        db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")

    asked = asyncio.create_task(place.store._long.ask(forever))
    await asyncio.to_thread(reading.wait, 10)
    await place.store.stop()
    with pytest.raises(StoreUnavailable):
        await asked


async def test_a_caller_that_leaves_breaks_off_what_is_read(place: Place) -> None:
    reading, ended = threading.Event(), threading.Event()

    def forever(db: sqlite3.Connection) -> None:
        reading.set()
        try:
            db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
        finally:
            ended.set()

    asked = asyncio.create_task(place.store._long.ask(forever))
    await asyncio.to_thread(reading.wait, 10)
    asked.cancel()
    assert await asyncio.to_thread(ended.wait, 10)
    assert (await place.store.audit()).problems == []
