"""`/v1/schedules` and `/v1/backfills`: what schedules do is shown, and what is missing is fired."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace import App, Items, Schedule
from headrace.runtime.model.invocation import Status
from headrace.runtime.model.write import Fired
from headrace.runtime.testing import ManualClock
from tests.inline_node import InlineNode, Reply

HOUR = 3600.0
BEGIN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC).timestamp()
HOURLY = "shop.echo/schedule/hourly"
DAILY = "shop.cut/schedule/daily"

shop = App("shop")


@shop.function
def echo(event: Any) -> Any:
    return event["time"]


@shop.job(split=Items())
def cut(chunk: Any) -> None: ...


hourly = Schedule("0 * * * *", name="hourly", input={"shop": 7})
daily = Schedule("cron(0 3 * * ? *)", name="daily", input=[1, 2])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    clock = ManualClock(BEGIN)
    async with InlineNode(tmp_path, shop, clock=clock) as found:
        specs = {spec.name: spec for spec in found.specs}
        declared = {HOURLY: (specs["shop.echo"], hourly), DAILY: (specs["shop.cut"], daily)}
        found.services.schedules = lambda: declared
        for name, (_, schedule) in declared.items():
            await found.store.schedule(name, definition=schedule.definition, now=BEGIN - 30 * 86_400)
        yield found


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


async def get(node: InlineNode, path: str, **query: str) -> Any:
    reply = await node.request("GET", f"/v1/{path}", query=query)
    assert reply.status == 200, reply.body
    return reply.json


async def post(node: InlineNode, path: str, body: object = None) -> Reply:
    return await node.request("POST", f"/v1/{path}", {} if body is None else body)


async def fired(node: InlineNode, due: float, **fields: Any) -> None:
    """The schedule has fired for an instant."""
    [state] = [each for each in await node.store.schedules() if each.name == HOURLY]
    [answer] = await node.store.apply([Fired(HOURLY, due, state.generation, **fields)], now=due)
    assert answer.refused is None


async def filled(node: InlineNode, id: str) -> dict[str, Any]:
    """The backfill, when it has ended."""

    async def ended() -> dict[str, Any] | None:
        await node.backfills.step()
        found: dict[str, Any] = await get(node, f"backfills/{id}")
        return found if found["ended_at"] is not None else None

    found: dict[str, Any] = await node.until(ended, "the end of the backfill")
    return found


async def test_schedules_are_listed_with_state_next_moments_and_last_ones(node: InlineNode) -> None:
    await fired(node, moment("2026-03-01T11:00"))
    await fired(node, moment("2026-03-01T12:00"), cause="skipped")
    [first, second] = (await get(node, "schedules"))["items"]

    assert (first["name"], second["name"]) == (DAILY, HOURLY)
    assert (second["function"], second["state"], second["definition"]) == (
        "shop.echo", "active", "0 * * * *; UTC",
    )  # fmt: skip
    assert second["next"] == [moment("2026-03-01T13:00") + HOUR * n for n in range(5)]
    assert [(fire["due_at"], fire["cause"]) for fire in second["last"]] == [
        (moment("2026-03-01T12:00"), "skipped"), (moment("2026-03-01T11:00"), "due"),
    ]  # fmt: skip
    assert second["settings"]["input"] == {"shop": 7}


async def test_the_list_is_answered_in_pages(node: InlineNode) -> None:
    page = await get(node, "schedules", limit="1")
    rest = await get(node, "schedules", limit="1", cursor=page["next_cursor"])

    assert [item["name"] for item in [*page["items"], *rest["items"]]] == [DAILY, HOURLY]


@pytest.mark.parametrize("name", [HOURLY, "hourly", "shop.echo"])
async def test_a_schedule_is_known_by_its_whole_name_its_own_part_and_its_function(
    node: InlineNode, name: str
) -> None:
    assert (await get(node, f"schedules/{name}"))["name"] == HOURLY


async def test_a_name_of_several_and_one_of_none_are_asked_back(node: InlineNode) -> None:
    await node.store.schedule("a.f/schedule/hourly", definition="x", now=BEGIN)
    several = await node.request("GET", "/v1/schedules/hourly")
    none = await node.request("GET", "/v1/schedules/nobody/next")

    assert (several.status, several.error["code"]) == (404, "unknown_schedule")
    assert f"a.f/schedule/hourly, {HOURLY}" in several.error["hint"]
    assert (none.status, none.error["code"]) == (404, "unknown_schedule")


async def test_next_moments_are_answered_from_any_moment(node: InlineNode) -> None:
    found = await get(node, f"schedules/{HOURLY}/next", after="2026-03-05T00:30:00Z", limit="2")

    assert found["items"] == [moment("2026-03-05T01:00"), moment("2026-03-05T02:00")]
    reply = await node.request("GET", f"/v1/schedules/{HOURLY}/next", query={"after": "noon"})
    assert (reply.status, reply.error["code"]) == (400, "bad_request")


async def test_a_paused_schedule_says_so_wherever_it_is_asked(node: InlineNode) -> None:
    assert (await post(node, f"schedules/{HOURLY}/pause")).json == {"schedule": HOURLY, "paused": True}
    assert (await get(node, "schedules/hourly"))["state"] == "paused"
    why = await get(node, f"why/{HOURLY}")
    assert (why["state"], why["held_by"][0]["by"]) == ("paused", "paused")
    assert why["held_by"][0]["do"] == f"headrace schedule resume {HOURLY}"

    await post(node, f"schedules/{HOURLY}/resume")
    found = await get(node, "schedules/hourly")
    assert (found["state"], found["resumed_at"]) == ("active", BEGIN)


async def test_run_fires_now_with_a_moment_of_its_own(node: InlineNode) -> None:
    reply = await post(node, f"schedules/{HOURLY}/run")
    await node.quiet()
    record = await get(node, f"invocations/{reply.json['invocation_id']}", wait_s="5", payload="true")

    assert (reply.status, record["status"]) == (202, "succeeded")
    assert reply.json["due_at"] == BEGIN + 0.001  # which is no moment of any expression
    assert record["payload"]["detail"] == {"shop": 7}
    assert record["payload"]["resources"] == [HOURLY]
    [fire] = (await get(node, f"schedules/{HOURLY}/fires"))["items"]
    assert (fire["cause"], fire["id"]) == ("run", record["invocation_id"])


async def test_run_fires_for_an_instant_once_unless_asked_again(node: InlineNode) -> None:
    due = {"due": "2026-02-20T09:00:00Z"}
    first = await post(node, f"schedules/{HOURLY}/run", due)
    second = await post(node, f"schedules/{HOURLY}/run", due)
    third = await post(node, f"schedules/{HOURLY}/run", {**due, "again": True})

    assert (first.status, second.status, third.status) == (202, 409, 202)
    assert second.error["code"] == "already_fired"
    assert "2026-02-20T09:00:00Z" in second.error["message"]
    assert first.json["due_at"] == moment("2026-02-20T09:00")


async def test_an_instant_that_was_run_ahead_does_not_fire_by_itself(node: InlineNode) -> None:
    ahead = moment("2026-03-01T13:00")
    await post(node, f"schedules/{HOURLY}/run", {"due": ahead})
    [state] = [each for each in await node.store.schedules() if each.name == HOURLY]
    [own] = await node.store.apply([Fired(HOURLY, ahead, state.generation)], now=ahead)

    assert own.refused is not None
    assert state.last_due_at is None  # so that nothing between counts as passed


async def test_run_on_a_job_submits_it_with_the_schedules_input(node: InlineNode) -> None:
    reply = await post(node, "schedules/daily/run")
    await node.quiet()
    job = await get(node, f"jobs/{reply.json['job_id']}", wait_s="5")

    assert (job["function"], job["input"]) == ("shop.cut", {"items": 2})  # that are counted


async def test_what_the_code_does_not_declare_cannot_be_run(node: InlineNode) -> None:
    await node.store.schedule("gone.f/schedule/0", definition="0 0 * * *; UTC", now=BEGIN)
    assert (await get(node, "schedules/gone.f"))["state"] == "not loaded"
    for action, body in (("run", {}), ("backfill", {"from": "2026-02-01"})):
        reply = await post(node, f"schedules/gone.f/{action}", body)
        assert (reply.status, reply.error["code"]) == (409, "wrong_state")


# ---- backfills ----


async def test_a_backfill_fires_what_is_missing_and_nothing_else(node: InlineNode) -> None:
    first = moment("2026-02-27T10:00")
    for hour in (1, 3):
        await fired(node, first + hour * HOUR)
    await fired(node, first + 4 * HOUR, cause="skipped")
    body = {"from": "2026-02-27T10:00:00Z", "until": "2026-02-27T15:00:00Z", "concurrency": 10}
    plan = (await post(node, f"schedules/{HOURLY}/backfill", {**body, "dry_run": True})).json
    reply = await post(node, f"schedules/{HOURLY}/backfill", body)
    found = await filled(node, reply.json["id"])

    assert reply.status == 202
    assert (plan["instants"], plan["missing"]) == (6, 4)
    assert plan["moments"] == [first + hour * HOUR for hour in (0, 2, 4, 5)]
    assert (found["status"], found["instants"], found["fired"], found["present"]) == ("done", 6, 4, 2)
    records = await node.store.find(function="shop.echo", limit=100)
    assert sorted(record.result or b"" for record in records) == [
        f'"2026-02-27T{hour}:00:00Z"'.encode() for hour in (10, 12, 14, 15)
    ]
    fires = (await get(node, f"schedules/{HOURLY}/fires", after=str(first - 1)))["items"]
    assert [fire["cause"] for fire in fires] == ["backfill", "due", "backfill", "due", "backfill", "backfill"]

    again = await post(node, f"schedules/{HOURLY}/backfill", body)
    found = await filled(node, again.json["id"])
    assert (found["fired"], found["present"]) == (0, 6)


async def test_a_backfill_with_again_fires_all(node: InlineNode) -> None:
    await fired(node, moment("2026-02-27T10:00"))
    body = {"from": "2026-02-27T10:00:00Z", "until": "2026-02-27T11:00:00Z", "again": True}
    found = await filled(node, (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"])

    assert (found["fired"], found["present"], found["status"]) == (2, 0, "done")


async def test_no_more_of_a_backfill_runs_at_once_than_it_may(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, clock=ManualClock(BEGIN), workers=8, held=True) as node:
        [spec] = [spec for spec in node.specs if spec.name == "shop.echo"]
        node.services.schedules = lambda: {HOURLY: (spec, hourly)}
        await node.store.schedule(HOURLY, definition=hourly.definition, now=0)
        body = {"from": "2026-02-27T00:00:00Z", "until": "2026-02-27T10:00:00Z", "concurrency": 3}
        id = (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"]
        running = []
        while (found := await get(node, f"backfills/{id}"))["ended_at"] is None:
            for _ in range(3):
                await node.backfills.step()
            await node.quiet()
            waiting = [
                record for record in await node.store.find(function="shop.echo", limit=100)
                if record.status in (Status.WAITING, Status.RUNNING)
            ]  # fmt: skip
            running.append(len(waiting))
            node.pool.run()
            await node.quiet()

        assert max(running) == 3
        assert (found["fired"], found["status"]) == (11, "done")


async def test_a_backfill_goes_on_after_a_restart_and_fires_nothing_twice(tmp_path: Path) -> None:
    clock = ManualClock(BEGIN)
    node = InlineNode(tmp_path, shop, clock=clock)
    [spec] = [spec for spec in node.specs if spec.name == "shop.echo"]
    id = ""
    for life in range(6):
        await node.start()
        node.services.schedules = lambda: {HOURLY: (spec, hourly)}
        if not life:
            await node.store.schedule(HOURLY, definition=hourly.definition, now=0)
            body = {"from": "2026-02-27T00:00:00Z", "until": "2026-02-27T05:00:00Z"}
            id = (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"]
        if life < 5:
            await node.backfills.step()
            await node.crash()
    found = await filled(node, id)
    records = await node.store.find(function="shop.echo", limit=100)
    await node.stop()

    assert (found["status"], found["fired"]) == ("done", 6)
    assert len({record.invocation.payload for record in records}) == len(records) == 6


async def test_a_cancelled_backfill_fires_nothing_more(tmp_path: Path) -> None:
    async with InlineNode(tmp_path, shop, clock=ManualClock(BEGIN), held=True) as node:
        [spec] = [spec for spec in node.specs if spec.name == "shop.echo"]
        node.services.schedules = lambda: {HOURLY: (spec, hourly)}
        await node.store.schedule(HOURLY, definition=hourly.definition, now=0)
        body = {"from": "2026-02-27T00:00:00Z", "concurrency": 2}
        id = (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"]
        await node.backfills.step()
        beside = await post(node, f"schedules/{HOURLY}/backfill", body)
        why = await get(node, f"why/{HOURLY}")
        reply = await post(node, f"backfills/{id}/cancel", {"running": True})
        await node.backfills.step()
        node.pool.run()
        await node.quiet()
        records = await node.store.find(function="shop.echo", limit=100)
        late = await post(node, f"backfills/{id}/cancel")

        assert (beside.status, beside.error["code"]) == (409, "wrong_state")
        assert f"backfill {id} has fired 2" in why["summary"]
        assert (reply.status, reply.json["status"]) == (202, "cancelled")
        assert [record.status for record in records] == [Status.CANCELLED] * 2
        assert late.error["code"] == "wrong_state"
        assert [each["id"] for each in (await get(node, "backfills", schedule="hourly"))["items"]] == [id]


async def test_a_backfill_that_cannot_go_on_is_said_so_once_and_keeps_no_other_from_it(
    node: InlineNode,
) -> None:
    specs = {spec.name: spec for spec in node.specs}
    lost = Schedule("cron(0 3 * * ? *)", name="lost", input="s3://inbox/gone.csv")
    name = "shop.cut/schedule/lost"
    declared = {HOURLY: (specs["shop.echo"], hourly), name: (specs["shop.cut"], lost)}
    node.services.schedules = lambda: declared
    await node.store.schedule(name, definition=lost.definition, now=0)
    body = {"from": "2026-02-27T00:00:00Z", "until": "2026-02-28T00:00:00Z"}
    held = (await post(node, f"schedules/{name}/backfill", body)).json["id"]
    other = (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"]
    found = await filled(node, other)

    assert (found["status"], found["fired"]) == ("done", 25)
    assert (await get(node, f"backfills/{held}"))["status"] == "running"
    said = [details for message, details in node.said if "backfill is held back" in message]
    assert [details["backfill"] for details in said] == [held]
    assert (await post(node, f"backfills/{held}/cancel")).status == 202


async def test_a_backfill_ends_when_the_schedules_definition_changes(node: InlineNode) -> None:
    body = {"from": "2026-02-27T00:00:00Z"}
    id = (await post(node, f"schedules/{HOURLY}/backfill", body)).json["id"]
    await node.store.schedule(HOURLY, definition="0 5 * * *; UTC", now=BEGIN)
    found = await filled(node, id)

    assert (found["status"], found["fired"]) == ("cancelled", 0)
    assert "definition has changed" in found["note"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"from": "2026-03-02T00:00:00Z", "until": "2026-03-03T00:00:00Z"}, "in the future"),
        ({"from": "2026-02-03T00:00:00Z", "until": "2026-02-02T00:00:00Z"}, "ends before it begins"),
        ({"from": "2026-02-03T00:10:00Z", "until": "2026-02-03T00:20:00Z"}, "no moment in the range"),
        ({"from": "1990-01-01T00:00:00Z"}, "more than 100,000 moments"),
        ({"from": "yesterday"}, "not a moment"),
        ({"from": "2026-02-03T00:00:00Z", "concurrency": 101}, "concurrency is 101"),
        ({"from": "2026-02-03T00:00:00Z", "to": 3}, "unknown field `to`"),
        ({}, "missing required field `from`"),
    ],
)
async def test_a_range_that_cannot_be_filled_is_refused(
    node: InlineNode, body: dict[str, Any], complaint: str
) -> None:
    reply = await post(node, f"schedules/{HOURLY}/backfill", body)

    assert (reply.status, reply.error["code"]) == (400, "bad_request")
    assert complaint in reply.error["message"]


async def test_an_unknown_backfill_is_said_so(node: InlineNode) -> None:
    reply = await node.request("GET", "/v1/backfills/0000000000000001")
    assert (reply.status, reply.error["code"]) == (404, "unknown_backfill")
