"""Database: what the statements that SQLite and PostgreSQL share ask of either, and where the two differ.

Imports nothing of the house. Shared statements are written in the common subset of both, with `?` or `:name`
for values; PostgreSQL's side translates those. Every shared statement names what it expects in its WHERE, and
what reads before it writes locks the row that it read, since on PostgreSQL other nodes write at once.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

Values = Sequence[Any] | Mapping[str, Any]

_encode = msgspec.json.Encoder().encode


class Cursor(Protocol):
    """The answer to a statement; its rows are sequences in the order of the columns."""

    def fetchone(self) -> Any:
        """The next row, None after the last."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...

    @property
    def rowcount(self) -> int:
        """How many rows the statement inserted, changed or removed."""


@dataclass(frozen=True)
class Dialect:
    """Where the SQL of the two databases differs."""

    name: str
    """`sqlite` or `postgresql`."""
    lock: str
    """After a SELECT: the row stays as it was read until the transaction ends."""
    skip: str
    """After a SELECT: like `lock`, but rows that others have locked are left out."""
    share: str
    """After a SELECT: nobody may take `lock` on the row until the transaction ends; others may share it."""
    alone: str | None
    """A query whose only value is true when no other transaction is past it; it takes a number. None where
    nobody else writes."""
    groups: str | None
    """A statement that holds locks by names, a list in order, until the transaction ends; None where nobody
    else writes."""
    waiting: str
    """A condition that an index serves: the invocation waits. PostgreSQL's leaves out what is claimed."""
    position: str
    """The function of (text, part) that gives where the part begins in the text, 0 when it does not."""
    children: str
    """An aggregate over rows (status, idx, result, result_ref) that are ordered by idx: the JSON values of
    those that succeeded, with commas between, as bytes; NULL when there are none."""
    pages: bool
    """Whether many rows are read as one JSON value, see `page`."""
    returning: bool
    """Whether a statement that changes rows may stand in WITH and return them."""
    _among: str

    def among(self, column: str, at: str = "?") -> str:
        """A condition: the column, of whole numbers, is one of the list at the placeholder `at`, whose value
        `listed` makes."""
        return self._among.format(column=column, at=at)

    listed: Callable[[Iterable[int]], Any]
    """The value that stands for a list of numbers in `among`."""


def _json_list(numbers: Iterable[int]) -> str:
    return _encode(list(numbers)).decode()


SQLITE = Dialect(
    name="sqlite",
    lock="",
    skip="",
    share="",
    alone=None,
    groups=None,
    waiting="status = 0",
    position="instr",
    children=(
        "CAST(group_concat(CASE WHEN status != 2 THEN NULL"
        " WHEN result_ref IS NOT NULL THEN json_object('ref', result_ref)"
        " WHEN coalesce(length(result), 0) = 0 THEN 'null' ELSE CAST(result AS TEXT) END, ',') AS BLOB)"
    ),
    pages=True,
    returning=False,
    _among="{column} IN (SELECT value FROM json_each({at}))",
    listed=_json_list,
)

POSTGRESQL = Dialect(
    name="postgresql",
    lock=" FOR UPDATE",
    skip=" FOR UPDATE SKIP LOCKED",
    share=" FOR SHARE",
    alone="SELECT pg_try_advisory_xact_lock(?)",
    groups="SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM unnest(?::text[]) AS names(name)",
    waiting="status = 0 AND node IS NULL",
    position="strpos",
    children=(
        "string_agg(CASE WHEN status != 2 THEN NULL"
        " WHEN result_ref IS NOT NULL"
        " THEN convert_to('{\"ref\":' || to_json(result_ref)::text || '}', 'UTF8')"
        " WHEN coalesce(length(result), 0) = 0 THEN 'null'::bytea ELSE result END,"
        " ','::bytea ORDER BY idx)"
    ),
    pages=False,
    returning=True,
    _among="{column} = ANY({at}::bigint[])",
    listed=list,
)


class Database(Protocol):
    """One connection. It commits each statement by itself, outside of `transaction` and `snapshot`."""

    @property
    def dialect(self) -> Dialect:
        """Which of the two it is."""

    def execute(self, sql: str, values: Values = ..., /) -> Cursor:
        """Run one statement, with `?` or `:name` where its values go."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for each row of values."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing of what is written within; for the calls that are no part of a group commit."""

    def snapshot(self) -> AbstractContextManager[None]:
        """All reads within see one moment."""


def counted(db: Database, change: str, where: str, columns: str, values: Values) -> list[Any]:
    """Run `change`, an UPDATE or DELETE of table `invocation` without its WHERE, where `where` holds, and
    count what it changed: rows of `columns`, which an UPDATE must not set, and a number. `values` by
    position are those of `where` alone.
    """
    if db.dialect.returning:
        return db.execute(
            f"WITH changed AS ({change} WHERE {where} RETURNING {columns})"
            f" SELECT {columns}, count(*) FROM changed GROUP BY {columns}",
            values,
        ).fetchall()
    counts = db.execute(
        f"SELECT {columns}, count(*) FROM invocation WHERE {where} GROUP BY {columns}", values
    ).fetchall()
    db.execute(f"{change} WHERE {where}", values)
    return counts


class SqliteDatabase(sqlite3.Connection):
    """A connection to a SQLite file, opened with `isolation_level=None`."""

    dialect = SQLITE

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self.in_transaction:
                # The error that brought us here is the answer; a full disk also fails the rollback.
                with contextlib.suppress(sqlite3.Error):
                    self.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.execute("COMMIT")
