"""The demo's report: what was found, as a table, and where everything lies.

Imports rich and the chart's ranking. On a terminal it is coloured; elsewhere it is plain text of the same
words.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.runtime.cli.demo.chart import ranked

SHOWN_MAX = 16
NAME_CHARS_MAX = 32
NO_CHART = "none, since matplotlib is missing: pip install 'headrace[examples]'"
CURL = (
    """  curl localhost:8080/reviews/kettle -H 'content-type: application/json' -d '{"text": "I love it!"}'"""
)


def print_findings(console: Console, result: Mapping[str, Any], *, source: str) -> None:
    """The result as a table: all products, or the best and the worst 8."""
    products = ranked(result)
    left_out = max(0, len(products) - SHOWN_MAX)
    rated = bool(result["rated"])
    title = f"Sentiment by product in {escape(source)}"
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0)
    )
    table.add_column("product", max_width=NAME_CHARS_MAX, no_wrap=True, overflow="ellipsis")
    for name in ("reviews", "positive", "neutral", "negative", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    if rated:
        table.add_column("rating", justify="right", no_wrap=True)
    if left_out:
        _add_rows(table, products[: SHOWN_MAX // 2], rated=rated)
        table.add_row(f"… {left_out:,} more", end_section=True)
        _add_rows(table, products[-SHOWN_MAX // 2 :], rated=rated)
    else:
        _add_rows(table, products, rated=rated)
    table.add_section()
    _add_rows(table, [("all products", result)], rated=rated)
    console.print(table)
    meaning = "score: mean compound score by VADER, -1 to 1"
    console.print(
        f"{meaning}; rating: mean of the people's" if rated else meaning, style="dim", highlight=False
    )
    if result["correlation"] is not None:
        console.print(
            f"Correlation of the score with {result['rated']:,} human ratings: "
            f"[bold]{result['correlation']:.4f}[/bold] (Pearson; 1 is full agreement)."
        )


def _add_rows(table: Table, rows: Sequence[tuple[str, Mapping[str, Any]]], *, rated: bool) -> None:
    for name, found in rows:
        every = found["reviews"] or 1
        mean = found["mean_compound"]
        cells = [
            escape(" ".join(name.split())),
            f"{found['reviews']:,}",
            *(f"{found[kind] / every:.0%}" for kind in ("positive", "neutral", "negative")),
            "" if mean is None else f"{mean:+.3f}",
        ]
        if rated:
            cells.append("" if found["mean_rating"] is None else f"{found['mean_rating']:+.2f}")
        table.add_row(*cells)


def print_places(
    console: Console,
    *,
    functions: Path,
    data: Path,
    job: str,
    result: Path,
    chart: Path | None,
    seconds: Mapping[str, float],
) -> None:
    """Where everything lies, and what to type next. Lines that are to be copied are not wrapped."""
    told = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    lines = [
        "",
        f"Took {told}.",
        "",
        f"  chart      {chart or NO_CHART}",
        f"  result     {result}",
        f"  functions  {functions / 'reviews.py'}",
        f"  data       {data} (the next demo empties it)",
        "",
        "Go on from here:",
        f"  headrace serve {_shown(functions)} --data {shlex.quote(str(data))}",
        CURL,
        f"  cp my-reviews.csv {shlex.quote(str(data / 'buckets' / 'inbox'))}/",
        f"  headrace job show {job}",
        "  headrace init my-project           # your own functions",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


def near(path: Path) -> Path:
    """The path as seen from the working folder, if that is where it is; else as it is."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
