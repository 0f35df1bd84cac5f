"""Futures: one per submitted invocation, also over HTTP.

Imports the answers' errors only. A future ends when its invocation does, not when an attempt fails; a backend
reports to it by `accepted`, `succeeded` and `failed`, from any thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

import msgspec

from headrace.runtime.client.answer import WaitTimeout
from headrace.runtime.errors import Cancelled

Cancel = Callable[[str], bool]

# The base class's words for where a future is.
_PENDING, _FINISHED = "PENDING", "FINISHED"
_ENDED = (_FINISHED, "CANCELLED", "CANCELLED_AND_NOTIFIED")

_LOCK = threading.Lock()
"""Held for a few instructions, by whoever makes a future's condition or ends a future that has none."""


class InvocationFuture(Future[Any]):
    """The result to come of an invocation: a `concurrent.futures.Future`, so that `wait` and `as_completed`
    take it.

    `result()` gives the function's result or raises how it ended (`InvocationFailed`), or why it was not
    accepted.
    """

    def __init__(
        self, function: str, cancel: Cancel, *, decode: Callable[[bytes], Any] = msgspec.json.decode
    ) -> None:
        """`cancel` ends an invocation at its node by id and says whether it did; `decode` reads a result's
        JSON.
        """
        # The base class makes a condition for every future, which costs more than all else about a short
        # invocation. Here it is made when somebody first waits; its own fields are set as it would.
        self._made: threading.Condition | None = None
        self._state = _PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[Any]], object]] = []
        self.function = function
        self._cancel_at_node = cancel
        self._decode = decode
        self._encoded: bytes | None = None
        self._id: str | None = None
        self._acceptance: threading.Event | None = None
        self._withdrawn = self._cancelling = False
        self._kept: Callable[[InvocationFuture], None] | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        if made is None:
            with _LOCK:
                made = self._made
                if made is None:
                    made = self._made = threading.Condition()
        return made

    def result(self, timeout: float | None = None) -> Any:
        """The function's result, waiting for it at most `timeout` seconds.

        Raises how the invocation ended (InvocationFailed and its kinds), why it was not accepted,
        CancelledError, or TimeoutError.
        """
        if self._state != _FINISHED:
            super().result(timeout)
        return self._decoded() if self._encoded is not None else super().result(timeout)

    def done(self) -> bool:
        """True once it has ended or was cancelled."""
        return self._state in _ENDED

    def _decoded(self) -> Any:
        encoded = self._encoded
        if encoded is not None:
            self._result = self._decode(encoded)
            self._encoded = None
        return self._result

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
        self._cancelling = (
            True  # the news of the cancelled invocation may come before the answer to this call
        )
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
        with _LOCK:
            if self._made is None and self._state == _PENDING:
                self._kept = keep  # nobody has waited, cancelled or asked to be called yet
                return True
        with self._condition:
            if self._withdrawn or self.done():
                return False
            self._kept = keep
            callbacks = bool(self._done_callbacks)
        if callbacks:
            keep(self)
        return True

    def accepted(self, invocation_id: str) -> None:
        """The node has accepted it."""
        self._id = invocation_id
        with _LOCK:
            if self._made is None:
                return  # nobody waits for it
        with self._condition:
            self._decided()

    def succeeded(self, result: bytes) -> None:
        """It ended with this result, as JSON; it is read when it is first asked for."""
        with _LOCK:
            if self._state == _PENDING:
                self._encoded = result
                if self._made is None:
                    self._state = _FINISHED
                    return
        try:
            self.set_result(None)
        except InvalidStateError:
            self._encoded = None  # cancelled meanwhile

    def failed(self, error: BaseException) -> None:
        """It ended by this error, or was never accepted because of it."""
        if self._cancelling and isinstance(error, Cancelled) and self._end_cancelled():
            return
        try:
            self.set_exception(error)
        except InvalidStateError:
            return  # cancelled meanwhile
        self._decided()

    def _decided(self) -> None:
        """Wake who waits for the acceptance: it is accepted, or has ended without. No callback does this,
        since a future with a callback is kept alive.
        """
        if self._acceptance is not None:
            self._acceptance.set()

    def _end_cancelled(self) -> bool:
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self._decided()
        try:
            self.set_running_or_notify_cancel()  # tells `wait` and `as_completed`, as cancel() does not
        except (InvalidStateError, RuntimeError):
            return self.cancelled()
        return True
