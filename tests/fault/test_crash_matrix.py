"""SIGKILL at every named point of an event's life, on every store: the account balances, and it is soon.

With RELIABILITY_PAGE=PATH the findings are written into that page (`make reliability`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_matrix import Case, Finding
from crash_page import write_findings

from headrace.runtime.fault import POINTS

STORES = ["sqlite", "postgres"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_url(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the node is given as `--store`: a file or a database of this test's own."""
    if store == "sqlite":
        return str(tmp_path / "data" / "headrace.db")
    return str(request.getfixturevalue(f"{store}_server").database())


@pytest.fixture(scope="module")
def findings() -> Iterator[list[Finding]]:
    found: list[Finding] = []
    yield found
    page = os.environ.get("RELIABILITY_PAGE")
    if page:
        write_findings(Path(page), found)


@pytest.mark.parametrize("point", POINTS)
def test_nothing_is_lost_or_doubled_by_a_kill_at(
    point: str, store: str, store_url: str, tmp_path: Path, findings: list[Finding]
) -> None:
    finding = Case(point, store=store, url=store_url, folder=tmp_path).run()
    findings.append(finding)
    print(finding)
