"""Answers: how a store's thread tells callers, on their event loop, what became of their writes and calls.

Imports the floor and its own room. One crossing to the loop answers a whole transaction.
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


class Answers:
    """The way from one thread to `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def gathered(self, later: Later) -> Item | None:
        """What is to be recorded now."""
        try:
            return later.gather()
        except Exception as error:  # one caller's mistake must not end the thread
            self._on_loop(_complain, error)
            return None

    def lists(self, items: Sequence[Item], answers: Sequence[Answer]) -> None:
        """What a transaction answers to each list; those that are on disk learn it on this thread too."""
        for item, answer in zip(items, answers, strict=True):
            if item[3] is not None and isinstance(answer, list) and answer[0].refused is None:
                try:
                    item[3]()
                except Exception as error:  # one caller's mistake must not end the thread
                    self._on_loop(_complain, error)
        self._on_loop(_deliver, [item[1] for item in items], answers)

    def result(self, future: "asyncio.Future[Any]", result: Any) -> None:
        self._on_loop(_resolve, future, result)

    def failure(self, future: "asyncio.Future[Any]", error: Exception) -> None:
        self._on_loop(_fail, future, error)

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
