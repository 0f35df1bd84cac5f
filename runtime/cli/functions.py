"""`headrace functions`: what the node has loaded."""

import sys
from typing import Annotated, Any

import typer

from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_record, show_table


def functions(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|pause|resume]", help="Show this one, or pause or resume one."),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The one to pause or to resume.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the functions that the node has loaded, show one, or pause or resume it.

    A paused function starts no more attempts; what is accepted waits, over restarts too.
    """
    stirring = what in ("pause", "resume")
    if stirring and name is None:
        raise typer.BadParameter(f"name the function: headrace functions {what} APP.NAME")
    if not stirring and name is not None:
        raise typer.BadParameter(f"there is nothing to do called {what!r}: use pause or resume")
    with connect(url, token) as client:
        if stirring and name is not None:
            answer = client.pause(name) if what == "pause" else client.resume(name)
            show_json(answer) if as_json else print(
                f"{name} is {'paused' if answer['paused'] else 'active'}."
            )
            return
        if what is not None:
            found = client.function(what)
            show_json(found) if as_json else show_record(found, first=("name", "doc"))
            return
        loaded = client.loaded()
    if as_json:
        show_json(loaded)
        return
    show_table(
        ["NAME", "KIND", "TRIGGERS", "STATE", "ABOUT"],
        [
            [item["name"], item["kind"], _triggers(item), _state(item), _about(item)]
            for item in loaded["functions"]
        ],
        empty="No functions are loaded. Name files or folders: headrace serve functions/",
    )
    for fault in loaded["errors"]:
        print(
            f"{fault['file']}:{fault['line']}: {fault['message']}. {fault['hint']}".rstrip(), file=sys.stderr
        )


def _triggers(item: dict[str, Any]) -> str:
    return ", ".join(_trigger(fields) for fields in item.get("triggers") or ())


def _trigger(fields: dict[str, Any]) -> str:
    """A trigger in a few words: its kind, and its fields that are plain texts."""
    shown = [
        str(value) for name, value in fields.items() if name != "kind" and isinstance(value, str) and value
    ]
    return " ".join([str(fields.get("kind", "")), *shown])


def _state(item: dict[str, Any]) -> str:
    return "paused" if item.get("paused") else "active"


def _about(item: dict[str, Any]) -> str:
    return str(item.get("doc") or "").strip().split("\n", 1)[0]
