"""`headrace invocations`: what was asked for, and how it ended."""

from typing import Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Function, Limit, Token, Url, connect
from headrace.runtime.cli.output import show_error, show_json, show_moment, show_record, show_table

app = group(no_args_is_help=True, help="List, show and cancel invocations.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The invocation's id.")]
FIELDS = ("invocation_id", "function", "status", "attempts", "accepted_at", "started_at", "ended_at")


@app.command("list")
def list_invocations(
    function: Function = None,
    status: Annotated[
        str | None, typer.Option("--status", help="waiting, running, succeeded, dead or cancelled.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List invocations, newest first."""
    with connect(url, token) as client:
        found = list(client.invocations(function=function, status=status, tag=tag, limit=limit))
    show_records(found, as_json, empty="There are no such invocations.")


@app.command()
def show(
    id: Id,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for its end, at most so long.")
    ] = 0.0,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show one invocation."""
    with connect(url, token) as client:
        found = client.invocation(id, wait_s=wait)
    show_json(found) if as_json else show_record(found, first=FIELDS)


@app.command()
def cancel(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Invocations' ids.")] = None,
    function: Function = None,
    tag: Annotated[str | None, typer.Option("--tag", help="All with this tag.")] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="All of this job.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Cancel invocations that have not ended: by their ids, or all of a function, with a tag, of a job."""
    filtered = function is not None or tag is not None or job is not None
    if bool(ids) == filtered:
        raise typer.BadParameter("give either IDs, or --function, --tag or --job")
    with connect(url, token) as client:
        if filtered:
            answer = client.cancel(function=function, tag=tag, job=job)
            if as_json:
                show_json(answer)
                return
            waited, stopping = int(answer["cancelled"]), int(answer["stopping"])
            print(f"{waited:,} that waited are cancelled, {stopping:,} that ran are being stopped.")
            return
        for id in ids or ():
            answer = client.cancel(id)
            show_json(answer) if as_json else print(f"{id} is being cancelled.")


def show_records(found: list[dict[str, Any]], as_json: bool, *, empty: str) -> None:
    """Print invocations' records as a table, or as the items of a JSON document."""
    if as_json:
        show_json({"items": found})
        return
    rows = [
        [
            item["invocation_id"],
            item["function"],
            item["status"],
            item.get("attempts"),
            show_moment(item.get("accepted_at")),
            show_error(item.get("error")),
        ]
        for item in found
    ]
    headings = ["ID", "FUNCTION", "STATUS", "ATTEMPTS", "ACCEPTED", "ERROR"]
    show_table(headings, rows, empty=empty, right=("ATTEMPTS",))
