"""The code of the guides is loaded as a node loads it, and some of it is called."""

import json
from pathlib import Path

import pytest
from pages import GUIDE, blocks

from headrace.runtime.code import request_for
from headrace.runtime.loading import load

PYTHON = [
    (page.name, index, block)
    for page in sorted(GUIDE.glob("*.md"))
    for index, block in enumerate(blocks(page.read_text(encoding="utf-8"), "python"))
]


@pytest.mark.parametrize(
    ("page", "index", "block"), PYTHON, ids=[f"{page}-{index}" for page, index, _ in PYTHON]
)
def test_a_block_of_functions_loads_without_errors(page: str, index: int, block: str, tmp_path: Path) -> None:
    file = tmp_path / f"{page.removesuffix('.md')}_guide_{index}.py"
    file.write_text(block, encoding="utf-8")
    loaded = load(request_for([str(file)]))

    assert loaded.manifest.errors == ()
    assert [spec.name for spec in loaded.manifest.functions if not spec.name.startswith("headrace.")] != []


def test_the_guides_hold_code() -> None:
    assert {page for page, _, _ in PYTHON} >= {"functions.md", "triggers.md", "jobs.md"}


@pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda page: page.name)
def test_json_in_a_guide_is_json(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "json"):
        json.loads(block)
