"""Tally: what one transaction adds to the books, function by function.

Imports its own room. The books are the sums over the shards of table `counter`; they survive
retention.
"""

from headrace.runtime.store.database import Database

BOOK_NAMES = (
    "accepted", "succeeded", "dead", "cancelled", "deduplicated",
    "removed_succeeded", "removed_dead", "removed_cancelled",
)  # fmt: skip
"""The columns of the books, in the order of a Tally's."""

ACCEPTED, SUCCEEDED, DEAD, CANCELLED, DEDUPLICATED = range(5)
"""The columns of a Tally. An ended status is one more than its column."""

REMOVED = 4
"""From the column of an end to the column of its removal."""


_ADD = (
    f"INSERT INTO counter (function, shard, {', '.join(BOOK_NAMES)})"
    f" VALUES (?, ?, {', '.join('?' * len(BOOK_NAMES))})"
    " ON CONFLICT (function, shard) DO UPDATE SET "
    + ", ".join(f"{name} = counter.{name} + excluded.{name}" for name in BOOK_NAMES)
)


class Tally:
    """Counts by function, in the columns above."""

    def __init__(self) -> None:
        self.by_function: dict[str, list[int]] = {}

    def add(self, function: str, column: int, count: int = 1) -> None:
        row = self.by_function.get(function)
        if row is None:
            row = self.by_function[function] = [0] * len(BOOK_NAMES)
        row[column] += count

    def merge(self, other: "Tally") -> None:
        for function, row in other.by_function.items():
            for column, count in enumerate(row):
                self.add(function, column, count)


def add_to_books(db: Database, tally: Tally, shard: int) -> None:
    """Add what a transaction counted to a shard of the books: as its last step, and in one order, so that
    transactions neither wait long for each other nor in a circle.
    """
    rows = [(name, shard, *row) for name, row in sorted(tally.by_function.items()) if any(row)]
    if rows:
        db.executemany(_ADD, rows)
