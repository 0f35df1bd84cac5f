"""`headrace functions`: what the node has loaded."""

import sys
from typing import Annotated, Any

import typer

from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_record, show_table


def functions(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the functions that the node has loaded, or show one."""
    with connect(url, token) as client:
        if name is not None:
            found = client.function(name)
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
