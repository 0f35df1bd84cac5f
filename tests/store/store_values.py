"""Values that the store's tests put in, with the defaults that a test does not care about."""

from collections.abc import Sequence
from typing import Any

from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.spec import JobSpec
from headrace.runtime.model.write import Applied, JobPut, Put, Settle, Write
from headrace.runtime.store.protocol import Counters, Store


def request(id: int, **fields: Any) -> Invocation:
    """An invocation of function `app.f`."""
    given: dict[str, Any] = {
        "function": "app.f",
        "payload": b'{"n": %d}' % id,
        "accepted_at": 0.0,
        "due_at": 0.0,
        "expires_at": 1e9,
        **fields,
    }
    return Invocation(id=id, **{"flow": given["function"], **given})


def part(id: int, job: int, index: int, stage: int = 0, **fields: Any) -> Invocation:
    """An invocation of a job."""
    return request(id, job=job, stage=stage, index=index, flow=f"job:{job}", **fields)


def ok(claim: Claim, result: bytes = b"1") -> Settle:
    return Settle(claim, Status.SUCCEEDED, result, started_at=1.0)


def dead(claim: Claim) -> Settle:
    return Settle(claim, Status.DEAD, error={"code": "function_error", "message": "no"}, started_at=1.0)


async def put(store: Store, *invocations: Invocation, now: float = 0.0) -> None:
    answers = await store.apply([Put(invocation) for invocation in invocations], now=now)
    assert [answer.id for answer in answers] == [invocation.id for invocation in invocations]


async def put_claimed(store: Store, *invocations: Invocation, node: str = "node-1") -> list[Claim]:
    answers = await store.apply([Put(invocation, node) for invocation in invocations], now=0.0)
    claims = [answer.claim for answer in answers]
    return [claim for claim in claims if claim is not None]


async def put_job(store: Store, id: int = 9, **fields: Any) -> None:
    spec = JobSpec(split={"kind": "lines"}, reduce="tree")
    write = JobPut(id, "app.job", spec, {"object": "s3://in/a"}, 5.0, **fields)
    assert await refusal(store, write) is None


async def apply(store: Store, *writes: Write, now: float = 0.0) -> list[Applied]:
    """`apply`, of writes that must not be refused."""
    answers = await store.apply(list(writes), now=now)
    assert [answer.refused for answer in answers] == [None] * len(writes)
    return answers


async def refusal(store: Store, *writes: Write, now: float = 0.0) -> HeadraceError | None:
    """Why a list was refused, the same for each of its writes; None when it was not."""
    answers = await store.apply(list(writes), now=now)
    assert len(answers) == len(writes)
    assert len({id(answer.refused) for answer in answers}) == 1
    return answers[0].refused


async def statuses(store: Store, ids: Sequence[int]) -> list[Status | None]:
    records = [await store.get(id) for id in ids]
    return [None if record is None else record.status for record in records]


def balance(books: dict[str, Counters]) -> None:
    """accepted = waiting + running + succeeded + dead + cancelled, and none is negative."""
    for function, book in books.items():
        parts = (book.waiting, book.running, book.succeeded, book.dead, book.cancelled)
        assert min(parts) >= 0, (function, book)
        assert book.accepted == sum(parts), (function, book)
