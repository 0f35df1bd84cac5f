"""`/v1/schedules` and `/v1/backfills`: what schedules do, and what is done with them.

Imports this room and the rooms below. Moments are UTC epoch seconds in answers; in what is sent they may also
be ISO 8601.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.runtime.api.endpoint import Endpoint, answer, read_body, read_cursor, read_limit
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest
from headrace.runtime.model.ids import show_id
from headrace.runtime.store.protocol import Backfill, Fire
from headrace.runtime.timetable.timetable import Entry

BODY_BYTES = 1 << 16
MOMENT_MAX = 253_402_300_800.0  # the year 10000, which ISO 8601 cannot write

Moment = float | str


class _Run(msgspec.Struct, forbid_unknown_fields=True):
    due: Moment | None = None
    again: bool = False


class _Begin(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    from_: Moment
    until: Moment | None = None
    concurrency: int = 1
    again: bool = False
    dry_run: bool = False


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    running: bool = False


class Schedules:
    """The endpoints of schedules and backfills."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def endpoints(self) -> list[Endpoint]:
        one = "/v1/schedules/{name:path}"
        return [
            Endpoint("GET", "/v1/schedules", self.schedules, "read"),
            Endpoint("GET", f"{one}/next", self.next, "read"),
            Endpoint("GET", f"{one}/fires", self.fires, "read"),
            Endpoint("POST", f"{one}/pause", self.pause, "write"),
            Endpoint("POST", f"{one}/resume", self.resume, "write"),
            Endpoint("POST", f"{one}/run", self.run, "invoke"),
            Endpoint("POST", f"{one}/backfill", self.begin, "invoke"),
            Endpoint("GET", one, self.schedule, "read"),
            Endpoint("GET", "/v1/backfills", self.backfills, "read"),
            Endpoint("GET", "/v1/backfills/{id}", self.backfill, "read"),
            Endpoint("POST", "/v1/backfills/{id}/cancel", self.cancel, "write"),
        ]

    # ---- schedules ----

    async def schedules(self, request: Request) -> Response:
        query = request.query_params
        limit = read_limit(query.get("limit"))
        entries = await self._services.timetable.entries(after=query.get("cursor") or "", limit=limit)
        cursor = entries[-1].state.name if len(entries) == limit else None
        return answer({"items": [_shown(entry) for entry in entries], "next_cursor": cursor})

    async def schedule(self, request: Request) -> Response:
        limit = read_limit(request.query_params.get("limit"))
        entry = await self._services.timetable.entry(request.path_params["name"], last=limit)
        return answer(_shown(entry))

    async def next(self, request: Request) -> Response:
        query = request.query_params
        after = query.get("after")
        timetable = self._services.timetable
        state = await timetable.state(request.path_params["name"])
        moments = await timetable.moments(
            state.name,
            after=read_moment(after, "after") if after else None,
            limit=read_limit(query.get("limit") or "5"),
        )
        return answer({"schedule": state.name, "items": moments})

    async def fires(self, request: Request) -> Response:
        query = request.query_params
        state = await self._services.timetable.state(request.path_params["name"])
        after, until = query.get("after"), query.get("until")
        found = await self._services.store.fires(
            state.name,
            after=read_moment(after, "after") if after else None,
            until=read_moment(until, "until") if until else None,
            newest=not after,
            limit=read_limit(query.get("limit")),
        )
        return answer({"schedule": state.name, "items": [_shown_fire(fire) for fire in found]})

    async def pause(self, request: Request) -> Response:
        return await self._pause(request, paused=True)

    async def resume(self, request: Request) -> Response:
        return await self._pause(request, paused=False)

    async def _pause(self, request: Request, *, paused: bool) -> Response:
        state = await self._services.timetable.pause(request.path_params["name"], paused=paused)
        return answer({"schedule": state.name, "paused": state.paused})

    async def run(self, request: Request) -> Response:
        asked = await _read(request, _Run, 'Send {}, or {"due": "2026-01-31T03:00:00Z"}.')
        timetable = self._services.timetable
        state = await timetable.state(request.path_params["name"])
        due = read_moment(asked.due, "due") if asked.due is not None else None
        due, id = await timetable.run(state.name, due=due, again=asked.again)
        return answer({"schedule": state.name, "due_at": due, **self._subject(state.name, id)}, 202)

    async def begin(self, request: Request) -> Response:
        hint = 'Send {"from": "2026-01-01T00:00:00Z", "until": …, "concurrency": 1}.'
        asked = await _read(request, _Begin, hint)
        name, timetable = request.path_params["name"], self._services.timetable
        from_at = read_moment(asked.from_, "from")
        until_at = read_moment(asked.until, "until") if asked.until is not None else None
        if asked.dry_run:
            plan = await timetable.plan(name, from_at=from_at, until_at=until_at, again=asked.again)
            return answer(plan)
        backfill = await timetable.begin(
            name, from_at=from_at, until_at=until_at, concurrency=asked.concurrency, again=asked.again
        )
        return answer(_shown_backfill(backfill), 202)

    # ---- backfills ----

    async def backfills(self, request: Request) -> Response:
        query = request.query_params
        limit = read_limit(query.get("limit"))
        found = await self._services.timetable.backfills(
            name=query.get("schedule") or None, before=read_cursor(query.get("cursor")), limit=limit
        )
        cursor = show_id(found[-1].id) if len(found) == limit else None
        return answer({"items": [_shown_backfill(each) for each in found], "next_cursor": cursor})

    async def backfill(self, request: Request) -> Response:
        return answer(_shown_backfill(await self._services.timetable.backfill(request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        asked = await _read(request, _Cancel, 'Send {}, or {"running": true}.')
        ended = await self._services.timetable.cancel(request.path_params["id"], running=asked.running)
        return answer(_shown_backfill(ended), 202)

    # ---- within ----

    def _subject(self, schedule: str, id: str) -> dict[str, str]:
        spec, _ = self._services.schedules()[schedule]
        return {"invocation_id": id} if spec.job is None else {"job_id": id}


def read_moment(value: Moment, name: str) -> float:
    """UTC epoch seconds of a number, or of ISO 8601 (UTC where it has no zone). Raises BadRequest."""
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            read = datetime.fromisoformat(value)
            moment = (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
        else:
            moment = float(value)
        if not 0 <= moment < MOMENT_MAX:
            raise ValueError
    except (ValueError, OverflowError):
        hint = "Give ISO 8601, as 2026-01-31T03:00:00Z, or UTC epoch seconds."
        raise BadRequest(f"{name} is {value!r}, not a moment", hint) from None
    return moment


async def _read(request: Request, kind: type[Any], hint: str) -> Any:
    body = await read_body(request, BODY_BYTES)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is wrong: {error}", hint) from None


def _shown(entry: Entry) -> dict[str, Any]:
    state = entry.state
    return {
        "name": state.name,
        "function": entry.function,
        "state": entry.shown_state,
        "definition": state.definition,
        "settings": entry.settings,
        "generation": state.generation,
        "anchor": state.anchor,
        "paused": state.paused,
        "last_due_at": state.last_due_at,
        "resumed_at": state.resumed_at,
        "queued_at": state.queued_at,
        "forgotten_at": state.forgotten_at,
        "next": entry.next,
        "last": [_shown_fire(fire) for fire in entry.last],
        "backfill": _shown_backfill(entry.backfill) if entry.backfill is not None else None,
    }


def _shown_fire(fire: Fire) -> dict[str, Any]:
    return {
        "due_at": fire.due_at,
        "fired_at": fire.fired_at,
        "cause": fire.cause,
        "id": show_id(fire.subject) if fire.subject is not None else None,
        "backfill": show_id(fire.backfill) if fire.backfill is not None else None,
    }


def _shown_backfill(backfill: Backfill) -> dict[str, Any]:
    return {
        "id": show_id(backfill.id),
        "schedule": backfill.schedule,
        "status": backfill.status,
        "from_at": backfill.from_at,
        "until_at": backfill.until_at,
        "concurrency": backfill.concurrency,
        "again": backfill.again,
        "instants": backfill.instants,
        "fired": backfill.fired,
        "present": backfill.present,
        "running": [show_id(id) for id in backfill.live],
        "created_at": backfill.created_at,
        "ended_at": backfill.ended_at,
        "note": backfill.note,
    }
