"""Looks: what is there of one set, and the fingerprint by which a change of it is noticed.

Imports the object stores' protocol and its own room.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from headrace.runtime.objects.protocol import ObjectInfo
from headrace.triggers.uploadset.condition import Facts
from headrace.triggers.uploadset.memory import Remembered

_MODULUS = 1 << 64


class Fingerprint:
    """Of the files, markers and manifests of one set, in any order: two states of it have different ones."""

    __slots__ = ("_sum", "count")

    def __init__(self) -> None:
        self._sum = 0
        self.count = 0

    def add(self, key: str, etag: str, size: int) -> None:
        text = f"{key}\0{etag}\0{size}".encode(errors="surrogatepass")
        self._sum = (self._sum + int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())) % _MODULUS
        self.count += 1

    def __str__(self) -> str:
        return f"{self.count:x}-{self._sum:016x}"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a set, and what had been `remembered` of it just before.

    `arriving` are objects that may still be written, or whose arrival is not recorded yet: neither the facts
    nor the fingerprint have them. `newest` are the last objects that came. `too_many` says that it has more
    than FILES_MAX files, of which the facts have the first.
    """

    remembered: Remembered
    facts: Facts
    fingerprint: str
    arriving: Sequence[ObjectInfo] = ()
    newest: Sequence[ObjectInfo] = ()
    too_many: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.facts.files or self.facts.markers or self.arriving)
