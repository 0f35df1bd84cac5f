"""Audits: whether the books agree with the rows that are kept, and what breaks them.

Imports nothing of Headrace.
"""

import msgspec

PARTS = ("waiting", "running", "succeeded", "dead", "cancelled")
"""Where an accepted invocation can be; their sum is what was accepted."""

ENDS = ("succeeded", "dead", "cancelled")


class Book(msgspec.Struct, kw_only=True):
    """One function's books beside its rows, from one snapshot.

    `accepted`, `succeeded`, `dead`, `cancelled`, `deduplicated` and `removed` are what the counters say;
    `rows` is how many rows are there in each status, and `waiting` and `running` are theirs, since only rows
    wait or run. `other` counts rows in a status that does not exist.
    """

    accepted: int = 0
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    deduplicated: int = 0
    removed: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    rows: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    other: int = 0

    @property
    def missing(self) -> int:
        """Accepted ones that are nowhere; negative when there are more rows than were accepted."""
        return self.accepted - sum(self.rows.values()) - sum(self.removed.values())

    def add(self, book: "Book") -> None:
        """Add another function's."""
        for name in ("accepted", *PARTS, "deduplicated", "other"):
            setattr(self, name, getattr(self, name) + getattr(book, name))
        for name in ENDS:
            self.removed[name] += book.removed[name]
        for name in PARTS:
            self.rows[name] += book.rows[name]


class Problem(msgspec.Struct, kw_only=True, frozen=True):
    """One thing that breaks a rule. `id` is the invocation's or job's as users see it, or another row's key;
    None where the problem is a function's as a whole.
    """

    check: str
    message: str
    hint: str
    function: str | None = None
    id: str | None = None


class Audit(msgspec.Struct, kw_only=True):
    """What one snapshot of a store showed. `found` counts by check, `problems` names some."""

    books: dict[str, Book] = msgspec.field(default_factory=dict)
    problems: list[Problem] = msgspec.field(default_factory=list)
    found: dict[str, int] = msgspec.field(default_factory=dict)
    checked_rows: int = 0


class Reference(msgspec.Struct, kw_only=True, frozen=True):
    """The objects that one invocation's or job's row names, as `s3://BUCKET/KEY`."""

    id: int
    function: str
    payload_ref: str | None = None
    result_ref: str | None = None

    @property
    def addresses(self) -> list[str]:
        return [address for address in (self.payload_ref, self.result_ref) if address is not None]
