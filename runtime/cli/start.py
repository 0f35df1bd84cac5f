"""`headrace demo` and `headrace init`: the first five minutes. Imports each when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.runtime.cli.options import AsJson


def demo(
    input: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="A .csv or .tsv of reviews; made when not given."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of the demo's data; ./demo-data.")
    ] = None,
    size_mb: Annotated[
        int, typer.Option("--size-mb", min=1, max=10_000, help="Size of the file that is made.")
    ] = 50,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="Where the chart goes; DIR/sentiment.png.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the data of an earlier demo, and go on with it.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Worker processes; one per core.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run the whole of it once on a file of reviews.

    A node is started, the file is dropped into a bucket, and the result and a chart are shown.
    """
    from headrace.runtime.cli.demo.run import run_demo

    return run_demo(
        input=input, data=data, size_mb=size_mb, chart=chart, json=as_json, keep=keep, workers=workers
    )


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where to write it; here when not given.")
    ] = Path("."),
) -> int:
    """Write a small project to begin with: functions, their tests, and settings. Nothing is overwritten."""
    from headrace.runtime.cli.init import run_init

    return run_init(folder)
