"""`headrace dead-letters`: what failed for good, and another chance for it."""

from typing import Annotated

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.invocations import FIELDS, show_records
from headrace.runtime.cli.options import AsJson, Function, Limit, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_record

app = group(no_args_is_help=True, help="List, show and redrive what failed for good.")


@app.command("list")
def list_dead_letters(
    function: Function = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List dead invocations, newest first."""
    with connect(url, token) as client:
        found = list(client.dead_letters(function=function, limit=limit))
    show_records(found, as_json, empty="There are no dead letters.")


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The invocation's id.")],
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show one, with its payload where it is kept and the error of its last attempt."""
    with connect(url, token) as client:
        found = client.invocation(id)
    show_json(found) if as_json else show_record(found, first=FIELDS)


@app.command()
def redrive(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The invocation's id.")] = None,
    function: Function = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Put a dead invocation back to waiting, under the same id; or with --function all of that function."""
    if (id is None) == (function is None):
        raise typer.BadParameter("give either an ID or --function NAME")
    with connect(url, token) as client:
        answer = client.redrive(id) if id is not None else client.redrive(function=str(function))
    if as_json:
        show_json(answer)
    elif id is not None:
        print(f"{id} is waiting again.")
    else:
        print(f"{int(answer.get('redriven', 0)):,} invocations of {function} are waiting again.")
