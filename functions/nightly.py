"""Nightly: a report over yesterday's results, written every night at three.

It reads what the jobs in `reviews.py` left in the bucket `results`, and writes `reports/2026-03-28.json`.

Try it:   headrace serve functions/ --data ./data
          headrace invoke nightly.report --payload '{"time": "2026-03-29T01:00:00Z"}'
"""

import json
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from headrace import App, Context, Schedule, ScheduleEvent

app = App("nightly")

ZONE = ZoneInfo("Europe/Berlin")


@app.on(Schedule("cron(0 3 * * ? *)", timezone="Europe/Berlin"))
@app.function(timeout=300, retries=2)
def report(event: ScheduleEvent, context: Context) -> dict[str, Any]:
    """Write the report of the day before the event's due instant.

    `event.due` is when this run was due, not when it runs. A run that is retried, or made up for after a
    night in which the machine was off, therefore writes the same report under the same name.
    """
    day = event.due.astimezone(ZONE).date() - timedelta(days=1)
    begin, end = midnight(day), midnight(day + timedelta(days=1))

    results = []
    if "results" in context.objects.buckets():
        for item in context.objects.iterate("results"):
            if item.key.endswith("/result.json") and begin <= item.modified_at < end:
                results.append((item.key, json.loads(context.objects.get("results", item.key))))

    written = {"day": day.isoformat(), **totals(results)}
    context.objects.make_bucket("reports")  # one that exists is left as it is
    context.objects.put(
        "reports", f"{day}.json", json.dumps(written, indent=2).encode(), content_type="application/json"
    )
    context.log.info("report written", day=str(day), jobs=len(written["jobs"]))
    return written


def midnight(day: date) -> float:
    """When a day begins in `ZONE`, in epoch seconds. (Days have 23 or 25 hours when clocks change.)"""
    return datetime.combine(day, time(), ZONE).timestamp()


def totals(results: list[tuple[str, Any]]) -> dict[str, Any]:
    """Add up the results of reviews jobs, given as (key, result); what other jobs wrote there is left out."""
    ours = [
        (key, found) for key, found in sorted(results) if isinstance(found, dict) and "mean_compound" in found
    ]
    reviews = sum(found["reviews"] for _, found in ours)
    compound = sum(found["mean_compound"] * found["reviews"] for _, found in ours if found["reviews"])
    return {
        "jobs": [key.removesuffix("/result.json") for key, _ in ours],
        "reviews": reviews,
        "positive": sum(found["positive"] for _, found in ours),
        "neutral": sum(found["neutral"] for _, found in ours),
        "negative": sum(found["negative"] for _, found in ours),
        "mean_compound": compound / reviews if reviews else None,
    }
