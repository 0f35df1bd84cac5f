"""The smallest examples: called as plain functions, by name and over HTTP."""

from typing import Any

import pytest
from pydantic import ValidationError

from functions import hello
from headrace.runtime.errors import InvalidEvent
from headrace.testing import AppUnderTest

pytestmark = pytest.mark.headrace(hello.app)


def test_a_person_is_greeted() -> None:
    assert hello.greet("Ada") == {"greeting": "Hello, Ada!"}
    assert hello.greet("Ada", shout=True) == {"greeting": "HELLO, ADA!"}


@pytest.mark.parametrize("names", [[], [""], ["x" * 101]])
def test_a_list_of_guests_without_a_proper_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="names"):
        hello.Guests(names=names)


def test_numbers_are_added(headrace_app: AppUnderTest) -> None:
    assert hello.add(2, 3) == 5
    assert headrace_app.invoke("hello.add", {"a": 2, "b": 3}) == 5


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/hello/Ada", 200, {"greeting": "Hello, Ada!"}),
        ("/hello/Ada%20L.?shout=true", 200, {"greeting": "HELLO, ADA L.!"}),
    ],
)
def test_a_route_greets(headrace_app: AppUnderTest, path: str, status: int, answer: Any) -> None:
    found = headrace_app.http("GET", path)

    assert (found.status, found.json()) == (status, answer)


def test_many_people_are_greeted_in_their_order(headrace_app: AppUnderTest) -> None:
    found = headrace_app.http("POST", "/hello", json={"names": ["Ada", "Alan"]})

    assert found.json() == {"greetings": ["Hello, Ada!", "Hello, Alan!"]}


def test_what_does_not_fit_is_answered_with_the_field(headrace_app: AppUnderTest) -> None:
    assert headrace_app.http("GET", "/hello/Ada?shout=perhaps").status == 422
    refused = headrace_app.http("POST", "/hello", json={"names": []})
    assert refused.status == 422
    assert "names" in refused.text
    with pytest.raises(InvalidEvent, match="shout"):
        headrace_app.invoke("hello.greet", {"name": "Ada", "shout": "perhaps"})
