"""Invocations: requests to run one function on one event, their attempts, claims and outcomes.

Imports the floor only. Values here are `msgspec` structs, since they are made and dropped a hundred thousand
times a second.
"""

from enum import IntEnum
from typing import Any

import msgspec


class Status(IntEnum):
    """Where an invocation is. The numbers are stored; they never change meaning."""

    WAITING = 0
    RUNNING = 1
    SUCCEEDED = 2
    DEAD = 3
    CANCELLED = 4

    @property
    def ended(self) -> bool:
        return self >= Status.SUCCEEDED


class Invocation(msgspec.Struct, gc=False):
    """One request to run one function on one event; treated as frozen once made.

    `flow` is what shares the workers fairly: the function's name, `FUNCTION#KEY` with a concurrency key, or
    `job:ID` for a job's invocations. `memory_bytes` is a limit of its own, None for the function's.
    `payload` is JSON, or the address of an object that holds it in `payload_ref` (then `payload` is empty).
    Moments are UTC epoch seconds. `attempts` counts the attempts that were spent before now. `job`, `stage`
    and `index` place a job's invocation: stage -1 is planning, 0 the map, 1 and up the levels of the reduce
    tree.
    """

    id: int
    function: str
    flow: str
    payload: bytes
    accepted_at: float
    due_at: float
    expires_at: float
    priority: int = 0
    attempts: int = 0
    payload_ref: str | None = None
    idempotency_key: str | None = None
    tags: str | None = None
    source: str | None = None
    job: int | None = None
    stage: int = 0
    index: int = 0
    memory_bytes: int | None = None


class Claim(msgspec.Struct, gc=False):
    """A node's right to run one attempt of one invocation, counted from 1.

    A claim is not a lock: nothing stops a node whose lease ran out from running on, so every write that ends
    an attempt names its claim, and is refused when that claim is stale.
    """

    invocation: Invocation
    attempt: int
    node: str


class Outcome(msgspec.Struct, gc=False):
    """How one attempt ended.

    `kind` is one of `ok`, `error`, `timeout`, `out_of_memory`, `crashed`, `invalid_event`, `cancelled`,
    `retry_after` (the function asked for it: it costs no attempt), or `returned` (never started: it costs
    none). `value` is the result's JSON when `ok`, `result_ref` the
    address of the object that holds it instead. `error` is `{"code", "type", "message", "stack", …}`
    otherwise. `output` is what the attempt printed, head and tail within 1 MiB; `output_bytes` how much that
    was before it was cut. `duration_s` is the function's own time.
    """

    kind: str
    value: bytes = b""
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    output: bytes = b""
    output_bytes: int = 0
    duration_s: float = 0.0
    started_at: float = 0.0
    invocation_id: int = 0

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


class Record(msgspec.Struct, kw_only=True):
    """What is known of one invocation, as the store holds it."""

    invocation: Invocation
    status: Status
    attempts: int
    started_at: float | None = None
    ended_at: float | None = None
    result: bytes | None = None
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    node: str | None = None
