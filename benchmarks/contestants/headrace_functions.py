"""The functions that Headrace's contestants call, written as a user writes them. `headrace serve` takes
this file as it is."""

import csv
import io

import w8lib
from sentiment import label

from headrace import App, Csv, Http

app = App("bench")


@app.function
def f(event):
    return event


@app.function
def started(event):
    return w8lib.started(event)


@app.function(reserved_concurrency=0)
def keep(event: dict) -> None:
    """Accepts what W4 enqueues; with a concurrency of 0 no attempt ever starts."""


@app.on(Http("POST", "/"))
@app.function
def hello(body: dict) -> dict:
    return {"greeting": "hello " + body["name"]}


def add(a: dict, b: dict) -> dict:
    """Sum of two chunks' counts: the `reduce` of the jobs below."""
    for product, counts in b.items():
        found = a.get(product)
        a[product] = counts if found is None else [x + y for x, y in zip(found, counts, strict=True)]
    return a


def _count(pairs) -> dict:
    out = {}
    for product, text in pairs:
        counts = out.get(product)
        if counts is None:
            counts = out[product] = [0, 0, 0]
        counts[label(text)] += 1
    return out


@app.job(split=Csv(chunk="4 MiB"), reduce=add)
def count_bytes(chunk):
    """The chunk's bytes, parsed by the function itself: what the process pool of the limit does."""
    rows = csv.reader(io.StringIO(chunk.bytes().decode(), newline=""))
    return _count((row[1], row[3]) for row in rows if row[0] != "review_id")


@app.job(split=Csv(chunk="4 MiB"), reduce=add)
def count_rows(chunk):
    """Records as lists."""
    return _count((row[1], row[3]) for row in chunk.rows())


@app.job(split=Csv(chunk="4 MiB"), reduce=add)
def count_records(chunk):
    """Records as dicts by the header's names: what the guide shows first."""
    return _count((row["product_id"], row["review_text"]) for row in chunk.records())
