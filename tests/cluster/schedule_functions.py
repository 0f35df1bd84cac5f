"""Schedules of each second for the tests of several nodes. What fires twice or not at all is looked for in
the database, so the functions do nothing.
"""

from typing import Any

from headrace import App, Items, Schedule

app = App("clock")


def every_second(**given: Any) -> Schedule:
    return Schedule("rate(1 second)", start="2026-01-01T00:00:00", misfire="all", max_misfires=1000, **given)


@app.on(every_second(name="a"))
@app.on(every_second(name="b"))
@app.on(Schedule("rate(2 seconds)", name="c", start="2026-01-01T00:00:00", misfire="all", jitter=1))
@app.function
def tick(event: Any) -> None: ...


@app.on(every_second())
@app.function(weight=2)
def tock(event: Any) -> None: ...


@app.on(Schedule("rate(5 seconds)", name="job", start="2026-01-01T00:00:00", misfire="all"))
@app.job(split=Items())
def cut(chunk: Any) -> None: ...
