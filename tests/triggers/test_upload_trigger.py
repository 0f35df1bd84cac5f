"""Upload as a value: its filters, fields and complaints; and the comparison of a listing with the ledger."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import App, Lines
from headrace.runtime.errors import InvalidFunction
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.store.protocol import LedgerRow
from headrace.triggers.upload import Upload
from headrace.triggers.upload.comparison import Comparison


def info(key: str, size: int = 1, etag: str = "e", modified_at: float = 1.0) -> ObjectInfo:
    return ObjectInfo("inbox", key, size, etag, modified_at, f"{int(modified_at):016x}")


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.csv", ["a.csv", ".csv"], ["d/a.csv", "a.csv.gz", "a.CSV"]),
        ("**/*.csv", ["a.csv", "d/a.csv", "d/e/a.csv"], ["a.txt"]),
        ("in/**", ["in/a", "in/d/e"], ["out/a", "in"]),
        ("2026-??/*", ["2026-01/a"], ["2026-1/a", "2026-01/d/a"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "/x"]),
        ("[!a-c]x", ["dx"], ["ax", "/x"]),
        ("[]]", ["]"], ["["]),
        ("a.b+(c)$", ["a.b+(c)$"], ["aXb"]),
        ("[", ["["], []),
        ("x\ny*", ["x\nyz"], []),
    ],
)
def test_globs_match_whole_keys(glob: str, matching: list[str], others: list[str]) -> None:
    trigger = Upload("inbox", glob=glob)

    assert [key for key in matching if not trigger.matches_key(key)] == []
    assert [key for key in others if trigger.matches_key(key)] == []


@given(st.text("ab*?[]!^-/.\\&", max_size=12), st.text("ab/.", max_size=8))
def test_a_glob_is_refused_or_answers(glob: str, key: str) -> None:
    try:
        trigger = Upload("inbox", glob=glob)
    except InvalidFunction:
        return

    assert trigger.matches_key(key) in (True, False)


def test_a_trigger_travels_as_its_fields() -> None:
    trigger = Upload(
        "inbox", prefix="in/", glob="**/*.csv", events=["s3:ObjectCreated:Put"], max_size="1 MiB"
    )

    assert Upload.from_fields(trigger.fields()) == trigger
    assert trigger.max_size == 1 << 20
    assert repr(Upload("inbox", suffix=".csv")) == "Upload('inbox', suffix='.csv')"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"bucket": "In box"}, "name"),
        ({"bucket": "headrace-system"}, "own"),
        ({"bucket": 5}, "not text"),
        ({"bucket": "inbox", "suffix": None}, "suffix"),
        ({"bucket": "inbox", "events": ["ObjectAccessed:*"]}, "ObjectAccessed"),
        ({"bucket": "inbox", "events": []}, "empty"),
        ({"bucket": "inbox", "existing": "maybe"}, "existing"),
        ({"bucket": "inbox", "min_size": "lots"}, "min_size"),
        ({"bucket": "inbox", "min_size": 5, "max_size": 4}, "above"),
        ({"bucket": "inbox", "glob": "[z-a]"}, "glob"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidFunction, match=re.escape(complaint)) as raised:
        Upload(**fields)  # type: ignore[arg-type]

    assert raised.value.hint


State = tuple[str, int, float]
_keys = st.text("ab/é😀", min_size=1, max_size=3)
_states = st.tuples(st.sampled_from("ef"), st.integers(0, 1), st.sampled_from([1.0, 2.0]))


@given(st.dictionaries(_keys, _states), st.dictionaries(_keys, _states), st.integers(1, 4), st.integers(1, 4))
def test_a_comparison_finds_what_two_dicts_differ_in(
    listed: dict[str, State], rows: dict[str, State], listed_page: int, rows_page: int
) -> None:
    objects = [info(key, size, etag, at) for key, (etag, size, at) in sorted(listed.items())]
    ledger = [
        LedgerRow(key=key, etag=etag, size=size, sequencer="", modified_at=at)
        for key, (etag, size, at) in sorted(rows.items())
    ]
    new: list[str] = []
    missing: list[str] = []
    comparison = Comparison()
    while not comparison.is_done:
        if comparison.wants_listed:
            page, objects = objects[:listed_page], objects[listed_page:]
            comparison.feed_listed(page, last=not objects)
        if comparison.wants_rows:
            lines, ledger = ledger[:rows_page], ledger[rows_page:]
            comparison.feed_rows(lines, last=len(lines) < rows_page)
        found = comparison.compare()
        new += [found.key for found in found.new]
        missing += [row.key for row in found.missing]

    assert missing == sorted(rows.keys() - listed.keys())
    assert new == sorted(
        key
        for key, (etag, size, at) in listed.items()
        if key not in rows or ((etag, size) != rows[key][:2] and at >= rows[key][2])
    )


@pytest.mark.parametrize(
    ("trigger", "setting", "complaint"),
    [
        (Upload("inbox"), {"output": "inbox"}, "output"),
        (Upload("inbox", suffix=".json"), {"output": "inbox/results"}, "output"),
        (Upload("inbox"), {"on_success": "s3://inbox"}, "on_success"),
        (Upload("inbox", prefix="failed/"), {"on_failure": "s3://inbox/failed"}, "on_failure"),
        (Upload("inbox", events="ObjectRemoved:*"), {"output": "results"}, "gone"),
    ],
)
def test_a_function_whose_results_would_set_it_off_is_refused(
    trigger: Upload, setting: dict[str, Any], complaint: str
) -> None:
    app = App("looping")
    if "output" in setting:
        function = app.job(split=Lines(), name="f", **setting)(lambda chunk: None)
    else:
        function = app.function(name="f", **setting)(lambda event: None)
    with pytest.raises(InvalidFunction, match=complaint):
        app.on(trigger)(function)


def test_a_function_whose_results_lie_elsewhere_is_taken() -> None:
    app = App("straight")
    job = app.job(split=Lines(), name="f", output="inbox/results", on_success="s3://other")(
        lambda chunk: None
    )
    app.on(Upload("inbox", suffix=".csv"))(job)
    app.on(Upload("inbox", prefix="in/"))(job)
    app.on(Upload("results"))(job)

    assert len(app.declared["straight.f"].spec.triggers) == 3
