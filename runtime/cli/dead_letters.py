"""`headrace dead-letters`: what failed for good, and another chance for it."""

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.invocations import FIELDS, show_records
from headrace.runtime.cli.options import AsJson, Function, Limit, Token, Url, connect, read_document
from headrace.runtime.cli.output import show_json, show_record
from headrace.runtime.errors import BadRequest

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client

app = group(no_args_is_help=True, help="List, show, edit, redrive and discard what failed for good.")

Code = Annotated[str | None, typer.Option("--code", help="Only with this error code, such as timeout.")]
Tag = Annotated[str | None, typer.Option("--tag", help="Only with this tag.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="DURATION", help="Only what died so long ago or less: 2h, 30 min."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The invocation's id.")]


@app.command("list")
def list_dead_letters(
    function: Function = None,
    code: Code = None,
    tag: Tag = None,
    since: Since = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List dead invocations, newest first."""
    with connect(url, token) as client:
        moment = _since(since, client)
        found = list(client.dead_letters(function=function, code=code, tag=tag, since=moment, limit=limit))
    show_records(found, as_json, empty="There are no dead letters.")


@app.command()
def show(id: Id, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Show one, with its payload and the error of its last attempt."""
    with connect(url, token) as client:
        found = client.dead_letter(id)
    show_json(found) if as_json else show_record(found, first=FIELDS)


@app.command()
def redrive(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The invocation's id.")] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", "-p", metavar="JSON|@FILE|-", help="Another event in place of its own."),
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Edit its event in $VISUAL or $EDITOR first.")] = False,
    function: Function = None,
    code: Code = None,
    tag: Tag = None,
    since: Since = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Put a dead invocation back to waiting, under its id; or all of a function, a code, a tag or a time."""
    filters = {"function": function, "code": code, "tag": tag, "since": since}
    matching: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    if (id is None) == (not matching):
        raise typer.BadParameter("give either an ID or --function NAME, --code, --tag or --since")
    if (payload is not None or edit) and id is None:
        raise typer.BadParameter("--payload and --edit take one ID")
    if payload is not None and edit:
        raise typer.BadParameter("give either --payload or --edit")
    with connect(url, token) as client:
        if id is None:
            if since is not None:
                matching["since"] = _since(since, client)
            answer = client.redrive(**matching)
        elif payload is not None:
            answer = client.redrive(id, payload=json.loads(read_document(payload)))
        elif edit:
            answer = client.redrive(id, payload=_edited(client.dead_letter(id)))
        else:
            answer = client.redrive(id)
    if as_json:
        show_json(answer)
    elif id is not None:
        print(f"{id} is waiting again.")
    else:
        of = f"invocations of {function}" if function is not None else "invocations"
        print(f"{int(answer.get('redriven', 0)):,} {of} are waiting again.")
        if answer.get("skipped"):
            print(f"{int(answer['skipped']):,} stay dead: their functions are not loaded.")


@app.command()
def discard(id: Id, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Give a dead invocation up: it is kept as cancelled."""
    with connect(url, token) as client:
        answer = client.discard(id)
    show_json(answer) if as_json else print(f"{id} is cancelled.")


def _since(text: str | None, client: "Client") -> float | None:
    """The moment so long ago, in UTC epoch seconds."""
    if text is None:
        return None
    from headrace.runtime.model.size import read_duration

    return client.clock.now() - read_duration(text, field="--since")


def _edited(record: dict[str, Any]) -> Any:
    """The event as the user's editor left it. Raises BadRequest when it cannot be edited or was not changed,
    InvalidPayload when it is no JSON any more.
    """
    if record.get("payload_ref"):
        raise BadRequest(
            f"the event is an object, {record['payload_ref']}", "Give the new one with --payload @FILE."
        )
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        file = Path(folder) / f"{record['invocation_id']}.json"
        before = json.dumps(record["payload"], ensure_ascii=False, indent=2) + "\n"
        file.write_text(before, encoding="utf-8")
        try:
            ended = subprocess.run([*editor, str(file)], check=False).returncode
        except OSError as error:
            raise BadRequest(f"{editor[0]} cannot be run: {error.strerror}", "Set EDITOR.") from None
        if ended != 0:
            raise BadRequest(f"{editor[0]} ended with {ended}", "Nothing was redriven.")
        after = json.loads(read_document(f"@{file}"))
    if after == json.loads(before):
        raise BadRequest("the event was not changed", "To redrive it as it is, leave out --edit.")
    return after
