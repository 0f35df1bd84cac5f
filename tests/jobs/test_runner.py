"""One step of a job as a worker runs it: planning, one chunk, a reduce, the finish."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Csv, Items, Lines, all_results
from headrace.runtime.errors import InvalidFunction, UnserialisableResult
from headrace.runtime.jobs.reduce import fold
from headrace.runtime.jobs.runner import INLINE_BYTES, JobCode, job_entry, value_of
from headrace.runtime.objects.folder import FolderStore


class Context:
    """What a step asks of its context: the buckets, and which attempt it is."""

    def __init__(self, objects: FolderStore) -> None:
        self.objects = objects
        self.attempt = 1


@pytest.fixture
def context(tmp_path: Path) -> Context:
    objects = FolderStore(tmp_path, fsync=False)
    for bucket in ("inbox", "results", "headrace-system"):
        objects.make_bucket(bucket)
    return Context(objects)


def add(a: Any, b: Any) -> Any:
    return a + b


def code(
    function: Callable[..., Any], split: Any, *, wants_context: bool = False, **settings: Any
) -> JobCode:
    given = {"reduce": add, "finish": None, "initial": 0, **settings}
    return job_entry("a.j", function, split=split, wants_context=wants_context, **given)[0]


def step(job: JobCode, context: Context, payload: dict[str, Any]) -> dict[str, Any]:
    """Run a step on a payload that has been JSON, and read its answer back."""
    found = job(json.loads(msgspec.json.encode(payload)), context)
    answer: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    return answer


def planned(job: JobCode, context: Context, **given: Any) -> dict[str, Any]:
    return step(job, context, {"stage": "plan", "input": given})


def mapped(job: JobCode, context: Context, plan: dict[str, Any], index: int, **more: Any) -> dict[str, Any]:
    start, end, proven = plan["ranges"][index]
    payload: dict[str, Any] = {"stage": "map", "job": "00aa", "index": index, "shared": plan["shared"]}
    payload.update(start=start, end=end, proven=proven, output=None, **more)
    if "items" in plan:
        payload["items"] = plan["items"][index]
    return step(job, context, payload)


def reduced(job: JobCode, context: Context, children: list[Any], **more: Any) -> dict[str, Any]:
    payload = {"stage": "reduce", "job": "00aa", "level": 1, "index": 0, "children": children, "output": None}
    return step(job, context, {**payload, **more})


@pytest.mark.parametrize(("count", "batch"), [(0, 3), (1, 3), (3, 3), (4, 3), (10, 4)])
def test_items_are_planned_and_mapped_in_batches(context: Context, count: int, batch: int) -> None:
    job = code(lambda chunk: (chunk.index, chunk.start, chunk.items), Items(batch=batch))
    plan = planned(job, context, items=list(range(count)))
    answers = [mapped(job, context, plan, index)["value"] for index in range(len(plan["ranges"]))]

    assert plan["size"] == count
    assert [item for _, _, items in answers for item in items] == list(range(count))
    assert [(index, start) for index, start, _ in answers] == [
        (n, n * batch) for n in range(-(-count // batch))
    ]


def test_every_byte_of_an_object_belongs_to_one_chunk(context: Context) -> None:
    data = b"id,text\n" + b"".join(b'%d,"two\nlines"\n' % n for n in range(100))
    context.objects.put("inbox", "x.csv", data)
    job = code(lambda chunk: [row["id"] for row in chunk.records()], Csv(chunk=150))
    plan = planned(job, context, object="s3://inbox/x.csv")
    ranges = plan["ranges"]

    assert ranges[-1][1] == plan["size"] == len(data)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    ids = [id for index in range(len(ranges)) for id in mapped(job, context, plan, index)["value"]]
    assert ids == [str(n) for n in range(100)]


def test_a_chunk_that_ends_at_a_wrong_cut_says_so_and_no_more(context: Context) -> None:
    data = b'a,b\n1,5" disk\n' + b"".join(b'%d,"two\nlines"\n' % n for n in range(100))
    context.objects.put("inbox", "x.csv", data)
    job = code(lambda chunk: sum(1 for _ in chunk.records()), Csv(chunk=100))
    plan = planned(job, context, object="s3://inbox/x.csv")
    answer = mapped(job, context, plan, 0)
    assert answer.keys() == {"bad_cut"}
    again = step(job, context, {"stage": "plan", "input": {"object": "s3://inbox/x.csv"}, "sequential": True})
    counts = [mapped(job, context, again, index)["value"] for index in range(len(again["ranges"]))]
    assert (again["sequential"], sum(counts)) == (True, 101)


def test_uneven_rows_are_told_with_the_result(context: Context) -> None:
    context.objects.put("inbox", "x.csv", b"a,b\n1,2\n3\n4,5,6\n")
    job = code(lambda chunk: len(list(chunk.records())), Csv())
    answer = mapped(job, context, planned(job, context, object="s3://inbox/x.csv"), 0)
    assert (answer["value"], answer["short_rows"], answer["long_rows"]) == (3, 1, 1)
    assert answer["irregular"] == {"offset": 8, "record": 1, "columns": 1, "expected": 2}


def test_an_error_names_the_chunk_that_it_came_from(context: Context) -> None:
    def fails(chunk: Any) -> None:
        raise ValueError("no")

    context.objects.put("inbox", "x.txt", b"a\nb\n")
    text, items = code(fails, Lines()), code(fails, Items(batch=2))
    with pytest.raises(ValueError, match="no") as caught:
        mapped(text, context, planned(text, context, object="s3://inbox/x.txt"), 0)
    assert caught.value.__notes__ == ["in chunk 0, bytes 0 to 4 of s3://inbox/x.txt"]
    with pytest.raises(ValueError, match="no") as caught:
        mapped(items, context, planned(items, context, items=[1, 2, 3]), 1)
    assert caught.value.__notes__ == ["in items 2 to 2 of the job's input"]


def test_small_results_travel_inside_and_large_ones_as_objects_of_their_attempt(context: Context) -> None:
    job = code(lambda chunk: "x" * chunk.items[0], Items(batch=1))
    plan = planned(job, context, items=[10, INLINE_BYTES])
    assert mapped(job, context, plan, 0) == {"value": "x" * 10}
    first = mapped(job, context, plan, 1)
    context.attempt = 2
    second = mapped(job, context, plan, 1)

    assert first.keys() == {"object", "bytes"}
    assert first["object"].startswith("s3://headrace-system/jobs/00aa/chunks/000001.1-")
    assert first["object"] != second["object"]
    assert value_of(first, context.objects) == value_of(second, context.objects) == "x" * INLINE_BYTES


def test_with_an_output_every_chunk_is_an_object_there(context: Context) -> None:
    job = code(lambda chunk: chunk.items, Items(batch=1))
    payload = {"stage": "map", "job": "00aa", "index": 7, "start": 7, "items": [5], "output": "results/deep"}
    answer = step(job, context, payload)
    assert answer["object"].startswith("s3://results/deep/00aa/chunks/000007.1-")
    assert answer["value"] == value_of({"object": answer["object"]}, context.objects) == [5]


def test_a_reduce_joins_from_the_left_reading_what_lies_in_objects(context: Context) -> None:
    job = code(
        lambda chunk: 0,
        Items(),
        reduce=lambda a, b: [a, b],
        initial="none",
        finish=lambda value: ["end", value],
    )
    context.objects.put("inbox", "two", b'"b"')
    children = [{"value": "a"}, {"object": "s3://inbox/two"}, {"value": None}]
    assert reduced(job, context, children) == {"value": [["a", "b"], None]}
    assert reduced(job, context, children[:1]) == {"value": "a"}
    assert reduced(job, context, children, root=True) == {"value": ["end", [["a", "b"], None]]}


def test_what_failed_below_a_reduce_is_left_out_of_it(context: Context) -> None:
    job = code(lambda chunk: 0, Items(), initial=-1)
    nothing = reduced(job, context, [])
    assert "value" not in nothing
    assert reduced(job, context, [nothing, {"value": 3}, nothing, {"value": 4}]) == {"value": 7}
    assert reduced(job, context, [nothing, nothing]) == nothing
    assert reduced(job, context, [nothing], root=True) == {"value": -1}


def test_the_finish_closes_a_job_without_a_tree(context: Context) -> None:
    def close(job: JobCode, **more: Any) -> Any:
        return step(job, context, {"stage": "finish", "job": "00aa", "output": None, "children": [], **more})[
            "value"
        ]

    plain = code(lambda chunk: 0, Items(), finish=lambda value: {"got": value}, initial="nothing")
    assert close(plain) == {"got": "nothing"}
    assert close(plain, children=[{"value": 5}]) == {"got": 5}

    def with_context(value: Any, context: Context) -> Any:
        return [value, context.attempt]

    assert close(code(lambda chunk: 0, Items(), finish=with_context)) == [0, 1]
    context.objects.put("inbox", "parts", b'{"value":1}\n{"value":null}\n{"value":3}\n')
    every = code(lambda chunk: 0, Items(), reduce=all_results(list))
    assert close(every, parts="s3://inbox/parts") == [1, None, 3]


def test_all_results_are_read_as_they_are_asked_for(context: Context) -> None:
    context.objects.put("inbox", "parts", b'{"value":1}\n{"object":"s3://inbox/missing"}\n')
    job = code(lambda chunk: 0, Items(), reduce=all_results(next))
    payload = {"stage": "finish", "job": "00aa", "output": None, "children": [], "parts": "s3://inbox/parts"}
    assert step(job, context, payload) == {"value": 1}


def test_what_json_cannot_hold_is_refused_by_its_place(context: Context) -> None:
    job = code(lambda chunk: {"mean": float("nan")}, Items())
    with pytest.raises(UnserialisableResult, match=r"\$\.mean is NaN"):
        mapped(job, context, planned(job, context, items=[1]), 0)


def test_the_context_is_given_to_functions_that_ask_for_it(context: Context) -> None:
    job = code(lambda chunk, given: given.attempt, Items(), wants_context=True)
    assert mapped(job, context, planned(job, context, items=[1]), 0) == {"value": 1}


@pytest.mark.parametrize("payload", [None, [], {}, {"event": 1}])
def test_a_job_that_is_invoked_like_a_function_says_what_to_do(context: Context, payload: Any) -> None:
    with pytest.raises(InvalidFunction, match="is a job and cannot be invoked") as caught:
        code(lambda chunk: 0, Items())(payload, context)
    assert "job submit" in caught.value.hint


def test_the_kinds_of_reduce_are_told_apart() -> None:
    def kind(reduce: Any) -> str | None:
        return job_entry(
            "a.j", len, split=Items(), reduce=reduce, finish=None, initial=None, wants_context=False
        )[1]

    assert [kind(reduce) for reduce in (None, add, all_results(list))] == [None, "tree", "all"]
    assert fold(add, iter([[1], [2], [3]])) == [1, 2, 3]
