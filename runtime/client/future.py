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
from headrace.runtime.model.ids import show_id

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

    # The base class makes a condition and two lists for every future, which costs more than all else about a
    # short invocation, and what it costs the garbage collector besides. Here they are made when somebody
    # first waits; until then all fields but two are the class's, with the values that the base would set.
    _made: threading.Condition | None = None
    _state = _PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _encoded: bytes | None = None
    _id: str | int | None = None
    _acceptance: Any = None
    _withdrawn = _cancelling = False
    _kept: "Callable[[InvocationFuture], None] | None" = None

    def __init__(self, function: str, cancel: Cancel) -> None:
        """`cancel` ends an invocation at its node by id and says whether it did."""
        self.function = function
        self._cancel_at_node = cancel

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        if made is None:
            with _LOCK:
                made = self._made
                if made is None:
                    # Whoever needs one of the lists holds the condition.
                    self._waiters: list[Any] = []
                    self._done_callbacks: list[Callable[[Future[Any]], object]] = []
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
            self._result = msgspec.json.decode(encoded)
            self._encoded = None
        return self._result

    @property
    def invocation_id(self) -> str:
        """The invocation's id; blocks until the node has accepted it. Raises why it was not."""
        return self.wait_accepted()

    def wait_accepted(self, timeout: float | None = None) -> str:
        """As `invocation_id`, waiting at most `timeout` seconds. Raises WaitTimeout."""
        if self._id is None and not self.done():
            self._await_acceptance(-1 if timeout is None else max(timeout, 0.0))
        id = self._id
        if id is not None:
            return id if isinstance(id, str) else show_id(id)
        if not self.done():
            raise WaitTimeout(f"the acceptance of an invocation of {self.function}", timeout or 0.0)
        error = self.exception()  # CancelledError when it was cancelled before it was sent
        assert error is not None, "a future without an id ends by an error only"
        raise error

    def _await_acceptance(self, timeout: float) -> None:
        """Wait until `_decided`. The lock is held until then; whoever gets it lets the next one through."""
        with _LOCK:
            lock = self._acceptance
            if lock is None:
                lock = threading.Lock()
                lock.acquire()
                self._acceptance = lock
        # Whoever decides sets the id or the state before it looks for the lock, and here it is the other way
        # round: one of the two sees the other.
        if self._id is None and not self.done() and lock.acquire(timeout=timeout):
            lock.release()

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
        # `cancel` makes the condition and then reads `_kept`; this is the other way round, so that one of the
        # two sees the other.
        self._kept = keep
        if self._made is None:
            return True
        with self._condition:
            if self._withdrawn or self.done():
                self._kept = None
                return False
            callbacks = bool(self._done_callbacks)
        if callbacks:
            keep(self)
        return True

    def accepted(self, invocation_id: str | int) -> None:
        """The node has accepted it, under this id or the number behind it."""
        self._id = invocation_id
        if self._acceptance is not None:
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
        with _LOCK:
            lock, self._acceptance = self._acceptance, None
        if lock is not None:
            lock.release()

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
