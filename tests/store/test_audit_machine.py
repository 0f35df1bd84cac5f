"""The books balance and no row breaks a rule, whatever was done to a store: invocations, jobs, retention."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_values import dead, ok, part, request

from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.job import LIVE
from headrace.runtime.model.spec import JobSpec
from headrace.runtime.model.write import (
    Applied,
    CancelWaiting,
    ChunkDone,
    JobMoved,
    JobPlanned,
    JobPut,
    JobRedriven,
    MarkRunning,
    Put,
    Redrive,
    Retry,
    Settle,
    Write,
)
from headrace.runtime.store.sqlite import SqliteStore

NODE = "north"
FUNCTIONS = ("app.one", "app.two")
KEYS = ("", "#a")
CHUNKS_MAX = 5
HOWS = st.lists(
    st.sampled_from(["ok", "ok", "dead", "dead", "cancelled", "spent", "unspent", "release", "mark", "hold"]),
    min_size=1,
    max_size=5,
)


class AuditMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStore(Path(self.folder.name) / "headrace.db")
        self.now = 1_800_000_000.0
        self.made = Ids(lambda: self.now, node=1)
        self.accepted = 0
        self.jobs: list[int] = []
        self.held: list[Claim] = []

    def wait(self, coroutine):  # type: ignore[no-untyped-def]
        return self.runner.run(coroutine)

    def apply(self, *writes: Write) -> list[Applied]:
        """What is accepted is counted; a refused list accepts nothing."""
        self.now += 1
        answers: list[Applied] = self.wait(self.store.apply(list(writes), now=self.now))
        for write, answer in zip(writes, answers, strict=True):
            if answer.refused is None:
                if isinstance(write, Put):
                    self.accepted += not answer.repeated
                elif isinstance(write, JobPlanned):
                    self.accepted += len(write.invocations)
        return answers

    def times(self) -> dict[str, float]:
        return {"accepted_at": self.now, "due_at": self.now, "expires_at": self.now + 1e6}

    def piece(self, job: int, index: int, stage: int = 0, payload: bytes = b"1") -> Invocation:
        given: dict[str, Any] = {"function": "app.job", "payload": payload, **self.times()}
        made = part(self.made.next(), job, index, stage, **given)
        made.flow = f"job:{show_id(job)}"
        return made

    @initialize()
    def begin(self) -> None:
        self.wait(self.store.start())
        self.wait(self.store.join(NODE, until=self.now + 1e6, now=self.now))
        self.put("app.one", "", count=5, named=False)
        self.put_job(4)

    # ---- invocations ----

    @rule(
        function=st.sampled_from(FUNCTIONS),
        key=st.sampled_from(KEYS),
        count=st.integers(1, 4),
        named=st.booleans(),
    )
    def put(self, function: str, key: str, count: int, named: bool) -> None:
        for _ in range(count):
            fields = {"idempotency_key": "k"} if named else {}
            made = request(self.made.next(), function=function, flow=function + key, payload=b"1",
                           **self.times(), **fields)  # fmt: skip
            self.apply(Put(made, idempotency_until=self.now + 5))

    @rule(function=st.sampled_from(FUNCTIONS), key=st.sampled_from(KEYS), hows=HOWS)
    def work(self, function: str, key: str, hows: list[str]) -> None:
        """Claim some of a flow and end them."""
        self.now += 1
        flow = function + key
        claims = self.wait(self.store.claim(NODE, flow=flow, limit=len(hows), now=self.now))
        for claim, how in zip(claims, hows, strict=False):
            self.end(claim, how)

    @rule(hows=HOWS)
    def work_again(self, hows: list[str]) -> None:
        """End what was begun, or was once: some of these claims are stale."""
        for how in hows:
            if self.held:
                self.end(self.held.pop(), how)

    def end(self, claim: Claim, how: str) -> None:
        if how == "hold":
            self.held.append(claim)
        elif how == "release":
            self.wait(self.store.release([claim]))
        elif how == "mark":
            self.apply(MarkRunning(claim, self.now))
            self.held.append(claim)
        elif how in ("spent", "unspent"):
            error = {"code": "function_error", "message": "no"}
            self.apply(Retry(claim, self.now, spent=how == "spent", error=error if how == "spent" else None))
        elif how == "cancelled":
            error = {"code": "cancelled", "message": "asked"}
            self.apply(Settle(claim, Status.CANCELLED, error=error))
        elif claim.invocation.job is not None:
            self.end_part(claim, ok(claim) if how == "ok" else dead(claim))
        else:
            self.apply(ok(claim) if how == "ok" else dead(claim))

    def chosen(self, status: Status, pick: int) -> int | None:
        found = self.wait(self.store.find(status=status, limit=5))
        return found[pick % len(found)].invocation.id if found else None

    @rule(pick=st.integers(0, 4))
    def cancel(self, pick: int) -> None:
        id = self.chosen(Status.WAITING, pick)
        if id is not None:
            self.apply(CancelWaiting(id))

    @rule(pick=st.integers(0, 4))
    def redrive(self, pick: int) -> None:
        id = self.chosen(Status.DEAD, pick)
        if id is not None:
            self.apply(Redrive(id, self.now, self.now + 1e6))

    # ---- jobs ----

    @rule(chunks=st.integers(0, CHUNKS_MAX))
    def put_job(self, chunks: int) -> None:
        job = self.made.next()
        spec = JobSpec(split={"kind": "lines"}, reduce="tree")
        self.apply(JobPut(job, "app.job", spec, {"items": []}, self.now))
        self.jobs.append(job)
        self.plan(-1, 0, chunks)

    @rule(pick=st.integers(0, 4), first=st.integers(0, CHUNKS_MAX), chunks=st.integers(0, CHUNKS_MAX))
    def plan(self, pick: int, first: int, chunks: int) -> None:
        job = self.jobs[pick % len(self.jobs)]
        known = self.wait(self.store.job(job))
        if known is not None:
            first = min(first, known.chunks)
            pieces = [self.piece(job, first + index) for index in range(chunks)]
            self.apply(JobPlanned(job, first, pieces, 1, {}, known.generation + 1))

    @rule(pick=st.integers(0, 4), hows=HOWS)
    def work_on_job(self, pick: int, hows: list[str]) -> None:
        self.now += 1
        flow = f"job:{show_id(self.jobs[pick % len(self.jobs)])}"
        claims = self.wait(self.store.claim(NODE, flow=flow, limit=len(hows), now=self.now))
        for claim, how in zip(claims, hows, strict=False):
            self.end(claim, how)

    def end_part(self, claim: Claim, settle: Settle) -> None:
        job = claim.invocation.job
        assert job is not None
        known = self.wait(self.store.job(job))
        if claim.invocation.stage != 0 or known is None or not known.chunks:
            self.apply(ChunkDone(settle))
            return
        parent = self.piece(job, 0, 1, payload=b"{}")
        self.apply(ChunkDone(settle, (0, known.chunks - 1), parent))
        self.accepted += self.wait(self.store.get(parent.id)) is not None

    @rule(pick=st.integers(0, 4), status=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def end_job(self, pick: int, status: str) -> None:
        error = {"code": "job_failed", "message": "no"} if status == "failed" else None
        self.apply(JobMoved(self.jobs[pick % len(self.jobs)], status, LIVE, self.now, error=error))

    @rule(pick=st.integers(0, 4))
    def redrive_job(self, pick: int) -> None:
        job = self.jobs[pick % len(self.jobs)]
        self.apply(JobRedriven(job, ("failed", "cancelled"), self.now, self.now + 1e6))

    # ---- what goes on beside ----

    @rule(
        succeeded_s=st.integers(0, 20),
        dead_s=st.integers(0, 20),
        keep=st.integers(0, 5),
        limit=st.integers(1, 9),
    )
    def retain(self, succeeded_s: int, dead_s: int, keep: int, limit: int) -> None:
        self.now += 1
        self.wait(
            self.store.expire(
                succeeded_before=self.now - succeeded_s, dead_before=self.now - dead_s, keep=keep, limit=limit
            )
        )

    @rule()
    def lose(self) -> None:
        self.now += 1
        self.wait(self.store.renew(NODE, until=self.now))
        self.wait(self.store.release_expired(now=self.now))
        self.wait(self.store.renew(NODE, until=self.now + 1e6))

    @rule()
    def restart(self) -> None:
        self.wait(self.store.stop())
        self.store = SqliteStore(self.store.path)
        self.wait(self.store.start())
        self.wait(self.store.release_expired(now=self.now))
        self.wait(self.store.join(NODE, until=self.now + 1e6, now=self.now))

    @invariant()
    def balanced(self) -> None:
        audit = self.wait(self.store.audit())
        assert (audit.problems, audit.found) == ([], {})
        assert sum(book.accepted for book in audit.books.values()) == self.accepted
        assert [name for name, book in audit.books.items() if book.missing] == []
        assert audit.checked_rows == sum(sum(book.rows.values()) for book in audit.books.values())

    def teardown(self) -> None:
        self.wait(self.store.stop())
        self.runner.close()
        self.folder.cleanup()


TestAuditMachine = AuditMachine.TestCase
TestAuditMachine.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
