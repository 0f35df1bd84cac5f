"""Jobs over files: the reviews of the examples at many chunk sizes, and plain counting."""

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from functions.reviews import merge, nothing, summary, tally
from headrace import App, Chunk, Context, Csv, Upload

app = App("files")

SIZES = {"k1": "1 KiB", "k8": "8 KiB", "k100": "100 KiB", "m4": "4 MiB"}
HEADER = ["id", "rating", "text"]


def scored(chunk: Chunk) -> Any:
    return tally(chunk.records())


def read(chunk: Chunk) -> dict[str, int]:
    """Records as Python's csv gives them, blank ones included, as a number and a check sum."""
    rows = list(chunk.rows())
    return {"rows": len(rows), "check": sum(zlib.crc32("\x1f".join(row).encode()) for row in rows)}


def add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a[name] + b[name] for name in a}


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def of_chunk(chunk: Chunk) -> Any:
        return function(chunk)

    of_chunk.__name__ = name
    return of_chunk


for size_name, size in SIZES.items():
    plain = Csv(size, delimiter="\t", quoting=False, header=HEADER)
    of_size = app.job(split=plain, reduce=merge, initial=nothing(), finish=summary, output="results")
    app.on(Upload("inbox", suffix=".tsv"))(of_size(named(scored, f"score_{size_name}")))
    quoted = Csv(size, delimiter="\t", header=HEADER)
    app.job(split=quoted, reduce=add, output="results")(named(read, f"read_{size_name}"))


def join(a: list[Any], b: list[Any]) -> list[Any]:
    return a + b


@app.on(Upload("drop"))
@app.job(split=Csv("1 KiB"), reduce=join, initial=[], retries=0)
def listed(chunk: Chunk) -> list[Any]:
    return [{name: text for name, text in row.items() if name is not None} for row in chunk.records()]


@app.job(split=Csv("1 KiB"), reduce=join, initial=[], retries=0)
def held(chunk: Chunk, context: Context) -> list[Any]:
    """The first chunk marks that it is there, and all wait at the gate that stands beside the file."""
    place = next(Path(row["folder"]) for row in chunk.records())
    (place / "began").touch()
    while not (place / "open").exists():
        time.sleep(0.005)
    return list(chunk.records())
