"""`headrace buckets`: the object store's buckets."""

from typing import Annotated

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_table
from headrace.runtime.errors import Unusable

app = group(no_args_is_help=True, help="List, make and connect buckets.")


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


@app.command("connect")
def connect_bucket(
    bucket: Annotated[str, typer.Argument(help="A bucket of the node's S3 server.")],
    node_url: Annotated[
        str,
        typer.Option(
            "--node-url", metavar="URL", help="The node as the S3 server reaches it; --url by default."
        ),
    ] = "",
    targets: Annotated[
        str,
        typer.Option(
            "--targets", metavar="NOW,KEPT", help="The server's webhooks: one at once, one that keeps events."
        ),
    ] = "HEADRACE,HEADRACEQ",
    removals: Annotated[
        bool, typer.Option("--removals", help="Deletions too, though no trigger asks for them by now.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=60, help="Seconds to wait for the probe object's events.")
    ] = 10.0,
    objects: Annotated[
        str | None,
        typer.Option(
            "--objects",
            metavar="S3_URL",
            help="Set the server's rules from here, without a node to prove them.",
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Have the S3 server tell the node of a bucket's uploads, and prove it with a probe object."""
    names = [name.strip() for name in targets.split(",") if name.strip()]
    if objects is not None:
        _set_rules(objects, bucket, names, removals=removals, as_json=as_json)
        return
    with connect(url, token) as client:
        found = client.connect_bucket(
            bucket, node_url=node_url, targets=names, removals=removals, wait_s=wait
        )
    if as_json:
        show_json(found)
    else:
        for target in found["targets"]:
            how = "keeps what is not accepted" if target["keeps"] else "at once"
            state = "delivers" if target["delivered"] else "does not deliver"
            state = state if target["arn"] else "is not set up"
            print(f"{target['name']:<12} {how:<27} {state}")
    if found["connected"]:
        if not as_json:
            print(f"Bucket {bucket} is connected: a probe object came by both ways.")
        return
    if not as_json:
        _tell_missing(found["server_environment"])
    raise NotConnected(bucket)


def _set_rules(objects: str, bucket: str, names: list[str], *, removals: bool, as_json: bool) -> None:
    from headrace.runtime.api.connecting import set_rules
    from headrace.runtime.objects.webhook import open_rules

    targets, events = set_rules(open_rules(objects), bucket, names, removals=removals)
    missing = [line for target in targets if not target.webhook for line in target.missing("URL", "TOKEN")]
    if as_json:
        rules = {target.name: target.webhook.arn for target in targets if target.webhook is not None}
        show_json({"bucket": bucket, "events": events, "rules": rules, "server_environment": missing})
    elif missing:
        _tell_missing(missing)
    if missing:
        raise NotConnected(bucket)
    if not as_json:
        print(
            f"Bucket {bucket} has its rules. Without --objects, a probe object proves that its events come."
        )


@app.command("disconnect")
def disconnect_bucket(
    bucket: Annotated[str, typer.Argument(help="A bucket of the node's S3 server.")],
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Have the S3 server tell the node no more of a bucket; sweeps go on. Rules that others made stay."""
    with connect(url, token) as client:
        client.disconnect_bucket(bucket)
    show_json({"bucket": bucket}) if as_json else print(f"Bucket {bucket} is not connected any more.")


def _tell_missing(lines: list[str]) -> None:
    print("The environment of the S3 server lacks:\n")
    print("\n".join(lines))


class NotConnected(Unusable):
    """An S3 server does not tell of a bucket by both ways: (bucket)."""

    code = "not_connected"
    hint = "Give the S3 server the environment that is printed above, restart it, and connect again."

    def __str__(self) -> str:
        return f"the bucket {self.args[0]} is not connected by both ways"
