"""Tally: what one transaction adds to the books, function by function.

Imports nothing of the house. The books are the sums over the shards of table `counter`; they survive
retention.
"""

BOOK_NAMES = (
    "accepted", "succeeded", "dead", "cancelled", "deduplicated",
    "removed_succeeded", "removed_dead", "removed_cancelled",
)  # fmt: skip
"""The columns of the books, in the order of a Tally's."""

ACCEPTED, SUCCEEDED, DEAD, CANCELLED, DEDUPLICATED = range(5)
"""The columns of a Tally. An ended status is one more than its column."""

REMOVED = 4
"""From the column of an end to the column of its removal."""


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
