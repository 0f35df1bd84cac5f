"""Functions of the tests of uploads on an S3 server."""

from headrace import App, Upload, UploadEvent

app = App("up")


@app.on(Upload("inbox", events=("ObjectCreated:*", "ObjectRemoved:*")))
@app.function
def seen(event: UploadEvent) -> dict[str, str]:
    return {"key": event.key, "etag": event.etag, "name": event.record["eventName"]}
