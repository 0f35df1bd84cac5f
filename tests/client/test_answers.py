"""Answers as errors: the classes that the node raised, and what is said of another server's answers."""

import json
import pickle

import pytest

from headrace.runtime.client.answer import WaitTimeout, answered_error, recorded_error, segment
from headrace.runtime.errors import (
    BadRequest,
    Conflict,
    FunctionTimeout,
    HeadraceError,
    InvalidEvent,
    NoSuchObject,
    PayloadTooLarge,
    Retryable,
    Throttled,
    Unknown,
    UnknownFunction,
)


def answered(status: int, code: str, **detail: object) -> HeadraceError:
    body = {"error": {"code": code, "message": "it went wrong", "hint": "do this", **detail}}
    return answered_error(status, {"retry-after": "7"}, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "unknown_function", UnknownFunction),
        (404, "no_such_object", NoSuchObject),
        (413, "payload_too_large", PayloadTooLarge),
        (504, "timeout", FunctionTimeout),
        (429, "throttled", Throttled),
        (404, "of_a_newer_release", Unknown),
        (409, "of_a_newer_release", Conflict),
        (503, "of_a_newer_release", Retryable),
    ],
)
def test_an_answer_is_the_class_that_the_node_raised(
    status: int, code: str, kind: type[HeadraceError]
) -> None:
    error = answered(status, code)

    assert isinstance(error, kind)
    assert str(error) == "it went wrong"
    assert error.code == code
    assert error.http_status == status


def test_the_node_s_hint_is_kept() -> None:
    assert answered(404, "unknown_function").hint == "do this"


def test_an_answered_error_pickles() -> None:
    error = answered(429, "throttled")
    again = pickle.loads(pickle.dumps(error))

    assert isinstance(again, Throttled)
    assert (str(again), again.hint, again.retry_after_s) == (str(error), error.hint, 7)


def test_the_fields_of_an_invalid_event_are_kept() -> None:
    error = answered(422, "invalid_event", fields=[{"loc": "body.stars", "msg": "too many"}])

    assert isinstance(error, InvalidEvent)
    assert error.fields == [{"loc": "body.stars", "msg": "too many"}]


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[]", b'{"error": "text"}', b"\xff"])
def test_an_answer_of_something_else_is_still_an_error(body: bytes) -> None:
    assert isinstance(answered_error(502, {}, body), Retryable)
    assert "HTTP 404" in str(answered_error(404, {}, body))


def test_a_recorded_error_is_the_outcome_s_class() -> None:
    assert isinstance(recorded_error({"code": "timeout", "message": "60 s"}), FunctionTimeout)
    assert isinstance(recorded_error({"code": "invalid_event", "message": "no"}), InvalidEvent)


def test_a_wait_s_end_is_a_timeout_for_everybody() -> None:
    error = WaitTimeout("job 1", 5.0)

    assert isinstance(error, TimeoutError)
    assert str(error) == "job 1 had not ended after 5 s"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_ask_for_another_path_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        segment(name)


def test_a_name_is_one_segment_of_a_path() -> None:
    assert segment("a/b?c") == "a%2Fb%3Fc"
