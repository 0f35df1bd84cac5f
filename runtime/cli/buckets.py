"""`headrace buckets`: the object store's buckets."""

from typing import Annotated

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_table

app = group(no_args_is_help=True, help="List and make buckets.")


@app.command("list")
def list_buckets(as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """List the buckets."""
    with connect(url, token) as client:
        found = client.buckets()
    if as_json:
        show_json({"buckets": found})
        return
    show_table(
        ["NAME"],
        [[name] for name in found],
        empty="There are no buckets. Make one: headrace buckets make NAME",
    )


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="3 to 63 lower-case letters, digits, dots and hyphens.")],
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a bucket; one that is there already is left as it is."""
    with connect(url, token) as client:
        client.make_bucket(name)
    show_json({"bucket": name}) if as_json else print(f"Bucket {name} is there.")
