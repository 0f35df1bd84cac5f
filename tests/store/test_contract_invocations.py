"""What the API relies on, of every store."""

from store_values import apply, balance, dead, ok, part, put, put_claimed, put_job, request, statuses

from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import FunctionPaused, JobMoved, JobPlanned, Settle
from headrace.runtime.store.protocol import Removed, Store


async def test_an_unknown_id_is_none(store: Store) -> None:
    assert await store.get(1) is None
    assert await store.find() == []
    assert await store.counters() == {}


async def test_invocations_are_found_newest_first_by_every_filter(store: Store) -> None:
    for id in range(1, 7):
        tags = "red,blue" if id > 3 else "blues"
        await put(store, request(id, function="app.g" if id % 2 else "app.f", tags=tags))
    [claim] = await store.claim("n", flow="app.f", limit=1, now=0)
    await apply(store, dead(claim))

    async def found(**filters: object) -> list[int]:
        return [record.invocation.id for record in await store.find(**filters)]  # type: ignore[arg-type]

    assert await found() == [6, 5, 4, 3, 2, 1]
    assert await found(limit=2, before=5) == [4, 3]
    assert await found(function="app.g") == [5, 3, 1]
    assert await found(status=Status.DEAD) == [2]
    assert await found(status=Status.WAITING, function="app.f") == [6, 4]
    assert await found(tag="blue") == [6, 5, 4]


async def test_the_books_name_the_oldest_that_waits(store: Store) -> None:
    await put(store, request(1, accepted_at=50.0), request(2, accepted_at=40.0, due_at=9.0, priority=3))
    await put_claimed(store, request(3, function="app.g", accepted_at=1.0))

    books = await store.counters()
    assert (books["app.f"].oldest_accepted_at, books["app.g"].accepted) == (40.0, 1)


async def test_those_that_ended_are_told_apart_many_at_once(store: Store) -> None:
    claims = await put_claimed(store, *[request(id, payload=b"%d" % id) for id in range(1, 1300)])
    await apply(
        store,
        *[
            ok(claim, b"" if claim.invocation.id == 7 else b"-%d" % claim.invocation.id)
            for claim in claims[3:]
        ],
    )
    await apply(store, dead(claims[0]))

    found = {record.invocation.id: record for record in await store.ended([*range(1, 1500), 3])}

    assert sorted(found) == [1, *range(4, 1300)]
    assert found[1].error == {"code": "function_error", "message": "no"}
    assert {found[id].result for id in (7,)} == {b""}
    assert all(found[id].result == b"-%d" % id for id in range(8, 1300))
    assert all(found[id].invocation.payload == b"%d" % id for id in range(4, 1300))
    assert found[1290] == await store.get(1290)


async def test_pausing_is_remembered(store: Store) -> None:
    await apply(store, FunctionPaused("a", True), FunctionPaused("b", True), FunctionPaused("a", True))
    await apply(store, FunctionPaused("b", False), FunctionPaused("c", False))
    assert await store.paused() == {"a"}


async def test_retention_removes_the_oldest_ended_first_and_keeps_the_books(store: Store) -> None:
    claims = await put_claimed(store, *[request(id) for id in range(1, 11)])
    for moment, claim in enumerate(claims[:8]):
        await apply(store, ok(claim), now=float(moment))
    await apply(store, dead(claims[8]), now=1.0)
    before = await store.counters()

    first = await store.expire(succeeded_before=3.0, dead_before=0.0, keep=100, limit=2)
    assert first.count == 2
    assert await statuses(store, [1, 2, 3]) == [None, None, Status.SUCCEEDED]
    await store.expire(succeeded_before=3.0, dead_before=0.0, keep=100, limit=100)
    assert await statuses(store, [3, 4, 9]) == [None, Status.SUCCEEDED, Status.DEAD]
    await store.expire(succeeded_before=0.0, dead_before=0.0, keep=2, limit=100)
    assert [r.invocation.id for r in await store.find()] == [10, 9, 8, 7]
    await store.expire(succeeded_before=0.0, dead_before=1.5, keep=2, limit=100)
    assert await statuses(store, [9, 10]) == [None, Status.WAITING]
    after = await store.counters()
    assert (after["app.f"].removed_succeeded, after["app.f"].removed_dead) == (6, 1)
    after["app.f"].removed_succeeded = after["app.f"].removed_dead = 0
    assert after == before
    balance(before)


async def test_retention_names_the_objects_of_the_system_bucket_that_nobody_needs(store: Store) -> None:
    [one, two] = await put_claimed(
        store,
        request(1, payload=b"", payload_ref="s3://headrace-system/p/1"),
        request(2, payload_ref="s3://mine/x"),
    )
    await apply(store, Settle(one, Status.SUCCEEDED, b"", "s3://headrace-system/r/1"), ok(two), now=1)

    removed = await store.expire(succeeded_before=2.0, dead_before=0.0, keep=100, limit=10)
    assert removed.count == 2
    assert sorted(removed.refs) == ["s3://headrace-system/p/1", "s3://headrace-system/r/1"]
    again = await store.expire(succeeded_before=2.0, dead_before=0.0, keep=100, limit=10)
    assert again == Removed(0, [])


async def test_a_jobs_invocations_stay_until_the_job_goes(store: Store) -> None:
    await put_job(store)
    await apply(store, JobPlanned(9, 0, [part(id, 9, id) for id in range(5)], 1, {}, 1))
    claims = await store.claim("n", flow="job:9", limit=9, now=0)
    await apply(store, *[ok(claim) for claim in claims], now=1)
    await store.expire(succeeded_before=50.0, dead_before=50.0, keep=0, limit=100)
    assert await statuses(store, range(5)) == [Status.SUCCEEDED] * 5

    await apply(store, JobMoved(9, "succeeded", ("running",), 10.0))
    await store.expire(succeeded_before=50.0, dead_before=50.0, keep=0, limit=3)
    assert await store.job(9) is not None
    await store.expire(succeeded_before=50.0, dead_before=50.0, keep=0, limit=3)
    assert await store.job(9) is None
    assert await store.find() == []
    assert (await store.counters())["app.f"].succeeded == 5


async def test_what_goes_first_is_counted_as_it_is_claimed_and_up_to_a_limit(store: Store) -> None:
    asked = request(50, priority=1, due_at=10.0)
    await put(
        store, asked,
        *[request(id, priority=2, due_at=5.0) for id in range(1, 5)],  # before it by priority
        request(5, priority=2, due_at=99.0),  # not due yet
        *[request(id, priority=1, due_at=10.0) for id in (6, 49, 51)],  # beside it: two by id
        request(7, priority=1, due_at=9.0),
        request(8, priority=0, due_at=0.0),
        request(9, function="app.g", priority=9),
        now=20.0,
    )  # fmt: skip

    assert await store.ahead(asked, now=20.0, limit=100) == 7
    assert await store.ahead(asked, now=20.0, limit=6) == 6
    assert await store.ahead(asked, now=20.0, limit=3) == 3
    [*claims] = await store.claim("n", flow="app.f", limit=7, now=20.0)
    assert asked.id not in [claim.invocation.id for claim in claims]
    assert [claim.invocation.id for claim in await store.claim("n", flow="app.f", limit=1, now=20.0)] == [50]
