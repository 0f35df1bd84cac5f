"""Functions that are sent along: what travels, and what is refused."""

import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.errors import FunctionError, UnserialisableResult
from headrace.runtime.jobs import call
from headrace.runtime.jobs.call import SentFunction, Unpicklable, VersionMismatch, call_pickled, read_answer


def make(function: Callable[[Any], Any], *items: Any) -> list[tuple[Any, Any]]:
    """A call from end to end, in this process."""
    return read_answer(call_pickled(SentFunction(function).payload(items)))


def test_values_come_back_as_they_are() -> None:
    assert make(lambda x: {x: (x, {x})}, 1, "a") == [({1: (1, {1})}, None), ({"a": ("a", {"a"})}, None)]


def test_an_item_s_error_stands_beside_the_other_results() -> None:
    [(value, _), (_, error)] = make(lambda x: 1 / x, 2, 0)

    assert value == 0.5
    assert type(error) is FunctionError
    assert str(error) == "ZeroDivisionError: division by zero"
    assert "1 / x" in str(error.detail["stack"])


def test_a_result_that_cannot_be_sent_is_that_item_s_error() -> None:
    [(value, none), (_, error)] = make(lambda x: sys._getframe() if x else x, 0, 1)

    assert (value, none) == (0, None)
    assert type(error) is UnserialisableResult


@pytest.mark.parametrize(("field", "theirs"), [("python", "3.99"), ("cloudpickle", "0.1")])
def test_another_version_is_refused_before_anything_is_read(field: str, theirs: str) -> None:
    event = {**SentFunction(print).payload([1]), field: theirs, "function": "not even base64", "items": "!"}

    with pytest.raises(VersionMismatch, match=theirs) as caught:
        read_answer(call_pickled(event))
    assert caught.value.hint


def test_what_cannot_be_pickled_is_refused_by_name() -> None:
    frame = sys._getframe()
    with pytest.raises(Unpicklable, match="<lambda> cannot be sent"):
        SentFunction(lambda x: frame)
    with pytest.raises(Unpicklable, match="an item cannot be sent"):
        SentFunction(print).payload([sys._getframe()])


def test_a_function_of_a_module_that_is_not_installed_travels_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_module.py").write_text(
        "STEP = 2\ndef add(x):\n    return x + STEP\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("my_own_module")
    event = SentFunction(module.add).payload([1])
    monkeypatch.delitem(sys.modules, "my_own_module")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])

    assert read_answer(call_pickled(event)) == [(3, None)]


def test_a_module_that_the_worker_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_on_the_node.py").write_text("class Thing: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("not_on_the_node")
    event = SentFunction(repr).payload([module.Thing()])
    monkeypatch.delitem(sys.modules, "not_on_the_node")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    importlib.invalidate_caches()

    with pytest.raises(Unpicklable, match="needs the module not_on_the_node"):
        read_answer(call_pickled(event))


def test_an_installed_module_travels_by_name() -> None:
    assert call._own_module(importlib.import_module("cloudpickle").dumps) is None
    assert call._own_module(importlib.import_module("json").dumps) is None


def test_the_errors_pickle() -> None:
    for error in (VersionMismatch("Python", "3.11", "3.12"), Unpicklable("an item", "why")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.hint) == (type(error), str(error), error.hint)
