"""Membership: a node's lease on its claims, kept alive, and what it hears of the nodes beside it.

Imports the floor, the store's protocol and the dispatcher. A node that could not renew its lease in time must
suppose that others have taken its claims back: it drops what is ready and stops what runs before the lease is
over, and goes on under a new id. A node that was stopped longer than its lease cannot do that; its late
results are refused by the store.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.errors import HeadraceError, LeaseLost
from headrace.runtime.model.limits import key_of
from headrace.runtime.queue.cancelling import CANCEL_WORD
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.store.protocol import Store

MARGIN = 0.2
"""The part of its lease that a node leaves itself for stopping what it runs."""

ENDED_S = 0.25
"""How often a node asks for ends, recorded by others, that somebody here waits for."""

ENDED_MAX = 10_000

LOOK_S = 5.0
"""How often a node looks for work that it heard nothing of."""


class Membership:
    """One node among those that share a store.

    `new_id` makes a fresh node id; `lease_s` is how many seconds claims outlive a node that is not heard of;
    `on_moment` is told what time it is for all nodes, at each heartbeat.
    """

    def __init__(
        self,
        store: Store,
        *,
        new_id: Callable[[], str],
        clock: Clock,
        lease_s: float,
        on_moment: Callable[[float], None],
        on_error: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._new_id = new_id
        self._clock = clock
        self._lease_s = lease_s
        self._on_moment = on_moment
        self._on_error = on_error
        self._good_until = clock.monotonic()
        self._fenced = False
        self._words: dict[str, None] = {}
        self._heard = asyncio.Event()
        self.id = new_id()

    @property
    def fenced(self) -> bool:
        """Whether the lease has run out: nothing begins here until it is renewed."""
        return self._fenced

    async def join(self) -> int:
        """Begin the lease; the node's number."""
        began = self._clock.monotonic()
        moment = await self._store.moment()
        if moment is not None:
            self._on_moment(moment)
        now = self._clock.now()
        number = await self._store.join(self.id, until=now + self._lease_s, now=now)
        self._good_until = began + self._lease_s
        return number

    async def leave(self) -> None:
        """End the lease: what the node still claims waits again at once."""
        await self._store.leave(self.id)

    # ---- the lease ----

    async def keep(self, dispatcher: Dispatcher) -> None:
        """Renew the lease, and take back what nodes that died have claimed, until cancelled."""
        while True:
            left = self._good_until - self._lease_s * MARGIN - self._clock.monotonic()
            pause = self._lease_s / 3
            await self._clock.sleep(pause if self._fenced else max(min(pause, left), 0.05))
            await self.beat(dispatcher)

    async def beat(self, dispatcher: Dispatcher) -> None:
        """One heartbeat."""
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._lease_s / 3):
                await self._renew(dispatcher)
                self._good_until = began + self._lease_s
                await dispatcher.share(alone=len(await self._store.nodes(now=self._clock.now())) <= 1)
                await self._store.release_expired(now=self._clock.now())
        except (HeadraceError, TimeoutError) as error:
            said = "it took too long" if isinstance(error, TimeoutError) else str(error)
            self._on_error("the node's lease could not be renewed", {"error": said})
        margin = self._lease_s * MARGIN
        if self._store.shared and not self._fenced and self._clock.monotonic() >= self._good_until - margin:
            self._fenced = True
            dispatcher.fence()
            self._on_error(
                "the lease has run out: what runs was stopped, nothing begins until it is renewed", {}
            )

    async def _renew(self, dispatcher: Dispatcher) -> None:
        moment = await self._store.moment()
        if moment is not None:
            self._on_moment(moment)
        if not self._fenced:
            try:
                await self._store.renew(self.id, until=self._clock.now() + self._lease_s)
                return
            except LeaseLost:
                self._fenced = True
                dispatcher.fence()
                self._on_error("the node was away for longer than its lease; it goes on as a new one", {})
        await self._store.leave(self.id)  # what was fenced here, and nobody has taken back yet, waits again
        self.id = self._new_id()
        await self.join()
        self._fenced = False
        await dispatcher.rejoin(self.id)

    # ---- the others ----

    def hear(self, word: str) -> None:
        """A word of another node; see `QueueStore.listen`. Words are kept once each, and never block."""
        if len(self._words) >= 1_000:
            self._words.clear()
            word = "*"
        self._words[word] = None
        self._heard.set()

    async def follow(
        self, dispatcher: Dispatcher, *, moved: Callable[[int | None], None], control: Callable[[], Any]
    ) -> None:
        """Act on what other nodes say, and look for what was not heard, until cancelled.

        `moved` is called with a job's id, or None when any may have moved; `control` is awaited when pauses
        or closures may have changed.
        """
        while True:
            await self._wait_for_word()
            words, self._words = self._words, {}
            try:
                for word in words or ("*",):
                    await self._act(word, dispatcher, moved, control)
            except HeadraceError as error:
                self._on_error("what other nodes did could not be read; trying again", {"error": str(error)})

    async def _wait_for_word(self) -> None:
        sleeper = asyncio.ensure_future(self._clock.sleep(LOOK_S))
        waiter = asyncio.ensure_future(self._heard.wait())
        try:
            await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.cancel()
        self._heard.clear()

    async def _act(
        self,
        word: str,
        dispatcher: Dispatcher,
        moved: Callable[[int | None], None],
        control: Callable[[], Any],
    ) -> None:
        kind, _, rest = word.partition(":")
        if word in ("*", "control"):
            await control()
            await dispatcher.share(alone=len(await self._store.nodes(now=self._clock.now())) <= 1)
        if word == "*":
            await dispatcher.look_again()
            moved(None)
        elif kind == "moved":
            moved(int(rest))
        elif kind == "cancel":
            dispatcher.attempts.kill_invocation(int(rest))
        elif kind == CANCEL_WORD:
            dispatcher.cancelling.heard(rest)
        elif kind == "job":
            if dispatcher.flow_known(word):
                dispatcher.wake_flow(word)
            else:
                moved(int(rest, 16))
        elif word != "control":
            key = key_of(word)
            dispatcher.heard(word, word if key is None else word[: -len(key) - 1])

    async def follow_ends(self, dispatcher: Dispatcher) -> None:
        """Tell those who wait here of invocations that other nodes have ended, until cancelled."""
        failed = False  # said once, not at each of many questions
        while True:
            await self._clock.sleep(ENDED_S)
            if dispatcher.alone or not (ids := dispatcher.watchers.some(ENDED_MAX)):
                continue
            try:
                for record in await self._store.ended(ids):
                    dispatcher.watchers.recorded(record)
                failed = False
            except HeadraceError as error:
                if not failed:
                    self._on_error("ends could not be read; trying again", {"error": str(error)})
                failed = True
