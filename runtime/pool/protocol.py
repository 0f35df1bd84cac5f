"""What the dispatcher asks of a pool of workers.

Imports the floor only. A pool runs one version of the user's code. It places attempts on workers, enforces
their limits and reports their outcomes; it knows nothing of queues, retries or databases.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import msgspec

from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.spec import Manifest
from headrace.runtime.pool.reading import Reading

OnReports = Callable[[Sequence[Report]], None]
OnRoom = Callable[[], None]
OnProgress = Callable[[int, dict[str, Any]], None]
OnStream = Callable[[int, Reading], None]


def _unread(token: int, reading: Reading) -> None:
    reading.abandon()


class PoolEvents(msgspec.Struct):
    """What a pool calls, on the event loop: outcomes, room for more attempts, a function's own progress (by
    token), and the stream that an attempt with credit has begun. Whoever is given a stream tells it how its
    attempt ended.
    """

    reports: OnReports
    room: OnRoom
    progress: OnProgress
    stream: OnStream = _unread


class Pool(Protocol):
    """Workers of one code version. All methods are called on the event loop's thread and none blocks it."""

    manifest: Manifest

    load_output: str
    """What the code printed while it was loaded."""

    async def start(self) -> Manifest:
        """Load the code and start the workers; returns once the manifest is there. Load errors are in the
        manifest.
        """

    async def stop(self, *, grace_s: float) -> None:
        """Take nothing more; wait up to `grace_s` for what runs, report what had not begun as `returned`,
        then kill the rest (also reported as `returned`). Returns when every process is gone and every attempt
        reported.
        """

    def offer(self, attempt: Attempt) -> bool:
        """Place the attempt on a worker, or return False when there is no room for it now. `room` is called
        when there may be again. What was offered is sent at the latest when the present turn of the event
        loop ends.
        """

    def free(self) -> int:
        """How many workers hold no attempt at all."""

    def kill(self, token: int) -> bool:
        """End an attempt: not begun, it is reported `cancelled` at once; running, its process is ended
        (SIGTERM, grace, SIGKILL) and it is reported `cancelled`. False when the pool does not hold it.
        """

    def recall(self, tokens: Collection[int]) -> None:
        """Report as `returned` those of these attempts, and perhaps others, that have not begun; they never
        will. Not before the caller's turn of the event loop has ended.
        """

    def running(self) -> list[tuple[int, float]]:
        """Attempts that are executing now: (token, seconds since it began)."""

    def output(self, token: int) -> bytes:
        """What a running attempt has printed so far (at most the last MiB); empty when unknown."""

    def load(self) -> dict[str, int]:
        """`workers`, `busy`, `burst`, `held` (attempts placed and not reported), for operators."""
