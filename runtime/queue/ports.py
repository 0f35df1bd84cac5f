"""What the dispatcher needs of the rooms above it: a pool that runs attempts, and the jobs' say in how theirs
end.

Imports the floor only. The composition root hands the real ones over.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from headrace.runtime.model.attempt import Attempt
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.write import Applied, Settle, Write


class AttemptPool(Protocol):
    """Runs attempts; a part of the pool's own protocol."""

    def offer(self, attempt: Attempt) -> bool:
        """Place the attempt on a worker, or return False when there is no room for it now."""

    def free(self) -> int:
        """How many workers hold no attempt at all."""

    def kill(self, token: int) -> bool:
        """End an attempt; it is reported as `cancelled`. False when the pool does not hold it."""

    def recall(self, tokens: Collection[int]) -> None:
        """Report as `returned` those of these attempts, and perhaps others, that have not begun; they never
        will. Not before the caller's turn of the event loop has ended.
        """

    def running(self) -> Sequence[tuple[int, float]]:
        """Attempts that are executing now: (token, seconds since it began)."""

    def output(self, token: int) -> bytes:
        """What a running attempt has printed so far."""


class CallStream(Protocol):
    """What a synchronous call streams."""

    invocation_id: int
    outcome: Outcome | None
    abandoned: bool

    @property
    def events(self) -> bool:
        """Whether its reader comes again by itself when it ends."""

    def ended(self, outcome: Outcome) -> None:
        """Its attempt has ended, and nothing more comes."""

    def close(self) -> None:
        """Have its function end; what has come is still to be read."""

    def abandon(self) -> None:
        """Nobody reads it."""


class JobSettler(Protocol):
    """What the dispatcher asks about the end of a job's invocation."""

    def settle(self, settle: Settle, outcome: Outcome) -> Sequence[Write]:
        """The writes to record instead of `settle`, the one that settles it first; they are atomic."""

    def settled(self, writes: Sequence[Write], applied: Sequence[Applied]) -> None:
        """The writes are durable, or were refused."""
