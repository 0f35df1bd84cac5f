"""Futures: one per submitted invocation, also over HTTP.

Imports the answers' errors only. A future ends when its invocation does, not when an attempt fails; a backend
reports to it by `accepted`, `succeeded` and `failed`, from any thread.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from headrace.runtime.client.answer import WaitTimeout

Cancel = Callable[[str], bool]


class InvocationFuture(Future[Any]):
    """The result to come of an invocation: a `concurrent.futures.Future`, so that `wait` and `as_completed`
    take it.

    `result()` gives the function's result or raises how it ended (`InvocationFailed`), or why it was not
    accepted.
    """

    def __init__(self, function: str, cancel: Cancel, *, decode: Callable[[bytes], Any] = json.loads) -> None:
        """`cancel` ends an invocation at its node by id and says whether it did; `decode` reads a result's
        JSON.
        """
        super().__init__()
        self.function = function
        self._cancel_at_node = cancel
        self._decode = decode
        self._id: str | None = None
        self._withdrawn = False
        self._acceptance: threading.Event | None = None
        self._kept: Callable[[InvocationFuture], None] | None = None

    @property
    def invocation_id(self) -> str:
        """The invocation's id; blocks until the node has accepted it. Raises why it was not."""
        return self.wait_accepted()

    def wait_accepted(self, timeout: float | None = None) -> str:
        """As `invocation_id`, waiting at most `timeout` seconds. Raises WaitTimeout."""
        event = None
        # The base class's condition is its lock here and no more: a `result()` that waits on it takes any
        # wake-up for its own.
        with self._condition:
            if self._id is None and not self.done():
                event = self._acceptance = self._acceptance or threading.Event()
        if event is not None:
            super().add_done_callback(lambda _: event.set())
            event.wait(timeout)
        if self._id is not None:
            return self._id
        if not self.done():
            raise WaitTimeout(f"the acceptance of an invocation of {self.function}", timeout or 0.0)
        error = self.exception()  # CancelledError when it was cancelled before it was sent
        assert error is not None, "a future without an id ends by an error only"
        raise error

    def cancel(self) -> bool:
        """Cancel the invocation at its node, or before it is sent; False when it has ended or cannot be
        cancelled.

        Waits for the acceptance of an invocation that is just being sent, and for the node's answer.
        """
        with self._condition:
            if self.done():
                return self.cancelled()
            unsent = self._withdrawn = self._id is None and self._kept is None
        if unsent:
            return self._end_cancelled()
        try:
            id = self.invocation_id
        except Exception:
            return False  # it was refused, which is its result
        return self._cancel_at_node(id) and self._end_cancelled()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """As the base class's; a future with a callback is kept alive until it ends, others by their callers
        only.
        """
        super().add_done_callback(fn)
        if self._kept is not None and not self.done():
            self._kept(self)

    # ---- for backends ----

    def sending(self, keep: Callable[["InvocationFuture"], None]) -> bool:
        """Say that it is being sent; False when it was cancelled before, and must not be.

        `keep` is called with the future whenever it must not be dropped although no caller holds it.
        """
        with self._condition:
            if self._withdrawn or self.done():
                return False
            self._kept = keep
            callbacks = bool(self._done_callbacks)  # type: ignore[attr-defined]
        if callbacks:
            keep(self)
        return True

    def accepted(self, invocation_id: str) -> None:
        """The node has accepted it."""
        with self._condition:
            self._id = invocation_id
            waited_for = self._acceptance
        if waited_for is not None:
            waited_for.set()

    def succeeded(self, result: bytes) -> None:
        """It ended with this result, as JSON."""
        try:
            value = self._decode(result)
        except Exception as error:
            self.failed(error)
            return
        try:
            self.set_result(value)
        except InvalidStateError:
            return  # cancelled meanwhile

    def failed(self, error: BaseException) -> None:
        """It ended by this error, or was never accepted because of it."""
        try:
            self.set_exception(error)
        except InvalidStateError:
            return  # cancelled meanwhile

    def _end_cancelled(self) -> bool:
        if not super().cancel():
            return False
        try:
            self.set_running_or_notify_cancel()  # tells `wait` and `as_completed`, as cancel() does not
        except (InvalidStateError, RuntimeError):
            return self.cancelled()
        return True
