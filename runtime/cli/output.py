"""Output: JSON for programs, tables for people.

Imports the standard library; rich only where a table goes to a terminal. Elsewhere a table is plain aligned
text that nothing cuts off, so that `grep` and `awk` find what is there.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def show_json(document: object) -> None:
    """Print a document as JSON, readable on a terminal and on one line elsewhere."""
    print(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def show_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, right: Iterable[str] = ()
) -> None:
    """Print rows under their headings; `empty` when there are none. Columns named in `right` are numbers."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        print(empty)
        return
    numbers = {*right}
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*(_escaped(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    for row in [list(headings), *cells]:
        padded = (
            cell.rjust(width) if heading in numbers else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        )
        print("  ".join(padded).rstrip())


def show_record(document: dict[str, Any], *, first: Sequence[str] = ()) -> None:
    """Print a document's fields one a line, those in `first` before the others; empty ones are left out."""
    names = [*(name for name in first if name in document), *(name for name in document if name not in first)]
    shown = [(name, document[name]) for name in names if document[name] not in (None, "", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if name.endswith("_at"):
            text = show_moment(value)
        elif name == "error" and isinstance(value, dict):
            text = str(value.get("stack") or show_error(value)).rstrip()
        print(f"{name.ljust(width)}  {text.replace(chr(10), chr(10) + ' ' * (width + 2))}")


def show_moment(value: Any) -> str:
    """A moment, epoch seconds, in ISO 8601 UTC to the millisecond; nothing for None."""
    if not isinstance(value, int | float):
        return str(value or "")
    from datetime import UTC, datetime

    return datetime.fromtimestamp(value, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show_error(error: dict[str, Any] | None) -> str:
    """A recorded error in one line."""
    if not error:
        return ""
    kind, message = error.get("type") or error.get("code") or "", str(error.get("message") or "")
    return f"{kind}: {message}".split("\n", 1)[0].strip(": ")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).split())


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
