"""Tests of the functions: by calling them, and on a whole node whose time the test moves."""

from pathlib import Path
from types import SimpleNamespace

from functions import app as functions
from headrace.testing import AppUnderTest


def test_a_function_can_simply_be_called() -> None:
    assert functions.greet("Ada", excited=True) == {"greeting": "Hello, Ada!"}


def test_chunks_are_counted_and_added() -> None:
    first = functions.count_words(SimpleNamespace(records=lambda: ["one two", "three"]))
    second = functions.count_words(SimpleNamespace(records=lambda: ["four"]))

    assert functions.add(first, second) == {"lines": 3, "words": 4, "longest_line": 7}


def test_an_uploaded_text_is_counted_and_the_results_every_hour() -> None:
    with AppUnderTest(functions.app) as app:
        app.put("inbox", "a.txt", "one two\nthree\n")
        app.clock.advance(3600)

        assert app.results("app.count_words") == [{"lines": 2, "words": 3, "longest_line": 7}]
        assert app.results("app.hourly") == [{"results": 1}]
        assert app.http("GET", "/greet/Ada?excited=true").json() == {"greeting": "Hello, Ada!"}


def test_a_node_runs_the_functions_in_its_workers(tmp_path: Path) -> None:
    with functions.app.node(data=tmp_path, workers=1) as client:
        assert client.invoke("app.greet", {"name": "Ada"}) == {"greeting": "Hello, Ada."}
