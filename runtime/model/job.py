"""Jobs: one durable plan over a large input, its progress and its end.

Imports the floor only.
"""

from typing import Any

import msgspec

from headrace.runtime.model.spec import JobSpec

FAN_IN = 16
"""Children of one node of the reduce tree. Part of every stored plan: results depend on the tree's shape."""

LIVE = ("planning", "running", "reducing")
ENDED = ("succeeded", "failed", "cancelled")


class Job(msgspec.Struct, kw_only=True):
    """A job as the store holds it.

    `status` is one of planning, running, reducing, succeeded, failed, cancelled. `chunks` is the number of
    planned chunks, `levels` the reduce levels above them, `plan` the planner's own notes (header, mode, the
    input's ETag).
    """

    id: int
    function: str
    spec: JobSpec
    input: dict[str, Any]
    status: str
    accepted_at: float
    generation: int = 0
    chunks: int = 0
    levels: int = 0
    plan: dict[str, Any] = msgspec.field(default_factory=dict)
    tags: str | None = None
    code_version: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    result: bytes | None = None
    result_ref: str | None = None
    error: dict[str, Any] | None = None


class JobCounts(msgspec.Struct, kw_only=True):
    """How many invocations of one stage of a job are in each status."""

    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0


def reduce_levels(chunks: int) -> int:
    """Levels of the reduce tree above `chunks` leaves: 0 for none or one."""
    levels = 0
    while chunks > 1:
        chunks = -(-chunks // FAN_IN)
        levels += 1
    return levels


def stage_width(chunks: int, stage: int) -> int:
    """How many invocations the stage has: `chunks` at stage 0, one at the top of the tree."""
    for _ in range(stage):
        chunks = -(-chunks // FAN_IN)
    return chunks
