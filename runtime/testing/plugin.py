"""The pytest plugin: fixtures with a user's functions on a whole node.

Imports pytest only, since every run of pytest loads it; the node is imported when a test asks for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headrace.runtime.testing.app import AppUnderTest
    from headrace.runtime.testing.faults import Faults
    from headrace.runtime.testing.virtual import VirtualClock

MARKER = "headrace(*code, now=None, workers=0, **settings): the functions of `headrace_app`: apps or paths."


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def headrace_clock(request: pytest.FixtureRequest) -> "VirtualClock":
    """Time, which stands still until the test advances it."""
    from headrace.runtime.testing.virtual import VirtualClock

    for marker in request.node.iter_markers("headrace"):
        if "now" in marker.kwargs:
            return VirtualClock(marker.kwargs["now"])
    return VirtualClock()


@pytest.fixture
def headrace_app(request: pytest.FixtureRequest, headrace_clock: "VirtualClock") -> "Iterator[AppUnderTest]":
    """The functions that the marker `headrace` names, on a node of the test's own."""
    from headrace.runtime.testing.app import AppUnderTest

    code: tuple[object, ...] = ()
    settings: dict[str, object] = {}
    for marker in request.node.iter_markers("headrace"):  # the closest first
        code = code or marker.args
        settings = {**marker.kwargs, **settings}
    if not code:
        raise pytest.UsageError(
            "headrace_app does not know which functions to run: mark the test, or set"
            " pytestmark = pytest.mark.headrace(functions.app) in its file"
        )
    settings.pop("now", None)
    with AppUnderTest(*code, clock=headrace_clock, **settings) as app:  # type: ignore[arg-type]
        yield app


@pytest.fixture
def headrace_faults(headrace_app: "AppUnderTest") -> "Faults":
    """What is to go wrong in `headrace_app`."""
    return headrace_app.faults
