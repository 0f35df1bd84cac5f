"""`headrace logs`: what invocations printed."""

from typing import Annotated, Any

import typer

from headrace.runtime.cli.options import AsJson, Function, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_moment


def logs(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only of this invocation.")] = None,
    function: Function = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as more comes, until Ctrl-C.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="How many of the last entries to begin with.")
    ] = 100,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show what invocations printed, the newest last.

    With --json each entry is one line of JSON when following, otherwise one document {"entries": […]}.
    """
    if id is not None and (follow or function):
        raise typer.BadParameter("an ID goes with neither --follow nor --function")
    with connect(url, token) as client:
        if id is not None:
            entries: Any = client.logs(id)
        else:
            entries = client.follow_logs(function=function, follow=follow, limit=limit)
        if as_json and not follow:
            show_json({"entries": list(entries)})
            return
        shown = False
        for entry in entries:
            shown = True
            if as_json:
                print(_line(entry), flush=True)
            else:
                _show(entry, named=id is None)
        if not shown and not as_json:
            print("Nothing was printed.")


def _line(entry: dict[str, Any]) -> str:
    import json

    return json.dumps(entry, ensure_ascii=False)


def _show(entry: dict[str, Any], *, named: bool) -> None:
    about = f"{entry.get('function')} {entry.get('invocation_id')} " if named else ""
    moment = show_moment(entry.get("at"))
    text = str(entry.get("text") or "").rstrip("\n")
    print(f"{moment} {about}attempt {entry.get('attempt')} {entry.get('outcome')}")
    for line in text.split("\n") if text else ():
        print(f"  {line}")
    cut = int(entry.get("bytes") or 0) - len(text.encode())
    if cut > 1024:
        print(f"  ({cut:,} bytes more are not kept)", flush=True)
    else:
        print(end="", flush=True)
