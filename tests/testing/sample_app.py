"""Functions of every kind, for the tests of what tests are written with."""

from pydantic import BaseModel, Field

from headrace import (
    App,
    Context,
    Event,
    Http,
    HttpEvent,
    Lines,
    Marker,
    Quiet,
    RetryAfter,
    RetryPolicy,
    Schedule,
    ScheduleEvent,
    Upload,
    UploadEvent,
    UploadSet,
)

app = App("sample")


@app.on(Upload("inbox", suffix=".txt"))
@app.function(retries=RetryPolicy(retries=2, base_s=10, max_s=60))
def received(event: UploadEvent, context: Context) -> dict[str, object]:
    print(f"received {event.key}")
    return {"key": event.key, "size": len(context.objects.get(event.bucket, event.key))}


def add(a: int, b: int) -> int:
    return a + b


@app.on(Upload("texts"))
@app.job(split=Lines(chunk="1 KiB"), reduce=add, initial=0, output="counts")
def count(chunk) -> int:
    return sum(1 for _ in chunk.records())


@app.on(Schedule("cron(0 3 * * ? *)", timezone="Europe/Berlin", name="nightly"))
@app.function
def nightly(event: ScheduleEvent) -> str:
    return event["time"]


@app.on(Schedule("at(2031-06-01T12:00:00)"))
@app.function
def once(event: ScheduleEvent) -> str:
    return event["time"]


@app.on(UploadSet("days", pattern="{day}/*.csv", complete=Marker("{day}/done") | Quiet("10 minutes")))
@app.function
def day(event: Event) -> int:
    return len(str(event)) > 0


class Note(BaseModel):
    text: str = Field(min_length=1)


@app.on(Http("POST", "/notes/{name}"))
@app.function
def note(name: str, body: Note, event: HttpEvent) -> dict[str, str]:
    return {"name": name, "text": body.text, "by": event.headers.get("x-by", "")}


@app.on(Http("POST", "/echo/{name}"))
@app.function
def echo(event: HttpEvent) -> dict[str, object]:
    return event


@app.function(retries=RetryPolicy(retries=3, base_s=60, max_s=3600))
def flaky(fails: int, context: Context) -> int:
    if context.attempt <= fails:
        raise RuntimeError(f"attempt {context.attempt} fails")
    return context.attempt


@app.function
async def slowly(value: int) -> int:
    return value * 2


@app.function
def calling(value: int, context: Context) -> int:
    return context.client.invoke("sample.slowly", {"value": value}) + 1


@app.function
def submitting(values: list[int], context: Context) -> list[int]:
    return [context.client.submit("sample.slowly", {"value": value}).invocation_id != "" for value in values]


@app.function(retries=5)
def later(seconds: float, context: Context) -> str:
    if "mark" not in context.objects.buckets():
        context.objects.make_bucket("mark")
        raise RetryAfter(seconds)
    return "done"


@app.function(retries=0, on_failure="s3://failed/")
def told(text: str) -> None:
    raise RuntimeError(text)
