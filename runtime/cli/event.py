"""`headrace event`: print an event as a trigger would give it to its function."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import Token, Url, connect
from headrace.runtime.errors import BadRequest

OF_ITS_OWN = {"ignore_unknown_options": True, "allow_extra_args": True}
"""How a command is made that leaves the options of an event to the event's trigger."""

app = group()


@app.command("event", context_settings=OF_ITS_OWN)
def event(
    context: typer.Context,
    kind: Annotated[
        str | None,
        typer.Argument(help="upload, schedule, http, or another trigger's kind; without it, all are listed."),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option("--function", metavar="NAME", help="As the trigger of this function would make it."),
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print a sample event. What is said of it follows the kind: `headrace event upload --key a.csv`."""
    if kind is None:
        list_kinds()
        return
    triggers: Sequence[dict[str, Any]] = ()
    if function is not None:
        with connect(url, token) as client:
            triggers = client.function(function)["triggers"]
    made = make_event(kind, read_options(context.args), function=function or "", triggers=triggers)
    print(json.dumps(made, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def list_kinds() -> None:
    """Print the kinds of sample events, and what may be said of each."""
    from headrace.runtime.sample import sampled_kinds

    for kind, options in sampled_kinds().items():
        print(kind)
        for name, meaning in options.items():
            print(f"  --{name:<12} {meaning}")


def read_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The options `--NAME VALUE` and `--NAME=VALUE` of an event, by name. Raises: BadRequest."""
    found: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        name, mark, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise BadRequest(f"{name!r} says nothing of the event", "Write --NAME VALUE.")
        if not mark:
            if not rest:
                raise BadRequest(f"{name} has no value", f"Write {name} VALUE.")
            value = rest.pop(0)
        found.setdefault(name[2:], []).append(value)
    return found


def make_event(
    kind: str,
    options: dict[str, list[str]],
    *,
    function: str,
    triggers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The event of now, see `sample_event`."""
    from headrace.runtime.clock import SystemClock
    from headrace.runtime.model.ids import Ids, show_id
    from headrace.runtime.sample import sample_event

    clock = SystemClock()
    id = show_id(Ids(clock.now, node=0).next())
    return sample_event(kind, options, function=function, triggers=triggers, moment=clock.now(), id=id)
