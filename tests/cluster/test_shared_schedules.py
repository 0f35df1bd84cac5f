"""Nodes on one PostgreSQL: a backfill's instants fire once and within its bound, of an overlap one decides,
and many schedules of one moment keep nobody waiting.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import Contended, Duplicate, Overlapping, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import CancelWaiting, Fired, Put, Write
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Backfill
from headrace.runtime.timetable.backfills import Backfills
from headrace.runtime.trigger import Timed, Trigger
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
            clock=SystemClock(),
            report=lambda message, details: None,
        )

    async def accept(
        self,
        spec: FunctionSpec,
        trigger: Trigger | Timed,
        events: Sequence[Mapping[str, Any]],
        writes: Sequence[Write],
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
        assert counted(second) == {Overlapping: 2}
        cause, fate = {
            "skip": ("skipped", ["skipped"]), "queue": ("waits", ["queued"]), "cancel": ("", []),
        }[overlap]  # fmt: skip
        if cause:
            left = await asyncio.gather(*(leave(runner, round * 100.0 + 2, cause) for runner in pair))
            assert sorted(left) == [False, True]
        later = await pair[0].store.fires(NAME, after=round * 100.0 + 1)
        assert [fire.cause for fire in later] == fate
        [id] = await waiting(pair[0].store)
        await pair[0].store.apply([CancelWaiting(id)], now=BEGIN)
        if overlap == "queue":
            queued = Fired(NAME, round * 100.0 + 2, 1, "queued", "queue")
            await pair[1].accept(SPEC, HOURLY, [{"time": 0}], [queued])
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
            fire_or_leave(one, due), one.store.apply([CancelWaiting(id)], now=BEGIN), fire_or_leave(two, due)
        )
        [state] = await one.store.schedules()
        if state.queued_at is not None:
            assert state.queued_at == due
            assert await waiting(one.store) == []
            await two.accept(SPEC, HOURLY, [{"time": due}], [Fired(NAME, due, 1, "queued", "queue")])
        [id] = await waiting(one.store)
        [fate] = await one.store.fires(NAME, after=due - 0.5)
        assert (fate.cause, fate.subject) == ("due", id)
        await one.store.apply([CancelWaiting(id)], now=BEGIN)


async def test_many_schedules_of_one_moment_fire_once_and_no_node_waits_for_another(
    pair: list[Runner], postgres_url: str
) -> None:
    """Whatever order each node comes to them in: locks that are waited for would deadlock."""
    chance = random.Random(3)
    names = [f"app.f/schedule/{number}" for number in range(100)]
    for name in names:
        await pair[0].store.schedule(name, definition=HOURLY.definition, now=0)

    for due in (1.0, 2.0, 3.0):
        orders = [chance.sample(names, len(names)) for _ in pair]
        async with asyncio.timeout(20):
            kinds = await asyncio.gather(
                *(
                    fire(runner, due, "allow", name=name)
                    for runner, order in zip(pair, orders, strict=True)
                    for name in order
                )
            )
        assert counted(kinds) == {Put: len(names), Duplicate: len(names)}
    with psycopg.connect(postgres_url) as db:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert db.execute(query).fetchone() == (0,)


async def fire(runner: Runner, due: float, overlap: str, *, name: str = NAME) -> type:
    """What became of an attempt to fire: Put, or the kind of the refusal."""
    while True:
        try:
            await runner.accept(SPEC, HOURLY, [{"time": due}], [Fired(name, due, 1, overlap=overlap)])
        except Contended:
            await asyncio.sleep(0.01)  # as the source does: another node's commit is waited for
        except (Duplicate, Overlapping) as error:
            return type(error)
        else:
            return Put


async def leave(runner: Runner, due: float, cause: str) -> bool:
    """Whether this node recorded that an instant does not fire now."""
    while True:
        [answer] = await runner.store.apply([Fired(NAME, due, 1, cause)], now=BEGIN)
        if not isinstance(answer.refused, Contended):
            return answer.refused is None


async def fire_or_leave(runner: Runner, due: float) -> None:
    if await fire(runner, due, "queue") is Overlapping:
        await leave(runner, due, "waits")


def counted(kinds: Sequence[type]) -> dict[type, int]:
    return {kind: kinds.count(kind) for kind in kinds}
