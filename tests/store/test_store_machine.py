"""A store beside a dict: whatever is done to both, they agree after each step."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from postgres_server import PostgresServer
from store_values import balance, dead, ok, request

from headrace.runtime.errors import LeaseLost, WrongState
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.write import Applied, CancelWaiting, MarkRunning, Put, Redrive, Retry, Write
from headrace.runtime.store.postgres.store import PostgresStore
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.sqlite import SqliteStore

NODES = ("north", "south")
FLOWS = ("one", "two")


@dataclass
class Known:
    """What the model knows of one invocation."""

    flow: str
    status: Status = Status.WAITING
    attempts: int = 0
    claim: tuple[str, int] | None = None
    marked: bool = False


class StoreMachine(RuleBasedStateMachine):
    claims = Bundle("claims")
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.opened()
        self.known: dict[int, Known] = {}
        self.ended: set[int] = set()
        self.now = 0.0

    def opened(self) -> Store:
        """A store on the machine's own database, not started."""
        raise NotImplementedError

    def removed(self) -> None:
        """The machine's database is not needed any more."""

    claims_outlive_the_store = True

    def wait(self, coroutine):  # type: ignore[no-untyped-def]
        return self.runner.run(coroutine)

    @initialize()
    def begin(self) -> None:
        self.wait(self.store.start())
        self.join()

    def join(self) -> None:
        for node in NODES:
            self.wait(self.store.join(node, until=self.now + 100, now=self.now))

    def apply(self, *writes: Write) -> list[Applied]:
        self.now += 1
        return self.wait(self.store.apply(list(writes), now=self.now))

    def stands(self, claim: Claim) -> bool:
        known = self.known[claim.invocation.id]
        return known.claim == (claim.node, claim.attempt)

    def free(self, id: int, *, spent: bool) -> None:
        known = self.known[id]
        known.attempts += spent
        known.claim, known.marked, known.status = None, False, Status.WAITING

    @rule(target=ids, flow=st.sampled_from(FLOWS), priority=st.integers(-1, 1), delay=st.integers(0, 3))
    def put(self, flow: str, priority: int, delay: int) -> int:
        id = len(self.known) + 1
        invocation = request(id, function=flow, flow=flow, priority=priority, due_at=self.now + delay)
        [answer] = self.apply(Put(invocation))
        assert answer.id == id
        self.known[id] = Known(flow)
        return id

    @rule(target=claims, flow=st.sampled_from(FLOWS), node=st.sampled_from(NODES), count=st.integers(1, 4))
    def put_claimed(self, flow: str, node: str, count: int):  # type: ignore[no-untyped-def]
        first = len(self.known) + 1
        writes = [Put(request(first + i, function=flow, flow=flow), node) for i in range(count)]
        made: list[Claim] = []
        for answer in self.apply(*writes):
            assert answer.claim is not None
            self.known[answer.claim.invocation.id] = Known(flow, claim=(node, 1))
            made.append(answer.claim)
        return multiple(*made)

    @rule(target=claims, flow=st.sampled_from(FLOWS), node=st.sampled_from(NODES), limit=st.integers(1, 5))
    def claim(self, flow: str, node: str, limit: int):  # type: ignore[no-untyped-def]
        self.now += 1
        claims: list[Claim] = self.wait(self.store.claim(node, flow=flow, limit=limit, now=self.now))
        for claim in claims:
            known = self.known[claim.invocation.id]
            assert (known.claim, known.status, known.flow) == (None, Status.WAITING, flow), "two live claims"
            assert claim.attempt == known.attempts + 1
            known.claim = (node, claim.attempt)
        if len(claims) < limit:
            open_ones = [
                id for id, known in self.known.items()
                if known.flow == flow and known.status is Status.WAITING and known.claim is None
            ]  # fmt: skip
            for id in open_ones:
                record = self.wait(self.store.get(id))
                assert record.invocation.due_at > self.now, "a due invocation was passed over"
        return multiple(*claims)

    @rule(
        claim=claims, how=st.sampled_from(["ok", "dead", "spent", "unspent", "mark"]), with_put=st.booleans()
    )
    def end(self, claim: Claim, how: str, with_put: bool) -> None:
        id, extra = claim.invocation.id, len(self.known) + 1
        write: Write = {
            "ok": ok(claim),
            "dead": dead(claim),
            "spent": Retry(claim, self.now + 2),
            "unspent": Retry(claim, self.now, spent=False),
            "mark": MarkRunning(claim, self.now),
        }[how]
        writes = [Put(request(extra, function="one", flow="one")), write] if with_put else [write]
        stood = self.stands(claim)
        answers = self.apply(*writes)
        assert all(isinstance(answer.refused, LeaseLost) is not stood for answer in answers)
        if not stood:
            return
        if with_put:
            self.known[extra] = Known("one")
        known = self.known[id]
        if how in ("spent", "unspent"):
            self.free(id, spent=how == "spent")
        elif how == "mark":
            known.marked, known.status = True, Status.RUNNING
        else:
            assert id not in self.ended, "ended twice"
            self.ended.add(id)
            known.status = Status.SUCCEEDED if how == "ok" else Status.DEAD
            known.attempts, known.claim, known.marked = claim.attempt, None, False

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        stood = self.stands(claim)
        self.wait(self.store.release([claim]))
        if stood:
            self.free(claim.invocation.id, spent=False)

    @rule(node=st.sampled_from(NODES))
    def lose(self, node: str) -> None:
        self.now += 1
        self.wait(self.store.renew(node, until=self.now))
        taken = self.wait(self.store.release_expired(now=self.now))
        held = {id: known for id, known in self.known.items() if known.claim and known.claim[0] == node}
        assert {claim.invocation.id for claim in taken} == {id for id, known in held.items() if known.marked}
        for id, known in held.items():
            self.free(id, spent=known.marked)
        self.wait(self.store.join(node, until=self.now + 1000, now=self.now))

    @rule(id=ids)
    def cancel(self, id: int) -> None:
        known = self.known[id]
        [answer] = self.apply(CancelWaiting(id))
        if known.status is Status.WAITING and known.claim is None:
            assert answer.refused is None
            known.status = Status.CANCELLED
            self.ended.add(id)
        else:
            assert isinstance(answer.refused, WrongState)

    @rule(id=ids)
    def redrive(self, id: int) -> None:
        known = self.known[id]
        [answer] = self.apply(Redrive(id, self.now, 1e9))
        assert (answer.refused is None) == (known.status is Status.DEAD)
        if answer.refused is None:
            self.ended.discard(id)
            known.status, known.attempts = Status.WAITING, 0

    @rule()
    def restart(self) -> None:
        self.wait(self.store.stop())
        self.store = self.opened()
        self.wait(self.store.start())
        if self.claims_outlive_the_store:
            assert self.wait(self.store.release_expired(now=self.now)) == []
            return
        lost = self.wait(self.store.release_expired(now=self.now))
        assert {claim.invocation.id for claim in lost} == {id for id, k in self.known.items() if k.marked}
        for id, known in self.known.items():
            if known.claim is not None:
                self.free(id, spent=known.marked)
        self.join()

    @invariant()
    def agree(self) -> None:
        if not self.known:
            return
        for id, known in self.known.items():
            record = self.wait(self.store.get(id))
            assert record is not None, "an accepted invocation is lost"
            assert (record.status, record.attempts) == (known.status, known.attempts), id
        books = self.wait(self.store.counters())
        balance(books)
        for flow in FLOWS:
            mine = [known.status for known in self.known.values() if known.flow == flow]
            if mine:
                book = books[flow]
                counted = (book.waiting, book.running, book.succeeded, book.dead, book.cancelled)
                assert counted == tuple(mine.count(status) for status in Status)

    def teardown(self) -> None:
        self.wait(self.store.stop())
        self.runner.close()
        self.removed()


class SqliteMachine(StoreMachine):
    claims_outlive_the_store = False

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        super().__init__()

    def opened(self) -> Store:
        return SqliteStore(Path(self.folder.name) / "headrace.db")

    def removed(self) -> None:
        self.folder.cleanup()


def test_sqlite_agrees_with_a_dict() -> None:
    run_state_machine_as_test(
        SqliteMachine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None)
    )


def test_postgres_agrees_with_a_dict(postgres_server: PostgresServer) -> None:
    class PostgresMachine(StoreMachine):
        def __init__(self) -> None:
            self.url = postgres_server.database()
            super().__init__()

        def opened(self) -> Store:
            return PostgresStore(self.url)

        def removed(self) -> None:
            postgres_server.drop(self.url)

    run_state_machine_as_test(
        PostgresMachine, settings=settings(max_examples=10, stateful_step_count=30, deadline=None)
    )
