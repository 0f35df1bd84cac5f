"""The front door: what `import headrace` costs, and that each name it lists is there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {
    "alembic",
    "asyncio",
    "cloudpickle",
    "httptools",
    "msgspec",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "starlette",
    "structlog",
    "typer",
    "urllib3",
    "uvicorn",
    "uvloop",
    "watchdog",
}


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`, less those that its start-up loads."""
    # -S leaves out site-packages and its .pth files, which may load anything; the front door needs neither.
    report = "print(json.dumps([*set(sys.modules) - before]))"
    script = f"import json, sys\nbefore = set(sys.modules)\n{code}\n{report}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_importing_headrace_loads_no_library_and_no_room() -> None:
    loaded = loaded_after("import headrace")

    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("headrace")} == {"headrace"}
    assert "importlib.metadata" not in loaded


def test_listing_the_names_loads_nothing() -> None:
    loaded = loaded_after("import headrace; dir(headrace)")

    assert {name for name in loaded if name.startswith("headrace")} == {"headrace"}


@pytest.mark.parametrize("name", headrace.__all__)
def test_each_public_name_can_be_imported(name: str) -> None:
    assert getattr(headrace, name) is not None
    assert name in dir(headrace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"headrace.*'Fontain'"):
        headrace.Fontain  # noqa: B018 - the look-up is what is tested


def test_type_checkers_and_the_table_see_the_same_names_in_the_same_homes() -> None:
    tree = ast.parse(Path(headrace.__file__).read_text(encoding="utf-8"))
    [guarded] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert seen == headrace._HOMES
    assert set(headrace.__all__) == {*seen, "__version__"}
