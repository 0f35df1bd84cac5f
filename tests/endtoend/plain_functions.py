"""A few plain functions for tests of the API's edges."""

import time
from pathlib import Path

from pydantic import BaseModel, Field

from headrace import App, Chunk, Http, Items

app = App("plain")


class Order(BaseModel):
    product: str = Field(min_length=1)
    count: int = Field(ge=1, le=100)


@app.function(retries=0)
def double(n: int) -> int:
    return n * 2


@app.function(retries=2)
def order(event: Order) -> str:
    return f"{event.count} x {event.product}"


@app.on(Http("POST", "/shops/{shop}/orders/{number}"))
@app.function
def place(shop: str, number: int, body: Order, express: bool = False) -> dict[str, object]:
    return {"shop": shop, "number": number, "express": express, "total": body.count}


@app.on(Http("GET", "/files/{path:path}"))
@app.function
def show(path: str) -> dict[str, object]:
    return {"statusCode": 203, "headers": {"X-Path": "shown"}, "body": f"<p>{path}</p>"}


@app.on(Http("POST", "/later", asynchronous=True))
@app.function
def later(body: Order) -> int:
    return body.count + 1


@app.on(Http("GET", "/slow"))
@app.function(timeout=0.3)
def slow() -> None:
    time.sleep(30)


@app.on(Http("GET", "/broken"))
@app.function
def broken() -> None:
    raise RuntimeError("the cellar is flooded")


@app.function(timeout=60)
def hold(folder: str, name: str) -> str:
    """Mark that it has begun and wait for the gate."""
    (Path(folder) / f"began-{name}").touch()
    while not (Path(folder) / "open").exists():
        time.sleep(0.005)
    return name


def add(a: list[int], b: list[int]) -> list[int]:
    return a + b


@app.job(split=Items(batch=1), reduce=add, initial=[])
def squares(chunk: Chunk) -> list[int]:
    return [item * item for item in chunk.records()]


@app.job(split=Items(batch=1), reduce=add, initial=[])
def gated_squares(chunk: Chunk) -> list[int]:
    [item] = chunk.records()
    while not Path(item["gate"]).exists():
        time.sleep(0.005)
    return [item["n"] ** 2]
