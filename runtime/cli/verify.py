"""`headrace verify`: the books of the node. Accepted = waiting + running + succeeded + dead + cancelled."""

from typing import Any

import typer

from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_table

PARTS = ("waiting", "running", "succeeded", "dead", "cancelled")


def verify(as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Check that the books balance: nothing accepted is unaccounted for.

    Synchronous calls have no row in the store and books of their own. Exit code 1 when anything is missing.
    """
    with connect(url, token) as client:
        stats = client.stats()
    books = [
        _book("total", stats["total"]),
        *(_book(name, of) for name, of in sorted(stats["functions"].items())),
    ]
    wrong = [book["name"] for book in books if book["missing"]]
    if as_json:
        show_json({"ok": not wrong, "books": books})
    else:
        show_table(
            ["FUNCTION", "ACCEPTED", *(part.upper() for part in PARTS), "MISSING"],
            [
                [book["name"], book["accepted"], *(book[part] for part in PARTS), book["missing"]]
                for book in books
            ],
            empty="",
            right=("ACCEPTED", *(part.upper() for part in PARTS), "MISSING"),
        )
        print("The books do not balance: " + ", ".join(wrong) if wrong else "The books balance.")
    if wrong:
        raise typer.Exit(1)


def _book(name: str, counts: dict[str, Any]) -> dict[str, Any]:
    parts = {part: int(counts.get(part, 0)) for part in PARTS}
    accepted = int(counts.get("accepted", 0))
    return {"name": name, "accepted": accepted, **parts, "missing": accepted - sum(parts.values())}
