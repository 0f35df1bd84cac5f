"""What the engine asks of a database: one Protocol per caller, and the values they answer with.

Imports the floor only. No method reads the clock: callers pass `now`, so that one clock decides every lease.
Nothing here may assume that there is one node.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from headrace.runtime.model.audit import Audit, Reference
from headrace.runtime.model.invocation import Claim, Invocation, Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.model.limits import NO_LIMITS, Held, Limits
from headrace.runtime.model.write import Applied, Write

Done = Callable[[list[Applied] | BaseException], None]

Item = tuple[Sequence[Write], Done, float, Callable[[], None] | None]
"""What `QueueStore.submit` is given: writes, done, now, on_disk."""

Gather = Callable[[], Item | None]
"""What is to be recorded now, if anything is."""


KEY_GRACE_S = 600.0
"""An idempotency key whose invocation outlasts it stands until that has ended, and up to so long after."""


class Counters(msgspec.Struct, kw_only=True):
    """The books of one function: accepted = waiting + running + succeeded + dead + cancelled.

    They survive retention: `removed_*` count the ended ones whose rows retention, or a new plan of their job,
    has removed. `oldest_accepted_at` is when the oldest waiting one was accepted, in epoch
    seconds.
    """

    accepted: int = 0
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    deduplicated: int = 0
    removed_succeeded: int = 0
    removed_dead: int = 0
    removed_cancelled: int = 0
    oldest_accepted_at: float | None = None


class ScheduleState(msgspec.Struct, kw_only=True):
    """What the store remembers of a schedule. `definition` is its canonical text; `anchor` the moment `rate`
    counts from. `resumed_at` is when a pause last ended: moments up to it are passed over. `queued_at` is the
    instant that waits for an earlier one to end; up to `forgotten_at` it is not known what has fired.
    """

    name: str
    definition: str
    generation: int
    anchor: float
    paused: bool = False
    last_due_at: float | None = None
    resumed_at: float | None = None
    queued_at: float | None = None
    forgotten_at: float | None = None


class Fire(msgspec.Struct, kw_only=True):
    """What became of an instant of a schedule: the fields of Fired. `fired_at` is when that was recorded."""

    due_at: float
    fired_at: float | None = None
    cause: str = "due"
    subject: int | None = None
    backfill: int | None = None

    @property
    def fired(self) -> bool:
        """Whether there is, or was, something that ran for it."""
        return self.cause not in ("skipped", "queued")


class Backfill(msgspec.Struct, kw_only=True):
    """A range of a schedule's instants that are being fired, after `from_at` up to and with `until_at`.

    `status` is `running`, `done` or `cancelled`, `position` the last instant that was looked at, `instants`
    how many there are, `fired` how many have been fired, `present` how many were passed over since they had
    fired before, `live` those whose invocations or jobs have not ended, as far as that was looked at.
    """

    id: int
    schedule: str
    generation: int
    from_at: float
    until_at: float
    position: float
    concurrency: int
    again: bool
    instants: int
    created_at: float
    status: str = "running"
    fired: int = 0
    present: int = 0
    live: list[int] = msgspec.field(default_factory=list)
    ended_at: float | None = None
    note: str = ""


class Removed(msgspec.Struct, frozen=True):
    """What one batch of retention removed."""

    count: int
    """Invocations and jobs."""
    refs: list[str]
    """Addresses in the system bucket (payload_ref, result_ref) that nobody needs any more."""


class Closure(msgspec.Struct, kw_only=True):
    """A function (`function:NAME`) or key (`key:KEY`) of which nothing is claimed before a moment."""

    name: str
    until_at: float
    reason: str = ""


class Deployment(msgspec.Struct, kw_only=True):
    """Which version of the code a node serves from a moment on."""

    node: str
    version: str
    since: float


class LedgerRow(msgspec.Struct, kw_only=True):
    """One object that a trigger has turned into an event."""

    key: str
    etag: str
    size: int
    sequencer: str
    modified_at: float


class QueueStore(Protocol):
    """What the dispatcher asks."""

    def submit(
        self,
        writes: Sequence[Write],
        done: Done,
        *,
        now: float,
        on_disk: Callable[[], None] | None = None,
    ) -> None:
        """Record `writes`, atomically; `done` is called on the event loop once they are durable.

        It gets one Applied a write, in order, or the error that kept the database from recording them. When
        one write is refused, none of the list is recorded, and each of the others answers with the same
        refusal. Lists are recorded in the order of the calls. Returns at once; never blocks the event loop.

        `on_disk` spares a waiting thread one turn of the event loop: it is called before `done`, on a thread
        of the store's own, once all of the list is durable and nothing of it was refused. It must be quick.
        """

    def submit_later(self, gather: Gather) -> None:
        """As `submit`, from any thread, of what `gather` gives when the store is about to record.

        It is called once, on a thread of the store's own, after what was submitted before, and must be quick:
        the store's caller crosses to that thread alone, and all that comes while the disk is busy is one
        list. Raises StoreUnavailable when the store is stopped.
        """

    async def apply(self, writes: Sequence[Write], *, now: float) -> list[Applied]:
        """`submit`, awaited. Raises StorageFull, ReadOnlyStorage, StoreUnavailable or DataDamaged; nothing is
        recorded then.
        """

    @property
    def shared(self) -> bool:
        """Whether other nodes may claim from this store too, so that limits must be held in the claim."""

    def listen(self, wake: Callable[[str], None]) -> None:
        """Call `wake` on the event loop with a word of another node's.

        It is the name of a flow of which something became claimable; `moved:ID` when a job was planned, moved
        or redriven; `control` when a pause, a closure or the set of nodes changed; `cancel:ID` and
        `matching:…` as `tell` was given them; `*` when anything may have happened unheard. Never called where
        `shared` is False; may be called without need. Set before `start`.
        """

    async def claim(
        self, node: str, *, flow: str, limit: int, now: float, function: str = "", limits: Limits = NO_LIMITS
    ) -> list[Claim]:
        """Claim up to `limit` due, waiting, unclaimed invocations of a flow: by priority (higher first), due
        time, id. `function` is the flow's function and must be given with `limits`, which hold over all
        nodes. Nothing of a closed function or key is claimed; paused functions the caller leaves alone.
        """

    async def held_back(self, *, flow: str, function: str, limits: Limits, now: float) -> Held | None:
        """What keeps the flow's due invocations from being claimed now, if anything does."""

    async def next_due(self, flow: str, *, now: float) -> float | None:
        """When the flow's next unclaimed waiting invocation that is not yet due will be; None when there is
        none.
        """

    async def flows(self, *, after: str = "", limit: int | None = None) -> list[str]:
        """The flows that have waiting invocations, perhaps without those of which all are claimed, by their
        UTF-8 bytes: those after `after`, up to `limit`.
        """

    async def release(self, claims: Sequence[Claim]) -> None:
        """Hand back claims that were not begun: they wait again, and no attempt is spent. Stale claims are
        ignored.
        """

    async def tell(self, word: str) -> None:
        """Say a word to the `listen` of every other node. It may be lost: what must not be is recorded."""

    async def moment(self) -> float | None:
        """What time it is for all nodes, in epoch seconds; None where this node's own clock decides."""

    async def nodes(self, *, now: float) -> list[str]:
        """The nodes whose leases have not run out."""

    async def join(self, node: str, *, until: float, now: float) -> int:
        """Begin a node's lease and get its number, unique among live nodes."""

    async def renew(self, node: str, *, until: float) -> None:
        """Extend the node's lease. Raises LeaseLost when it had run out and its claims were taken back: the
        node must drop what it holds and join anew.
        """

    async def leave(self, node: str) -> None:
        """End the node's lease; what it still claims waits again, and no attempt is spent."""

    async def release_expired(self, *, now: float) -> list[Claim]:
        """Take back the claims of nodes whose lease has run out: they wait again.

        An attempt is spent only where MarkRunning had recorded that it ran. Returns the claims taken back
        with a recorded attempt, so that the caller can decide whether their invocations are dead (NodeLost).
        """


class InvocationStore(Protocol):
    """What the API asks about invocations."""

    async def get(self, id: int) -> Record | None:
        """One invocation, or None."""

    async def find(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        tag: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Invocations, newest id first, with ids below `before`."""

    async def ended(self, ids: Sequence[int]) -> list[Record]:
        """Those of up to 10,000 invocations that have ended."""

    async def known(self, ids: Sequence[int]) -> set[int]:
        """Those of up to 10,000 ids that are kept."""

    async def ahead(self, invocation: Invocation, *, now: float, limit: int) -> int:
        """How many due, waiting invocations of its flow are claimed before this one, counted up to `limit`;
        those that are claimed already count as long as they are not marked as running.
        """

    async def counters(self) -> dict[str, Counters]:
        """The books, by function."""

    async def paused(self) -> set[str]:
        """The functions that are paused."""

    async def closures(self, *, now: float) -> list[Closure]:
        """The functions and keys that are closed, with moments after `now`."""

    async def deployments(self, *, before: float, limit: int = 100) -> list[Deployment]:
        """Which version each node served, the newest first, begun at `before` or earlier."""

    async def expire(self, *, succeeded_before: float, dead_before: float, keep: int, limit: int) -> Removed:
        """Remove up to `limit` ended invocations: succeeded and cancelled ones that ended before
        `succeeded_before` or are beyond the newest `keep`, dead ones that ended before `dead_before`; with
        jobs that ended before `dead_before` and their invocations. An unended job's invocations stay. There
        may be more to remove when it removed `limit`.
        """

    async def expire_keys(self, *, before: float, limit: int) -> int:
        """Look at up to `limit` idempotency keys that expired at `before` or earlier, and forget them; one
        whose invocation has not ended stands for KEY_GRACE_S more. Returns how many were looked at: fewer
        than `limit` when no more are due.
        """


class JobStore(Protocol):
    """What the job coordinator asks."""

    async def job(self, id: int) -> Job | None:
        """One job, or None."""

    async def jobs(
        self,
        *,
        status: Sequence[str] = (),
        function: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs, newest first, with ids below `before`."""

    async def job_counts(self, id: int) -> dict[int, JobCounts]:
        """Counts by stage."""

    async def job_parts(
        self, id: int, *, stage: int, after: int = -1, limit: int = 1000, status: Status | None = None
    ) -> list[Record]:
        """A stage's invocations with an index above `after`, by index."""


class TriggerStore(Protocol):
    """What triggers ask."""

    async def ledger(
        self, trigger: str, bucket: str, *, after: str = "", limit: int = 1000
    ) -> list[LedgerRow]:
        """A page of the trigger's ledger with keys above `after`, by the keys' UTF-8 bytes."""

    async def ledger_entry(self, trigger: str, bucket: str, key: str) -> LedgerRow | None:
        """The ledger's row of one key; of several versions the latest."""

    async def cursor(self, name: str) -> str | None:
        """A position that CursorMoved recorded."""

    async def schedule(self, name: str, *, definition: str, now: float) -> ScheduleState:
        """The schedule's state; made, with anchor `now`, when it is new. A changed definition raises its
        generation and moves the anchor.
        """

    async def schedules(self) -> list[ScheduleState]:
        """All that are known."""

    async def pause_schedule(self, name: str, *, paused: bool, now: float) -> None:
        """Keep a schedule from firing, or let it fire again, from the moment `now` on."""

    async def fires(
        self,
        schedule: str,
        *,
        after: float | None = None,
        until: float | None = None,
        newest: bool = False,
        limit: int = 100,
    ) -> list[Fire]:
        """What became of a schedule's instants in (after, until], the earliest first, or the newest."""

    async def begin_backfill(self, backfill: Backfill) -> None:
        """Record a new one. Raises WrongState when one of its schedule is running."""

    async def pass_backfill(self, id: int, *, position: float, present: int) -> None:
        """A backfill has passed over so many instants up to `position`, all of which had fired."""

    async def end_backfill(self, id: int, *, status: str, note: str = "", now: float) -> Backfill | None:
        """End a running backfill, and return it as it is then; None when there is none. As `done` it ends
        only when all that it fired has ended.
        """

    async def backfill(self, id: int) -> Backfill | None:
        """One, or None."""

    async def backfills(
        self,
        *,
        schedule: str | None = None,
        running: bool = False,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Backfill]:
        """Backfills, newest first, with ids below `before`."""


class AuditStore(Protocol):
    """What `headrace verify` asks. Neither method keeps writers or other readers waiting, however long it
    takes; a caller that is cancelled ends it.
    """

    async def audit(self, *, function: str | None = None, limit: int = 100) -> Audit:
        """The books and every row, from one snapshot, with what breaks a rule: all counted, at most `limit`
        named of each check. With `function` only that function's.
        """

    async def references(self, *, jobs: bool = False, after: int = 0, limit: int = 1000) -> list[Reference]:
        """A page of the invocations that name objects, with ids above `after`, by id; or of all `jobs`."""


class Store(QueueStore, InvocationStore, JobStore, TriggerStore, AuditStore, Protocol):
    """All of them, with a life: what the composition root holds."""

    async def start(self) -> None:
        """Open, check and, where needed, migrate the database.

        Raises DataInUse, DataTooNew, DataDamaged, ReadOnlyStorage.
        """

    def problem(self) -> str | None:
        """Why nothing can be recorded any more until an operator acts; None while all is well."""

    async def latest(self) -> float:
        """The newest moment of which the store has an id, in UTC epoch seconds; 0.0 when it has none."""

    async def stop(self) -> None:
        """Record what was submitted, then close. Twice is harmless."""

    @property
    def lock_fd(self) -> int | None:
        """The descriptor of a lock that children should inherit, so that no other node begins before they are
        gone; None where there is none.
        """

    async def health(self) -> dict[str, Any]:
        """Facts for operators: file, schema, journal mode, sizes in bytes, commits, the longest recent commit
        in seconds.
        """
