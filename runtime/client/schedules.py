"""Schedules of a node, as a client has them: `client.schedules`.

Imports this room. Moments that are given are datetimes, ISO 8601 texts or UTC epoch seconds; those in answers
are UTC epoch seconds.
"""

import builtins
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol

from headrace.runtime.client.answer import segment

Json = dict[str, Any]
Moment = datetime | str | float


class Caller(Protocol):
    """The client's side: any call of the HTTP API."""

    def call(
        self, method: str, path: str, *, query: Mapping[str, str | None] | None = None, body: object = None
    ) -> Any: ...


class Schedules:
    """What can be done with schedules. A name is `FUNCTION/schedule/NAME`, or its own part, or its function,
    where no other schedule has the same. Every method that takes one raises UnknownSchedule.
    """

    def __init__(self, client: Caller) -> None:
        self._client = client

    def list(self) -> Iterator[Json]:
        """All that the node knows, by name: `name, function, state, definition, next, last, …`; pages are
        asked for as they are needed.
        """
        return self._pages("/v1/schedules", {})

    def get(self, name: str, *, last: int = 20) -> Json:
        """One, with what became of its `last` moments (1 to 1,000), newest first."""
        found: Json = self._client.call("GET", _path(name), query={"limit": str(last)})
        return found

    def next(self, name: str, *, after: Moment | None = None, limit: int = 5) -> builtins.list[float]:
        """The next moments, after `after` or from now on. Raises WrongState when it is not loaded."""
        query = {"after": None if after is None else str(_sent(after)), "limit": str(limit)}
        found: builtins.list[float] = self._client.call("GET", f"{_path(name)}/next", query=query)["items"]
        return found

    def pause(self, name: str) -> Json:
        """Keep it from firing; its moments pass. Survives a restart."""
        return self._post(f"{_path(name)}/pause")

    def resume(self, name: str) -> Json:
        """Let it fire again, from now on."""
        return self._post(f"{_path(name)}/resume")

    def run(self, name: str, *, due: Moment | None = None, again: bool = False) -> Json:
        """Fire it now, for the instant `due` or for now: `due_at`, and `invocation_id` or `job_id`.

        Raises AlreadyFired for an instant that has fired, unless `again`; WrongState when it is not loaded.
        """
        body = {"again": again} if due is None else {"due": _sent(due), "again": again}
        return self._post(f"{_path(name)}/run", body)

    def plan(self, name: str, *, start: Moment, until: Moment | None = None, again: bool = False) -> Json:
        """What `backfill` would do: `instants`, `missing`, and the first of those in `moments`."""
        return self._post(f"{_path(name)}/backfill", {**_range(start, until, again), "dry_run": True})

    def backfill(
        self,
        name: str,
        *,
        start: Moment,
        until: Moment | None = None,
        concurrency: int = 1,
        again: bool = False,
    ) -> Json:
        """Fire the moments from `start` up to and with `until` (by default now) that have not fired, at most
        `concurrency` (1 to 100) at once; with `again` those that have fired too. Returns the backfill.

        Raises WrongState when one runs or the schedule is not loaded; BadRequest for a range that cannot be
        filled.
        """
        body = {**_range(start, until, again), "concurrency": concurrency}
        return self._post(f"{_path(name)}/backfill", body)

    def backfills(self, name: str | None = None) -> Iterator[Json]:
        """Backfills, newest first."""
        return self._pages("/v1/backfills", {"schedule": name})

    def get_backfill(self, id: str) -> Json:
        """One backfill. Raises UnknownBackfill."""
        found: Json = self._client.call("GET", f"/v1/backfills/{segment(id)}")
        return found

    def cancel_backfill(self, id: str, *, running: bool = False) -> Json:
        """Fire nothing more of it; with `running`, also cancel what it has fired and has not ended.

        Raises UnknownBackfill, or WrongState when it has ended.
        """
        return self._post(f"/v1/backfills/{segment(id)}/cancel", {"running": running})

    def _post(self, path: str, body: object = None) -> Json:
        found: Json = self._client.call("POST", path, body=body)
        return found

    def _pages(self, path: str, query: Mapping[str, str | None]) -> Iterator[Json]:
        cursor: str | None = None
        while True:
            page = self._client.call("GET", path, query={**query, "cursor": cursor})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return


def _path(name: str) -> str:
    return f"/v1/schedules/{'/'.join(map(segment, name.split('/')))}"


def _sent(moment: Moment) -> str | float:
    """A datetime without a zone is this machine's, as Python has it."""
    return moment.timestamp() if isinstance(moment, datetime) else moment


def _range(start: Moment, until: Moment | None, again: bool) -> Json:
    found: Json = {"from": _sent(start), "again": again}
    return found if until is None else {**found, "until": _sent(until)}
