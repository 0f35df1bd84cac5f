"""`headrace job`: large work from a shell."""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.runtime.cli.command import group
from headrace.runtime.cli.options import AsJson, Function, Limit, Token, Url, connect, read_document
from headrace.runtime.cli.output import show_error, show_json, show_moment, show_record, show_table

if TYPE_CHECKING:
    from headrace.runtime.client.job import JobHandle

app = group(no_args_is_help=True, help="Submit, list, show, redrive and cancel jobs.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show its progress and wait for its end.")]
FIELDS = ("job_id", "function", "status", "input", "chunks", "done", "failed", "running", "waiting")


@app.command()
def submit(
    name: Annotated[str, typer.Argument(help="The job's name, APP.NAME.")],
    input: Annotated[
        str,
        typer.Option(
            "--input", "-i", metavar="s3://BUCKET/KEY", help="The input: an object, or JSON, @FILE or -."
        ),
    ],
    wait: Wait = False,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag to find it by; repeatable.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Submit a job; its id is printed, and with --wait its result."""
    given: object = input if input.startswith("s3://") else json.loads(read_document(input))
    with connect(url, token) as client:
        handle = client.submit_job(name, given, tags=tag or ())
        if wait:
            _wait(handle, as_json)
        elif as_json:
            show_json({"job_id": handle.id})
        else:
            print(handle.id)


@app.command("list")
def list_jobs(
    function: Function = None,
    status: Annotated[
        str | None,
        typer.Option("--status", help="planning, running, reducing, succeeded, failed or cancelled."),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List jobs, newest first."""
    with connect(url, token) as client:
        found = list(client.jobs(function=function, status=status, limit=limit))
    if as_json:
        show_json({"items": found})
        return
    show_table(
        ["ID", "FUNCTION", "STATUS", "DONE", "CHUNKS", "FAILED", "ACCEPTED", "ERROR"],
        [
            [
                item["job_id"],
                item["function"],
                item["status"],
                item.get("done"),
                item.get("chunks"),
                item.get("failed"),
                show_moment(item.get("accepted_at")),
                show_error(item.get("error")),
            ]
            for item in found
        ],
        empty="There are no such jobs.",
        right=("DONE", "CHUNKS", "FAILED"),
    )


@app.command()
def show(
    id: Id,
    chunks: Annotated[bool, typer.Option("--chunks", help="List its chunks, with their attempts.")] = False,
    status: Annotated[
        str | None, typer.Option("--status", help="Only chunks in this status, with --chunks.")
    ] = None,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show one job."""
    with connect(url, token) as client:
        handle = client.job(id)
        if wait:
            _wait(handle, as_json)
            return
        if not chunks:
            found = handle.status()
            show_json(found) if as_json else show_record(found, first=FIELDS)
            return
        listed = list(handle.chunks(status=status))
    if as_json:
        show_json({"items": listed})
        return
    show_table(
        ["CHUNK", "STATUS", "ATTEMPTS", "SECONDS", "INVOCATION", "ERROR"],
        [
            [
                item.get("index"),
                item.get("status"),
                item.get("attempts"),
                _seconds(item),
                item.get("invocation_id"),
                show_error(item.get("error")),
            ]
            for item in listed
        ],
        empty="There are no such chunks.",
        right=("CHUNK", "ATTEMPTS", "SECONDS"),
    )


@app.command()
def cancel(id: Id, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Cancel a job: running chunks are ended, waiting ones never run."""
    with connect(url, token) as client:
        answer = client.job(id).cancel()
    show_json(answer) if as_json else print(f"Job {id} is cancelled.")


@app.command()
def redrive(
    id: Id, wait: Wait = False, as_json: AsJson = False, url: Url = None, token: Token = None
) -> None:
    """Run again what failed, and only that."""
    with connect(url, token) as client:
        handle = client.job(id)
        answer = handle.redrive()
        if wait:
            _wait(handle, as_json)
        elif as_json:
            show_json(answer)
        else:
            print(f"Job {id} runs again.")


def _seconds(item: dict[str, Any]) -> float | None:
    started, ended = item.get("started_at"), item.get("ended_at")
    return ended - started if started and ended else None


def _wait(handle: "JobHandle", as_json: bool) -> None:
    """Wait for the end, with a bar on a terminal, and print the result; with --json the job's whole record.

    Raises JobFailed when it failed or was cancelled, after that record.
    """
    record = _with_bar(handle) if sys.stderr.isatty() and not as_json else handle.wait()
    if as_json:
        show_json(record)
        if record["status"] != "succeeded":
            handle.result()  # raises what went wrong
        return
    result = handle.result()
    if record.get("output"):
        print(f"job {handle.id} succeeded; its results are in {_place(record['output'])}", file=sys.stderr)
    print(json.dumps(result, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def _with_bar(handle: "JobHandle") -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    record: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("planning", total=None, note="")
        for record in handle.progress():
            bar.update(
                task,
                description=record["status"],
                total=record.get("chunks") or None,
                completed=record.get("done") or 0,
                note=_note(record),
            )
    return record


def _note(record: dict[str, Any]) -> str:
    parts: Iterable[str] = (
        f"{record['rate']:,.1f}/s" if record.get("rate") else "",
        f"{record['failed']:,} failed" if record.get("failed") else "",
    )
    return ", ".join(part for part in parts if part)


def _place(output: Any) -> str:
    return output if isinstance(output, str) else json.dumps(output)
