"""`headrace objects`: put, get and list objects on the node's object store."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_moment, show_table
from headrace.runtime.model.size import read_duration

app = group(no_args_is_help=True, help="Put, get and list objects.")

Address = Annotated[str, typer.Argument(metavar="s3://BUCKET/KEY", help="The object.")]


@app.command()
def put(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file; - reads standard input.")],
    address: Address,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write a file into a bucket; an address that ends in / gets the file's name."""
    if address.endswith("/") and file != "-":
        address += Path(file).name
    with connect(url, token) as client:
        answer = client.put_object(address, sys.stdin.buffer if file == "-" else Path(file))
    show_json({"url": address, **answer}) if as_json else print(address)


@app.command()
def get(
    address: Address,
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="Where to write it; - is standard output.")
    ] = "-",
    version: Annotated[
        str | None, typer.Option("--version", metavar="ID", help="An older version, of a versioned bucket.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Read an object into a file, which appears when it is whole, or to standard output."""
    with connect(url, token) as client:
        pieces = client.read_object(address, version_id=version)
        if file == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        target = Path(file)
        if target.is_dir():
            target = target / address.rsplit("/", 1)[-1]
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        size = 0
        try:
            with part.open("wb") as out:
                for piece in pieces:
                    size += out.write(piece)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    show_json({"url": address, "file": str(target), "size": size}) if as_json else print(target)


@app.command()
def link(
    address: Address,
    write: Annotated[bool, typer.Option("--put", help="A link to write the object with, by PUT.")] = False,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="For how long it is good: 10 min, 1 h, 7 d.")
    ] = "1 h",
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print a link to the object server, with which anybody reads or writes one object without a token."""
    seconds = int(read_duration(expires, field="expires"))
    with connect(url, token) as client:
        found = client.link_object(address, method="PUT" if write else "GET", expires_s=seconds)
    show_json({"url": address, "link": found, "expires_s": seconds}) if as_json else print(found)


@app.command()
def versions(address: Address, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """List the states of an object that a versioned bucket still has, newest first."""
    with connect(url, token) as client:
        found = client.object_versions(address)
    if as_json:
        show_json({"items": found})
        return
    rows = [
        [item["version_id"], item["size"], show_moment(item["modified_at"]), item["etag"]] for item in found
    ]
    show_table(["VERSION", "SIZE", "MODIFIED", "ETAG"], rows, empty="It has none.", right=("SIZE",))


@app.command("list")
def list_objects(
    address: Annotated[
        str, typer.Argument(metavar="s3://BUCKET[/PREFIX]", help="The bucket, and how the keys begin.")
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most to show.")] = 1000,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List objects in the order of their keys."""
    with connect(url, token) as client:
        found = list(client.list_objects(address, limit=limit))
    if as_json:
        show_json({"items": found})
        return
    rows = [
        [item["key"], item.get("size"), show_moment(item.get("modified_at")), item.get("etag")]
        for item in found
    ]
    show_table(["KEY", "SIZE", "MODIFIED", "ETAG"], rows, empty="There are no such objects.", right=("SIZE",))
