"""What the job coordinator relies on, of every store."""

import json

import pytest
from store_values import apply, balance, dead, ok, part, put_job, refusal, request, statuses

from headrace.runtime.errors import Duplicate, LeaseLost, UnknownJob, WrongState
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.job import JobCounts
from headrace.runtime.model.write import (
    ChunkDone,
    JobMoved,
    JobPlanned,
    JobRedriven,
    MarkRunning,
    Put,
    Retry,
    Settle,
)
from headrace.runtime.store.protocol import Store


async def planned(store: Store, chunks: int, *, levels: int = 1) -> list[Claim]:
    """A job 9 with chunks of ids 100 and up, all claimed, by index."""
    await put_job(store)
    await apply(
        store, JobPlanned(9, 0, [part(100 + i, 9, i) for i in range(chunks)], levels, {"mode": "x"}, 1)
    )
    return await store.claim("n", flow="job:9", limit=chunks, now=0)


def reduces(
    settle: Settle, *, group: tuple[int, int], id: int = 500, index: int = 0, stage: int = 1
) -> ChunkDone:
    return ChunkDone(settle, group, part(id, 9, index, stage, payload=b'{"level": 1}'))


async def test_a_job_is_what_was_put(store: Store) -> None:
    await put_job(store, tags="t", code_version="abc")
    job = await store.job(9)

    assert job is not None
    assert (job.status, job.function, job.input) == ("planning", "app.job", {"object": "s3://in/a"})
    assert (job.generation, job.tags, job.code_version, job.spec.reduce) == (0, "t", "abc", "tree")
    assert await store.job(8) is None


async def test_a_job_id_is_taken_once(store: Store) -> None:
    await put_job(store)
    with pytest.raises(AssertionError):
        await put_job(store)


async def test_jobs_are_listed_newest_first(store: Store) -> None:
    for id in (1, 2, 3):
        await put_job(store, id)
    await apply(store, JobMoved(2, "failed", ("planning",), 1.0))

    assert [job.id for job in await store.jobs()] == [3, 2, 1]
    assert [job.id for job in await store.jobs(status=("planning", "running"), before=3)] == [1]
    assert [job.id for job in await store.jobs(status=("failed",), function="app.job", limit=1)] == [2]
    assert await store.jobs(function="other") == []


async def test_a_place_in_a_job_is_taken_once(store: Store) -> None:
    await put_job(store)
    await apply(store, Put(part(1, 9, 0, -1)))

    assert isinstance(await refusal(store, Put(part(2, 9, 0, -1))), Duplicate)
    assert await statuses(store, [2]) == [None]


async def test_a_plan_makes_the_chunks_once(store: Store) -> None:
    claims = await planned(store, 3)
    again = await refusal(store, JobPlanned(9, 0, [part(200, 9, 0)], 1, {}, 1))
    job = await store.job(9)

    assert [claim.invocation.index for claim in claims] == [0, 1, 2]
    assert isinstance(again, WrongState)
    assert job is not None
    assert (job.status, job.chunks, job.levels, job.plan, job.generation) == (
        "running",
        3,
        1,
        {"mode": "x"},
        1,
    )
    assert isinstance(await refusal(store, JobPlanned(8, 0, [], 0, {}, 1)), UnknownJob)


async def test_a_new_plan_replaces_what_comes_after_its_first_chunk(store: Store) -> None:
    claims = await planned(store, 4)
    await apply(store, ok(claims[0]), ok(claims[3]), MarkRunning(claims[2], 1.0))
    await apply(store, Put(part(500, 9, 0, 1)))

    await apply(store, JobPlanned(9, 2, [part(200, 9, 2)], 1, {}, 2))

    parts = await store.job_parts(9, stage=0)
    assert [(r.invocation.id, r.status) for r in parts] == [
        (100, Status.SUCCEEDED), (101, Status.WAITING), (200, Status.WAITING),
    ]  # fmt: skip
    assert isinstance(await refusal(store, ok(claims[2])), LeaseLost)
    assert await refusal(store, ok(claims[1])) is None
    assert await statuses(store, [500]) == [None]
    books = await store.counters()
    assert (books["app.f"].accepted, books["app.f"].succeeded, books["app.f"].cancelled) == (6, 3, 2)
    balance(books)


async def test_the_last_chunk_of_a_group_accepts_its_reduce_with_the_results_in_order(store: Store) -> None:
    c = await planned(store, 4)
    group = (0, 3)
    answers = [
        *await apply(store, reduces(ok(c[2], b'{"s": "\xc3\xa9"}'), group=group)),
        *await apply(store, reduces(ok(c[0], b"1.50"), group=group)),
        *await apply(store, reduces(dead(c[1]), group=group)),
        *await apply(store, reduces(Settle(c[3], Status.SUCCEEDED, b"", "s3://b/k"), group=group)),
    ]

    assert [answer.parent is None for answer in answers] == [True, True, True, False]
    [claim] = await store.claim("n", flow="job:9", limit=9, now=0)
    assert claim.invocation == answers[3].parent
    assert claim.invocation.payload == (
        '{"level": 1,"children":[1.50,{"s": "é"},{"ref":"s3://b/k"}]}'.encode()
    )
    assert await refusal(store, ok(c[3])) is not None
    balance(await store.counters())


async def test_chunks_that_end_in_one_transaction_accept_their_reduce_once(store: Store) -> None:
    claims = await planned(store, 16)
    answers = await apply(store, *[reduces(ok(c), group=(0, 15), id=500 + i) for i, c in enumerate(claims)])

    assert [answer.parent is not None for answer in answers] == [False] * 15 + [True]
    counts = await store.job_counts(9)
    assert counts == {0: JobCounts(succeeded=16), 1: JobCounts(waiting=1)}
    [parent] = await store.claim("n", flow="job:9", limit=9, now=0)
    assert len(json.loads(parent.invocation.payload)["children"]) == 16


async def test_a_retried_chunk_keeps_its_group_open(store: Store) -> None:
    claims = await planned(store, 2)
    await apply(store, Retry(claims[0], 0.0))
    [answer] = await apply(store, reduces(ok(claims[1]), group=(0, 1)))
    [again] = await store.claim("n", flow="job:9", limit=9, now=0)
    [last] = await apply(store, reduces(ok(again), group=(0, 1)))

    assert answer.parent is None
    assert last.parent is not None


async def test_a_stale_chunk_settles_nothing_and_accepts_nothing(store: Store) -> None:
    claims = await planned(store, 1)
    await store.release(claims)
    assert isinstance(await refusal(store, reduces(ok(claims[0]), group=(0, 0))), LeaseLost)
    assert list(await store.job_counts(9)) == [0]


async def test_a_cancelled_job_ends_what_waits_and_leaves_what_is_claimed(store: Store) -> None:
    claims = await planned(store, 4)
    await store.release(claims[2:])
    await apply(store, MarkRunning(claims[0], 1.0))
    assert isinstance(await refusal(store, JobMoved(9, "cancelled", ("planning",), 3.0)), WrongState)
    await apply(store, JobMoved(9, "cancelled", ("planning", "running"), 3.0, error={"code": "cancelled"}))

    job = await store.job(9)
    assert job is not None
    assert (job.status, job.ended_at, job.error) == ("cancelled", 3.0, {"code": "cancelled"})
    assert (await store.job_counts(9))[0] == JobCounts(waiting=1, running=1, cancelled=2)
    assert await store.claim("n", flow="job:9", limit=9, now=0) == []
    assert await refusal(store, *[Settle(claim, Status.CANCELLED) for claim in claims[:2]]) is None
    balance(await store.counters())


async def test_a_finished_job_keeps_its_result(store: Store) -> None:
    await planned(store, 1)
    await apply(store, JobMoved(9, "reducing", ("running",), 3.0, notes={"mode": "y", "more": 1}))
    await apply(store, JobMoved(9, "succeeded", ("reducing",), 4.0, result=b"[1]", result_ref="s3://out/r"))
    job = await store.job(9)
    assert job is not None
    assert (job.status, job.result, job.result_ref, job.ended_at) == ("succeeded", b"[1]", "s3://out/r", 4.0)
    assert job.plan == {"mode": "y", "more": 1}


async def test_a_redrive_runs_what_failed_and_the_reduces_above_it(store: Store) -> None:
    claims = await planned(store, 4)  # with a fan-in of 2: two reduces of two, and one above
    for i, claim in enumerate(claims):
        end = dead(claim) if i == 3 else ok(claim, b"%d" % i)
        await apply(store, reduces(end, group=(i // 2 * 2, i // 2 * 2 + 1), id=500 + i, index=i // 2))
    lower = await store.claim("n", flow="job:9", limit=9, now=0)
    for claim in lower:
        await apply(store, reduces(ok(claim), group=(0, 1), id=600 + claim.invocation.index, stage=2))
    [top] = await store.claim("n", flow="job:9", limit=9, now=0)
    await apply(store, dead(top), JobMoved(9, "failed", ("running",), 9.0))

    assert isinstance(await refusal(store, JobRedriven(9, ("running",), 10.0, 99.0, 2)), WrongState)
    await apply(store, JobRedriven(9, ("failed",), 10.0, 99.0, 2))

    job = await store.job(9)
    assert job is not None
    assert (job.status, job.ended_at) == ("running", None)
    assert await store.job_counts(9) == {0: JobCounts(waiting=1, succeeded=3), 1: JobCounts(succeeded=1)}
    [again] = await store.claim("n", flow="job:9", limit=9, now=10)
    assert (again.invocation.index, again.attempt) == (3, 1)
    [answer] = await apply(store, reduces(ok(again, b"3"), group=(2, 3), id=700, index=1))
    assert answer.parent is not None
    assert json.loads(answer.parent.payload)["children"] == [2, 3]
    balance(await store.counters())


async def test_a_redrive_repeats_a_failed_reduce_alone(store: Store) -> None:
    claims = await planned(store, 2)
    await apply(store, *[reduces(ok(claim), group=(0, 1)) for claim in claims])
    [top] = await store.claim("n", flow="job:9", limit=9, now=0)
    await apply(store, dead(top), JobMoved(9, "failed", ("running",), 9.0))
    await apply(store, JobRedriven(9, ("failed",), 10.0, 99.0))

    [again] = await store.claim("n", flow="job:9", limit=9, now=10)
    assert again.invocation.id == top.invocation.id
    assert again.invocation.payload == top.invocation.payload


async def test_a_group_completed_after_its_job_failed_is_reduced_by_the_redrive(store: Store) -> None:
    claims = await planned(store, 2)
    await apply(store, reduces(ok(claims[0]), group=(0, 1)))
    await apply(store, JobMoved(9, "failed", ("running",), 9.0))
    [answer] = await apply(store, reduces(ok(claims[1]), group=(0, 1)))
    assert answer.parent is None
    assert await store.claim("n", flow="job:9", limit=9, now=9) == []

    await apply(store, JobRedriven(9, ("failed",), 10.0, 99.0))
    [reduce] = await store.claim("n", flow="job:9", limit=9, now=10)
    assert (reduce.invocation.stage, json.loads(reduce.invocation.payload)["children"]) == (1, [1, 1])
    balance(await store.counters())


async def test_a_job_without_chunks_is_redriven_into_planning(store: Store) -> None:
    await put_job(store)
    await apply(store, Put(part(1, 9, 0, -1)))
    [claim] = await store.claim("n", flow="job:9", limit=1, now=0)
    await apply(store, dead(claim), JobMoved(9, "failed", ("planning",), 1.0))
    await apply(store, JobRedriven(9, ("failed",), 2.0, 99.0))

    job = await store.job(9)
    assert job is not None
    assert job.status == "planning"
    assert [c.invocation.stage for c in await store.claim("n", flow="job:9", limit=9, now=2)] == [-1]


async def test_parts_come_by_index_in_pages(store: Store) -> None:
    claims = await planned(store, 5)
    await apply(store, ok(claims[3]), Put(request(1)))

    assert [r.invocation.index for r in await store.job_parts(9, stage=0, limit=2)] == [0, 1]
    assert [r.invocation.index for r in await store.job_parts(9, stage=0, after=2)] == [3, 4]
    assert [r.invocation.index for r in await store.job_parts(9, stage=0, status=Status.SUCCEEDED)] == [3]
    assert await store.job_parts(9, stage=1) == []


async def test_a_job_that_retention_has_begun_to_remove_is_not_redriven(store: Store) -> None:
    claims = await planned(store, chunks=3)
    for claim in claims:
        await apply(store, dead(claim), now=1)
    await apply(store, JobMoved(9, "failed", ("running",), 2.0, error={"code": "x", "message": "no"}), now=2)
    await store.expire(succeeded_before=0, dead_before=3.0, keep=0, limit=1)
    [applied] = await store.apply([JobRedriven(9, ("failed",), 4.0, 99.0)], now=4)
    assert isinstance(applied.refused, WrongState)
    assert "submit it again" in str(applied.refused)
