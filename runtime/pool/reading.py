"""Readings: the node's end of a stream that a worker sends.

Imports the floor and this room. What has come and was not taken is bounded by the credit that the worker was
given, and it gets new credit only for what was taken.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from headrace.runtime.errors import NodeStopping, StreamBroken
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.stream import EVENTS_TYPE
from headrace.runtime.pool.pump import PIECE_BYTES, PIECE_COST

CREDIT_BYTES = 256 << 10
"""What may be on its way to the caller of one stream, in bytes."""
_CREDIT_BACK = CREDIT_BYTES // 4
_TAKE_BYTES = 64 << 10


class Reading:
    """One stream, for its one reader. `status`, `content_type` and `headers` are those it begins with.

    Attributes:
        outcome: how its attempt ended, once it has; pieces may still be here then.
        abandoned: nobody reads it any more.
    """

    kind = "stream"
    """Where an outcome is looked for, this says that there is none yet."""

    def __init__(
        self, seq: int, head: Sequence[Any], *, say: Callable[[Any], None], close: Callable[[int], None]
    ) -> None:
        status, kind, headers = head
        self.status = int(status)
        self.content_type = str(kind)
        self.headers = [(str(name), str(value)) for name, value in headers]
        self.seq = seq
        self.invocation_id = 0
        self.outcome: Outcome | None = None
        self.abandoned = False
        self._say: Callable[[Any], None] | None = say
        self._close: Callable[[int], None] | None = close
        self._closing = False
        self._cut = False
        self._closing_since: float | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def events(self) -> bool:
        """Whether its reader comes again by itself when it ends."""
        return self.content_type.startswith(EVENTS_TYPE)

    # ---- what the pool tells ----

    def feed(self, piece: bytes) -> None:
        """A piece has come. Raises ValueError when the worker sends more than it has credit for."""
        if self.abandoned:
            return
        self._held += len(piece) + PIECE_COST
        if self._held > CREDIT_BYTES + PIECE_BYTES + PIECE_COST:
            raise ValueError("a worker streams without credit")
        self._pieces.append(piece)
        self._wake()

    def ended(self, outcome: Outcome) -> None:
        """Its attempt has ended, and nothing more comes."""
        if self._cut and outcome.kind == "ok":
            outcome = Outcome("cancelled", error={"code": NodeStopping.code, "message": "the node stopped"})
        self.outcome = outcome
        self._say = self._close = None
        self._wake()

    def overstays(self, seq: int, now: float, grace_s: float) -> bool:
        """Whether it is the item `seq`, was closed longer than `grace_s` ago, and its function has not
        noticed; `now` is in monotonic seconds.
        """
        if self.seq != seq or not self._closing:
            return False
        if self._closing_since is None:
            self._closing_since = now
        return now - self._closing_since > grace_s

    # ---- what the reader does ----

    async def take(self, wait_s: float | None = None) -> bytes | None:
        """The next bytes, at most about 128 KiB; none at all when nothing came for `wait_s` seconds; None at
        the end, when `outcome` says how it ended.
        """
        if not self._pieces and self.outcome is None and not self.abandoned:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(wait_s):
                    await self._waiter
            except TimeoutError:
                return b""
            finally:
                self._waiter = None
        if not self._pieces:
            return None
        taken, size = [], 0
        while self._pieces and size < _TAKE_BYTES:
            piece = self._pieces.popleft()
            size += len(piece)
            self._held -= len(piece) + PIECE_COST
            self._owed += len(piece) + PIECE_COST
            taken.append(piece)
        if self._owed >= _CREDIT_BACK and self._say is not None:
            self._say({"seq": self.seq, "credit": self._owed})
            self._owed = 0
        return b"".join(taken)

    def check(self) -> None:
        """Raises StreamBroken when it has ended before its end."""
        outcome = self.outcome
        if outcome is not None and outcome.kind != "ok":
            error = outcome.error or {}
            raise StreamBroken(str(error.get("message") or outcome.kind))

    def close(self) -> None:
        """Have its function end; what has come is still to be read."""
        if self._close is not None and not self._closing:
            self._closing = True
            self._close(self.seq)

    def cut_off(self) -> None:
        """Have its function end before its end, and its reader told that this is not the end."""
        self._cut = True
        self.close()

    def abandon(self) -> None:
        """Nobody reads any more: what has come is dropped, and its function is ended."""
        self.abandoned = True
        self._pieces.clear()
        self._held = 0
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
