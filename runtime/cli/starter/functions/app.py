"""My functions: a job, an HTTP route and a schedule, to be changed into your own.

`headrace dev functions/` serves this folder and loads it again whenever you save.
"""

from headrace import App, Chunk, Context, Http, Lines, Schedule, ScheduleEvent, Upload

# A function's full name is APP.NAME, such as app.greet.
app = App("app")


# An HTTP route: `name` comes from the path, `excited` from the query.
#   curl 'localhost:8080/greet/Ada?excited=true'
@app.on(Http("GET", "/greet/{name}"))
@app.function(timeout=5)
def greet(name: str, excited: bool = False) -> dict[str, str]:
    """Greet one person."""
    return {"greeting": f"Hello, {name}{'!' if excited else '.'}"}


def add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    """Add what two chunks found. It must be associative, since chunks are added in groups."""
    return {
        "lines": a["lines"] + b["lines"],
        "words": a["words"] + b["words"],
        "longest_line": max(a["longest_line"], b["longest_line"]),
    }


# A job: a text file of any size that is put into the bucket `inbox` is cut into chunks, which are counted in
# parallel and added up. The result appears in the bucket `results`.
#   cp README.md data/buckets/inbox/readme.txt
@app.on(Upload("inbox", suffix=".txt"))
@app.job(
    split=Lines(chunk="1 MiB"),
    reduce=add,
    initial={"lines": 0, "words": 0, "longest_line": 0},
    output="results",
)
def count_words(chunk: Chunk) -> dict[str, int]:
    """Count one chunk; runs once per chunk."""
    lines = words = longest_line = 0
    for line in chunk.records():
        lines += 1
        words += len(line.split())
        longest_line = max(longest_line, len(line))
    return {"lines": lines, "words": words, "longest_line": longest_line}


# A schedule: `event.due` is the instant at which this run was due. If it fails, it is tried twice more.
#   headrace invoke app.hourly --payload '{"time": "2026-01-01T00:00:00Z"}'
@app.on(Schedule("rate(1 hour)"))
@app.function(timeout=30, retries=2)
def hourly(event: ScheduleEvent, context: Context) -> dict[str, int]:
    """Say how many results there are."""
    results = 0
    if "results" in context.objects.buckets():
        results = sum(1 for item in context.objects.iterate("results") if item.key.endswith("/result.json"))
    context.log.info("results counted", due=event.due.isoformat(), results=results)
    return {"results": results}
