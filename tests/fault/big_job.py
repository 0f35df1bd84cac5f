"""The big job: counts and check sums over a reviews file, exact whatever the cut, at several chunk sizes.

Every figure is an integer, so that the answer of a thousand chunks equals that of one process
to the last digit.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from headrace import App, Chunk, Context, Csv, RetryPolicy

app = App("big")

CHUNKS = {"k16": "16 KiB", "k64": "64 KiB", "k256": "256 KiB", "m1": "1 MiB", "m16": "16 MiB"}
PAUSE_S = 0.04


def count(records: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    products: dict[str, list[int]] = {}
    rows = check = newlines = 0
    for row in records:
        of = products.setdefault(row["product"], [0, 0, 0])
        of[0] += 1
        of[1] += int(row["rating"])
        of[2] += len(row["text"])
        newlines += row["text"].count("\n")
        check += zlib.crc32("\x1f".join(row.values()).encode())
        rows += 1
    return {"rows": rows, "newlines": newlines, "check": check, "products": products}


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    products = {name: list(sums) for name, sums in a["products"].items()}
    for name, sums in b["products"].items():
        found = products.setdefault(name, [0, 0, 0])
        products[name] = [x + y for x, y in zip(found, sums, strict=True)]
    return {name: a[name] + b[name] for name in a if name != "products"} | {"products": products}


def mapped(pause_s: float) -> Callable[..., dict[str, Any]]:
    def of_chunk(chunk: Chunk, context: Context) -> dict[str, Any]:
        found = count(chunk.records())
        time.sleep(pause_s)
        return {**found, "chunks": 1, "places": chunk.index, "squares": chunk.index**2}

    return of_chunk


def sort_products(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "products": dict(sorted(found["products"].items()))}


for name, size in CHUNKS.items():
    app.job(name=name, split=Csv(chunk=size), reduce=merge, finish=sort_products, output="results")(
        mapped(0.0)
    )

# Kills spend attempts of what was running, so a job that is killed at often needs many.
app.job(
    name="slow", split=Csv(chunk="16 KiB"), reduce=merge, finish=sort_products, output="results",
    retries=RetryPolicy(retries=60, base_s=0.01, max_s=0.05),
)(mapped(PAUSE_S))  # fmt: skip
