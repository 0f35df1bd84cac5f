"""Ids: 63-bit integers that grow with time, unique over the nodes of one store, shown as 16 hexadecimal
digits.

Imports nothing of Headrace. Layout, from the top: 41 bits of milliseconds since 2024-01-01, 10 bits of the
node's number, 12 bits of a counter. Growing ids append to the end of a table's tree, which is what makes
inserts cheap.
"""

import re
import threading
from collections.abc import Callable

BEGIN_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z, in epoch milliseconds: where the ids' time begins."""

_SHOWN = re.compile(r"[0-9a-fA-F]{1,16}")


class Ids:
    """A source of ids for one node, for any thread.

    `now` gives UTC epoch seconds; `node` is the node's number, taken modulo 1,024. When the clock goes back,
    ids go on from the last one, so that they never repeat.
    """

    def __init__(self, now: Callable[[], float], *, node: int) -> None:
        self._now = now
        self._node = (node & 1023) << 12
        self._tick = 0
        self._count = 0
        self._lock = threading.Lock()

    def next(self, now: float | None = None) -> int:
        """A new id, greater than every earlier one of this source. `now` saves asking for the time again."""
        tick = int((self._now() if now is None else now) * 1000) - BEGIN_MS
        with self._lock:
            if tick > self._tick:
                self._tick, self._count = tick, 0
            else:
                self._count += 1
                # More than 4,096 in a millisecond, or a clock that went back: borrow from the future.
                if self._count > 4095:
                    self._tick, self._count = self._tick + 1, 0
            return (self._tick << 22) | self._node | self._count


def moment_of(id: int) -> float:
    """When an id was made, in UTC epoch seconds; up to a millisecond early."""
    return ((id >> 22) + BEGIN_MS) / 1000


def show_id(number: int) -> str:
    """The id as users see it: 16 hexadecimal digits."""
    return f"{number:016x}"


def read_id(text: str) -> int | None:
    """The id behind a user's text, or None when it is none."""
    if not _SHOWN.fullmatch(text):
        return None
    number = int(text, 16)
    return number if number < 1 << 63 else None
