"""Trail: which functions' writes led to what a worker writes now, so that a loop of uploads is found.

Imports the error tree. A worker runs one invocation at a time, so its trail is the process's own. It goes
with each object that an invocation of an upload writes, as metadata, and comes back in the event of that
object.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.runtime.errors import HeadraceError

NAME = "headrace-trail"
"""The name of the object's metadata."""
EVENT = "headrace"
"""The event's key that holds the trail of its object."""
FUNCTIONS_MAX = 8
"""The last functions of a trail that are named."""


class Trail(msgspec.Struct, frozen=True):
    """How many uploads, each written on account of the one before, led to an object; and by which functions,
    the last ones.
    """

    hops: int
    functions: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((str(self.hops), *self.functions))

    def then(self, function: str) -> "Trail":
        """The trail of what a function writes."""
        return Trail(self.hops + 1, (*self.functions, function)[-FUNCTIONS_MAX:])


class UploadLoop(HeadraceError):
    """Functions write, again and again, objects that set them off: (object, hops, names of the last ones)."""

    code = "upload_loop"
    hint = "Write elsewhere, or narrow the trigger; max_hops= of Upload allows longer chains."
    final = True

    def __str__(self) -> str:
        place, hops, functions = self.args
        chain = " > ".join(functions)
        return (
            f"{place} is upload {hops} in a row that a function wrote on account of the one before: {chain}"
        )


NOBODY = Trail(0, ())
_present: list[Trail | None] = [None]


def read_trail(text: str | None) -> Trail | None:
    """The trail in an object's metadata; None if there is none that can be read."""
    hops, *functions = (text or "").split(" ")
    if not hops.isascii() or not hops.isdigit() or len(hops) > 9 or not functions:
        return None
    return Trail(int(hops), tuple(functions[-FUNCTIONS_MAX:]))


def present_trail() -> Trail | None:
    """What is to be written along with objects."""
    return _present[0]


def leave_trail() -> None:
    """Objects are not written on account of an upload."""
    _present[0] = None


def follow_trail(event: Mapping[str, Any], function: str) -> None:
    """What is written from now on is on account of this event of an upload."""
    given = event.get(EVENT)
    try:
        before = Trail(int(given["hops"]), tuple(given["functions"])) if given else NOBODY
    except (TypeError, ValueError, KeyError):  # somebody's own event
        before = NOBODY
    _present[0] = before.then(function)
