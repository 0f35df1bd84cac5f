"""Rows: the columns of the SQLite tables in the order that statements use, and the values they stand for.

Imports the floor only.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.runtime.model.invocation import Invocation, Record, Status
from headrace.runtime.model.job import Job
from headrace.runtime.model.spec import JobSpec

Row = Sequence[Any]

INVOCATION = (
    "id, function, flow, payload, accepted_at, due_at, expires_at, priority, attempts, payload_ref,"
    " idempotency_key,"
    " tags, source, job, stage, idx, memory_bytes"
)
RECORD = f"{INVOCATION}, status, started_at, ended_at, result, result_ref, error, node"
JOB = (
    "id, function, spec, input, status, accepted_at, generation, chunks, levels, plan, tags, code_version,"
    " started_at,"
    " ended_at, result, result_ref, error"
)

json_encode = msgspec.json.Encoder().encode
json_decode = msgspec.json.Decoder().decode
_spec = msgspec.json.Decoder(JobSpec)


def text_of(value: Any) -> str | None:
    """The JSON text of a value, None for None."""
    return None if value is None else json_encode(value).decode()


def invocation_row(invocation: Invocation) -> tuple[Any, ...]:
    """The columns of `INVOCATION`."""
    job = invocation.job
    return (
        invocation.id, invocation.function, invocation.flow, invocation.payload, invocation.accepted_at,
        invocation.due_at, invocation.expires_at, invocation.priority, invocation.attempts,
        invocation.payload_ref, invocation.idempotency_key, invocation.tags, invocation.source, job, None if
        job is None else invocation.stage, None if job is None else invocation.index, invocation.memory_bytes,
    )  # fmt: skip


def invocation_of(row: Row) -> Invocation:
    """The invocation behind a row that begins with the columns of `INVOCATION`."""
    (id, function, flow, payload, accepted_at, due_at, expires_at, priority, attempts, payload_ref, key, tags,
    source, job,
     stage, idx, memory_bytes) = row[:17]  # fmt: skip
    return Invocation(id, function, flow, payload, accepted_at, due_at, expires_at, priority, attempts,
    payload_ref,
                      key, tags, source, job, stage or 0, idx or 0, memory_bytes)  # fmt: skip


def record_of(row: Row) -> Record:
    """The record behind a row with the columns of `RECORD`."""
    status, started_at, ended_at, result, result_ref, error, node = row[17:]
    invocation = invocation_of(row)
    return Record(
        invocation=invocation,
        status=Status(status),
        attempts=invocation.attempts,
        started_at=started_at,
        ended_at=ended_at,
        result=result,
        result_ref=result_ref,
        error=None if error is None else json_decode(error),
        node=node,
    )


def job_of(row: Row) -> Job:
    """The job behind a row with the columns of `JOB`."""
    return Job(
        id=row[0],
        function=row[1],
        spec=_spec.decode(row[2]),
        input=json_decode(row[3]),
        status=row[4],
        accepted_at=row[5],
        generation=row[6],
        chunks=row[7],
        levels=row[8],
        plan=json_decode(row[9]),
        tags=row[10],
        code_version=row[11],
        started_at=row[12],
        ended_at=row[13],
        result=row[14],
        result_ref=row[15],
        error=None if row[16] is None else json_decode(row[16]),
    )
