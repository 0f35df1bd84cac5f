"""The contract of cancelling what matches, of editing and giving up dead letters, and of keys that expire."""

import hashlib

import pytest
from store_values import apply, balance, dead, ok, put, put_claimed, refusal, request, statuses

from headrace.runtime.errors import IdempotencyMismatch, UnknownInvocation, WrongState
from headrace.runtime.model.invocation import Invocation, Status
from headrace.runtime.model.write import CancelMatching, Discard, Put, Redrive
from headrace.runtime.store.protocol import KEY_GRACE_S, Store

W, S, D, C = Status.WAITING, Status.SUCCEEDED, Status.DEAD, Status.CANCELLED


# ---- what matches ----


async def test_the_waiting_of_a_function_end_in_batches_and_nothing_else_does(store: Store) -> None:
    await put(store, *(request(id) for id in range(1, 8)))
    await put(store, request(8, flow="app.f#ann"), request(9, flow="app.f#bob", priority=5))
    others = [request(10, function="app.f2"), request(11, function="app.f-2"), request(12, function="app.e")]
    await put(store, *others)

    seen: list[int] = []
    while True:
        [answer] = await apply(store, CancelMatching(function="app.f", limit=4), now=7.0)
        assert answer.ids is not None
        seen += answer.ids
        if len(answer.ids) < 4:
            break

    assert sorted(seen) == list(range(1, 10))
    assert await statuses(store, range(1, 13)) == [C] * 9 + [W] * 3
    record = await store.get(3)
    assert record is not None
    assert (record.ended_at, (record.error or {})["code"]) == (7.0, "cancelled")
    books = await store.counters()
    balance(books)
    assert (books["app.f"].cancelled, books["app.f"].waiting, books["app.e"].waiting) == (9, 0, 1)
    assert await store.claim("node-1", flow="app.f#ann", limit=5, now=9.0) == []


async def test_claimed_ended_and_later_ones_and_those_of_jobs_do_not_match(store: Store) -> None:
    [claim, over] = await put_claimed(store, request(1), request(2))
    await apply(store, ok(over))
    await put(store, request(3), request(4, job=9, flow="job:9"), request(50))

    [answer] = await apply(store, CancelMatching(function="app.f", below=50))

    assert answer.ids == [3]
    assert await statuses(store, [1, 2, 3, 4, 50]) == [W, S, C, W, W]
    assert await refusal(store, ok(claim)) is None
    balance(await store.counters())


async def test_a_tag_matches_whole_tags_and_goes_on_behind_the_last_id(store: Store) -> None:
    tags = ["red", "blue,red", "red,blue", "a,red,b", "reds", "Red", "dark red", "r%d", None]
    await put(store, *(request(id, tags=text) for id, text in enumerate(tags, 1)))
    await put(store, request(20, function="app.other", tags="red"))

    [first] = await apply(store, CancelMatching(tag="red", limit=3))
    assert first.ids == [1, 2, 3]
    [second] = await apply(store, CancelMatching(tag="red", limit=3, after=3))
    assert second.ids == [4, 20]
    [last] = await apply(store, CancelMatching(tag="r%d", function="app.f"))
    assert last.ids == [8]
    [none] = await apply(store, CancelMatching(tag="red"))
    assert none.ids == []
    books = await store.counters()
    balance(books)
    assert (books["app.f"].cancelled, books["app.other"].cancelled) == (5, 1)


async def test_a_function_and_a_tag_must_both_match(store: Store) -> None:
    await put(store, request(1, tags="t"), request(2), request(3, function="app.g", tags="t"))

    [answer] = await apply(store, CancelMatching(function="app.f", tag="t"))

    assert answer.ids == [1]


# ---- dead letters ----


async def dead_letter(store: Store, id: int = 1, **fields: object) -> None:
    [claim] = await put_claimed(store, request(id, **fields))
    await apply(store, dead(claim))


async def test_a_dead_letter_is_redriven_with_another_event_under_its_id(store: Store) -> None:
    await dead_letter(store)
    await apply(store, Redrive(1, 5.0, 100.0, payload=b'{"n": 77}'), now=5.0)

    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=5.0)
    assert (claim.invocation.id, claim.attempt, claim.invocation.payload) == (1, 1, b'{"n": 77}')
    await apply(store, dead(claim))
    await apply(store, Redrive(1, 6.0, 100.0, payload_ref="s3://headrace-system/payloads/x.json"), now=6.0)
    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=6.0)
    assert (claim.invocation.payload, claim.invocation.payload_ref) == (
        b"",
        "s3://headrace-system/payloads/x.json",
    )
    await apply(store, dead(claim))
    await apply(store, Redrive(1, 7.0, 100.0), now=7.0)
    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=7.0)
    assert claim.invocation.payload_ref == "s3://headrace-system/payloads/x.json"
    await apply(store, dead(claim))
    await apply(store, Redrive(1, 8.0, 100.0, payload=b"null"), now=8.0)
    record = await store.get(1)
    assert record is not None
    assert (record.invocation.payload, record.invocation.payload_ref) == (b"null", None)
    balance(await store.counters())


async def test_a_dead_letter_that_is_given_up_is_cancelled_with_its_error_as_the_cause(store: Store) -> None:
    await dead_letter(store)
    await apply(store, Discard(1), now=9.0)

    record = await store.get(1)
    assert record is not None
    assert (record.status, record.ended_at) == (C, 9.0)
    assert record.error == {
        "code": "cancelled",
        "message": "discarded by request",
        "cause": {"code": "function_error", "message": "no"},
    }
    books = (await store.counters())["app.f"]
    assert (books.accepted, books.dead, books.cancelled) == (1, 0, 1)
    assert isinstance(await refusal(store, Discard(1)), WrongState)
    assert isinstance(await refusal(store, Redrive(1, 0.0, 9.0, payload=b"1")), WrongState)
    assert isinstance(await refusal(store, Discard(2)), UnknownInvocation)


# ---- idempotency keys ----


def keyed(id: int, key: str = "k", until: float = 10.0, **fields: object) -> Put:
    digest = hashlib.sha256(b"said").digest()
    return Put(request(id, idempotency_key=key, **fields), None, until, digest)


async def accepted(store: Store, write: Put, *, now: float) -> int | None:
    [answer] = await apply(store, write, now=now)
    return answer.id


async def test_a_key_stands_beyond_its_time_while_its_invocation_has_not_ended(store: Store) -> None:
    assert await accepted(store, keyed(1), now=0.0) == 1
    assert await accepted(store, keyed(2), now=9.0) == 1
    assert await accepted(store, keyed(3), now=11.0) == 1
    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=11.0)
    assert await accepted(store, keyed(4), now=12.0) == 1
    await apply(store, ok(claim), now=13.0)

    assert await accepted(store, keyed(5, until=30.0), now=14.0) == 5
    assert await accepted(store, keyed(6), now=20.0) == 5
    books = (await store.counters())["app.f"]
    assert (books.accepted, books.deduplicated) == (2, 4)


async def test_a_dead_invocation_is_what_its_key_means_until_the_key_expires(store: Store) -> None:
    [answer] = await apply(store, Put(keyed(1).invocation, "node-1", 10.0, keyed(1).fingerprint))
    assert answer.claim is not None
    await apply(store, dead(answer.claim), now=1.0)

    assert await accepted(store, keyed(2), now=2.0) == 1
    await apply(store, Redrive(1, 3.0, 100.0, payload=b'{"edited": 1}'), now=3.0)
    assert await accepted(store, keyed(3), now=3.0) == 1
    other = Put(keyed(4).invocation, None, 20.0, b"another")
    assert isinstance(await refusal(store, other, now=4.0), IdempotencyMismatch)
    [claim] = await store.claim("node-1", flow="app.f", limit=5, now=4.0)
    await apply(store, dead(claim), now=5.0)
    assert await accepted(store, keyed(5), now=10.0) == 5


async def test_expired_keys_are_collected_in_batches_but_for_those_that_still_stand(store: Store) -> None:
    for id in range(1, 6):
        assert await accepted(store, keyed(id, f"k{id}", until=float(id)), now=0.0) == id
    claims = await store.claim("node-1", flow="app.f", limit=4, now=1.0)
    await apply(store, *(ok(claim) for claim in claims), now=1.0)
    late = keyed(9, "late", until=1000.0)
    assert await accepted(store, late, now=1.0) == 9

    looked = [await store.expire_keys(before=20.0, limit=2) for _ in range(4)]

    assert looked == [2, 2, 1, 0]
    assert await accepted(store, keyed(15, "k5"), now=30.0) == 5  # waiting: it stands
    assert await accepted(store, keyed(19, "late"), now=30.0) == 9
    assert await accepted(store, keyed(11, "k1", until=40.0), now=2.0) == 11  # forgotten
    assert await store.expire_keys(before=20.0 + KEY_GRACE_S, limit=10) == 2


@pytest.mark.parametrize("status", [S, D])
async def test_a_key_goes_on_to_name_an_invocation_that_retention_removed(
    store: Store, status: Status
) -> None:
    invocation: Invocation = keyed(1).invocation
    [answer] = await apply(store, Put(invocation, "node-1", 100.0, keyed(1).fingerprint))
    assert answer.claim is not None
    await apply(store, ok(answer.claim) if status is S else dead(answer.claim), now=1.0)
    await store.expire(succeeded_before=50.0, dead_before=50.0, keep=0, limit=10)
    assert await store.get(1) is None

    assert await accepted(store, keyed(2), now=60.0) == 1
