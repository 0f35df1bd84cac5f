"""`headrace why`: what holds an invocation, a job, a schedule or a function, and until when."""

from typing import Annotated, Any

import typer

from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_moment


def why(
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="An invocation's or a job's id; a schedule's or a function's name."
        ),
    ],
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Say what holds an invocation, a job, a schedule or a function, and until when."""
    with connect(url, token) as client:
        found = client.why(id)
    show_json(found) if as_json else _show(found)


def _show(found: dict[str, Any]) -> None:
    of = f" of {found['function']}" if found["function"] != found["id"] else ""
    print(f"{found['kind']} {found['id']}{of}: {found['state']}")
    print(found["summary"])
    if found["happened"]:
        print("\nso far")
        for each in found["happened"]:
            error = f": {each['error']}" if each["error"] else ""
            moment = f" {show_moment(each['at'])}" if each["at"] is not None else ""
            print(f"  attempt {each['attempt']}{moment} {each['outcome']}{error}")
    if found["held_by"]:
        print("\nheld by")
        width = max(len(hold["by"]) for hold in found["held_by"])
        for hold in found["held_by"]:
            until = f", until {show_moment(hold['until'])}" if hold["until"] is not None else ""
            print(f"  {hold['by'].ljust(width)}  {hold['detail']}{until}")
            if hold["do"]:
                print(f"  {' ' * width}  -> {hold['do']}")
    if found["do"]:
        print(f"\n-> {found['do']}")
