"""The page of errors has every kind of outcome once, with the codes that its errors have."""

import re

from pages import GUIDE, cells

from headrace.runtime.model.invocation import Outcome

ROWS = {
    row[0].strip("`"): row
    for row in cells((GUIDE / "errors.md").read_text(encoding="utf-8"))
    if len(row) == 3
}


def test_every_kind_of_outcome_is_documented() -> None:
    told = (Outcome.__doc__ or "").partition("`kind` is one of ")[2].partition(" (never started")[0]
    kinds = re.findall(r"`([a-z_]+)`", told)

    assert len(kinds) == 9
    assert [kind for kind in kinds if kind not in ROWS] == []


def test_the_codes_of_an_outcome_are_documented_themselves() -> None:
    text = (GUIDE / "errors.md").read_text(encoding="utf-8")
    for row in ROWS.values():
        for code in re.findall(r"`([a-z_]+)`", row[1]):
            assert f"| `{code}` |" in text, code
