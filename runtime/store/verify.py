"""Verify: one answer to whether the books balance, every row is whole and every object is there.

Imports the floor, the object stores and its own room.
"""

import asyncio
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.model.audit import ENDS, PARTS, Audit, Book, Problem
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.store.protocol import AuditStore
from headrace.runtime.store.survey import InThread, Objects, Survey

NAMED_MAX = 100
"""Problems of one kind that are named, when nothing else is asked for."""


class Verdict(msgspec.Struct, kw_only=True):
    """What a verification showed. `balanced` is whether there is no problem at all; `found` counts problems
    by check, of which `problems` names some; `objects` is None where they were not looked at. `at` is when it
    began, in epoch seconds.
    """

    balanced: bool
    audit: Audit
    objects: Objects | None
    problems: list[Problem]
    found: dict[str, int]
    at: float
    seconds: float

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        total = Book()
        for book in self.audit.books.values():
            total.add(book)
        return {
            "balanced": self.balanced,
            "total": _document(total),
            "functions": {name: _document(book) for name, book in sorted(self.audit.books.items())},
            "problems": msgspec.to_builtins(self.problems),
            "found": self.found,
            "objects": msgspec.to_builtins(self.objects),
            "checked_rows": self.audit.checked_rows,
            "at": self.at,
            "seconds": self.seconds,
        }


class Verifier:
    """Verifies a store and its objects, one at a time, and remembers the last verdict on all functions."""

    def __init__(self, store: AuditStore, objects: ObjectStore, *, clock: Clock, in_thread: InThread) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock
        self._in_thread = in_thread
        self._one_at_a_time = asyncio.Lock()
        self.last: Verdict | None = None

    async def verify(
        self, *, function: str | None = None, objects: bool = True, limit: int = NAMED_MAX
    ) -> Verdict:
        """Look at everything, or at one function's books and rows; with `objects` also at the objects, unless
        only at one function's.

        Raises what the store and the object store raise when they cannot be read.
        """
        async with self._one_at_a_time:
            began, at = self._clock.monotonic(), self._clock.now()
            audit = await self._store.audit(function=function, limit=limit)
            problems, found = list(audit.problems), dict(audit.found)
            surveyed: Objects | None = None
            if objects and function is None:
                survey = Survey(self._store, self._objects, in_thread=self._in_thread)
                surveyed = await survey.check(now=at, limit=limit)
                problems += survey.problems
                if surveyed.missing:
                    found["object"] = surveyed.missing
            verdict = Verdict(
                balanced=not found,
                audit=audit,
                objects=surveyed,
                problems=problems,
                found=found,
                at=at,
                seconds=self._clock.monotonic() - began,
            )
        if function is None:
            self.last = verdict
        return verdict


def _document(book: Book) -> dict[str, Any]:
    counts = {name: getattr(book, name) for name in ("accepted", *PARTS, "deduplicated")}
    return {**counts, "missing": book.missing, "removed": {end: book.removed[end] for end in ENDS},
            "rows": dict(book.rows)}  # fmt: skip
