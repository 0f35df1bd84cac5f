"""The smallest examples, called as plain functions."""

import pytest
from pydantic import ValidationError

from functions import hello


def test_a_person_is_greeted() -> None:
    assert hello.greet("Ada") == {"greeting": "Hello, Ada!"}
    assert hello.greet("Ada", shout=True) == {"greeting": "HELLO, ADA!"}


def test_many_people_are_greeted_in_their_order() -> None:
    assert hello.greet_all(hello.Guests(names=["Ada", "Alan"])) == {
        "greetings": ["Hello, Ada!", "Hello, Alan!"]
    }


@pytest.mark.parametrize("names", [[], [""], ["x" * 101]])
def test_a_list_of_guests_without_a_proper_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="names"):
        hello.Guests(names=names)


def test_numbers_are_added() -> None:
    assert hello.add(2, 3) == 5
