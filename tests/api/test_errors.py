"""The error tree: every class pickles, says something, and has one form over HTTP."""

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import headrace.runtime
import headrace.triggers
from headrace.runtime.api.answers import outcome_error, send_error, shown_record
from headrace.runtime.errors import (
    BY_CODE,
    Forbidden,
    FunctionError,
    HeadraceError,
    InvalidEvent,
    InvocationFailed,
    Throttled,
    Unauthorized,
    failure,
)
from headrace.runtime.model.invocation import Invocation, Outcome, Record, Status

SAMPLES: dict[str, Any] = {
    "str": "text",
    "int": 3,
    "float": 1.5,
    "bytes": b"x",
    "list": [{"loc": "body.stars", "msg": "is missing"}],
    "dict": {"code": "function_error", "message": "no", "type": "ValueError"},
}


def all_classes() -> list[type[HeadraceError]]:
    for package in (headrace.runtime, headrace.triggers):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "migrations" not in found.name and not found.name.endswith("__main__"):
                importlib.import_module(found.name)

    def below(kind: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    unique = {kind for kind in below(HeadraceError) if kind.__module__.startswith("headrace.")}
    return sorted(unique, key=lambda kind: (kind.__module__, kind.__qualname__))


def example(kind: type[HeadraceError]) -> HeadraceError:
    """One of the class, with arguments of the kinds that it declares, or as many as its text uses."""
    if not any("__init__" in vars(base) for base in kind.__mro__ if base.__module__.startswith("headrace.")):
        for count in (4, 3, 2, 1, 0):
            made = kind(*("a", "b", "c", "d")[:count])
            try:
                str(made)
            except (ValueError, IndexError, TypeError):
                continue
            return made
        for arguments in (
            ("a", 3),
            ("a", "b", 3, 4),
            ("a", "b", 3),
            (3, 4),
            ("a", "b", 3, 4, "e"),
            ("a", "b", 3, 4, "e", "f"),
        ):
            made = kind(*arguments)
            try:
                str(made)
            except (ValueError, IndexError, TypeError):
                continue
            return made
        raise AssertionError(f"no example of {kind}")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    given = []
    for parameter in parameters:
        name = str(parameter.annotation)
        given.append(
            next(
                (value for key, value in SAMPLES.items() if name.startswith((key, f"<class '{key}'"))), "text"
            )
        )
    return kind(*given)


CLASSES = all_classes()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__qualname__)
def test_every_error_pickles_with_its_fields(kind: type[HeadraceError]) -> None:
    error = example(kind)
    error.add_note("in chunk 3")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.args == error.args
    assert (str(again), again.hint) == (str(error), error.hint)
    assert again.__dict__ == error.__dict__


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__qualname__)
async def test_every_error_has_the_one_form_over_http(kind: type[HeadraceError]) -> None:
    sent: list[Any] = []

    async def reply(message: Any) -> None:
        sent.append(message)

    error = example(kind)
    await send_error(reply, error, invocation_id="00aa")
    start, body = sent
    shown = msgspec.json.decode(body["body"])["error"]
    headers = dict(start["headers"])
    assert start["status"] == kind.http_status
    assert 400 <= start["status"] < 600
    assert shown["code"] == kind.code
    assert shown["code"].replace("_", "").isalnum()
    assert shown["message"]
    assert isinstance(shown["hint"], str)
    assert shown["invocation_id"] == "00aa"
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == str(len(body["body"])).encode()


def test_one_code_has_one_status() -> None:
    statuses: dict[str, set[int]] = {}
    for kind in CLASSES:
        statuses.setdefault(kind.code, set()).add(kind.http_status)
    assert {code for code, found in statuses.items() if len(found) > 1} == set()


def test_every_error_says_in_its_docstring_when_it_is_raised() -> None:
    assert [kind for kind in CLASSES if not kind.__doc__] == []


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_a_recorded_outcome_becomes_the_error_of_its_code(code: str) -> None:
    error = failure({"code": code, "message": "why", "type": "ValueError", "stack": "s"})
    assert type(error) is BY_CODE[code]
    assert "why" in str(error)
    assert error.detail["code"] == code


def test_an_unknown_code_is_a_function_error() -> None:
    error = failure({"code": "strange", "message": "why"})
    assert (type(error), str(error)) == (FunctionError, "why")
    assert type(failure({})) is FunctionError


def test_an_invalid_event_keeps_its_fields() -> None:
    fields = [{"loc": "a", "msg": "is missing"}]
    error = outcome_error(
        Outcome("invalid_event", error={"code": "invalid_event", "fields": fields}), "app.f"
    )
    assert isinstance(error, InvalidEvent)
    assert (error.function, error.fields) == ("app.f", fields)
    assert isinstance(outcome_error(Outcome("timeout"), "app.f"), InvocationFailed)


async def test_some_errors_tell_the_caller_more_in_headers() -> None:
    sent: list[Any] = []

    async def reply(message: Any) -> None:
        sent.append(message)

    await send_error(reply, Throttled("full", 2.6))
    await send_error(reply, Throttled("full", 0.1))
    await send_error(reply, Unauthorized("no"))
    await send_error(reply, Forbidden("no"))
    headers = [dict(message["headers"]) for message in sent if "headers" in message]
    assert [found.get(b"retry-after") for found in headers] == [b"3", b"1", None, None]
    assert [found.get(b"www-authenticate") for found in headers] == [None, None, b"Bearer", None]


def test_what_will_be_tried_again_says_so_and_what_is_over_does_not() -> None:
    invocation = Invocation(1, "a.f", "a.f", b"1", 1.0, 2.0, 3.0, tags="x,y", job=5)
    waiting = shown_record(
        Record(invocation=invocation, status=Status.WAITING, attempts=1, error={"code": "e"})
    )
    running = shown_record(Record(invocation=invocation, status=Status.WAITING, attempts=0), running=True)
    dead = shown_record(Record(invocation=invocation, status=Status.DEAD, attempts=1, error={"code": "e"}))
    assert waiting["error"] == {"code": "e", "retrying": True}
    assert (waiting["status"], running["status"], dead["status"]) == ("waiting", "running", "dead")
    assert dead["error"] == {"code": "e"}
    assert (dead["tags"], dead["job_id"], dead["invocation_id"]) == (["x", "y"], f"{5:016x}", f"{1:016x}")
