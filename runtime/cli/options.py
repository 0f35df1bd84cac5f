"""Options that many commands share, and the client that they name.

Imports typer only; the client when it is made.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.runtime.errors import BadRequest, InvalidPayload

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The node; HEADRACE_URL, DATA/node.json, then 127.0.0.1:8080 when not given.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="The token; HEADRACE_TOKEN, then DATA/token when not given."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The most to show.")]
Function = Annotated[str | None, typer.Option("--function", metavar="NAME", help="Only of this function.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings; ./headrace.toml when not given.")
]


def connect(url: str | None, token: str | None) -> "Client":
    """The client of the node that the options name."""
    from headrace.runtime.client.client import Client

    return Client(url, token)


def read_document(text: str) -> bytes:
    """The JSON that an option gives: as it is, `@FILE`, or `-` for standard input.

    Raises InvalidPayload for what is no JSON, BadRequest for a file that cannot be read.
    """
    if text == "-":
        data = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            data = Path(text[1:]).read_bytes()
        except OSError as error:
            raise BadRequest(
                f"{text[1:]} cannot be read: {error.strerror}", "@FILE is a path from here."
            ) from None
    else:
        data = text.encode("utf-8", "surrogateescape")
    try:
        json.loads(data, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidPayload(str(error)) from None
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
