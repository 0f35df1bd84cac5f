"""Specs: what a user declared of a function, a job, a trigger, as plain values that travel between processes.

Imports the floor only. The process that imports user code makes them, the node reads them; a `Manifest` is
all that one version of the code declares.
"""

from typing import Any

import msgspec

from headrace.runtime.model.policy import RetryPolicy

VALIDATE = "headrace.validate"
"""The node's own function that compares an event with a function's types."""

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MEMORY_BYTES = 512 << 20
DEFAULT_MAX_AGE_S = 6 * 3600.0
DEFAULT_IDEMPOTENCY_TTL_S = 24 * 3600.0
IDEMPOTENCY_TTL_S_MIN, IDEMPOTENCY_TTL_S_MAX = 1.0, 30 * 86_400.0
"""How long an idempotency key may be remembered, in seconds from the acceptance of its first call."""


class TriggerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger as declared: its kind (the name of an entry point in group `headrace.triggers`) and its
    fields.
    """

    kind: str
    fields: dict[str, Any]


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a job is cut, mapped and aggregated.

    `split` is a splitter's dictionary form. `reduce` is `tree`, `all` or None; `initial` is the result of no
    chunks. `output` is `BUCKET` or `BUCKET/PREFIX`, where results are written. `tolerated_failures` is a
    count of chunks, or a fraction of them when below 1.
    """

    split: dict[str, Any]
    reduce: str | None = None
    finish: bool = False
    initial: Any = None
    output: str | None = None
    max_concurrency: int | None = None
    tolerated_failures: float = 0


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One function or job under its name, with its settings. Durations in seconds, sizes in bytes.

    `streams` is the media type of what the function streams, as far as its declaration tells (`*/*`), and
    empty when it is not known to.
    `rate` is begun a second, `rate_burst` the bucket's size. `concurrency_key` is the path of the key in the
    event, step by step, empty without one. With `memory_max_bytes` an attempt that ran out of memory is made
    again with more.
    `on_failure` and `on_success` are destinations: a function's name, `s3://BUCKET/PREFIX` or a webhook's
    URL, which may hold a secret (`model/destination.py` has the form to show). With `callbacks` a caller may
    have named a URL that is told of the end.
    """

    name: str
    module: str
    file: str
    line: int
    doc: str = ""
    timeout_s: float = DEFAULT_TIMEOUT_S
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    retry: RetryPolicy = RetryPolicy()
    max_age_s: float = DEFAULT_MAX_AGE_S
    memory_max_bytes: int | None = None
    reserved_concurrency: int | None = None
    rate: float | None = None
    rate_burst: float = 1.0
    concurrency_key: tuple[str, ...] = ()
    key_concurrency: int | None = None
    weight: int = 1
    priority: int = 0
    on_failure: str | None = None
    on_success: str | None = None
    idempotency_ttl_s: float = DEFAULT_IDEMPOTENCY_TTL_S
    callbacks: bool = False
    typed: bool = False
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    output_schema: dict[str, Any] | None = None
    streams: str = ""
    triggers: tuple[TriggerSpec, ...] = ()
    job: JobSpec | None = None


class LoadError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a file, or one declaration in it, was not loaded; `line` counts from 1, 0 when unknown."""

    file: str
    line: int
    message: str
    hint: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that one version of the user's code declares.

    `version` is a hash of the code. `start` is how workers begin: `fork` or `spawn`, with `why` when it is
    not fork.
    """

    version: str
    functions: tuple[FunctionSpec, ...] = ()
    errors: tuple[LoadError, ...] = ()
    start: str = "fork"
    why: str = ""

    @property
    def own(self) -> int:
        """How many functions are the user's."""
        return sum(not spec.name.startswith("headrace.") for spec in self.functions)

    def function(self, name: str) -> FunctionSpec | None:
        for spec in self.functions:
            if spec.name == name:
                return spec
        return None
