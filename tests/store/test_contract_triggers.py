"""What triggers rely on, of every store."""

from typing import Any

import pytest
from store_values import apply, put, refusal, request, statuses

from headrace.runtime.errors import Duplicate
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import CursorMoved, Fired, Forget, Put, Seen
from headrace.runtime.store import firing
from headrace.runtime.store.protocol import LedgerRow, Store


def notified(sequencer: str, etag: str = "e1", modified_at: float = 10.0, **fields: Any) -> Seen:
    return Seen("t", "inbox", fields.pop("key", "a.csv"), etag, 5, sequencer, modified_at, **fields)


def listed(etag: str = "e1", modified_at: float = 10.0, **fields: Any) -> Seen:
    return notified("", etag, modified_at, listed=True, **fields)


async def test_a_notification_is_new_only_with_a_higher_sequencer(store: Store) -> None:
    await apply(store, notified("0A"), Put(request(1)))

    assert isinstance(await refusal(store, notified("0A"), Put(request(2))), Duplicate)
    assert isinstance(await refusal(store, notified("09", etag="e9")), Duplicate)
    assert isinstance(await refusal(store, notified("0A00", etag="e9")), Duplicate)
    assert await refusal(store, notified("0A1")) is None
    assert await statuses(store, [1, 2]) == [Status.WAITING, None]


async def test_a_listed_object_is_new_only_when_it_differs_and_is_not_older(store: Store) -> None:
    await apply(store, notified("0A"))

    assert isinstance(await refusal(store, listed(modified_at=99.0)), Duplicate)
    assert isinstance(await refusal(store, listed(etag="e2", modified_at=9.0)), Duplicate)
    assert await refusal(store, listed(etag="e2", modified_at=10.0)) is None
    [row] = await store.ledger("t", "inbox")
    assert row == LedgerRow(key="a.csv", etag="e2", size=5, sequencer="0A", modified_at=10.0)


async def test_a_late_notification_of_what_a_sweep_fired_only_fills_in_the_sequencer(store: Store) -> None:
    await apply(store, listed())

    assert isinstance(await refusal(store, notified("0B"), Put(request(1))), Duplicate)
    [row] = await store.ledger("t", "inbox")
    assert row.sequencer == "0B"
    assert await statuses(store, [1]) == [None]
    assert await refusal(store, notified("0C")) is None


async def test_a_late_notification_of_a_replaced_upload_fires_nothing(store: Store) -> None:
    await apply(store, notified("0A"))
    await apply(store, listed(etag="e3", modified_at=30.0))

    assert isinstance(await refusal(store, notified("0B", etag="e2", modified_at=20.0)), Duplicate)
    assert isinstance(await refusal(store, notified("0C", etag="e3", modified_at=30.0)), Duplicate)
    assert await refusal(store, notified("0D", etag="e4", modified_at=40.0)) is None


async def test_versions_triggers_and_buckets_have_rows_of_their_own(store: Store) -> None:
    await apply(store, notified("1", version_id="v1"), notified("1", version_id="v2", modified_at=20.0))
    await apply(
        store, Seen("other", "inbox", "a.csv", "e", 1, "1", 1.0), Seen("t", "b2", "a.csv", "e", 1, "1", 1.0)
    )

    assert [row.modified_at for row in await store.ledger("t", "inbox")] == [20.0]
    assert len(await store.ledger("other", "inbox")) == 1


async def test_the_ledger_is_paged_by_the_bytes_of_its_keys(store: Store) -> None:
    keys = ["B", "a", "a/b", "a.b", "é", "\uffff", "\U0001f600", "z" * 300]
    await apply(store, *[notified("1", key=key) for key in keys])

    pages: list[str] = []
    while page := await store.ledger("t", "inbox", after=pages[-1] if pages else "", limit=3):
        pages += [row.key for row in page]

    assert pages == sorted(keys, key=lambda key: key.encode())


async def test_forgotten_keys_are_new_again(store: Store) -> None:
    await apply(store, notified("1"), notified("1", key="b"), Forget("t", "inbox", ["a.csv", "never"]))

    assert [row.key for row in await store.ledger("t", "inbox")] == ["b"]
    assert await refusal(store, notified("1")) is None


async def test_cursors_move(store: Store) -> None:
    assert await store.cursor("c") is None
    await apply(store, CursorMoved("c", "1"), CursorMoved("c", "2"), CursorMoved("d", "9"))
    assert await store.cursor("c") == "2"


async def test_a_schedule_keeps_its_anchor_until_its_definition_changes(store: Store) -> None:
    first = await store.schedule("s", definition="rate(1 hour)", now=10)
    same = await store.schedule("s", definition="rate(1 hour)", now=20)
    changed = await store.schedule("s", definition="rate(2 hours)", now=30)

    assert (same, first.anchor) == (first, 10.0)
    assert (changed.anchor, changed.generation) == (30.0, first.generation + 1)
    assert await store.schedules() == [changed]


async def test_a_schedule_fires_once_for_an_instant_and_only_in_its_newest_generation(store: Store) -> None:
    old = await store.schedule("s", definition="rate(1 hour)", now=10)
    new = await store.schedule("s", definition="rate(2 hours)", now=10)

    await apply(store, Fired("s", 100.0, new.generation), Put(request(1)))
    assert isinstance(await refusal(store, Fired("s", 100.0, new.generation), Put(request(2))), Duplicate)
    assert isinstance(await refusal(store, Fired("s", 200.0, old.generation)), Duplicate)
    assert isinstance(await refusal(store, Fired("unknown", 200.0, 1)), Duplicate)
    await apply(store, Fired("s", 90.0, new.generation))
    [state] = await store.schedules()
    assert state.last_due_at == 100.0
    assert await statuses(store, [1, 2]) == [Status.WAITING, None]


async def test_instants_before_all_that_are_remembered_count_as_fired(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "FIRED_KEPT", 100)
    state = await store.schedule("s", definition="rate(1 minute)", now=0)
    count = 2 * firing.FORGET_EVERY
    await apply(store, *[Fired("s", float(due), state.generation) for due in range(10, 10 + count)])
    [state] = await store.schedules()

    assert state.forgotten_at == 9.0 + count - 100
    assert len(await store.fires("s", limit=1000)) == 100
    for due in (0.0, 10.0, state.forgotten_at, 9.0 + count):
        assert isinstance(await refusal(store, Fired("s", due, state.generation)), Duplicate)
        assert isinstance(await refusal(store, Fired("s", due, state.generation, "backfill")), Duplicate)
    assert await refusal(store, Fired("s", 10.0 + count, state.generation)) is None


async def test_a_schedule_is_paused_and_goes_on(store: Store) -> None:
    await store.schedule("s", definition="rate(1 hour)", now=10)
    await store.pause_schedule("s", paused=True, now=20)
    assert (await store.schedule("s", definition="rate(1 hour)", now=20)).paused
    await store.pause_schedule("s", paused=False, now=20)
    [state] = await store.schedules()
    assert (state.paused, state.resumed_at) == (False, 20.0)


async def test_a_put_and_its_ledger_row_are_recorded_together(store: Store) -> None:
    await put(store, request(1))
    assert isinstance(await refusal(store, notified("1"), Put(request(1))), Duplicate)
    assert await store.ledger("t", "inbox") == []


async def test_a_position_moves_only_from_where_it_is_expected(store: Store) -> None:
    await apply(store, CursorMoved("c", "1", expected=""), Put(request(1)))

    assert isinstance(await refusal(store, CursorMoved("c", "1", expected=""), Put(request(2))), Duplicate)
    assert isinstance(await refusal(store, CursorMoved("c", "3", expected="2")), Duplicate)
    assert isinstance(await refusal(store, CursorMoved("d", "3", expected="2")), Duplicate)
    assert await refusal(store, CursorMoved("c", "2", expected="1"), Put(request(3))) is None
    assert (await store.cursor("c"), await store.cursor("d")) == ("2", None)
    assert await statuses(store, [1, 2, 3]) == [Status.WAITING, None, Status.WAITING]


async def test_one_row_of_a_ledger_is_read_by_its_key(store: Store) -> None:
    await apply(store, notified("0A"), notified("0B", key="b.csv", etag="e2", version_id="v1"))
    await apply(store, notified("0C", key="b.csv", etag="e3", version_id="v2", modified_at=20.0))

    found = await store.ledger_entry("t", "inbox", "b.csv")
    assert found == LedgerRow(key="b.csv", etag="e3", size=5, sequencer="0C", modified_at=20.0)
    assert await store.ledger_entry("t", "inbox", "a") is None
    assert await store.ledger_entry("u", "inbox", "b.csv") is None
