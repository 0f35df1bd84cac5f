"""Position: how far the sweep of one trigger has come, so that a restart goes on from there.

Imports the trigger protocol and the model. A sweep of a large bucket may take longer than a node lives; it
goes round, so that beginning anywhere is as good as beginning at the first key.
"""

import json

from headrace.runtime.model.write import CursorMoved
from headrace.runtime.trigger import TriggerContext

PAGES = 20
"""A position is recorded every so many pages, and never in a bucket that has fewer."""
SHARE = 0.5
"""Part of `sweep_s` in which a sweep of another node makes one of this node unnecessary."""


class Position:
    """The durable position of one trigger's sweep, which all nodes share."""

    def __init__(self, context: TriggerContext) -> None:
        self._context = context
        self._name = f"upload:{context.name}:sweep"
        self._holder = f"{context.chance.getrandbits(64):016x}"
        self._pages = 0
        self._moved = False

    async def begin(self) -> str:
        """The key after which to begin; empty for the first."""
        self._pages = 0
        after, _, _ = await self._read()
        self._moved = bool(after)
        return after

    async def passed(self, key: str) -> None:
        """A page that ends with `key` has been dealt with."""
        self._pages += 1
        if self._pages % PAGES == 0 and key:
            self._moved = True
            await self._write(key)

    async def end(self) -> None:
        """The sweep has been all round."""
        if self._moved:
            self._moved = False
            await self._write("")

    async def is_held_elsewhere(self) -> bool:
        """Whether another node is just sweeping this bucket, or did so lately."""
        _, holder, at = await self._read()
        recent = abs(self._context.clock.now() - at) < SHARE * self._context.sweep_s
        return bool(holder) and holder != self._holder and recent

    async def _read(self) -> tuple[str, str, float]:
        value = await self._context.state.cursor(self._name)
        if value is None:
            return "", "", 0.0
        found = json.loads(value)
        return str(found["after"]), str(found["holder"]), float(found["at"])

    async def _write(self, after: str) -> None:
        value = {"after": after, "holder": self._holder, "at": self._context.clock.now()}
        await self._context.accept([], [CursorMoved(self._name, json.dumps(value))])
