"""Attempts as they travel to the workers, and the reports that come back.

Imports the floor only.
"""

import msgspec

from headrace.runtime.model.invocation import Outcome


class Attempt(msgspec.Struct, gc=False):
    """One attempt to be run. `token` names it in reports and is unique within the node's life.

    `payload` is JSON; when `payload_ref` is set the worker reads the payload from that object instead.
    `timeout_s` and `memory_bytes` are its limits, `urgent` marks a caller who waits (it is never placed
    behind work that may take long). With `credit` its result may come as a stream, of which so many bytes may
    be under way; with 0 a stream is gathered into one result. `estimate_s` is the pool's own: what it
    expects the attempt to take.
    """

    token: int
    function: str
    invocation_id: int
    attempt: int
    payload: bytes
    timeout_s: float
    memory_bytes: int
    payload_ref: str | None = None
    urgent: bool = False
    credit: int = 0
    estimate_s: float = 0.0


class Report(msgspec.Struct, gc=False):
    """How an attempt ended."""

    token: int
    outcome: Outcome
