"""Functions and jobs over sets of uploads."""

from typing import Any

from headrace import App, Chunk, Context, Count, Csv, Items, Marker, UploadSet, UploadSetEvent

app = App("sets")


@app.on(UploadSet("days", pattern="{day}/*.csv", complete=Count(3), existing="run"))
@app.function
def day(event: UploadSetEvent, context: Context) -> dict[str, Any]:
    texts = [
        context.objects.get(file["bucket"], file["key"]).decode() for file in event.files(context.objects)
    ]
    return {"set": event.set, "by": event.by, "text": "".join(texts), "complete": event.complete}


@app.on(UploadSet("tables", pattern="{day}/*.csv", complete=Marker("_SUCCESS"), existing="run"))
@app.job(split=Csv(chunk="64 B"), reduce=lambda a, b: a + b)
def total(chunk: Chunk) -> int:
    return sum(int(record["n"]) for record in chunk.records())


@app.on(
    UploadSet("images", pattern="{album}/*.jpg", complete=Marker("done/{album}"), late="fire", existing="run")
)
@app.job(split=Items(batch=2), reduce=lambda a, b: a + b)
def album(chunk: Chunk, context: Context) -> int:
    return sum(len(context.objects.get(item["bucket"], item["key"])) for item in chunk.records())


@app.on(UploadSet("slow", pattern="{day}/*", complete=Count(2), timeout=1, existing="run"))
@app.function(on_failure="sets.told")
def pair(event: UploadSetEvent) -> int:
    return event.count


@app.on(UploadSet("loop", pattern="{name}/*", complete=Count(1), late="fire", max_hops=2, existing="run"))
@app.function
def again(event: UploadSetEvent, context: Context) -> int:
    context.objects.put(event.bucket, f"{event.set}/{event['detail']['number']}", b"more")
    return event.count


@app.function
def told(event: Any) -> str:
    return str(event["responsePayload"]["code"])


@app.on(UploadSet("slow", pattern="{day}/*", complete=Count(2), timeout=1, existing="run"))
@app.job(split=Items(), reduce=lambda a, b: a + b)
def pairs(chunk: Chunk) -> int:
    return 1
