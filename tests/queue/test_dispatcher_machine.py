"""A dispatcher, its store and a pool beside a dict: nothing is lost and nothing ends twice."""

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace import App
from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.invocation import Outcome, Status
from headrace.runtime.model.write import Redrive
from headrace.runtime.queue.watchers import Ended
from tests.inline_node import InlineNode

RETRIES = 2
LIMIT = 2
FUNCTIONS = ("m.plain", "m.limited")


@dataclass
class Known:
    """What the model knows of one invocation."""

    function: str
    begun: list[int] = field(default_factory=list)
    told: list[Status] = field(default_factory=list)
    lives: int = 1


class DispatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.app = App("m")
        self.app.function(name="plain", retries=RETRIES)(self.never_called)
        self.app.function(name="limited", retries=RETRIES, reserved_concurrency=LIMIT)(self.never_called)
        self.known: dict[int, Known] = {}

    @staticmethod
    def never_called(event: Any) -> None:
        raise AssertionError("the machine ends attempts itself")

    def wait(self, work):  # type: ignore[no-untyped-def]
        return self.runner.run(work)

    def make(self, clock=None) -> InlineNode:  # type: ignore[no-untyped-def]
        return InlineNode(Path(self.folder.name), self.app, workers=3, held=True, window=4, clock=clock)

    @initialize()
    def begin(self) -> None:
        self.node = self.make()
        self.wait(self.node.start())

    def settle_down(self) -> None:
        self.wait(self.node.quiet(4))

    # ---- what callers do ----

    @rule(
        function=st.sampled_from(FUNCTIONS),
        count=st.integers(1, 8),
        priority=st.integers(-1, 1),
        delay=st.sampled_from([0.0, 0.0, 5.0]),
    )
    def put(self, function: str, count: int, priority: int, delay: float) -> None:
        ids = self.wait(self.node.put_many(function, range(count), priority=priority, delay_s=delay))
        assert len(set(ids)) == count
        for id in ids:
            assert id not in self.known
            self.known[id] = known = Known(function)
            self.node.dispatcher.watchers.watch(id, lambda ended, known=known: self.told(known, ended))
        self.settle_down()

    def told(self, known: Known, ended: Ended) -> None:
        known.told.append(ended.status)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.known:
            return
        id = data.draw(st.sampled_from(sorted(self.known)))
        try:
            self.wait(self.node.dispatcher.cancelling.cancel(id))
        except HeadraceError:
            record = self.wait(self.node.record(id))
            assert record.status.ended or id in self.claimed()
        self.settle_down()

    def claimed(self) -> set[int]:
        flows = self.node.dispatcher._window.flows.values()
        ready = {
            claim.invocation.id for flow in flows for lane in flow.lanes.values() for claim in lane.ready
        }
        return ready | {attempt.invocation_id for attempt in self.node.pool.attempts}

    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        dead = [id for id, known in self.known.items() if known.told[-1:] == [Status.DEAD]]
        if not dead:
            return
        id = data.draw(st.sampled_from(dead))
        record, now = self.wait(self.node.record(id)), self.node.clock.now()
        [applied] = self.wait(self.node.store.apply([Redrive(id, now, now + 1e6)], now=now))
        if record.status is not Status.DEAD:
            assert applied.refused is not None
            return
        known = self.known[id]
        known.lives += 1
        known.begun.clear()
        self.node.dispatcher.watchers.watch(id, lambda ended: self.told(known, ended))

        async def wake() -> None:
            self.node.dispatcher.wake(record.invocation.flow, record.invocation.function)
            await self.node.quiet(4)

        self.wait(wake())

    @rule(function=st.sampled_from(FUNCTIONS), paused=st.booleans())
    def pause(self, function: str, paused: bool) -> None:
        self.wait(self.node.dispatcher.pause(function, paused=paused))
        self.settle_down()

    # ---- what the world does ----

    @rule(at=st.integers(0, 2), how=st.sampled_from(["ok", "ok", "error", "final", "crashed", "returned"]))
    def end(self, at: int, how: str) -> None:
        attempts = self.node.pool.attempts
        if not attempts:
            return
        attempt = attempts[at % len(attempts)]
        known = self.known[attempt.invocation_id]
        if how != "returned":
            assert attempt.attempt == len(known.begun) + 1
            known.begun.append(attempt.attempt)
        assert attempt.attempt <= RETRIES + 1
        error = {"code": "function_error", "message": "no", "final": how == "final"}
        outcome = (
            Outcome("ok", b"1") if how == "ok" else Outcome("error" if how == "final" else how, error=error)
        )

        async def report() -> None:
            self.node.pool.end(attempt.token, outcome)
            await self.node.quiet(4)

        self.wait(report())

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.wait(self.node.clock.advance(seconds))
        self.settle_down()

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        clock = self.node.clock
        self.wait(self.node.crash() if killed else self.node.stop())
        self.node = self.make(clock)
        self.wait(self.node.start())
        for claim in self.node.lost:
            self.known[claim.invocation.id].begun.append(claim.attempt)
        for id, known in self.known.items():
            if len(known.told) < known.lives:
                self.node.dispatcher.watchers.watch(id, lambda ended, known=known: self.told(known, ended))
        self.settle_down()

    # ---- what must hold ----

    @invariant()
    def nothing_is_lost_or_ends_twice(self) -> None:
        if not self.known:
            return
        counted: Counter[Status] = Counter()
        attempts = [attempt.invocation_id for attempt in self.node.pool.attempts]
        assert len(attempts) == len(set(attempts)), "two live attempts of one invocation"
        limited = [a for a in self.node.pool.attempts if a.function == "m.limited"]
        assert len(limited) <= LIMIT
        for id, known in self.known.items():
            record = self.wait(self.node.store.get(id))
            assert record is not None, "an accepted invocation is lost"
            counted[Status.WAITING if record.status is Status.RUNNING else record.status] += 1
            assert len(known.told) <= known.lives, "ended twice"
            assert record.attempts <= RETRIES + 1
            if record.status.ended:
                assert known.told[-1:] == [record.status]
                assert id not in attempts
            else:
                assert len(known.told) == known.lives - 1
        books = self.wait(self.node.books())
        assert (books.waiting + books.running, books.succeeded, books.dead, books.cancelled) == (
            counted[Status.WAITING],
            counted[Status.SUCCEEDED],
            counted[Status.DEAD],
            counted[Status.CANCELLED],
        )
        assert books.accepted == len(self.known)
        assert self.node.dispatcher.counts()[1] <= 2 * 3 * 4 + 3  # flows, priorities, window; what came back

    async def end_all(self) -> None:
        for attempt in self.node.pool.attempts:
            self.node.pool.end(attempt.token, Outcome("ok", b"1"))
        await self.node.quiet(4)

    def teardown(self) -> None:
        """In the end everything that may run does."""
        try:
            for function in FUNCTIONS:
                self.wait(self.node.dispatcher.pause(function, paused=False))
            for _ in range(400):
                self.settle_down()
                self.wait(self.end_all())
                if not self.node.pool.attempts and not self.wait(self.node.books()).waiting:
                    break
                if not self.node.pool.attempts:
                    self.wait(self.node.clock.advance(5))
            books = self.wait(self.node.books())
            assert (books.waiting, books.running) == (0, 0), "something waits for ever"
        finally:
            self.wait(self.node.stop())
            self.runner.close()
            self.folder.cleanup()


TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
