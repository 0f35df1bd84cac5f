"""Comparison: what a listing holds against what the ledger holds, key by key, in bounded memory.

Imports nothing but the shapes it compares. Pure: whoever drives it does the reading.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import LedgerEntry


class Differences(msgspec.Struct):
    """What a stretch of keys differs in."""

    new: list[ObjectInfo]
    """Objects that the ledger does not have in this state."""

    missing: list[LedgerEntry]
    """Rows of the ledger whose keys the listing does not have."""

    until: str = ""
    """The last key that was compared."""


class Comparison:
    """Merges two sequences that ascend by the keys' UTF-8 bytes, fed by the page; a page may be empty.

    A listed object is new without a row, or if ETag or size differ and it is not older than the row.
    """

    def __init__(self) -> None:
        self._listed: deque[ObjectInfo] = deque()
        self._rows: deque[LedgerEntry] = deque()
        self._all_listed = False
        self._all_rows = False

    @property
    def wants_listed(self) -> bool:
        """Whether it can go no further without a page of the listing."""
        return not self._listed and not self._all_listed

    @property
    def wants_rows(self) -> bool:
        """Whether it can go no further without a page of the ledger."""
        return not self._rows and not self._all_rows

    @property
    def is_done(self) -> bool:
        return self._all_listed and self._all_rows and not self._listed and not self._rows

    def feed_listed(self, page: Sequence[ObjectInfo], *, last: bool) -> None:
        self._listed.extend(page)
        self._all_listed = last

    def feed_rows(self, page: Sequence[LedgerEntry], *, last: bool) -> None:
        self._rows.extend(page)
        self._all_rows = last

    def compare(self) -> Differences:
        """Go as far as the pages reach."""
        found = Differences([], [])
        listed, rows = self._listed, self._rows
        while (listed or self._all_listed) and (rows or self._all_rows) and (listed or rows):
            # `str` compares by code point, which is the order of UTF-8 bytes.
            if not rows or (listed and listed[0].key < rows[0].key):
                found.until = listed[0].key
                found.new.append(listed.popleft())
            elif not listed or rows[0].key < listed[0].key:
                found.until = rows[0].key
                found.missing.append(rows.popleft())
            else:
                info, row = listed.popleft(), rows.popleft()
                found.until = row.key
                if (info.etag, info.size) != (row.etag, row.size) and info.modified_at >= row.modified_at:
                    found.new.append(info)
        return found
