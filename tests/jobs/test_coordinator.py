"""Jobs over a real store and real buckets: cut, mapped, aggregated, moved to their end whatever happens."""

import asyncio
import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import App, Csv, Items, Lines, all_results
from headrace.runtime.errors import (
    InvalidFunction,
    NoSuchObject,
    UnknownFunction,
    UnknownJob,
    WrongState,
)
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.model.job import ENDED, Job
from headrace.runtime.model.write import Applied, JobMoved, Write
from tests.inline_node import InlineNode

app = App("mill")
failing: set[int] = set()
ran: list[int] = []


def join(a: list[Any], b: list[Any]) -> list[Any]:
    """Associative, and shows in which order and shape it was applied."""
    return [a, b]


def add(a: float, b: float) -> float:
    return a + b


def one(chunk: Any) -> Any:
    ran.append(chunk.index)
    if chunk.index in failing:
        raise ValueError(f"chunk {chunk.index} fails")
    [item] = chunk.items
    return item


def declare(name: str, **settings: Any) -> None:
    app.job(name=name, split=Items(batch=1), retries=0, **settings)(one)


declare("shape", reduce=join)
declare("total", reduce=add, initial=0.0, output="results")
declare("finished", reduce=add, initial=0, finish=lambda value: {"total": value})
declare("everything", reduce=all_results(list), output="results/deep")
declare("apart", output="results")
declare("silent")
declare("narrow", reduce=add, max_concurrency=2)
declare("some", reduce=add, tolerated_failures=2)
declare("half", reduce=add, tolerated_failures=0.5)
declare("lenient", reduce=add, initial=-1, tolerated_failures=1000)


@app.job(split=Csv(chunk=200), reduce=add, initial=0, retries=0, output="results")
def rows(chunk: Any, context: Any) -> int:
    ran.append(chunk.index)
    return sum(1 for _ in chunk.records())


@app.job(split=Lines(chunk=100), reduce=all_results(lambda parts: [line for part in parts for line in part]))
def lines(chunk: Any) -> list[str]:
    return list(chunk.lines())


@app.function
def plain(event: Any) -> None: ...


@pytest.fixture(autouse=True)
def _nothing_fails() -> Iterator[None]:
    failing.clear()
    ran.clear()
    return


async def ended(node: InlineNode, id: str) -> Job:
    async def look() -> Job | None:
        job = await node.coordinator.job(id)
        return job if job.status in ENDED else None

    found: Job = await node.until(look, "the job's end")
    return found


async def run(node: InlineNode, name: str, items: list[Any]) -> Job:
    return await ended(node, await node.coordinator.submit(f"mill.{name}", {"items": items}))


def value(job: Job) -> Any:
    assert job.status == "succeeded", job.error
    return msgspec.json.decode(job.result or b"null")


def tree(items: list[Any]) -> Any:
    """What the reduce tree of fan-in 16 gives, by its definition."""
    while len(items) > 1:
        groups = [items[at : at + 16] for at in range(0, len(items), 16)]
        items = []
        for group in groups:
            found = group[0]
            for item in group[1:]:
                found = [found, item]
            items.append(found)
    return items[0] if items else None


# ---- aggregation
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 32, 257])
async def test_the_tree_has_the_shape_that_the_plan_fixes(tmp_path: Path, count: int) -> None:
    async with InlineNode(tmp_path, app, workers=7) as node:
        items = [f"i{n}" for n in range(count)]
        job = await run(node, "shape", items)
        assert value(job) == tree(items)
        assert job.chunks == count
        books = await node.books()
        assert books.accepted == books.succeeded


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_result_is_the_same_to_the_bit_whatever_ends_first(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    items = [random.Random(5).uniform(-1e9, 1e9) for _ in range(60)]
    async with InlineNode(tmp_path, app, workers=20, held=True) as node:
        id = await node.coordinator.submit("mill.shape", {"items": items})
        while (await node.coordinator.job(id)).status not in ENDED:
            await node.quiet(2)
            tokens = [attempt.token for attempt in node.pool.attempts]
            chance.shuffle(tokens)
            if tokens:
                node.pool.run(*tokens[: chance.randint(1, len(tokens))])
        job = await node.coordinator.job(id)
    assert job.result == msgspec.json.encode(tree(items))


@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 257])
async def test_finish_initial_and_all_results_hold_for_any_number_of_chunks(
    tmp_path: Path, count: int
) -> None:
    async with InlineNode(tmp_path, app, workers=7) as node:
        items = list(range(count))
        assert value(await run(node, "finished", items)) == {"total": sum(items)}
        assert value(await run(node, "total", items)) == sum(items)
        assert value(await run(node, "everything", items)) == items
        assert value(await run(node, "apart", items)) is None
        assert value(await run(node, "silent", items)) is None


# ---- input
# -------------------------------------------------------------------------------------------------------


async def test_an_object_of_csv_is_cut_and_every_record_is_mapped_once(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, workers=3) as node:
        node.objects.make_bucket("inbox")
        data = b"id,text\n" + b"".join(b'%d,"two\nlines"\n' % n for n in range(300))
        node.objects.put("inbox", "a b.csv", data)
        id = await node.coordinator.submit("mill.rows", {"object": "s3://inbox/a b.csv"})
        job = await ended(node, id)
        assert value(job) == 300
        assert job.chunks > 10
        assert sorted(ran) == list(range(job.chunks))
        shown = await node.coordinator.describe(job)
    assert (shown["status"], shown["done"], shown["failed"], shown["waiting"], shown["running"]) == (
        "succeeded",
        job.chunks,
        0,
        0,
        0,
    )
    assert shown["bytes"] == len(data)
    assert shown["input"]["object"] == "s3://inbox/a b.csv"
    assert shown["warnings"] == []


async def test_an_empty_object_gives_the_initial_value(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app) as node:
        node.objects.make_bucket("inbox")
        node.objects.put("inbox", "empty.csv", b"")
        job = await ended(
            node, await node.coordinator.submit("mill.rows", {"object": "s3://inbox/empty.csv"})
        )
        assert value(job) == 0


async def test_items_may_come_from_an_object(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app) as node:
        node.objects.make_bucket("inbox")
        node.objects.put("inbox", "items.json", b"[1, 2, 3.5]")
        job = await ended(
            node, await node.coordinator.submit("mill.total", {"object": "s3://inbox/items.json"})
        )
        assert value(job) == 6.5


async def test_irregular_rows_are_warned_of_with_the_place_of_the_first(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app) as node:
        node.objects.make_bucket("inbox")
        data = b"a,b\n" + b"1,2\n" * 100 + b"3\n" + b"4,5,6\n" * 2
        node.objects.put("inbox", "x.csv", data)
        job = await ended(node, await node.coordinator.submit("mill.rows", {"object": "s3://inbox/x.csv"}))
        shown = await node.coordinator.describe(job)
    assert value(job) == 103
    short, long = shown["warnings"]
    assert short.startswith("1 row has too few columns")
    assert f"the first is at byte {data.index(b'3' + bytes([10]) + b'4'):,}" in short
    assert long.startswith("2 rows have too many columns")


async def test_a_wrong_cut_is_planned_again_by_one_sequential_pass(tmp_path: Path) -> None:
    """A stray quote in an unquoted field turns the parity of all that follows."""
    data = b"a,b\n" + b"".join(
        b'%d,5" disk\n' % n if n == 50 else b'%d,"two\nlines"\n' % n for n in range(200)
    )
    expected = sum(1 for _ in csv.DictReader(io.StringIO(data.decode(), newline="")))
    async with InlineNode(tmp_path, app, workers=3) as node:
        node.objects.make_bucket("inbox")
        node.objects.put("inbox", "stray.csv", data)
        job = await ended(
            node, await node.coordinator.submit("mill.rows", {"object": "s3://inbox/stray.csv"})
        )
        shown = await node.coordinator.describe(job)
        books = await node.books()
    assert value(job) == expected
    assert job.generation == 2
    assert any("sequential pass" in warning for warning in shown["warnings"])
    assert books.waiting == books.running == 0


async def test_what_cannot_be_an_input_is_refused_at_submission(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app) as node:
        submit = node.coordinator.submit
        with pytest.raises(UnknownFunction):
            await submit("mill.nobody", {"items": []})
        with pytest.raises(InvalidFunction, match="is not a job"):
            await submit("mill.plain", {"items": []})
        with pytest.raises(InvalidFunction, match="takes an object"):
            await submit("mill.rows", {"items": []})
        with pytest.raises(InvalidFunction, match="takes items"):
            await submit("mill.total", {"items": 5})
        node.objects.make_bucket("inbox")
        with pytest.raises(NoSuchObject):
            await submit("mill.rows", {"object": "s3://inbox/missing.csv"})
        with pytest.raises(UnknownJob):
            await node.coordinator.job("00000000000000ff")
        assert (await node.books()).accepted == 0
        assert await node.store.jobs() == []


async def test_an_input_that_changed_during_the_job_is_noticed(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True) as node:
        node.objects.make_bucket("inbox")
        node.objects.put("inbox", "x.csv", b"a\n" + b"1\n" * 300)
        id = await node.coordinator.submit("mill.rows", {"object": "s3://inbox/x.csv"})
        for _ in range(3):
            await node.until(lambda: node.pool.attempts)
            node.pool.run()
        node.objects.put("inbox", "x.csv", b"a\n" + b"2\n" * 300)
        while (await node.coordinator.job(id)).status not in ENDED:
            await node.quiet(2)
            node.pool.run()
        job = await node.coordinator.job(id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["type"].endswith("InputChanged")
    assert "was changed while the job ran" in job.error["message"]


# ---- output
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "folder"), [("total", ""), ("apart", ""), ("everything", "deep/")])
async def test_the_output_holds_the_result_each_chunk_and_last_the_manifest(
    tmp_path: Path, name: str, folder: str
) -> None:
    async with InlineNode(tmp_path, app) as node:
        written: list[str] = []
        put = node.objects.put

        def noticed(bucket: str, key: str, *args: Any, **more: Any) -> Any:
            written.append(key)
            return put(bucket, key, *args, **more)

        node.objects.put = noticed  # type: ignore[method-assign]
        id = await node.coordinator.submit(f"mill.{name}", {"items": [1.5, 2.5, 3.5]})
        job = await ended(node, id)
        base = f"{folder}{id}/"
        result = node.objects.get("results", base + "result.json")
        manifest = json.loads(node.objects.get("results", base + "manifest.json"))
        assert result == job.result
        assert written[-2:] == [base + "result.json", base + "manifest.json"]
        assert manifest["result"] == f"s3://results/{base}result.json"
        assert (manifest["job"], manifest["function"]) == (id, f"mill.{name}")
        assert [part["index"] for part in manifest["chunks"]] == [0, 1, 2]
        for index, part in enumerate(manifest["chunks"]):
            bucket, _, key = part["object"].removeprefix("s3://").partition("/")
            assert key.startswith(f"{base}chunks/{index:06d}.")
            assert json.loads(node.objects.get(bucket, key)) == [1.5, 2.5, 3.5][index]
        assert (await node.coordinator.describe(job))["output"] == f"s3://results/{base}"


async def test_a_large_result_is_in_the_object_store(tmp_path: Path) -> None:
    big = App("big")
    big.job(name="text", split=Items(batch=1), reduce=add, output="results")(lambda chunk: "x" * 300_000)
    async with InlineNode(tmp_path, big) as node:
        id = await node.coordinator.submit("big.text", {"items": [1, 2, 3]})
        job = await ended(node, id)
        assert job.status == "succeeded", job.error
        assert job.result is None
        assert job.result_ref == f"s3://results/{id}/result.json"
        assert json.loads(node.objects.get("results", f"{id}/result.json")) == "x" * 900_000


# ---- failures
# ----------------------------------------------------------------------------------------------------


async def test_a_failed_chunk_fails_the_job_with_its_error(tmp_path: Path) -> None:
    failing.update({3, 5})
    async with InlineNode(tmp_path, app) as node:
        job = await run(node, "total", [1] * 40)
        await node.idle()
        shown = await node.coordinator.describe(job)
        books = await node.books()
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error["type"], job.error["message"], job.error["chunk"]) == ("ValueError", "chunk 3 fails", 3)
    assert job.error["failed_chunks"] >= 1
    assert shown["failed"] >= 1
    assert len(ran) < 40, "what waited was run although the job had failed"
    assert (books.waiting, books.running) == (0, 0)


@pytest.mark.parametrize(
    ("name", "fails", "status"),
    [
        ("some", {1}, "succeeded"),
        ("some", {1, 2}, "succeeded"),
        ("some", {1, 2, 3}, "failed"),
        ("half", set(range(10)), "succeeded"),
        ("half", set(range(11)), "failed"),
        ("lenient", set(range(20)), "succeeded"),
        ("lenient", set(range(16)), "succeeded"),
    ],
)
async def test_failures_are_tolerated_by_count_or_fraction(
    tmp_path: Path, name: str, fails: set[int], status: str
) -> None:
    failing.update(fails)
    async with InlineNode(tmp_path, app) as node:
        job = await run(node, name, [1] * 20)
        assert job.status == status, job.error
        if status == "succeeded":
            assert value(job) == (20 - len(fails) or -1)
            [warning] = (await node.coordinator.describe(job))["warnings"]
            assert warning.startswith(f"{len(fails)} of 20 chunks failed")


async def test_a_single_chunk_that_may_fail_and_does_gives_the_initial_value(tmp_path: Path) -> None:
    failing.add(0)
    async with InlineNode(tmp_path, app) as node:
        assert value(await run(node, "lenient", [1])) == -1


async def test_a_reduce_that_fails_fails_the_job(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app) as node:
        job = await run(node, "total", [1, "text", 2])
        assert job.status == "failed"
        assert job.error is not None
        assert job.error["type"] == "TypeError"


async def test_a_chunk_that_somebody_cancelled_fails_the_job(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True) as node:
        id = await node.coordinator.submit("mill.total", {"items": [1, 2, 3]})
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
        await node.until(lambda: node.pool.attempts)
        await node.dispatcher.cancelling.cancel(node.pool.attempts[0].invocation_id)
        job = await ended(node, id)
        assert job.status == "failed"
        assert job.error is not None
        assert job.error["code"] == "cancelled"


# ---- redrive, cancel
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["total", "everything", "finished"])
async def test_a_redrive_runs_what_failed_and_keeps_the_rest(tmp_path: Path, name: str) -> None:
    failing.update({0, 17})
    async with InlineNode(tmp_path, app, workers=50) as node:
        items = list(range(40))
        id = await node.coordinator.submit(f"mill.{name}", {"items": items})
        assert (await ended(node, id)).status == "failed"
        with pytest.raises(WrongState):
            await node.coordinator.cancel(id)
        await node.idle()
        kept = [
            p.invocation.index
            for p in await node.store.job_parts((await node.coordinator.job(id)).id, stage=0)
            if p.status is Status.SUCCEEDED
        ]
        failing.clear()
        ran.clear()
        again = await node.coordinator.redrive(id)
        assert again.status == "running"
        job = await ended(node, id)
        total = {"total": sum(items), "everything": items, "finished": {"total": sum(items)}}[name]
        expected = total if name != "total" else sum(items)
        assert value(job) == expected
        assert sorted(ran + kept) == items
        books = await node.books()
        assert (books.waiting, books.running, books.dead) == (0, 0, 0)
        with pytest.raises(WrongState):
            await node.coordinator.redrive(id)


async def test_a_cancelled_job_begins_nothing_more_and_leaves_nothing_waiting(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True, workers=2, window=4) as node:
        id = await node.coordinator.submit("mill.total", {"items": [1] * 200})
        for _ in range(9):
            await node.until(lambda: node.pool.attempts)
            node.pool.run()
        job = await node.coordinator.cancel(id)
        assert job.status == "cancelled"
        before = len(ran)
        for _ in range(20):
            await node.quiet(2)
            node.pool.run()
        assert len(ran) == before
        await node.idle()
        books = await node.books()
        assert (books.waiting, books.running) == (0, 0)
        assert books.cancelled > 150
        assert node.dispatcher.running_in(f"job:{id}") == 0
        with pytest.raises(WrongState):
            await node.coordinator.cancel(id)

        await node.coordinator.redrive(id)
        node.pool.held = False
        node.dispatcher.dispatch()
        node.pool.run()
        assert value(await ended(node, id)) == 200


async def test_max_concurrency_bounds_a_job_and_not_its_neighbours(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True, workers=6) as node:
        id = await node.coordinator.submit("mill.narrow", {"items": [1] * 12})
        other = await node.coordinator.submit("mill.total", {"items": [1] * 12})
        most = 0
        while {(await node.coordinator.job(job)).status for job in (id, other)} - set(ENDED):
            await node.quiet(2)
            running = sum(attempt.function == "mill.narrow" for attempt in node.pool.attempts)
            most = max(most, running)
            if node.pool.attempts:
                node.pool.run(node.pool.attempts[0].token)
        assert most == 2
        assert (value(await node.coordinator.job(id)), value(await node.coordinator.job(other))) == (12, 12)


async def test_what_runs_is_counted_once_however_long_it_runs(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True, workers=3) as node:
        id = await node.coordinator.submit("mill.total", {"items": [1] * 9})
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
        await node.until(lambda: len(node.pool.attempts) == 3)
        early = await node.coordinator.describe(await node.coordinator.job(id))
        await node.clock.advance(0.5)
        await node.quiet()
        late = await node.coordinator.describe(await node.coordinator.job(id))
        node.pool.held = False
        node.pool.run()
        await ended(node, id)
    for shown in (early, late):
        assert (shown["chunks"], shown["running"], shown["waiting"], shown["done"]) == (9, 3, 6, 0)


# ---- restarts
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shape", "everything", "total", "finished"])
@pytest.mark.parametrize("killed", [True, False])
async def test_a_restart_at_any_step_changes_nothing(tmp_path: Path, name: str, killed: bool) -> None:
    items = list(range(20))
    expected: dict[str, Callable[[], Any]] = {
        "shape": lambda: tree(items),
        "everything": lambda: items,
        "total": lambda: sum(items),
        "finished": lambda: {"total": sum(items)},
    }
    node = await InlineNode(tmp_path, app, held=True, workers=3).start()
    id = await node.coordinator.submit(f"mill.{name}", {"items": items})
    steps = 0
    while (await node.coordinator.job(id)).status not in ENDED:
        await node.quiet(1)
        if node.pool.attempts:
            node.pool.run(node.pool.attempts[-1].token)
        await (node.crash() if killed else node.stop())
        node = await InlineNode(tmp_path, app, held=True, workers=3, clock=node.clock).start()
        await node.until(
            lambda node=node: node.pool.attempts or node.coordinator._tasks == set(), "something to do"
        )
        steps += 1
        assert steps < 60
    job = await node.coordinator.job(id)
    books = await node.books()
    await node.stop()
    assert value(job) == expected[name]()
    assert (books.waiting, books.running) == (0, 0)
    assert steps >= 20
    if not killed:
        assert sorted(ran) == items


async def test_a_restarted_job_keeps_its_max_concurrency(tmp_path: Path) -> None:
    node = await InlineNode(tmp_path, app, held=True, workers=8).start()
    id = await node.coordinator.submit("mill.narrow", {"items": [1] * 12})
    await node.until(lambda: node.pool.attempts)
    node.pool.run()
    await node.until(lambda: len(node.pool.attempts) == 2)
    await node.crash()
    async with InlineNode(tmp_path, app, held=True, workers=8, clock=node.clock) as again:
        await again.quiet()
        assert len(again.pool.attempts) == 2
        again.pool.held = False
        again.pool.run()
        assert value(await ended(again, id)) == 12
        assert again.pool.most == 2


async def test_a_lost_attempt_of_a_chunk_is_made_again(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, app, held=True) as node:
        id = await node.coordinator.submit("mill.total", {"items": [1, 2]})
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
        for _ in range(3):
            await node.until(lambda: node.pool.attempts)
            node.pool.end(node.pool.attempts[0].token, Outcome("returned"))
        node.pool.held = False
        node.pool.run()
        assert value(await ended(node, id)) == 3


async def test_a_chunk_that_fails_while_its_job_is_cancelled_is_not_tried_again(tmp_path: Path) -> None:
    again = App("again")
    again.job(name="job", split=Items(batch=1), reduce=add, retries=5)(one)
    async with InlineNode(tmp_path, again, held=True, workers=2) as node:
        id = await node.coordinator.submit("again.job", {"items": [1, 2, 3, 4]})
        await node.until(lambda: node.pool.attempts)
        node.pool.run()
        await node.until(lambda: len(node.pool.attempts) == 2)
        token = node.pool.attempts[0].token
        error = {"code": "function_error", "message": "no"}
        apply = node.store.apply

        async def fails_meanwhile(writes: Sequence[Write], *, now: float) -> list[Applied]:
            if any(isinstance(write, JobMoved) for write in writes):
                asyncio.get_running_loop().call_soon(node.pool.end, token, Outcome("error", error=error))
            return await apply(writes, now=now)

        node.store.apply = fails_meanwhile  # type: ignore[method-assign]
        assert (await node.coordinator.cancel(id)).status == "cancelled"
        await node.clock.advance(20)
        await node.quiet()
        assert node.pool.attempts == []
        books = await node.books()
        assert (books.waiting, books.running, books.succeeded) == (0, 0, 1)
