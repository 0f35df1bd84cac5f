"""Recording: what a step sees of the transaction that records it, and how it refuses.

Imports the floor and its own room. Each database has its own Transaction; the steps are the same for both.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from headrace.runtime.errors import HeadraceError, LeaseLost
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Claim, Invocation
from headrace.runtime.model.write import Applied, ChunkDone, MarkRunning, Put, Retry, Settle, Write
from headrace.runtime.store.database import Database
from headrace.runtime.store.tally import Tally

Answer = list[Applied] | BaseException

PLAIN = Applied()
"""The answer to a write that succeeded and has nothing to tell; treated as frozen."""


class Recording(Protocol):
    """A transaction, as steps use it."""

    @property
    def db(self) -> Database:
        """The connection, inside of the transaction and of the list's savepoint."""

    tally: Tally
    """What this list adds to the books."""

    def accept(self, invocation: Invocation, node: str | None) -> Applied:
        """Gather the row of an invocation that is known to be new, and claim it for `node`. It counts as
        accepted.
        """

    def flush(self) -> None:
        """Write the rows that were gathered."""

    def is_claimed(self, id: int) -> bool:
        """Whether a claim that is no column of the row (SQLite's, in memory) holds the invocation."""

    def claimed(self) -> Sequence[int]:
        """All invocations with a claim that is no column of the row; none on PostgreSQL."""

    def claimed_of_job(self, job: int) -> Sequence[int]:
        """The invocations of a job with a claim that is no column of the row; none on PostgreSQL."""

    def drop_claim(self, id: int) -> None:
        """End a claim that is no column of the row, if there is one: the row is about to go."""

    def freed(self, flow: str, priority: int, due_at: float, id: int) -> None:
        """An invocation waits unclaimed from `due_at` on: nodes that serve the flow must hear of it."""


class Refused(Exception):
    """One write was refused: its caller's list is undone, and `reason` is the answer."""

    def __init__(self, reason: HeadraceError, after: Callable[[Recording], None] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after
        """What is to be recorded although the list is not."""


def lease_lost(claim: Claim) -> Refused:
    """The refusal of a write whose claim is stale."""
    return Refused(LeaseLost(show_id(claim.invocation.id), claim.node, claim.attempt))


USUAL: frozenset[type] = frozenset((Put, Settle, Retry, MarkRunning, ChunkDone))
"""What nearly all lists hold; every other write has a step of its own."""


def usual(writes: Sequence[Write]) -> bool:
    """Whether a list can be checked and gathered with others', without reading rows."""
    for write in writes:
        if type(write) is Put:
            invocation = write.invocation
            if invocation.idempotency_key is not None or invocation.job is not None:
                return False
        elif type(write) not in USUAL:
            return False
    return True
