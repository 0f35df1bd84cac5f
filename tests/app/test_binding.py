"""Binding: how an event's parts become arguments, and how each that does not fit is named."""

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
import pytest
from typing_extensions import TypedDict

from headrace import HttpEvent, ScheduleEvent, UploadEvent
from headrace.runtime.binding import Signature
from headrace.runtime.errors import InvalidEvent, InvalidFunction
from headrace.runtime.model.event import Event

CONTEXT = object()


class Review(pydantic.BaseModel):
    stars: int
    text: str = ""


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    name: str


def call(function: Callable[..., Any], payload: Any) -> Any:
    """What a worker does with one event."""
    signature = Signature(function, name="app.f")
    signature.prepare()
    return signature.entry()(payload, CONTEXT)


def fields(function: Callable[..., Any], payload: Any) -> dict[str, str]:
    """The fields that the error names."""
    with pytest.raises(InvalidEvent) as caught:
        call(function, payload)
    assert caught.value.function == "app.f"
    return {item["loc"]: item["msg"] for item in caught.value.fields}


def http(
    body: str | None = None,
    *,
    path: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    kind: str = "application/json",
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "version": "2.0",
        "requestContext": {"http": {"method": "POST"}},
        "rawPath": "/",
        "headers": {"content-type": kind},
    }
    if body is not None:
        event["body"] = body
    if path:
        event["pathParameters"] = path
    if query:
        event["queryStringParameters"] = query
    return event


# ---- event, context
# ----------------------------------------------------------------------------------------------


def test_context_and_event_are_given_by_name_in_any_order() -> None:
    assert call(lambda: "nothing", {"a": 1}) == "nothing"
    assert call(lambda event: event, {"a": 1}) == {"a": 1}
    assert call(lambda context: context, 5) is CONTEXT
    assert call(lambda event, context: (event, context), 5) == (5, CONTEXT)
    assert call(lambda context, event: (event, context), 5) == (5, CONTEXT)
    assert call(lambda context, a, event: (a, event, context), {"a": 1}) == (1, {"a": 1}, CONTEXT)


def test_an_event_has_the_helpers_of_its_kind_without_an_annotation() -> None:
    upload = UploadEvent.of("b", "a b", size=1, etag="e", sequencer="1", time="t")
    assert call(lambda event: event.key, dict(upload)) == "a b"
    assert call(lambda event: event.method, http()) == "POST"
    assert call(lambda event: type(event), {"x": 1}) is Event


def test_a_sole_parameter_annotated_with_an_event_class_gets_the_event() -> None:
    upload = dict(UploadEvent.of("b", "k", size=1, etag="e", sequencer="1", time="t"))

    def f(thing: UploadEvent) -> Any:
        return type(thing), thing.bucket

    def g(fired: ScheduleEvent, context: Any) -> Any:
        return fired.schedule, context

    assert call(f, upload) == (UploadEvent, "b")
    due = dict(ScheduleEvent.of("app.g/0", due="2026-01-01T00:00:00Z", id="1"))
    assert call(g, due) == ("app.g/0", CONTEXT)
    assert fields(f, [1]) == {"event": "is a list; an object is expected"}

    def h(event: HttpEvent) -> Any:
        return type(event)

    assert call(h, http()) is HttpEvent
    assert fields(h, None) == {"event": "is null; an object is expected"}


# ---- models
# ------------------------------------------------------------------------------------------------------


def test_a_sole_parameter_annotated_with_a_model_gets_the_validated_event() -> None:
    def f(review: Review) -> Any:
        return review

    assert call(f, {"stars": 4}) == Review(stars=4)
    assert call(f, http('{"stars": "5", "text": "x"}')) == Review(stars=5, text="x")
    assert set(fields(f, {"stars": "many", "text": 3})) == {"stars", "text"}
    assert set(fields(f, {})) == {"stars"}
    assert "event" in fields(f, [1])
    assert fields(f, http(None)) == {"body": "is missing"}
    assert "is not valid JSON" in fields(f, http("{"))["body"]


def test_dataclasses_typed_dicts_optional_and_annotated_models_are_models() -> None:
    def point(p: Point) -> Any:
        return p

    def row(r: Row, context: Any) -> Any:
        return r

    def maybe(p: Point | None) -> Any:
        return p

    def annotated(p: Annotated[Point, "a point"]) -> Any:
        return p

    assert call(point, {"x": 1, "y": "2"}) == Point(1, 2)
    assert call(row, {"name": "n"}) == {"name": "n"}
    assert call(maybe, None) is None
    assert call(annotated, {"x": 1, "y": 2}) == Point(1, 2)
    assert "y" in fields(point, {"x": 1})


def test_an_annotated_event_is_validated() -> None:
    def f(event: Review, context: Any) -> Any:
        return event.stars, context

    def g(event: dict[str, int]) -> Any:
        return event

    assert call(f, {"stars": 1}) == (1, CONTEXT)
    assert set(fields(f, {"stars": []})) == {"stars"}
    assert call(g, {"a": "1"}) == {"a": 1}


# ---- by name
# -----------------------------------------------------------------------------------------------------


def rate(product: str, body: Review, limit: int = 10) -> Any:
    return product, body, limit


def test_http_binds_by_name_from_the_path_the_query_and_the_body() -> None:
    event = http('{"stars": 4}', path={"product": "a/b"}, query={"limit": "3", "extra": "x"})
    assert call(rate, event) == ("a/b", Review(stars=4), 3)
    assert call(rate, http('{"stars": 4}', path={"product": "p"})) == ("p", Review(stars=4), 10)


def test_the_path_goes_before_the_query_and_no_query_becomes_the_body() -> None:
    assert call(lambda a, b: (a, b), http(path={"a": "1"}, query={"a": "2", "b": "3"})) == ("1", "3")
    assert fields(lambda body, a: (a, body), http(query={"a": "1"})) == {"body": "is missing"}


def test_a_direct_payload_binds_by_its_keys() -> None:
    assert call(rate, {"product": "p", "body": {"stars": 1}, "more": 1}) == ("p", Review(stars=1), 10)


def test_all_fields_that_do_not_fit_are_named_at_once() -> None:
    assert set(fields(rate, {"body": {"stars": "x"}, "limit": "y"})) == {"product", "body.stars", "limit"}
    assert fields(rate, {"body": {"stars": 1}}) == {"product": "is missing"}
    assert set(fields(rate, http('{"stars": null}', query={"limit": "z"}))) == {
        "product",
        "body.stars",
        "limit",
    }


def test_bodies_are_parsed_by_their_content_type() -> None:
    def f(body: Any) -> Any:
        return body

    assert call(f, http('{"a": [1]}')) == {"a": [1]}
    assert call(f, http('{"a": 1}', kind="application/vnd.x+json; charset=utf-8")) == {"a": 1}
    assert call(f, http("a=1&b=&a=2", kind="application/x-www-form-urlencoded")) == {"a": ["1", "2"], "b": ""}
    assert call(f, http("héllo", kind="text/plain")) == "héllo"
    binary = {**http("AAEC", kind="application/octet-stream"), "isBase64Encoded": True}
    assert call(f, binary) == b"\0\1\2"


def test_a_payload_that_is_no_object_goes_to_a_sole_parameter_and_to_no_other() -> None:
    assert call(lambda n: n, 5) == 5
    assert call(lambda items: items, [1, 2]) == [1, 2]
    assert call(lambda n, context: (n, context), "x") == ("x", CONTEXT)
    assert call(lambda n=7: n, None) == 7
    assert call(lambda n: n, None) is None
    assert call(lambda n: n, {"n": 3}) == 3
    assert fields(lambda a, b: a, [1])["event"] == "is a list; an object with a, b is expected"
    assert call(lambda a=1, b=2: (a, b), None) == (1, 2)
    assert set(fields(lambda a, b: a, None)) == {"a", "b"}

    def typed(count: int) -> int:
        return count

    assert call(typed, "5") == 5
    assert set(fields(typed, "many")) == {"count"}


def test_types_are_those_of_pydantic() -> None:
    def f(kind: Literal["a", "b"], tags: list[int], ratio: float = 0.5) -> Any:
        return kind, tags, ratio

    assert call(f, {"kind": "a", "tags": ["1", 2]}) == ("a", [1, 2], 0.5)
    assert set(fields(f, {"kind": "c", "tags": [1, "x"], "ratio": {}})) == {"kind", "tags.1", "ratio"}


def test_an_annotation_that_is_text_is_read() -> None:
    def f(n: "int", event: "Any") -> "Any":
        return n, event

    assert call(f, {"n": "3"}) == (3, {"n": "3"})


# ---- defaults and keywords
# ---------------------------------------------------------------------------------------


def test_defaults_stand_in_for_what_the_event_lacks_and_are_not_validated() -> None:
    def f(a: int = None, *, b: str = "x", c: list[int] = [1]) -> Any:  # type: ignore[assignment]  # noqa: B006, RUF013
        return a, b, c

    assert call(f, {}) == (None, "x", [1])
    assert call(f, {"a": "2", "c": ["3"]}) == (2, "x", [3])


def test_keyword_only_parameters_are_filled_by_name() -> None:
    def f(event: Any, *, context: Any) -> Any:
        return event, context

    def g(*, context: Any) -> Any:
        return context

    def h(*, a: Any, event: Any = None) -> Any:
        return a, event

    assert call(f, 1) == (1, CONTEXT)
    assert call(g, 1) is CONTEXT
    assert call(h, {"a": 1}) == (1, {"a": 1})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *parts: 1, r"\*parts cannot be filled"),
        (lambda **parts: 1, r"\*\*parts cannot be filled"),
        (lambda a, /: 1, "'a' is positional-only"),
        (lambda a=object(): 1, "the default of 'a' is a object"),  # noqa: B008 - the default itself is what is tested
        (lambda a=json: 1, "the default of 'a' is a module"),
    ],
)
def test_parameters_that_no_event_can_fill_are_refused(function: Any, message: str) -> None:
    with pytest.raises(InvalidFunction, match=message) as caught:
        Signature(function, name="app.f")
    assert caught.value.hint


def test_an_annotation_that_cannot_be_read_or_validated_is_refused_at_declaration() -> None:
    def f(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    class Opaque: ...

    def g(a: Opaque, b: int) -> None: ...

    with pytest.raises(InvalidFunction, match="cannot be read"):
        Signature(f, name="app.f")
    with pytest.raises(InvalidFunction, match="the annotation of 'a' cannot be validated"):
        Signature(g, name="app.f").prepare()


def test_what_a_function_takes_and_returns_is_described_by_schemas() -> None:
    signature = Signature(rate, name="app.rate")
    described = signature.describe()
    assert described["product"] == {"schema": {"type": "string"}, "required": True}
    assert described["limit"] == {"schema": {"type": "integer"}, "required": False, "default": 10}
    assert described["body"]["schema"]["properties"].keys() == {"stars", "text"}
    assert signature.returns_schema() is None
