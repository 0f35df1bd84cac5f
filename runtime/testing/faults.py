"""Faults: what a test has go wrong, and the store and the buckets in which it does.

Imports the floor, the store's protocol and the object store in memory. A fault is asked for before it happens
and happens as often as was asked; `Faults.left` says what has not happened yet.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from headrace.runtime.errors import BadRequest, HeadraceError, StoreUnavailable, WorkerCrashed
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.write import Write
from headrace.runtime.objects.memory import MemoryStore
from headrace.runtime.store.protocol import Done, Gather, Item

PLANNED_MAX = 100_000
_KILLED = "this node was killed"


class Death(msgspec.Struct, frozen=True):
    """The node dies over a list of writes: before it is recorded, or after that and before anybody knows."""

    recorded: bool


Planned = HeadraceError | Death | None
"""What becomes of a list of writes; None is nothing out of the ordinary."""


class Faults:
    """What is to go wrong, in the order in which it was asked for.

    `workers` says that functions run in worker processes and buckets are folders: then only the store can be
    made to fail, and the others raise BadRequest.
    """

    def __init__(self, *, workers: bool = False) -> None:
        self._workers = workers
        self._store: deque[Planned] = deque()
        self._objects: deque[HeadraceError | None] = deque()
        self._notices: deque[int] = deque()
        self._crashes: dict[str, deque[bool]] = {}

    @property
    def left(self) -> int:
        """How many of the faults that were asked for have not happened yet."""
        return (
            sum(planned is not None for planned in (*self._store, *self._objects))
            + len(self._notices)
            + sum(len(planned) for planned in self._crashes.values())
        )

    def clear(self) -> None:
        """Take back all that has not happened yet."""
        self._store.clear()
        self._objects.clear()
        self._notices.clear()
        self._crashes.clear()

    def fail_store(self, times: int = 1, *, after: int = 0, error: HeadraceError | None = None) -> None:
        """Have the store refuse `times` lists of writes, after letting the next `after` pass: nothing of them
        is recorded, and their callers get `error`, StoreUnavailable by default.

        Whatever the node records counts: events, outcomes, the rows of triggers.
        """
        self._store.extend(_plan(times, after, error or StoreUnavailable("the test has the store fail")))

    def crash_node(self, *, after: int = 0, recorded: bool = False) -> None:
        """Have the node killed over a list of writes, after letting the next `after` pass: before it is
        recorded, or, with `recorded`, when it is and nobody has been told. See `AppUnderTest.is_up`.
        """
        self._store.extend([*[None] * _checked(after), Death(recorded)])

    def fail_objects(self, times: int = 1, *, after: int = 0, error: HeadraceError | None = None) -> None:
        """Have the buckets refuse `times` reads or writes of objects, as `fail_store` does."""
        self._check_inside("the buckets are folders")
        self._objects.extend(_plan(times, after, error or StoreUnavailable("the test has the buckets fail")))

    def lose_notifications(self, times: int = 1) -> None:
        """Have the next `times` objects come without a notification: only a sweep finds them."""
        self._check_inside("the buckets are folders")
        self._notices.extend([0] * _checked(times))

    def repeat_notifications(self, times: int = 1) -> None:
        """Have the notifications of the next `times` objects come twice."""
        self._check_inside("the buckets are folders")
        self._notices.extend([2] * _checked(times))

    def crash_worker(self, function: str, times: int = 1, *, after: bool = False) -> None:
        """Have the worker die under the next `times` attempts of a function: before it has begun, or `after`
        it has returned and before its result is known.
        """
        self._check_inside("the function runs in a process of its own, which it can end itself")
        self._crashes.setdefault(function, deque()).extend([after] * _checked(times))

    def _check_inside(self, why: str) -> None:
        if self._workers:
            raise BadRequest(f"this fault cannot be made with workers: {why}", "Leave out workers=.")

    # ---- asked when it might happen ----

    def next_writes(self) -> Planned:
        """What becomes of the store's next list of writes."""
        return self._store.popleft() if self._store else None

    def objects_error(self) -> HeadraceError | None:
        """What the next use of a bucket ends with."""
        return self._objects.popleft() if self._objects else None

    def notices(self) -> int:
        """How often the next object is told of."""
        return self._notices.popleft() if self._notices else 1

    def crash(self, function: str) -> bool | None:
        """Whether the next attempt of a function dies: None not at all, True after it has run."""
        planned = self._crashes.get(function)
        return planned.popleft() if planned else None


def crashed(started_at: float) -> Outcome:
    """The outcome of an attempt whose worker died."""
    error = {
        "code": WorkerCrashed.code,
        "message": "the worker process ended: killed by SIGKILL",
        "signal": "SIGKILL",
    }
    return Outcome("crashed", error=error, started_at=started_at)


class FaultyBuckets(MemoryStore):
    """Buckets in memory that fail as the test says."""

    def __init__(self, faults: Faults, **settings: Any) -> None:
        super().__init__(**settings)
        self._faults = faults
        self.is_faulty = True

    def _touch(self) -> None:
        error = self._faults.objects_error() if self.is_faulty else None
        if error is not None:
            raise error


class WatchedStore:
    """A store that counts what it has in hand, and fails as the test says.

    Whatever is not named here goes to the store itself. `cut` makes it that of a killed process: from then on
    nothing is recorded.
    """

    def __init__(self, store: Any, faults: Faults, happened: Callable[[], None]) -> None:
        self.in_hand = 0
        self.cut = False
        self._store = store
        self._faults = faults
        self._happened = happened

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def counted(*args: Any, **kwargs: Any) -> Any:
            if self.cut and name != "stop":
                if name in ("release", "leave"):
                    return None
                raise StoreUnavailable(_KILLED)
            self.in_hand += 1
            try:
                return await found(*args, **kwargs)
            finally:
                self.in_hand -= 1

        return counted

    async def apply(self, writes: Sequence[Write], *, now: float) -> Any:
        """See QueueStore."""
        dies = self._check(writes)
        self.in_hand += 1
        try:
            applied = await self._store.apply(writes, now=now)
        finally:
            self.in_hand -= 1
        if dies:
            raise self._die()
        return applied

    def submit(
        self,
        writes: Sequence[Write],
        done: Done,
        *,
        now: float,
        on_disk: Callable[[], None] | None = None,
    ) -> None:
        """See QueueStore."""
        try:
            dies = self._check(writes)
        except HeadraceError as error:
            asyncio.get_running_loop().call_soon(done, error)
            return
        self.in_hand += 1
        told = self._counted(done)
        if dies:
            self._store.submit(writes, lambda _: told(self._die()), now=now)
        else:
            self._store.submit(writes, told, now=now, on_disk=on_disk)

    def submit_later(self, gather: Gather) -> None:
        """See QueueStore."""
        loop = asyncio.get_running_loop()

        def counted() -> Item | None:
            found = gather()
            if found is None:
                loop.call_soon_threadsafe(self._let_go)
                return None
            writes, done, now, on_disk = found
            return writes, self._counted(done), now, on_disk

        self.in_hand += 1
        self._store.submit_later(counted)

    def _counted(self, done: Done) -> Done:
        def counted(result: Any) -> None:
            self.in_hand -= 1
            done(result)

        return counted

    def _let_go(self) -> None:
        self.in_hand -= 1

    def _die(self) -> HeadraceError:
        self.cut = True
        return StoreUnavailable(_KILLED)

    def _check(self, writes: Sequence[Write]) -> bool:
        """Whether the node is to die when the list is recorded. Raises what the list ends with otherwise."""
        if self.cut:
            raise StoreUnavailable(_KILLED)
        if not writes:
            return False
        self._happened()
        planned = self._faults.next_writes()
        if isinstance(planned, HeadraceError):
            raise planned
        if planned is not None and not planned.recorded:
            raise self._die()
        return planned is not None


def _plan(times: int, after: int, error: HeadraceError) -> list[HeadraceError | None]:
    return [*[None] * _checked(after), *[error] * _checked(times)]


def _checked(times: int) -> int:
    if not 0 <= times <= PLANNED_MAX:
        raise ValueError(f"times must be 0 to {PLANNED_MAX:,}, not {times}")
    return times
