"""`headrace closures`: what functions have closed by RetryAfter, and how it is opened again."""

from typing import Annotated

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_moment, show_table

app = group(no_args_is_help=True, help="List what functions have closed by RetryAfter, and open it.")


@app.command("list")
def list_closures(as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """List the functions and keys of which nothing begins, until when, and why."""
    with connect(url, token) as client:
        found = client.closures()
    if as_json:
        show_json(found)
        return
    show_table(
        ["NAME", "UNTIL", "WHY"],
        [[item["name"], show_moment(item["until_at"]), item["reason"]] for item in found],
        empty="Nothing is closed.",
    )


@app.command("open")
def open_closure(
    name: Annotated[str, typer.Argument(metavar="NAME", help="function:APP.NAME or key:KEY.")],
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """End a closure now."""
    with connect(url, token) as client:
        answer = client.open(name)
    show_json(answer) if as_json else print(f"{name} is open.")
