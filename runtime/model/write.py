"""Writes: everything that the engine asks a store to record, as values.

Imports the floor only. A store applies one caller's list atomically, whatever concepts it spans. A refusal (a
stale claim, a happening that is already recorded) undoes that caller's list only and is its result.
"""

from typing import Any

import msgspec

from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.spec import JobSpec


class Put(msgspec.Struct, gc=False):
    """Accept an invocation; with `node` it is claimed by that node at once.

    With an idempotency key that is known and not expired, nothing is written and the answer is the first
    invocation's id; with another payload it is refused with IdempotencyMismatch. `idempotency_until` is when
    the key is forgotten; `fingerprint` what a repeat must have in common with the first, its payload when
    empty.
    """

    invocation: Invocation
    node: str | None = None
    idempotency_until: float = 0.0
    fingerprint: bytes = b""


class Settle(msgspec.Struct, gc=False):
    """End an invocation by its claim: SUCCEEDED, DEAD or CANCELLED. Refused with LeaseLost when the claim is
    stale. Without `begun` the claim's attempt was never made, and does not count.
    """

    claim: Claim
    status: Status
    result: bytes = b""
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    started_at: float = 0.0
    begun: bool = True

    @property
    def attempts(self) -> int:
        """How many attempts were made in all."""
        return self.claim.attempt if self.begun else self.claim.attempt - 1


class Retry(msgspec.Struct, gc=False):
    """Give a claim back: waiting again until `due_at`. With `spent` the attempt counts. `memory_bytes` is the
    limit of the attempts from now on, None to leave it. Refused with LeaseLost.
    """

    claim: Claim
    due_at: float
    spent: bool = True
    error: dict[str, Any] | None = None
    memory_bytes: int | None = None


class MarkRunning(msgspec.Struct, gc=False):
    """Record that a claim has been running for a while, so that the loss of its node costs the attempt."""

    claim: Claim
    started_at: float


class CancelWaiting(msgspec.Struct, gc=False):
    """End an invocation that nobody has claimed. Refused with WrongState when it is claimed or ended."""

    id: int


class Redrive(msgspec.Struct, gc=False):
    """Put a dead invocation back to waiting, under the same id, with no attempts spent. Refused with
    WrongState.

    With `payload` or `payload_ref` its event is replaced by them, as in an Invocation; its idempotency key
    goes on to stand for the event that first came with it.
    """

    id: int
    due_at: float
    expires_at: float
    payload: bytes | None = None
    payload_ref: str | None = None


class Discard(msgspec.Struct, gc=False):
    """Give a dead invocation up: it becomes CANCELLED, with its last error as the `cause`. Refused with
    WrongState.
    """

    id: int


class Seen(msgspec.Struct, gc=False):
    """A trigger's ledger row: this state of this object has been turned into an event.

    Refused with Duplicate when the ledger already holds it, by these rules: new if the key has no row, or if
    `sequencer` is higher than the row's; when `listed` (found by a sweep), new if ETag or size differ and
    `modified_at` is not older.
    """

    trigger: str
    bucket: str
    key: str
    etag: str
    size: int
    sequencer: str
    modified_at: float
    listed: bool = False
    version_id: str = ""


class Forget(msgspec.Struct, gc=False):
    """Remove ledger rows of keys that a complete sweep no longer found; with `gone` only those that mark an
    object that has gone, which have no ETag.
    """

    trigger: str
    bucket: str
    keys: list[str]
    gone: bool = False


class Fired(msgspec.Struct, gc=False):
    """A schedule fired for a due instant. Refused with Duplicate when it already had, or when `generation` is
    not the newest.

    `cause` is `due`, `missed` (made up for), `queued` (what had waited), `run` (by hand) or `backfill`; or,
    without an event, `skipped`, which records that the instant does not fire, or `waits`: it is the one that
    waits for an earlier one's end, or skipped when one waits already. `subject` is the invocation or job that
    was accepted with it; whoever accepts it fills that in.

    Of the causes `due`, `missed` and `queued`, with another `overlap` than `allow`, it is refused with
    Overlapping while the invocation or job of an earlier one has not ended; `skip` and `queue` also while one
    waits, before which `cancel` goes. While another node decides about the schedule it is refused with
    Contended.

    With `backfill`, its backfill moves on to this instant, past `present` that had fired before. It is
    refused with Duplicate when the backfill has ended or is further, and with Overlapping while as many of
    its invocations or jobs as may run at once have not ended. With `again` an instant that has fired fires
    once more.
    """

    schedule: str
    due_at: float
    generation: int
    cause: str = "due"
    overlap: str = "allow"
    subject: int | None = None
    backfill: int | None = None
    present: int = 0
    again: bool = False


class CursorMoved(msgspec.Struct, gc=False):
    """A named position of a trigger's source, as it likes to write it.

    With `expected` it moves only from there, from nowhere when that is "", and is refused with Duplicate
    otherwise: so of several sources that read the same thing, one brings each part of it.
    """

    name: str
    value: str
    expected: str | None = None


class JobPut(msgspec.Struct, gc=False):
    """A new job, in status `planning`."""

    id: int
    function: str
    spec: JobSpec
    input: dict[str, Any]
    accepted_at: float
    tags: str | None = None
    code_version: str = ""


class JobPlanned(msgspec.Struct, gc=False):
    """The chunks of a job from index `first` on, each an invocation of stage 0 with its payload made by
    `payloads[i]`.

    It replaces what was planned from `first` on before (a plan that was found wrong), with every later stage.
    `levels` is the number of reduce levels above the map. `plan` is what the planner wants to remember.
    """

    job: int
    first: int
    invocations: list[Invocation]
    levels: int
    plan: dict[str, Any]
    generation: int


class ChunkDone(msgspec.Struct, gc=False):
    """Settle a job's invocation, and when that completes its group of 16, accept the invocation that reduces
    the group.

    One transaction does both, so that each reduce fires exactly once, whoever dies. `parent` is the
    invocation to accept (its payload is filled by the store with the children's results, in order), `group`
    the first and last index of its children; None when there is nothing above. Refused with LeaseLost when
    the claim is stale.
    """

    settle: Settle
    group: tuple[int, int] | None = None
    parent: Invocation | None = None


class JobMoved(msgspec.Struct, gc=False):
    """A job's status, result or error changed. Refused with WrongState unless its status is one of
    `expected`.

    `notes` are added to the job's plan. Moving to `failed` or `cancelled` also ends the job's unclaimed
    waiting invocations as CANCELLED, in the same transaction.
    """

    job: int
    status: str
    expected: tuple[str, ...]
    at: float
    result: bytes | None = None
    result_ref: str | None = None
    error: dict[str, Any] | None = None
    notes: dict[str, Any] | None = None


class JobRedriven(msgspec.Struct, gc=False):
    """Put a job's dead and cancelled invocations back to waiting, and remove the ended reduces above them.

    `fan_in` is the width of the reduce tree. Refused with WrongState unless the job's status is one of
    `expected`; its status becomes `running`, or `planning` when it has no chunks.
    """

    job: int
    expected: tuple[str, ...]
    at: float
    expires_at: float
    fan_in: int = 16


class FunctionPaused(msgspec.Struct, gc=False):
    """A function was paused or resumed."""

    function: str
    paused: bool


class Closed(msgspec.Struct, gc=False):
    """Nothing of a function, or of a concurrency key in any function, is claimed before `until_at`.

    `name` is `function:NAME` or `key:KEY`. A later moment replaces an earlier one, never the other way round.
    """

    name: str
    until_at: float
    reason: str = ""


class Opened(msgspec.Struct, gc=False):
    """A closure ends now, whatever its moment."""

    name: str


class CancelMatching(msgspec.Struct, gc=False):
    """End up to `limit` unclaimed waiting invocations of a function, with a tag, or both, as CANCELLED; those
    of jobs excepted, which end with their job.

    Only ids above `after` and below `below` match. With a tag they are taken in the order of their ids, so
    that the last one is the next `after`. Its Applied carries their ids in `ids`; fewer than `limit` means
    that no more matched.
    """

    function: str | None = None
    tag: str | None = None
    limit: int = 1000
    after: int = 0
    below: int | None = None


class Deployed(msgspec.Struct, gc=False):
    """A node serves this version of the code from `at` on."""

    node: str
    version: str
    at: float


Write = (
    Put
    | Settle
    | Retry
    | MarkRunning
    | CancelWaiting
    | Redrive
    | Discard
    | Seen
    | Forget
    | Fired
    | CursorMoved
    | JobPut
    | JobPlanned
    | ChunkDone
    | JobMoved
    | JobRedriven
    | FunctionPaused
    | Closed
    | Opened
    | CancelMatching
    | Deployed
)


class Applied(msgspec.Struct, gc=False):
    """What became of one write. `id` is set by a Put (the first invocation's, when it is a repeat), `claim`
    when the Put was claimed at once, `parent` when a ChunkDone accepted the next reduce, `ids` by a
    CancelMatching.
    """

    id: int | None = None
    repeated: bool = False
    claim: Claim | None = None
    parent: Invocation | None = None
    refused: HeadraceError | None = None
    ids: list[int] | None = None
