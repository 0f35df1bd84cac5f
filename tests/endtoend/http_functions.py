"""Functions behind routes, for tests of what only a whole node shows."""

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from headrace import App, FormFile, Http, HttpEvent, Webhook

app = App("web")


class Order(BaseModel):
    product: str
    count: int = 1


class Upload(BaseModel):
    title: str
    file: FormFile


@app.on(Http("POST", "/orders", asynchronous=True, callback=True))
@app.function(retries=0)
def order(body: Order) -> dict[str, Any]:
    if body.count < 0:
        raise ValueError("a negative count")
    return {"product": body.product, "pad": "x" * (body.count if body.count > 1000 else 0)}


@app.on(Http("POST", "/hooks/github", webhook=Webhook.github("GITHUB_SECRET"), asynchronous=True))
@app.function
def pushed(event: HttpEvent) -> Any:
    return event.json()["ref"]


@app.on(Http("POST", "/hooks/none", webhook=Webhook.stripe("NOWHERE_SECRET")))
@app.function
def unset(event: HttpEvent) -> None: ...


@app.on(Http("POST", "/files"))
@app.function
def file(body: Upload) -> dict[str, Any]:
    return {"title": body.title, "name": body.file.filename, "bytes": len(body.file.data)}


@app.on(Http("POST", "/hold"))
@app.function(timeout=30)
def hold(body: str) -> str:
    """Mark that it has begun, and wait for the gate."""
    (Path(body) / "began").touch()
    while not (Path(body) / "open").exists():
        time.sleep(0.01)
    return "held"
