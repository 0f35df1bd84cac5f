"""`headrace invoke`: run a function from a shell."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.event import OF_ITS_OWN, make_event, read_options
from headrace.runtime.cli.options import AsJson, Token, Url, connect, read_document

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client

app = group()


@app.command("invoke", context_settings=OF_ITS_OWN)
def invoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The function's name, APP.NAME.")],
    payload: Annotated[
        str,
        typer.Option("--payload", "-p", metavar="JSON|@FILE|-", help="The event; - reads standard input."),
    ] = "null",
    event: Annotated[
        str | None,
        typer.Option(
            "--event",
            metavar="KIND",
            help="A sample event instead: upload, schedule, http. Say more of it behind the name.",
        ),
    ] = None,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Have it accepted, print its id, and return.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Have it accepted, then wait for its end, however long.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.001, help="The most seconds to wait.")
    ] = None,
    delay: Annotated[
        float, typer.Option("--delay", min=0, help="Seconds before it may begin (async).")
    ] = 0.0,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher goes first (async).")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="A tag to find it by; repeatable (async).")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="A repeat with this key is the same invocation (async)."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            help="Its concurrency key, instead of the function's own choice (async); of an upload's --event,"
            " the object's key.",
        ),
    ] = None,
    idempotency_ttl: Annotated[
        str | None,
        typer.Option("--idempotency-ttl", metavar="DURATION", help="How long the key is remembered: 24h."),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Run a function on a payload and print its result.

    Without --async or --wait the call is synchronous: it is made at most once, and waits for as long as the
    function may run.
    """
    said = context.args
    if event is None:
        if said:
            raise typer.BadParameter(f"there is no {said[0]}; what is said of an event needs --event")
        data = read_document(payload)
    elif payload != "null":
        raise typer.BadParameter("--payload and --event exclude each other")
    elif key is not None:
        said, key = ["--key", key, *said], None
    ttl_s = None
    if idempotency_ttl is not None:
        from headrace.runtime.model.size import read_duration

        ttl_s = read_duration(idempotency_ttl, field="--idempotency-ttl")
    options = bool(
        delay or priority is not None or tag or idempotency_key is not None or ttl_s or key is not None
    )
    with connect(url, token) as client:
        if event is not None:
            data = json.dumps(_sampled(client, name, event, said)).encode()
        if not (asynchronous or wait or options):
            _show(client.backend.invoke(name, data, wait=timeout), as_json)
            return
        future = client.submit(
            name,
            json.loads(data),
            delay_s=delay,
            priority=priority,
            tags=tag or (),
            idempotency_key=idempotency_key,
            key=key,
            idempotency_ttl_s=ttl_s,
        )
        id = future.wait_accepted(client.timeout_s)
        if wait:
            future.result(timeout)
            _show_value(future.result(), as_json)
        elif as_json:
            _show_value({"invocation_id": id}, as_json)
        else:
            print(id)


def _sampled(client: "Client", function: str, kind: str, said: list[str]) -> dict[str, Any]:
    """The event; that of an upload is about the object as it is, if there is one."""
    triggers = client.function(function)["triggers"]
    options = read_options(said)
    made = make_event(kind, options, function=function, triggers=triggers)
    if "Records" in made:
        from headrace.runtime.model.event import UploadEvent

        url, present = UploadEvent(made).url, {"size", "etag"}.isdisjoint(options)
        for found in client.list_objects(url, limit=1) if present else ():
            if url.endswith(f"/{found['key']}"):
                made["Records"][0]["s3"]["object"] |= {"size": found["size"], "eTag": found["etag"]}
    return made


def _show(result: bytes, as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        sys.stdout.buffer.write(result + b"\n")
    else:
        _show_value(json.loads(result), as_json)


def _show_value(value: Any, as_json: bool) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() and not as_json else None))
