"""Group commit: the one thread of a store that writes, and what waits for it.

Imports the floor and its own room. Whatever waits is drained together and recorded in one transaction; then
one call into the event loop tells all callers of that transaction. What is not a list of writes (a claim, a
lease) is a call that runs between transactions, so all is seen in one order. How a transaction is made, and
what happens when it fails, is each database's own.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Generic, TypeVar

from headrace.runtime.errors import HeadraceError, StoreUnavailable
from headrace.runtime.model.write import Write
from headrace.runtime.store.answers import LATE_S, Answers, Later
from headrace.runtime.store.protocol import Done, Gather, Item
from headrace.runtime.store.recording import Answer

WRITES_MAX = 5_000
"""Writes packed into one transaction; a longer list of one caller still is one transaction."""

WAITING_MAX = 500_000
"""Lists that may wait for the thread; beyond that the answer is StoreUnavailable."""


class Call:
    """Something to run on the thread between transactions, and the future of its result."""

    __slots__ = ("future", "run")

    def __init__(self, run: Callable[[Any], Any], future: "asyncio.Future[Any]") -> None:
        self.run, self.future = run, future


C = TypeVar("C", bound=Call)


class GroupCommit(ABC, Generic[C]):
    """Made on the event loop: `start` once, `submit` and the database's own calls, then `stop`."""

    _too_many: ClassVar[str]
    """What is said when WAITING_MAX is reached."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        # None comes last: the end. A queue of C code: a `threading.Event` costs more than a short commit.
        self._waiting: SimpleQueue[Item | Later | C | None] = SimpleQueue()
        self._ending = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(self._loop, monotonic)
        self._thread = threading.Thread(target=self._run, name="headrace-store", daemon=True)
        self.commits = 0
        self.durations: deque[float] = deque(maxlen=256)

    def start(self) -> None:
        self._thread.start()

    def submit(
        self, writes: Sequence[Write], done: Done, now: float, on_disk: Callable[[], None] | None = None
    ) -> None:
        refused = self._refusal()
        if refused is not None:
            self._loop.call_soon(done, refused)
            return
        self._waiting.put((writes, done, now, on_disk))

    def submit_later(self, gather: Gather) -> None:
        self._check_running()
        self._waiting.put(Later(gather))

    async def stop(self) -> None:
        """Record everything that waits, then end the thread."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._waiting.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    @property
    def waiting(self) -> int:
        return self._waiting.qsize()

    # ---- for the databases ----

    def _refusal(self) -> HeadraceError | None:
        """What is answered to writes instead of recording them."""
        if self._ending.is_set():
            return StoreUnavailable("the store is stopped")
        if self._waiting.qsize() >= WAITING_MAX:
            return StoreUnavailable(self._too_many)
        return None

    def _check_running(self) -> None:
        if self._ending.is_set():
            raise StoreUnavailable("the store is stopped")

    @abstractmethod
    def _record(self, items: list[Item]) -> list[Answer]:
        """Record the lists in one transaction, on the thread; one answer each, in order."""

    @abstractmethod
    def _serve(self, call: C) -> None:
        """Run a call on the thread, and answer it."""

    # ---- on the thread ----

    def _run(self) -> None:
        while self._step(self._next()):
            pass
        if self._answers.some_late:
            self._answers.hand_over()

    def _next(self) -> "Item | Later | C | None":
        if self._answers.some_late:
            try:
                return self._waiting.get(timeout=LATE_S)
            except Empty:
                self._answers.hand_over()
        return self._waiting.get()

    def _step(self, item: "Item | Later | C | None") -> bool:
        """Drain at most one transaction's worth, `item` first, record it, and answer; then the call that came
        behind it. False at the end.
        """
        waiting = self._waiting
        items: list[Item] = []
        room = WRITES_MAX
        while item is not None and not isinstance(item, Call):
            gathered = self._answers.gathered(item) if isinstance(item, Later) else item
            if gathered is not None:
                items.append(gathered)
                room -= len(gathered[0])
            if room <= 0 or waiting.empty():
                if items:
                    self._answers.lists(items, self._record(items))
                return True
            item = waiting.get_nowait()
        if items:
            self._answers.lists(items, self._record(items))
        if item is None:
            return False
        self._serve(item)
        return True
