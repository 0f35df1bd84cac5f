"""An event loop that is run in pieces, each until nothing is left to do.

Imports the clock only. A loop asks its selector to wait only when no callback is ready: that is the
moment at which all is quiet, unless a thread or a process still has something in hand.
"""

import asyncio
import selectors
from collections.abc import Callable

from headrace.runtime.clock import SystemClock

PATIENCE_S = 60.0
"""The most seconds of real time that threads and worker processes are waited for."""

_LOOK_S = 0.25


class QuietLoop(asyncio.SelectorEventLoop):
    """See above.

    Args:
        busy: whether something goes on outside of the loop that will call into it.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._quiet = _QuietSelector(busy)
        super().__init__(self._quiet)

    def run_until_quiet(self) -> None:
        """Run until nothing is left to do without time passing. Raises TimeoutError after PATIENCE_S."""
        self._quiet.found = found = self.create_future()
        self._quiet.until = self._quiet.monotonic() + PATIENCE_S
        try:
            self.run_until_complete(found)
        finally:
            self._quiet.found = None


class _QuietSelector(selectors.DefaultSelector):
    def __init__(self, busy: Callable[[], bool]) -> None:
        super().__init__()
        self.found: asyncio.Future[None] | None = None
        self.until = 0.0
        self.monotonic = SystemClock().monotonic
        self._busy = busy

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.found is None or self.found.done() or (timeout is not None and timeout <= 0):
            return super().select(timeout)
        events = super().select(0)
        if events:
            return events
        if not self._busy():
            self.found.set_result(None)
            return []
        if self.monotonic() >= self.until:
            self.found.set_exception(TimeoutError(f"still busy after {PATIENCE_S:g} s"))
            return []
        return super().select(_LOOK_S if timeout is None else min(timeout, _LOOK_S))
