"""The crash matrix as a table in docs/reliability.md, between marks, with where and when it was measured."""

import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from crash_matrix import Finding

from headrace.runtime.fault import POINTS

_MARK = re.compile(r"(<!-- crash matrix: (\S+) -->\n).*?(<!-- end of crash matrix -->)", re.DOTALL)


def write_findings(page: Path, findings: Sequence[Finding]) -> None:
    """Replace the tables of the stores that there are findings of; other stores' stay as they are."""
    by_store: dict[str, list[Finding]] = {}
    for finding in findings:
        by_store.setdefault(finding.store, []).append(finding)
    text = page.read_text(encoding="utf-8")
    marks = {found[2] for found in _MARK.finditer(text)}
    missing = by_store.keys() - marks
    if missing:
        raise LookupError(f"{page} has no marks for {', '.join(sorted(missing))}")
    text = _MARK.sub(
        lambda found: (
            f"{found[1]}{table(by_store[found[2]])}{found[3]}" if found[2] in by_store else found[0]
        ),
        text,
    )
    page.write_text(text, encoding="utf-8")


def table(findings: Sequence[Finding]) -> str:
    """The findings in the order of the points, under a line that says where they come from."""
    version = ".".join(map(str, sys.version_info[:3]))
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"Seen {day} on {platform.system()}, Python {version}; {len(findings)} of {len(POINTS)} points.",
        "",
        "| point | killed | acknowledged before | accepted in all | ended | run again | most attempts |"
        " ready after | recovered after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(findings, key=lambda one: POINTS.index(one.point)):
        ready = "-" if one.killed == "a worker" else f"{one.ready_s:.2f} s"
        lines.append(
            f"| `{one.point}` | {one.killed} | {one.acknowledged} | {one.accepted} | all, once |"
            f" {one.again} | {one.attempts_most} | {ready} | {one.recovery_s:.2f} s |"
        )
    return "\n".join(lines) + "\n"
