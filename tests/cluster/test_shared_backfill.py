"""Two nodes on one PostgreSQL: a backfill's instants fire once and within its bound, and of an overlap one
decides.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.runtime.errors import Duplicate, Overlapping, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import CancelWaiting, Fired, Put, Write
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Backfill
from headrace.runtime.testing import ManualClock
from headrace.runtime.timetable.backfills import Backfills
from headrace.triggers.schedule import Schedule

NAME = "app.f/schedule/0"
SPEC = FunctionSpec(name="app.f", module="app", file="app.py", line=1)
HOURLY = Schedule("0 * * * *")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
BOUND = 3
INSTANTS = 60


class Runner:
    """A node's store and its runner; what is accepted waits until the test ends it."""

    def __init__(self, store: PostgresStore, number: int) -> None:
        self.store = store
        self.number = number
        self.count = 0
        self.most = 0
        self.backfills = Backfills(
            store,
            declared=lambda: {NAME: (SPEC, HOURLY)},
            accept=self.accept,
            watch=lambda id, ended: None,
            new_id=lambda: "",
            clock=ManualClock(BEGIN),
            report=lambda message, details: None,
        )

    async def accept(
        self, spec: FunctionSpec, kind: str, events: Sequence[Mapping[str, Any]], writes: Sequence[Write]
    ) -> list[str]:
        self.count += 1
        id = self.number * 10_000 + self.count
        for write in writes:
            assert isinstance(write, Fired)
            write.subject = id
        payload = json.dumps(events[0]["time"]).encode()
        put = Put(Invocation(id, spec.name, spec.name, payload, 0.0, 0.0, 1e12))
        for answer in await self.store.apply([*writes, put], now=BEGIN):
            if answer.refused is not None:
                raise answer.refused
        return [show_id(id)]


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[list[Runner]]:
    async with AsyncExitStack() as stack:
        runners = []
        for number in (1, 2):
            store = PostgresStore(postgres_url)
            await store.start()
            stack.push_async_callback(store.stop)
            runners.append(Runner(store, number))
        yield runners


async def waiting(store: PostgresStore) -> list[int]:
    return [record.invocation.id for record in await store.find(status=Status.WAITING, limit=1000)]


def backfill(id: int = 1) -> Backfill:
    return Backfill(
        id=id, schedule=NAME, generation=1, from_at=BEGIN - 1, until_at=BEGIN + (INSTANTS - 1) * 3600,
        position=BEGIN - 1, concurrency=BOUND, again=False, instants=INSTANTS, created_at=BEGIN,
    )  # fmt: skip


async def test_two_runners_of_one_backfill_fire_each_instant_once_within_its_bound(
    pair: list[Runner],
) -> None:
    chance = random.Random(5)
    store = pair[0].store
    await store.schedule(NAME, definition=HOURLY.definition, now=0)
    await store.begin_backfill(backfill())
    most = 0
    async with asyncio.timeout(60):
        while await store.backfills(running=True):
            await asyncio.gather(*(runner.backfills.step() for runner in pair))
            found = await waiting(store)
            most = max(most, len(found))
            for id in chance.sample(found, chance.randint(0, len(found))):
                await store.apply([CancelWaiting(id)], now=BEGIN)
    [ended] = await store.backfills()
    records = await store.find(limit=1000)

    assert (ended.status, ended.fired, ended.present) == ("done", INSTANTS, 0)
    assert most == BOUND
    assert len({record.invocation.payload for record in records}) == len(records) == INSTANTS
    assert {record.invocation.id // 10_000 for record in records} == {1, 2}


async def test_of_two_nodes_that_begin_a_backfill_at_once_one_is_refused(pair: list[Runner]) -> None:
    await pair[0].store.schedule(NAME, definition=HOURLY.definition, now=0)
    answers = await asyncio.gather(
        *(runner.store.begin_backfill(backfill(runner.number)) for runner in pair), return_exceptions=True
    )

    assert sorted(map(type, answers), key=str) == sorted([WrongState, type(None)], key=str)


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
async def test_of_two_nodes_at_one_instant_one_decides_about_an_overlap(
    pair: list[Runner], overlap: str
) -> None:
    await pair[0].store.schedule(NAME, definition=HOURLY.definition, now=0)

    for round in range(10):
        first = await asyncio.gather(*(fire(runner, round * 100.0 + 1, overlap) for runner in pair))
        second = await asyncio.gather(*(fire(runner, round * 100.0 + 2, overlap) for runner in pair))
        assert counted(first) == {Put: 1, Duplicate: 1}
        # The second one to ask hears of the overlap, or that the first one has recorded it.
        assert counted(second) in ({Overlapping: 2}, {Overlapping: 1, Duplicate: 1})
        fate = {"skip": ["skipped"], "queue": ["queued"], "cancel": []}[overlap]
        later = await pair[0].store.fires(NAME, after=round * 100.0 + 1)
        assert [fire.cause for fire in later] == fate
        [id] = await waiting(pair[0].store)
        await pair[0].store.apply([CancelWaiting(id)], now=BEGIN)
        if overlap == "queue":
            queued = Fired(NAME, round * 100.0 + 2, 1, "queued", "queue")
            await pair[1].accept(SPEC, "schedule", [{"time": 0}], [queued])
            [id] = await waiting(pair[0].store)
            await pair[0].store.apply([CancelWaiting(id)], now=BEGIN)


async def test_an_instant_that_fires_while_another_node_is_refused_it_fires_once(
    pair: list[Runner],
) -> None:
    """The end of the earlier run comes between the two nodes' questions, in whatever order."""
    one, two = pair
    await one.store.schedule(NAME, definition=HOURLY.definition, now=0)
    due = 0.0
    for _ in range(60):
        due += 1
        await fire(one, due, "allow")
        [id] = await waiting(one.store)
        due += 1
        await asyncio.gather(
            fire(one, due, "queue"),
            one.store.apply([CancelWaiting(id)], now=BEGIN),
            fire(two, due, "queue"),
        )
        [state] = await one.store.schedules()
        if state.queued_at is not None:
            assert state.queued_at == due
            assert await waiting(one.store) == []
            await two.accept(SPEC, "schedule", [{"time": due}], [Fired(NAME, due, 1, "queued", "queue")])
        [id] = await waiting(one.store)
        [fate] = await one.store.fires(NAME, after=due - 0.5)
        assert (fate.cause, fate.subject) == ("due", id)
        await one.store.apply([CancelWaiting(id)], now=BEGIN)


async def fire(runner: Runner, due: float, overlap: str) -> type:
    """What became of an attempt to fire: Put, or the kind of the refusal."""
    try:
        await runner.accept(SPEC, "schedule", [{"time": due}], [Fired(NAME, due, 1, overlap=overlap)])
    except (Duplicate, Overlapping) as error:
        return type(error)
    return Put


def counted(kinds: Sequence[type]) -> dict[type, int]:
    return {kind: kinds.count(kind) for kind in kinds}
