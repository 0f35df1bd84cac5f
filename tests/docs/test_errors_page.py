"""The page of errors has every code of the tree once, with its HTTP status."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

from pages import GUIDE, cells

import headrace.runtime
import headrace.triggers
from headrace.runtime.errors import Duplicate, HeadraceError
from headrace.runtime.jobs.bad_input import BadCut

TEXT = (GUIDE / "errors.md").read_text(encoding="utf-8")
# Made by the HTTP layer itself, without a class.
WITHOUT_CLASS = {"method_not_allowed": "405"}
# Named in the text, since they never leave the engine; and the root.
IN_THE_TEXT = {Duplicate.code, BadCut.code, HeadraceError.code}


def kinds(kind: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from kinds(narrower)


def engine_kinds() -> list[type[HeadraceError]]:
    """Every class of the tree, those of other rooms included; without what tests and answers derive."""
    for package in (headrace.runtime, headrace.triggers):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if (
                ".migrations" not in module.name
                and ".starter" not in module.name
                and "__main__" not in module.name
            ):
                importlib.import_module(module.name)
    own = ("headrace.runtime", "headrace.triggers")
    return [
        kind for kind in kinds(HeadraceError)
        if kind.__module__.startswith(own) and "_Answered" not in {base.__name__ for base in kind.__mro__}
    ]  # fmt: skip


def documented() -> dict[str, str]:
    rows = [
        row for row in cells(TEXT) if re.fullmatch(r"`[a-z_]+`", row[0]) and re.fullmatch(r"\d{3}", row[1])
    ]
    assert len({row[0] for row in rows}) == len(rows), "a code is documented twice"
    return {row[0].strip("`"): row[1] for row in rows}


def test_every_code_is_documented_with_its_status() -> None:
    expected = {kind.code: str(kind.http_status) for kind in engine_kinds() if kind.code not in IN_THE_TEXT}

    assert documented() == expected | WITHOUT_CLASS


def test_the_codes_that_stay_inside_are_named_in_the_text() -> None:
    assert [code for code in IN_THE_TEXT if f"`{code}`" not in TEXT] == []
