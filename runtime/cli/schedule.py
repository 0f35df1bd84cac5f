"""`headrace schedule`: what fires when, and what is done about it by hand."""

import sys
import time
from typing import Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_moment, show_record, show_table

app = group(
    no_args_is_help=True, help="List schedules and their moments; pause, resume, run and backfill them."
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="FUNCTION/schedule/NAME; its own part or its function, if that is no other's."
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The backfill's id.")]
Again = Annotated[bool, typer.Option("--again", help="Also what has fired already.")]
FIELDS = ("id", "schedule", "status", "note", "instants", "fired", "present", "running", "concurrency")
LOOK_EVERY_S = 0.5


@app.command("list")
def list_schedules(as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """List schedules with their states, their next five moments and what became of the last ones."""
    with connect(url, token) as client:
        found = list(client.schedules.list())
    if as_json:
        show_json({"items": found})
        return
    show_table(
        ["NAME", "STATE", "DEFINITION", "NEXT", "LAST"],
        [
            [
                item["name"],
                _state(item),
                item["definition"],
                ", ".join(_short(moment) for moment in item["next"]),
                ", ".join(f"{_short(fire['due_at'])} {_fate(fire)}" for fire in item["last"]),
            ]
            for item in found
        ],
        empty="There are no schedules.",
    )


@app.command()
def show(
    name: Name,
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="How many past moments.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show one, with its settings and what became of its past moments."""
    with connect(url, token) as client:
        found = client.schedules.get(name, last=last)
    if as_json:
        show_json(found)
        return
    fires, moments = found.pop("last"), found.pop("next")
    show_record(found, first=("name", "function", "state", "definition"))
    print(f"\nnext  {', '.join(map(_short, moments)) or 'none'}\n")
    show_table(
        ["DUE", "RECORDED", "CAUSE", "ID", "BACKFILL"],
        [
            [
                _short(fire["due_at"]),
                show_moment(fire["fired_at"]),
                fire["cause"],
                fire["id"],
                fire["backfill"],
            ]
            for fire in fires
        ],
        empty="It has never fired.",
    )


@app.command("next")
def next_moments(
    name: Name,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 5,
    after: Annotated[
        str | None, typer.Option("--after", metavar="MOMENT", help="After this moment instead of now.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print its next moments, in UTC."""
    with connect(url, token) as client:
        found = client.schedules.next(name, after=after, limit=limit)
    if as_json:
        show_json({"items": found})
    else:
        for moment in found:
            print(_short(moment))


@app.command()
def pause(name: Name, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Keep it from firing; its moments pass."""
    with connect(url, token) as client:
        found = client.schedules.pause(name)
    show_json(found) if as_json else print(f"{found['schedule']} is paused.")


@app.command()
def resume(name: Name, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Let it fire again, from now on."""
    with connect(url, token) as client:
        found = client.schedules.resume(name)
    show_json(found) if as_json else print(f"{found['schedule']} goes on.")


@app.command()
def run(
    name: Name,
    due: Annotated[
        str | None,
        typer.Option(
            "--due", metavar="MOMENT", help="The instant to run for, in ISO 8601; now if not given."
        ),
    ] = None,
    again: Again = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Fire it now, for an instant or for now, and print the invocation's or job's id."""
    with connect(url, token) as client:
        found = client.schedules.run(name, due=due, again=again)
    show_json(found) if as_json else print(found.get("invocation_id") or found.get("job_id"))


@app.command()
def backfill(
    name: Name,
    start: Annotated[
        str,
        typer.Option("--from", metavar="MOMENT", help="The first moment, in ISO 8601 (UTC without a zone)."),
    ],
    until: Annotated[
        str | None, typer.Option("--until", metavar="MOMENT", help="The last moment; now if not given.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=100, help="The most that run at once.")
    ] = 1,
    again: Again = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the moments that are missing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Fire the moments of a range that have not fired."""
    with connect(url, token) as client:
        if dry_run:
            plan = client.schedules.plan(name, start=start, until=until, again=again)
            show_json(plan) if as_json else _show_plan(plan)
            return
        found = client.schedules.backfill(
            name, start=start, until=until, concurrency=concurrency, again=again
        )
        while wait and found["ended_at"] is None:
            time.sleep(LOOK_EVERY_S)
            found = client.schedules.get_backfill(found["id"])
    if as_json:
        show_json(found)
    elif wait:
        show_record(found, first=FIELDS)
    else:
        print(found["id"])


@app.command()
def backfills(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only of this schedule.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List backfills, newest first."""
    with connect(url, token) as client:
        found = list(client.schedules.backfills(name))
    if as_json:
        show_json({"items": found})
        return
    show_table(
        ["ID", "SCHEDULE", "STATUS", "FROM", "UNTIL", "INSTANTS", "FIRED", "PRESENT", "RUNNING", "NOTE"],
        [
            [
                item["id"],
                item["schedule"],
                item["status"],
                show_moment(item["from_at"]),
                show_moment(item["until_at"]),
                item["instants"],
                item["fired"],
                item["present"],
                len(item["running"]),
                item["note"],
            ]
            for item in found
        ],
        empty="There are no backfills.",
        right=("INSTANTS", "FIRED", "PRESENT", "RUNNING"),
    )


@app.command()
def cancel(
    id: Id,
    running: Annotated[
        bool, typer.Option("--running", help="Also cancel what it has fired and has not ended.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Cancel a backfill: it fires nothing more."""
    with connect(url, token) as client:
        found = client.schedules.cancel_backfill(id, running=running)
    show_json(found) if as_json else print(f"{id} is cancelled.")


def _show_plan(plan: dict[str, Any]) -> None:
    for moment in plan["moments"]:
        print(_short(moment))
    more = plan["missing"] - len(plan["moments"])
    left = f", of which {more:,} are not shown" if more else ""
    print(f"{plan['missing']:,} of {plan['instants']:,} moments would fire{left}.", file=sys.stderr)


def _state(item: dict[str, Any]) -> str:
    notes = [item["state"]]
    if item["queued_at"] is not None:
        notes.append(f"{_short(item['queued_at'])} waits")
    if item["backfill"] is not None:
        notes.append(f"backfill {item['backfill']['id']}")
    return "; ".join(notes)


def _fate(fire: dict[str, Any]) -> str:
    return str(fire["id"] or fire["cause"])


def _short(moment: float) -> str:
    """A moment to the second, or to the millisecond when it lies between seconds."""
    return show_moment(moment).replace(".000Z", "Z")
