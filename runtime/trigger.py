"""The trigger protocol: what an event source is to the engine, and what the engine gives it.

Imports the floor and the object store's protocol only. Everything that the built-in triggers do goes through
here, so that a third party's trigger, found by its entry point in the group `headrace.triggers`, can do all
that they do.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import BadRequest
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Write
from headrace.runtime.objects.protocol import ObjectInfo, ObjectStore


class LedgerEntry(Protocol):
    """One object that a trigger has turned into an event."""

    key: str
    etag: str
    size: int
    sequencer: str
    modified_at: float


class TriggerState(Protocol):
    """What a trigger may ask of the store; its writes go through `TriggerContext.accept`."""

    async def ledger(
        self, trigger: str, bucket: str, *, after: str = "", limit: int = 1000
    ) -> Sequence[LedgerEntry]:
        """A page of the trigger's ledger with keys above `after`, by the keys' UTF-8 bytes."""

    async def ledger_entry(self, trigger: str, bucket: str, key: str) -> LedgerEntry | None:
        """The ledger's row of one key; of several versions the latest."""

    async def cursor(self, name: str) -> str | None:
        """A position that CursorMoved recorded."""

    async def schedule(self, name: str, *, definition: str, now: float) -> Any:
        """The schedule's state (see ScheduleState in the store's protocol), made when new."""


class HttpCall(msgspec.Struct, gc=False):
    """An HTTP request that matched a route. Header names are lower-case; `query` is the raw query string."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes
    path_parameters: dict[str, str]
    client_ip: str
    request_id: str
    received_at: float
    caller: str = ""
    """The name of the key that the caller has shown, where the route asks for one."""


class HttpAnswer(msgspec.Struct, gc=False):
    """What the caller gets."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Route(Protocol):
    """A route that a trigger contributes: the engine serves it, the trigger says what event a call is, and
    what it answers.

    `path` may hold `{name}` parameters. With `asynchronous` the call is accepted durably and answered 202.
    A route may have two things more: `rules`, a RouteRules, and `idempotency_key(call)`, the key of a call
    that brings none of its own, or None.
    """

    method: str
    path: str
    asynchronous: bool

    def event(self, call: HttpCall) -> bytes:
        """The event's JSON. Raises BadRequest or InvalidPayload."""

    def answer(self, result: bytes) -> HttpAnswer:
        """The answer for the function's result (JSON)."""


class Notification(msgspec.Struct, frozen=True, gc=False):
    """What an object store tells of one object, in S3's terms.

    `name` is the event's without `s3:`, `source` its `eventSource`.
    """

    info: ObjectInfo
    name: str
    source: str


Hear = Callable[[Notification], Awaitable[None]]
"""Returns when a notification is durable, or needs nothing; raises a Retryable error when it is to come
again.
"""


class TriggerContext(msgspec.Struct, kw_only=True):
    """What the engine gives to one trigger of one function.

    `name` identifies the trigger for its ledger and schedules and stays the same over restarts. `accept`
    records events and the trigger's own writes in one atomic step and returns the invocation ids (or job
    ids); it raises Duplicate when the ledger already knew the happening, and Throttled when the function's
    queue is full: hold back and try again later. A `Fired` among the writes gets the first id as its subject.
    `bury` does the same with one event that shall not run: it becomes a dead letter at once (for a job: a
    failed one) with `error`, `{"code", "message", …}`, and the function's `on_failure` is told. `cancel` ends
    an invocation or a job by its id; harmless when it has ended. `new_id` gives an id for an event that has
    to hold its own. `subscribe` has a bucket's notifications told to the trigger, until what it returns is
    called; None where there are none. `clock_look_s` is how often to look whether the wall clock was changed,
    None for the trigger's own choice.
    """

    name: str
    function: FunctionSpec
    objects: ObjectStore
    state: TriggerState
    clock: Clock
    chance: random.Random
    accept: Callable[[Sequence[Mapping[str, Any]], Sequence[Write]], Awaitable[list[str]]]
    cancel: Callable[[str], Awaitable[None]]
    bury: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[Write]], Awaitable[str]]
    new_id: Callable[[], str]
    in_thread: Callable[..., Awaitable[Any]]
    report: Callable[[str, Mapping[str, Any]], None]
    sweep_s: float = 300.0
    clock_look_s: float | None = None
    subscribe: Callable[[str, Hear], Callable[[], None]] | None = None


class Source(Protocol):
    """What watches: started with the node, stopped with it. `stop` returns when all is quiet; twice is
    harmless.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Trigger(Protocol):
    """A trigger as a user declares it: a value that travels as its fields.

    `source` builds what watches, or returns None when the trigger only contributes routes. Raises
    InvalidFunction at declaration when its fields are wrong.
    """

    kind: ClassVar[str]

    def fields(self) -> dict[str, Any]:
        """JSON-able fields, from which `from_fields` makes an equal trigger."""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self: ...

    def source(self, context: TriggerContext) -> Source | None: ...

    def routes(self) -> Sequence[Route]: ...


@runtime_checkable
class Checked(Protocol):
    """A trigger that does not fit every function."""

    def check(self, function: FunctionSpec) -> None:
        """Called when it is declared. Raises: InvalidFunction."""


@runtime_checkable
class Timed(Protocol):
    """A trigger whose moments are known ahead, so that people can be told the next ones, have one fire by
    hand, and fill in those that are missing.
    """

    kind: ClassVar[str]
    misfire: str

    @property
    def definition(self) -> str:
        """What its moments depend on, as canonical text: under which the store knows its schedule."""

    def next_after(self, moment: float, *, anchor: float) -> float | None:
        """The first moment after `moment`; None when there is none any more. Both, and `anchor`, from which a
        rate counts, are UTC epoch seconds.
        """

    def fields(self) -> dict[str, Any]:
        """What was declared, as in Trigger."""

    def event(self, name: str, due: float, *, id: str) -> Mapping[str, Any]:
        """The event of the schedule `name` for a moment, with an id of its own."""


@runtime_checkable
class FeedsJobs(Protocol):
    """A trigger that says what its events give to a job; with others the job's input is the trigger's
    `input=`, or the event itself as its only item.
    """

    def job_input(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """`{"object": "s3://BUCKET/KEY"}`, `{"items": […]}` or `{"objects": …}`, as for
        `Coordinator.submit`.
        """


Options = Mapping[str, Sequence[str]]
"""What a caller says of a sample event: texts by name, each as often as it was given."""


@runtime_checkable
class Sampled(Protocol):
    """A trigger that can make one of its events, for tests and for people to look at."""

    sample_options: ClassVar[Mapping[str, str]]
    """What may be said of the event: names, and what they mean."""

    @classmethod
    def sample(
        cls, options: Options, *, like: Self | None, name: str, moment: float, id: str
    ) -> Mapping[str, Any]:
        """The event as the trigger would give it to its function.

        Args:
            options: by the names of `sample_options` only.
            like: the trigger whose event it is to be; None where there is no function in mind.
            name: what identifies that trigger, see TriggerContext.
            moment: when it is to happen, in epoch seconds, unless an option says so.
            id: for an event that has to hold its own.

        Raises: BadRequest for a value that cannot be.
        """


def the_option(options: Options, name: str, default: str) -> str:
    """The value of an option that is given at most once. Raises: BadRequest when it is given more often."""
    values = options.get(name, ())
    if len(values) > 1:
        raise BadRequest(f"{name} is given {len(values)} times", "Give it once.")
    return values[0] if values else default


def moment_option(options: Options, name: str, default: float) -> float:
    """A moment among the options, in epoch seconds: ISO 8601 with a time zone. Raises: BadRequest."""
    text = the_option(options, name, "")
    if not text:
        return default
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            return read.timestamp()
    except (ValueError, OverflowError):
        pass
    raise BadRequest(f"{name} is {text!r}, no moment with a time zone", "Write 2030-01-31T09:00:00Z.")


def number_option(options: Options, name: str, default: int) -> int:
    """A whole number of 0 or more among the options. Raises: BadRequest."""
    text = the_option(options, name, str(default))
    if not text.isascii() or not text.isdecimal():
        raise BadRequest(f"{name} is {text!r}, no whole number", "Write for example 1024.")
    return int(text)
