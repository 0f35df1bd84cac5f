"""What people use in their own tests: an app under test on a whole node, a clock moved by hand, faults.

Each name is loaded when it is first asked for, since pytest loads the plugin of this room at every start.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.runtime.testing.app import AppUnderTest, Reply
    from headrace.runtime.testing.clock import ManualClock
    from headrace.runtime.testing.faults import Faults
    from headrace.runtime.testing.pool import InlinePool
    from headrace.runtime.testing.virtual import VirtualClock

__all__ = ["AppUnderTest", "Faults", "InlinePool", "ManualClock", "Reply", "VirtualClock"]

_HOMES = {
    "AppUnderTest": "app",
    "Faults": "faults",
    "InlinePool": "pool",
    "ManualClock": "clock",
    "Reply": "app",
    "VirtualClock": "virtual",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
