"""What schedules rely on, of every store: overlaps, what waits, runs by hand, backfills."""

from typing import Any

import pytest
from store_values import apply, ok, put_claimed, put_job, refusal, request, statuses

from headrace.runtime.errors import Duplicate, Overlapping, WrongState
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import Fired, JobMoved, Put, Settle
from headrace.runtime.store import schedules
from headrace.runtime.store.protocol import Backfill, ScheduleState, Store

NAME = "app.f/schedule/0"


@pytest.fixture
async def state(store: Store) -> ScheduleState:
    return await store.schedule(NAME, definition="0 * * * *; UTC", now=0)


def fires(due: float, id: int | None = None, **fields: Any) -> list[Any]:
    """A list that fires the schedule for an instant, with an invocation of that id."""
    fired = Fired(NAME, due, 1, subject=id, **fields)
    return [fired] if id is None else [fired, Put(request(id))]


async def settle(store: Store, id: int) -> None:
    """An invocation has ended."""
    claims = await store.claim("node-1", flow="app.f", limit=100, now=1e6)
    for claim in claims:
        if claim.invocation.id == id:
            await apply(store, Settle(claim, Status.SUCCEEDED, b"1"), now=1e6)
    await store.release([claim for claim in claims if claim.invocation.id != id])


async def fates(store: Store) -> list[tuple[float, str, int | None]]:
    return [(fire.due_at, fire.cause, fire.subject) for fire in await store.fires(NAME)]


async def now_of(store: Store) -> ScheduleState:
    [state] = await store.schedules()
    return state


@pytest.mark.usefixtures("state")
async def test_an_instant_is_remembered_with_what_it_started(store: Store) -> None:
    await apply(store, *fires(10.0, 1), now=11.0)
    await apply(store, *fires(20.0, 2, cause="missed"), now=99.0)

    first, second = await store.fires(NAME)
    assert (first.due_at, first.fired_at, first.cause, first.subject) == (10.0, 11.0, "due", 1)
    assert (second.cause, second.fired_at) == ("missed", 99.0)
    assert [fire.due_at for fire in await store.fires(NAME, newest=True, limit=1)] == [20.0]
    assert [fire.due_at for fire in await store.fires(NAME, after=10.0, until=20.0)] == [20.0]
    assert await store.fires("another") == []


@pytest.mark.usefixtures("state")
async def test_an_overlap_is_refused_and_recorded_as_skipped(store: Store) -> None:
    await apply(store, *fires(10.0, 1, overlap="skip"))
    refused = await refusal(store, *fires(20.0, 2, overlap="skip"))

    assert isinstance(refused, Overlapping)
    assert refused.ids == (show_id(1),)
    assert await fates(store) == [(10.0, "due", 1)]
    await apply(store, Fired(NAME, 20.0, 1, "skipped"))
    assert await fates(store) == [(10.0, "due", 1), (20.0, "skipped", None)]
    assert await statuses(store, [2]) == [None]
    assert (await now_of(store)).last_due_at == 20.0
    assert isinstance(await refusal(store, *fires(20.0, 3, overlap="skip")), Duplicate)
    await settle(store, 1)
    await apply(store, *fires(30.0, 4, overlap="skip"))


@pytest.mark.usefixtures("state")
async def test_one_overlap_waits_and_fires_when_the_earlier_one_has_ended(store: Store) -> None:
    await apply(store, *fires(10.0, 1, overlap="queue"))
    for due, id in ((20.0, 2), (30.0, 3)):
        assert isinstance(await refusal(store, *fires(due, id, overlap="queue")), Overlapping)
        await apply(store, Fired(NAME, due, 1, "waits"))
        assert isinstance(await refusal(store, Fired(NAME, due, 1, "waits")), Duplicate)
    assert await fates(store) == [(10.0, "due", 1), (20.0, "queued", None), (30.0, "skipped", None)]
    assert (await now_of(store)).queued_at == 20.0

    queued: dict[str, Any] = {"cause": "queued", "overlap": "queue"}
    assert isinstance(await refusal(store, *fires(20.0, 4, **queued)), Overlapping)
    await settle(store, 1)
    # What comes while one waits goes behind it, though nothing runs any more.
    assert isinstance(await refusal(store, *fires(40.0, 5, overlap="queue")), Overlapping)
    await apply(store, Fired(NAME, 40.0, 1, "waits"))
    await apply(store, *fires(20.0, 6, **queued))
    assert isinstance(await refusal(store, *fires(20.0, 7, **queued)), Duplicate)
    assert (await now_of(store)).queued_at is None
    assert await fates(store) == [
        (10.0, "due", 1), (20.0, "due", 6), (30.0, "skipped", None), (40.0, "skipped", None),
    ]  # fmt: skip


@pytest.mark.usefixtures("state")
async def test_an_overlap_that_is_to_be_cancelled_leaves_nothing_until_it_has_ended(store: Store) -> None:
    await apply(store, *fires(10.0, 1, overlap="cancel"))
    refused = await refusal(store, *fires(20.0, 2, overlap="cancel"))
    assert isinstance(refused, Overlapping)
    assert await fates(store) == [(10.0, "due", 1)]
    await settle(store, 1)
    await apply(store, *fires(20.0, 2, overlap="cancel"))
    await apply(store, Fired(NAME, 30.0, 1, "skipped"))
    assert await fates(store) == [(10.0, "due", 1), (20.0, "due", 2), (30.0, "skipped", None)]


@pytest.mark.usefixtures("state")
async def test_what_waits_gives_way_to_one_that_cancels(store: Store) -> None:
    await apply(store, *fires(10.0, 1))
    await apply(store, Fired(NAME, 20.0, 1, "waits"))
    await settle(store, 1)
    await apply(store, *fires(30.0, 3, overlap="cancel"))

    assert (await now_of(store)).queued_at is None
    assert await fates(store) == [(10.0, "due", 1), (20.0, "skipped", None), (30.0, "due", 3)]


@pytest.mark.usefixtures("state")
async def test_a_job_that_has_not_ended_overlaps_too(store: Store) -> None:
    await put_job(store, 9)
    await apply(store, Fired(NAME, 10.0, 1, subject=9))
    assert isinstance(await refusal(store, *fires(20.0, 2, overlap="skip")), Overlapping)
    await apply(store, JobMoved(9, "failed", ("planning",), 5.0))
    await apply(store, *fires(30.0, 3, overlap="skip"))


@pytest.mark.usefixtures("state")
async def test_what_runs_by_hand_or_in_a_backfill_is_no_overlap(store: Store) -> None:
    await apply(store, *fires(5.0, 1, cause="run"))
    await apply(store, *fires(6.0, 2, cause="backfill"))
    await apply(store, *fires(10.0, 3, overlap="skip"))


@pytest.mark.usefixtures("state")
async def test_a_run_by_hand_is_refused_for_what_fired_and_moves_nothing(store: Store) -> None:
    await apply(store, *fires(10.0, 1))
    await apply(store, Fired(NAME, 20.0, 1, "skipped"))
    assert isinstance(await refusal(store, *fires(10.0, 3, cause="run")), Duplicate)
    await apply(store, *fires(10.0, 4, cause="run", again=True))
    await apply(store, *fires(20.0, 5, cause="run"))  # which was skipped
    await apply(store, *fires(500.0, 6, cause="run"))

    assert (await now_of(store)).last_due_at == 20.0
    assert isinstance(await refusal(store, *fires(500.0, 7)), Duplicate)
    assert await fates(store) == [(10.0, "run", 4), (20.0, "run", 5), (500.0, "run", 6)]


@pytest.mark.usefixtures("state")
async def test_a_run_by_hand_takes_the_turn_of_what_waits(store: Store) -> None:
    await apply(store, *fires(10.0, 1))
    await apply(store, Fired(NAME, 20.0, 1, "waits"))
    assert isinstance(await refusal(store, *fires(20.0, 3, cause="run")), Duplicate)
    await apply(store, *fires(20.0, 4, cause="run", again=True))

    assert (await now_of(store)).queued_at is None
    assert isinstance(await refusal(store, *fires(20.0, 5, cause="queued", overlap="queue")), Duplicate)


async def test_a_pause_ends_once_and_at_a_moment(store: Store, state: ScheduleState) -> None:
    await store.pause_schedule(NAME, paused=False, now=5.0)
    assert (await now_of(store)).resumed_at is None
    await store.pause_schedule(NAME, paused=True, now=6.0)
    await store.pause_schedule(NAME, paused=False, now=7.0)
    await store.pause_schedule(NAME, paused=False, now=8.0)
    assert (await now_of(store)).resumed_at == 7.0


# ---- backfills ----


def range_of(id: int = 100, **fields: Any) -> Backfill:
    given: dict[str, Any] = {
        "schedule": NAME, "generation": 1, "from_at": 0.0, "until_at": 100.0, "position": 0.0,
        "concurrency": 2, "again": False, "instants": 10, "created_at": 1.0,
    }  # fmt: skip
    return Backfill(id=id, **{**given, **fields})


@pytest.mark.usefixtures("state")
async def test_a_backfill_fires_up_to_its_bound_and_moves_on(store: Store) -> None:
    await store.begin_backfill(range_of())
    of: dict[str, Any] = {"cause": "backfill", "backfill": 100}
    await apply(store, *fires(10.0, 1, **of))
    await apply(store, *fires(30.0, 2, present=1, **of))
    refused = await refusal(store, *fires(40.0, 3, **of))
    assert isinstance(refused, Overlapping)
    assert set(refused.ids) == {show_id(1), show_id(2)}
    assert isinstance(await refusal(store, *fires(20.0, 3, **of)), Duplicate)  # it is further
    await settle(store, 1)
    await apply(store, *fires(40.0, 3, **of))

    found = await store.backfill(100)
    assert found is not None
    assert (found.position, found.fired, found.present, sorted(found.live)) == (40.0, 3, 1, [2, 3])
    assert [fire.backfill for fire in await store.fires(NAME)] == [100, 100, 100]


@pytest.mark.usefixtures("state")
async def test_a_backfill_ends_when_all_that_it_fired_has_ended(store: Store) -> None:
    await store.begin_backfill(range_of())
    await apply(store, *fires(10.0, 1, cause="backfill", backfill=100))
    await store.pass_backfill(100, position=50.0, present=4)
    await store.pass_backfill(100, position=20.0, present=1)  # another node, which was slower
    early = await store.end_backfill(100, status="done", now=5.0)
    await settle(store, 1)
    late = await store.end_backfill(100, status="done", now=6.0)
    again = await store.end_backfill(100, status="cancelled", now=7.0)

    assert early is not None
    assert late is not None
    assert (early.ended_at, early.live, early.present, early.position) == (None, [1], 4, 50.0)
    assert (late.status, late.ended_at, late.live) == ("done", 6.0, [])
    assert again == late
    assert await store.backfills(running=True) == []
    assert await store.end_backfill(7, status="done", now=5.0) is None


@pytest.mark.usefixtures("state")
async def test_a_cancelled_backfill_fires_no_more(store: Store) -> None:
    await store.begin_backfill(range_of())
    await apply(store, *fires(10.0, 1, cause="backfill", backfill=100))
    ended = await store.end_backfill(100, status="cancelled", note="why", now=5.0)

    assert ended is not None
    assert (ended.status, ended.note, ended.live) == ("cancelled", "why", [1])
    of: dict[str, Any] = {"cause": "backfill", "backfill": 100}
    assert isinstance(await refusal(store, *fires(20.0, 2, **of)), Duplicate)


@pytest.mark.usefixtures("state")
async def test_one_backfill_of_a_schedule_runs_at_a_time(store: Store) -> None:
    await store.begin_backfill(range_of(100))
    with pytest.raises(WrongState):
        await store.begin_backfill(range_of(101))
    await store.begin_backfill(range_of(102, schedule="another"))
    await store.end_backfill(100, status="cancelled", now=5.0)
    await store.begin_backfill(range_of(103))

    assert [each.id for each in await store.backfills()] == [103, 102, 100]
    assert [each.id for each in await store.backfills(schedule=NAME, running=True)] == [103]
    assert [each.id for each in await store.backfills(before=103, limit=1)] == [102]


@pytest.mark.usefixtures("state")
async def test_old_backfills_are_forgotten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "BACKFILLS_KEPT", 3)
    for id in range(100, 110):
        await store.begin_backfill(range_of(id))
        await store.end_backfill(id, status="cancelled", now=5.0)

    assert [each.id for each in await store.backfills()] == [109, 108, 107, 106]


@pytest.mark.usefixtures("state")
async def test_an_invocation_that_runs_is_alive_and_one_that_is_gone_is_not(store: Store) -> None:
    [claim] = await put_claimed(store, request(1))
    await apply(store, Fired(NAME, 10.0, 1, subject=1))
    assert isinstance(await refusal(store, Fired(NAME, 20.0, 1, overlap="skip")), Overlapping)
    await apply(store, ok(claim))
    await store.expire(succeeded_before=1e9, dead_before=1e9, keep=0, limit=100)
    assert await refusal(store, Fired(NAME, 30.0, 1, overlap="skip")) is None
