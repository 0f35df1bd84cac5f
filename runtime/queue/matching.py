"""Matching: which invocations a request to cancel means.

Imports the floor only.
"""

import msgspec

from headrace.runtime.model.invocation import Invocation


def tagged(tags: str | None, tag: str | None) -> bool:
    """Whether tags, separated by commas, hold a tag; no tag is held by all."""
    return tag is None or tag in (tags or "").split(",")


class Matching:
    """Invocations of a function, with a tag, or both, whose ids are below `below`; none of a job. `last` says
    that whoever asked has been through all that nobody had claimed.
    """

    __slots__ = ("below", "function", "last", "tag")

    def __init__(self, function: str | None, tag: str | None, below: int, last: bool = False) -> None:
        self.function = function
        self.tag = tag
        self.below = below
        self.last = last

    @property
    def final(self) -> "Matching":
        """The same, asked for the last time."""
        return Matching(self.function, self.tag, self.below, True)

    @property
    def text(self) -> str:
        """The same in a word to another node."""
        return msgspec.json.encode((self.function, self.tag, self.below, self.last)).decode()

    @classmethod
    def of_text(cls, text: str) -> "Matching":
        """What `text` said."""
        return cls(*msgspec.json.decode(text, type=tuple[str | None, str | None, int, bool]))

    def has(self, invocation: Invocation) -> bool:
        """Whether an invocation is meant."""
        return (
            invocation.id < self.below
            and invocation.job is None
            and (self.function is None or invocation.function == self.function)
            and tagged(invocation.tags, self.tag)
        )
