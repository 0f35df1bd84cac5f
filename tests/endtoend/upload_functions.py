"""Functions of the tests of uploads on an S3 server."""

from headrace import App, Context, Upload, UploadEvent

app = App("up")


@app.on(Upload("inbox", events=("ObjectCreated:*", "ObjectRemoved:*")))
@app.function
def seen(event: UploadEvent) -> dict[str, str]:
    return {"key": event.key, "etag": event.etag, "name": event.record["eventName"]}


@app.on(Upload("loop", max_hops=5))
@app.function
def again(event: UploadEvent, context: Context) -> str:
    """Writes what sets it off."""
    context.objects.put("loop", f"{event.key}.again", b"again")
    return event.key


@app.on(Upload("asked", metadata=True, tags=True))
@app.function
def asked(event: UploadEvent) -> dict[str, object]:
    found: dict[str, object] = event.record["s3"]["object"]
    return found
