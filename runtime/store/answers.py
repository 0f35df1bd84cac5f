"""Answers: how a store's thread tells callers, on their event loop, what became of their writes and calls.

Imports the floor and its own room. One crossing to the loop answers a whole transaction, or several small
ones: each crossing wakes the loop's thread, which then takes the interpreter from those who wait for their
acceptance.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from headrace.runtime.store.protocol import Done, Gather, Item
from headrace.runtime.store.recording import Answer


class Later:
    """What `QueueStore.submit_later` was given."""

    __slots__ = ("gather",)

    def __init__(self, gather: Gather) -> None:
        self.gather = gather


LATE_S = 0.005
"""How long an answer for which nobody waits on the loop is kept for others to join."""

_LATE_MAX = 256


class Answers:
    """The way from one thread to `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        self._loop = loop
        self._monotonic = monotonic
        self._dones: list[Done] = []
        self._late: list[Answer] = []
        self._crossed_at = 0.0

    @property
    def some_late(self) -> bool:
        """Whether `hand_over` has something to do."""
        return bool(self._late)

    def gathered(self, later: Later) -> Item | None:
        """What is to be recorded now."""
        try:
            return later.gather()
        except Exception as error:  # one caller's mistake must not end the thread
            self._on_loop(_complain, error)
            return None

    def lists(self, items: Sequence[Item], answers: Sequence[Answer]) -> None:
        """What a transaction answers to each list; those that are on disk learn it on this thread too.

        When that is all that any of them waits for, the loop may hear of it up to LATE_S later.
        """
        told = []
        urgent = len(items) > _LATE_MAX
        for item, answer in zip(items, answers, strict=True):
            if item[3] is not None and isinstance(answer, list) and answer[0].refused is None:
                told.append(item[3])
                # A claim is to be run at once; a list's first shows whether its flow had room for any.
                urgent = urgent or answer[0].claim is not None
            else:
                urgent = True
        self._dones += [item[1] for item in items]
        self._late += answers
        if urgent or len(self._late) > _LATE_MAX or self._monotonic() - self._crossed_at >= LATE_S:
            self.hand_over()
        # Last of all: whoever is told wants the interpreter, which this thread gives up when it has nothing
        # more to do.
        for on_disk in told:
            try:
                on_disk()
            except Exception as error:  # one caller's mistake must not end the thread
                self._on_loop(_complain, error)

    def hand_over(self) -> None:
        """Tell the loop what was kept."""
        dones, answers, self._dones, self._late = self._dones, self._late, [], []
        self._crossed_at = self._monotonic()
        self._on_loop(_deliver, dones, answers)

    def result(self, future: "asyncio.Future[Any]", result: Any) -> None:
        self._in_order(_resolve, future, result)

    def failure(self, future: "asyncio.Future[Any]", error: Exception) -> None:
        self._in_order(_fail, future, error)

    def _in_order(self, callback: Callable[..., None], *args: Any) -> None:
        if self._late:
            self.hand_over()
        self._on_loop(callback, *args)

    def _on_loop(self, callback: Callable[..., None], *args: Any) -> None:
        # A loop that was closed without `stop` has nobody left to tell; what is recorded stays recorded.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)


def _deliver(dones: list[Done], answers: Sequence[Answer]) -> None:
    for done, answer in zip(dones, answers, strict=True):
        try:
            done(answer)
        except Exception as error:  # one caller's mistake must not keep the others from their answers
            _complain(error)


def _complain(error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a caller failed on the answer to its writes", "exception": error}
    )


def _resolve(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
