"""The runner: what a worker does for one invocation of a job, be it planning, one chunk, or a step of the
reduce.

Imports this room's pure code, the floor, and the pool's encoding of results. It keeps no state: everything
comes in the payload, and everything leaves as a small JSON object, or as an object in a bucket that it names.
"""

import functools
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.jobs.bad_input import BadCut, InvalidSplit
from headrace.runtime.jobs.chunk import Chunk, ItemsChunk, chunk_from_dict, chunks_of
from headrace.runtime.jobs.plan import RANGES_MAX, plan, plan_items, read_items
from headrace.runtime.jobs.reduce import all_results, fold
from headrace.runtime.jobs.source import ObjectSource
from headrace.runtime.jobs.split import Items, Split
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.pool.result import encode_result

INLINE_BYTES = 16 << 10
"""A chunk's result up to this size travels in the store; a larger one is an object."""


class JobCode:
    """A job's own code: the mapped function, the splitter, and the steps that aggregate."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        split: Split,
        reduce: Callable[..., Any] | None,
        finish: Callable[..., Any] | None,
        initial: Any,
        wants_context: bool,
    ) -> None:
        self.name = name
        self.function = function
        self.split = split
        self.reduce = reduce
        self.finish = finish
        self.finish_wants_context = finish is not None and _takes_two(finish)
        self.initial = initial
        self.wants_context = wants_context

    def __call__(self, payload: Any, context: Any) -> Any:
        """Run one step. `payload["stage"]` says which."""
        if not isinstance(payload, dict) or "stage" not in payload:
            raise InvalidFunction(
                self.name, "is a job and cannot be invoked", "Submit it with an input: `headrace job submit`."
            )
        step = {"plan": self._plan, "map": self._map, "reduce": self._reduce, "finish": self._finish}[
            payload["stage"]
        ]
        return step(payload, context)

    # ---- planning ----

    def _plan(self, payload: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """The chunks, each as what its map invocation will get."""
        given = payload["input"]
        if isinstance(self.split, Items):
            return self._plan_items(given, context)
        if "objects" in given:
            return self._plan_objects(given, payload, context)
        if "object" not in given:
            raise InvalidFunction(
                self.name, "its split needs an object as input", "Submit it with --input s3://BUCKET/KEY."
            )
        bucket, key = parse_object_url(given["object"])
        return self._plan_object(bucket, key, given.get("etag"), payload, context)

    def _plan_object(
        self, bucket: str, key: str, etag: str | None, payload: Mapping[str, Any], context: Any
    ) -> dict[str, Any]:
        assert not isinstance(self.split, Items)
        source = ObjectSource(context.objects, bucket, key=key, etag=etag)
        found = plan(
            self.split,
            source,
            sequential=payload.get("sequential", False),
            bucket=bucket,
            key=key,
        )
        etag = etag or context.objects.head(bucket, key).etag
        parts = chunks_of(found, self.split, source, bucket=bucket, key=key, etag=etag)
        shared: dict[str, Any] = {}
        ranges: list[list[Any]] = []
        for part in parts:
            described = part.to_dict()
            if not shared:
                shared = described
            ranges.append([part.start, part.end, described["proven"]])
        return {"shared": shared, "ranges": ranges, "size": found.size, "sequential": found.sequential}

    def _plan_objects(
        self, given: Mapping[str, Any], payload: Mapping[str, Any], context: Any
    ) -> dict[str, Any]:
        """The chunks of several objects, one object after another; `places` says whose each range is."""
        listed = given["objects"]
        if isinstance(listed, str):
            bucket, key = parse_object_url(listed)
            source = ObjectSource(context.objects, bucket, key=key, etag=given.get("etag"))
            listed = [msgspec.json.decode(raw) for raw in read_items(source, bucket=bucket, key=key)]
        objects: list[dict[str, Any]] = []
        ranges: list[list[Any]] = []
        places: list[int] = []
        size, sequential = 0, False
        for one in listed:
            found = self._plan_object(one["bucket"], one["key"], one.get("etag"), payload, context)
            size, sequential = size + found["size"], sequential or found["sequential"]
            if not found["ranges"]:
                continue
            if len(ranges) + len(found["ranges"]) > RANGES_MAX:
                raise InvalidSplit("chunk", f"the objects have more than {RANGES_MAX:,} chunks of this size",
                                   "Make chunks larger.")  # fmt: skip
            places += [len(objects)] * len(found["ranges"])
            objects.append(found["shared"])
            ranges += found["ranges"]
        return {
            "objects": objects,
            "places": places,
            "ranges": ranges,
            "size": size,
            "sequential": sequential,
        }

    def _plan_items(self, given: Mapping[str, Any], context: Any) -> dict[str, Any]:
        assert isinstance(self.split, Items)
        if "object" in given:
            bucket, key = parse_object_url(given["object"])
            source = ObjectSource(context.objects, bucket, key=key, etag=given.get("etag"))
            items: list[Any] = read_items(source, bucket=bucket, key=key)
        else:
            items = given.get("items", [])
        ranges = plan_items(self.split, len(items))
        return {
            "shared": {},
            "ranges": [[part.start, part.end, True] for part in ranges],
            "items": [items[part.start : part.end] for part in ranges],
            "size": len(items),
        }

    # ---- map ----

    def _map(self, payload: Mapping[str, Any], context: Any) -> dict[str, Any]:
        chunk: Chunk | ItemsChunk
        if "items" in payload:
            chunk = ItemsChunk(payload["items"], index=payload["index"], start=payload["start"])
        else:
            described = dict(payload["shared"])
            described.update(
                index=payload["index"], start=payload["start"], end=payload["end"], proven=payload["proven"]
            )
            source = ObjectSource(
                context.objects, described["bucket"], key=described["key"], etag=described["etag"]
            )
            chunk = chunk_from_dict(described, source)
        try:
            value = self.function(chunk, context) if self.wants_context else self.function(chunk)
            chunk.verify()
        except BadCut as cut:
            return {"bad_cut": cut.start}
        except Exception as error:
            error.add_note(_place(chunk))
            raise
        answer = self._leave(value, payload, context, name=f"chunks/{payload['index']:06d}", always=True)
        if chunk.short_rows or chunk.long_rows:
            answer["short_rows"], answer["long_rows"] = chunk.short_rows, chunk.long_rows
            first = chunk.first_irregular() if isinstance(chunk, Chunk) else None
            if first is not None:
                answer["irregular"] = {
                    "offset": first.offset,
                    "record": first.record,
                    "columns": first.columns,
                    "expected": first.expected,
                }
        return answer

    # ---- aggregation ----

    def _reduce(self, payload: Mapping[str, Any], context: Any) -> dict[str, Any]:
        assert self.reduce is not None
        children = [child for child in payload["children"] if "empty" not in child]
        if not children and not payload.get("root"):
            return {"empty": True}  # everything below failed, as tolerated_failures allows
        value = fold(self.reduce, _values(children, context)) if children else self.initial
        if payload.get("root") and self.finish is not None:
            value = self._finished(value, context)
        name = f"reduce/{payload['level']}-{payload['index']:06d}"
        return self._leave(value, payload, context, name=name, always=False)

    def _finish(self, payload: Mapping[str, Any], context: Any) -> dict[str, Any]:
        """The closing step where no tree stands above the chunks: none or one of them, or `all_results`."""
        if isinstance(self.reduce, all_results):
            value = self.reduce(_listed(payload["parts"], context))
        elif payload["children"]:
            [value] = _values(payload["children"], context)
        else:
            value = self.initial
        if self.finish is not None:
            value = self._finished(value, context)
        return self._leave(value, payload, context, name="reduce/final", always=False)

    def _finished(self, value: Any, context: Any) -> Any:
        assert self.finish is not None
        return self.finish(value, context) if self.finish_wants_context else self.finish(value)

    def _leave(
        self, value: Any, payload: Mapping[str, Any], context: Any, *, name: str, always: bool
    ) -> dict[str, Any]:
        """Where the value is: in the answer when small, in an object of this attempt's own when large, or
        when the job's output says so (`always`).
        """
        data = encode_result(value)
        output = payload.get("output")
        if len(data) <= INLINE_BYTES and not (always and output):
            return {"value": msgspec.Raw(data)}
        folder = f"{output}/" if output else f"{SYSTEM_BUCKET}/jobs/"
        bucket, _, prefix = folder.partition("/")
        key = f"{prefix}{payload['job']}/{name}.{context.attempt}-{secrets.token_hex(4)}.json"
        context.objects.put(bucket, key, data, content_type="application/json")
        answer: dict[str, Any] = {"object": f"s3://{bucket}/{key}", "bytes": len(data)}
        if len(data) <= INLINE_BYTES:
            answer["value"] = msgspec.Raw(data)
        return answer


def job_entry(
    name: str,
    function: Callable[..., Any],
    *,
    split: Split,
    reduce: Callable[..., Any] | None,
    finish: Callable[..., Any] | None,
    initial: Any,
    wants_context: bool,
) -> tuple[JobCode, str | None]:
    """What runs the job's invocations, and the kind of its reduce: `tree`, `all` or None."""
    code = JobCode(
        name,
        function,
        split=split,
        reduce=reduce,
        finish=finish,
        initial=initial,
        wants_context=wants_context,
    )
    kind = None if reduce is None else "all" if isinstance(reduce, all_results) else "tree"
    return code, kind


def _values(children: list[dict[str, Any]], context: Any) -> Iterator[Any]:
    for child in children:
        yield value_of(child, context.objects)


def value_of(answer: Mapping[str, Any], objects: Any) -> Any:
    """The value that a step left, read from its object where it is one."""
    if "value" in answer:
        return answer["value"]
    return msgspec.json.decode(objects.get(*parse_object_url(answer["object"])))


def _listed(address: str, context: Any) -> Iterator[Any]:
    """The chunks' results in order, from the list that the node wrote, one line a chunk."""
    with context.objects.open(*parse_object_url(address)) as lines:
        for line in lines:
            yield value_of(msgspec.json.decode(line), context.objects)


def _place(chunk: Chunk | ItemsChunk) -> str:
    if isinstance(chunk, ItemsChunk):
        return f"in items {chunk.start} to {chunk.end - 1} of the job's input"
    return f"in chunk {chunk.index}, bytes {chunk.start} to {chunk.end} of s3://{chunk.bucket}/{chunk.key}"


@functools.lru_cache(maxsize=256)
def _takes_two(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        return len(inspect.signature(function).parameters) > 1
    except (TypeError, ValueError):
        return False
