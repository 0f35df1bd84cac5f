"""Stages: the invocations that a job is made of, as values.

Imports the floor. Stage -1 plans, stage 0 maps the chunks, the stages above reduce; a job without a tree has
one closing step at stage 1.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Invocation
from headrace.runtime.model.job import FAN_IN, Job, stage_width
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import ChunkDone, Put, Settle

PLAN_STAGE = -1
JOB_AGE_S = 366 * 86_400.0
"""A job's invocations do not expire as events do: a long job's last chunk may rightly wait for days."""


class Place(msgspec.Struct):
    """Where an invocation stands in its job, as its payload says."""

    job: str
    chunks: int
    levels: int
    output: str | None = None


class Stages:
    """Makes the invocations of jobs; `ids` names them."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def plan(
        self,
        job: int,
        function: str,
        spec: FunctionSpec,
        given: Mapping[str, Any],
        *,
        now: float,
        generation: int = 1,
        sequential: bool = False,
    ) -> Put:
        """The step that plans the job's chunks: of a `generation`, by parsing all of it when `sequential`."""
        payload = {
            "stage": "plan",
            "job": show_id(job),
            "input": given,
            "chunks": 0,
            "levels": 0,
            "sequential": sequential,
            "output": None,
        }
        return Put(
            Invocation(
                self._ids.next(),
                function,
                flow_of_job(job),
                msgspec.json.encode(payload),
                now,
                now,
                now + JOB_AGE_S,
                spec.priority,
                job=job,
                stage=PLAN_STAGE,
                index=generation,
            )
        )

    def chunks(
        self, job: Job, spec: FunctionSpec, found: Mapping[str, Any], *, levels: int, now: float
    ) -> list[Invocation]:
        """The chunks that a planning step found, below a tree of so many levels."""
        shared = {
            "stage": "map",
            "job": show_id(job.id),
            "chunks": len(found["ranges"]),
            "levels": levels,
            "output": job.spec.output,
            "shared": found.get("shared", {}),
        }
        invocations = []
        for index, (start, end, proven) in enumerate(found["ranges"]):
            payload = {**shared, "index": index, "start": start, "end": end, "proven": proven}
            if "objects" in found:
                payload["shared"] = found["objects"][found["places"][index]]
            if "items" in found:
                payload["items"] = found["items"][index]
            invocations.append(
                Invocation(
                    self._ids.next(),
                    job.function,
                    flow_of_job(job.id),
                    msgspec.json.encode(payload),
                    now,
                    now,
                    now + JOB_AGE_S,
                    spec.priority,
                    job=job.id,
                    stage=0,
                    index=index,
                )
            )
        return invocations

    def done(self, settle: Settle, *, now: float) -> ChunkDone:
        """What records the end of an invocation: with the last child of a group comes the reduce above it."""
        invocation = settle.claim.invocation
        place = msgspec.json.decode(invocation.payload, type=Place)
        above = invocation.stage + 1
        if above > place.levels:
            return ChunkDone(settle)
        parent = invocation.index // FAN_IN
        width = stage_width(place.chunks, invocation.stage)
        first = parent * FAN_IN
        payload: dict[str, Any] = {
            "stage": "reduce",
            "job": place.job,
            "level": above,
            "index": parent,
            "chunks": place.chunks,
            "levels": place.levels,
            "output": place.output,
        }
        if above == place.levels:
            payload["root"] = True
        assert invocation.job is not None
        reduce = Invocation(
            self._ids.next(),
            invocation.function,
            invocation.flow,
            msgspec.json.encode(payload),
            now,
            now,
            now + JOB_AGE_S,
            invocation.priority,
            job=invocation.job,
            stage=above,
            index=parent,
        )
        return ChunkDone(settle, (first, min(first + FAN_IN, width) - 1), reduce)

    def finish(self, job: Job, spec: FunctionSpec, payload: Mapping[str, Any], *, now: float) -> Put:
        """The closing step of a job without a tree."""
        return Put(
            Invocation(
                self._ids.next(),
                job.function,
                flow_of_job(job.id),
                msgspec.json.encode(payload),
                now,
                now,
                now + JOB_AGE_S,
                spec.priority,
                job=job.id,
                stage=1,
                index=0,
            )
        )


def flow_of_job(job: int) -> str:
    """The flow in which all invocations of a job wait."""
    return f"job:{show_id(job)}"
