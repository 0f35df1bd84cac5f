"""Functions of every shape that a description has, for the run that holds a node to its own description."""

import datetime
import enum
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field

from headrace import App, Http, Items, Sse, Stream

app = App("described")
Small = Annotated[int, Field(ge=0, le=50)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    product: str = Field(min_length=1, max_length=40)
    count: int = Field(ge=1, le=100)
    note: str | None = None


class Order(BaseModel):
    lines: list[Line] = Field(max_length=20)
    colour: Colour = Colour.RED
    due: datetime.date | None = None


class Receipt(BaseModel):
    number: int
    total: int
    colour: Colour


@app.on(Http("POST", "/orders/{number}"))
@app.function
def order(number: int, body: Order, express: bool = False) -> Receipt:
    return Receipt(number=number, total=sum(line.count for line in body.lines), colour=body.colour)


@app.on(Http("GET", "/orders/{number}"))
@app.function
def find(number: Small, colour: Colour = Colour.BLUE, limit: float = 1.5) -> dict[str, Any]:
    return {"number": number, "colour": colour.value, "limit": limit}


@app.on(Http("PUT", "/orders/{number}/note"))
@app.function
def note(number: int, body: str) -> str:
    return f"{number}: {body}"


@app.on(Http("DELETE", "/orders/{number}"))
@app.function
def remove(number: int) -> dict[str, Any]:
    return {"statusCode": 204}


@app.on(Http("GET", "/files/{path:path}"))
@app.function
def show(path: str) -> int:
    return len(path)


@app.on(Http("POST", "/imports", asynchronous=True))
@app.function(retries=0)
def take(body: list[Line]) -> int:
    return len(body)


@app.on(Http("POST", "/sums"))
@app.job(split=Items(batch=5), reduce=lambda left, right: left + right, initial=0)
def total(chunk: Any) -> int:
    return len(chunk.items)


@app.on(Http("GET", "/rows"))
@app.function
def rows(n: Small) -> Iterator[Line]:
    for number in range(n):
        yield Line(product=f"p{number}", count=1)


@app.on(Http("GET", "/happenings"))
@app.function
def happenings() -> Iterator[Sse]:
    yield Sse("one", event="tick")


@app.on(Http("GET", "/table"))
@app.function
def table() -> Stream:
    return Stream(["a,b\n"], content_type="text/csv")
