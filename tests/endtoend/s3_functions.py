"""Functions and a job whose objects are on an S3 server."""

from headrace import App, Csv, UploadEvent

app = App("stored")


@app.job(split=Csv(chunk="64 KiB"), reduce=lambda one, other: one + other, output="results")
def amount(chunk):
    return sum(int(row["amount"]) for row in chunk.records())


@app.job(split=Csv(chunk="16 KiB"), reduce=lambda one, other: one + other, output="results", retries=5)
def amount_slowly(chunk, context):
    found = sum(int(row["amount"]) for row in chunk.records())
    context.objects.put("work", f"seen/{chunk.index}", b"%d" % found)
    return found


@app.function
def echo(event):
    return event


@app.function(retries=0)
def once(event):
    return len(event["text"])


@app.function
def content(event: UploadEvent, context):
    return context.objects.get(event.bucket, event.key).decode()


@app.function
def swap(context):
    """Two writers of one object: the later condition no longer holds."""
    first = context.objects.put("work", "state", b"1", if_none_match=True)
    context.objects.put("work", "state", b"2", if_match=first.etag)
    try:
        context.objects.put("work", "state", b"3", if_match=first.etag)
    except Exception as error:
        return [type(error).__name__, context.objects.get("work", "state").decode()]
