"""KeyPattern: which keys belong to sets, and to which set each of them.

Imports the error tree and what a glob means to the upload trigger.
"""

import re
from collections.abc import Mapping

from headrace.runtime.errors import InvalidFunction
from headrace.triggers.upload.trigger import glob_source

WHOLE = "all"
"""The name of the only set of a pattern without captures."""

_CAPTURE = re.compile(r"\{([^{}]*)\}")
_WILD = re.compile(r"[*?\[]")


class KeyPattern:
    """A key with captures and wildcards: `{day}/*.csv`.

    `{name}` stands for one or more characters other than a slash and takes as many as it can; the same name
    twice stands for the same text. `*`, `?`, `**/`, `[a-z]` and `[!a-z]` are those of `Upload(glob=)`.

    Raises: InvalidFunction, which names `owner`.
    """

    def __init__(self, text: str, owner: str) -> None:
        self.text = text
        self._parts = _parts(text)
        self.names = tuple(dict.fromkeys(name for is_capture, name in self._parts if is_capture))
        for name in self.names:
            if not name.isidentifier():
                raise InvalidFunction(
                    owner,
                    f"{{{name}}} in {text!r} is no name",
                    "Write a name such as {day}, or [{] for a brace.",
                )
        known: set[str] = set()
        source = ""
        for is_capture, part in self._parts:
            if not is_capture:
                source += glob_source(part)
            elif part in known:
                source += f"(?P={part})"
            else:
                known.add(part)
                source += f"(?P<{part}>[^/]+)"
        try:
            self._expression = re.compile(source, re.DOTALL)
        except re.error as error:
            raise InvalidFunction(
                owner, f"the pattern {text!r} cannot be read: {error}", "Write for example {day}/*.csv."
            ) from None

    def match(self, key: str) -> dict[str, str] | None:
        """What the captures hold, if the whole key matches."""
        found = self._expression.fullmatch(key)
        return None if found is None else found.groupdict()

    def beginning(self, values: Mapping[str, str]) -> str:
        """What all matching keys with these captures begin with."""
        beginning = ""
        for is_capture, part in self._parts:
            if is_capture:
                if part not in values:
                    break
                beginning += values[part]
            elif (wild := _WILD.search(part)) is not None:
                beginning += part[: wild.start()]
                break
            else:
                beginning += part
        return beginning

    def example(self, values: Mapping[str, str], filling: str) -> str:
        """A key with these captures, and `filling` for what `*` and `?` stand for; it need not match."""
        text = ""
        for is_capture, part in self._parts:
            if is_capture:
                text += values[part]
            else:
                text += part.replace("**/", "").replace("**", filling).replace("*", filling).replace("?", "x")
        return text

    def folder(self) -> str:
        """The pattern up to the last slash before its first wildcard: where a set without wildcards in the
        names of its folders lies. Ends with a slash, or is empty.
        """
        literal = ""
        for is_capture, part in self._parts:
            if is_capture:
                literal += f"{{{part}}}"
            elif (wild := _WILD.search(part)) is not None:
                literal += part[: wild.start()]
                break
            else:
                literal += part
        return literal[: literal.rfind("/") + 1]

    @property
    def is_fixed(self) -> bool:
        """Whether the captures alone make one key."""
        return not any(_WILD.search(part) for is_capture, part in self._parts if not is_capture)


def _parts(text: str) -> list[tuple[bool, str]]:
    """The pattern as (whether it is a capture, its name or the text); a brace in brackets is a character."""
    parts: list[tuple[bool, str]] = []
    at = 0
    while at < len(text):
        bracket = re.compile(r"\[!?\]?[^\]]*\]").match(text, at) if text[at] == "[" else None
        capture = _CAPTURE.match(text, at)
        if capture is not None:
            parts.append((True, capture[1]))
            at = capture.end()
            continue
        piece = bracket[0] if bracket is not None else text[at]
        if parts and not parts[-1][0]:
            parts[-1] = (False, parts[-1][1] + piece)
        else:
            parts.append((False, piece))
        at += len(piece)
    return parts
