"""What the tests of the documents share: where the pages are, and their code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(*parts: str) -> str:
    """The text of a page, by its path from the root."""
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return [body for kind, body in _BLOCK.findall(text) if kind == language]


def cells(text: str) -> list[list[str]]:
    """Every table row of a page, as the texts of its cells; a `|` behind a backslash is part of a cell."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("| "))] for row in rows]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above. Raises LookupError."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(
        rf"^{re.escape(heading)}$\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise LookupError(f"there is no heading {heading!r}")
    return found[1]
