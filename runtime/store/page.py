"""Page: many invocations read at once; from SQLite in one step of a statement.

Imports the floor and its own room. Python's `sqlite3` gives up the interpreter lock at every step and may
wait milliseconds for it beside a busy event loop, so from SQLite a page comes as one row: the columns as a
JSON list of lists, in which moments are text with 17 digits, since SQLite's JSON numbers have 15; payloads
and results as one blob each, cut by their lengths. From PostgreSQL it comes as rows.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.runtime.model.invocation import Invocation, Record
from headrace.runtime.store.database import SQLITE, Database, SqliteDatabase
from headrace.runtime.store.rows import RECORD, invocation_of, record_of

PAGE_MAX = 500
"""Invocations a page; at 256 KiB each for payload and result, a page is far below SQLite's limit on a value.
"""


def _moment(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN printf('%!.17g', {column}) END"


_COLUMNS = (
    f"id, function, flow, length(payload), {_moment('accepted_at')}, {_moment('due_at')},"
    f" {_moment('expires_at')},"
    " priority, attempts, payload_ref, idempotency_key, tags, source, job, stage, idx, memory_bytes"
)
_MORE = f"status, {_moment('started_at')}, {_moment('ended_at')}, length(result), result_ref, error, node"
_CHOSEN = "FROM invocation WHERE id IN (SELECT value FROM json_each(?))"
_INVOCATIONS = (
    f"SELECT json_group_array(json_array({_COLUMNS})), CAST(group_concat(payload, '') AS BLOB) {_CHOSEN}"
)
_RECORDS = (
    f"SELECT json_group_array(json_array({_COLUMNS}, {_MORE})), CAST(group_concat(payload, '') AS BLOB),"
    f" CAST(group_concat(coalesce(result, ''), '') AS BLOB) {_CHOSEN}"
)

_Text = str | None
_Number = int | None
_InvocationRow = tuple[
    int,
    str,
    str,
    int,
    float,
    float,
    float,
    int,
    int,
    _Text,
    _Text,
    _Text,
    _Text,
    _Number,
    _Number,
    _Number,
    _Number,
]
_RecordRow = tuple[
    int, str, str, int, float, float, float, int, int, _Text, _Text, _Text, _Text, _Number, _Number, _Number,
    _Number, int, float | None, float | None, _Number, _Text, _Text, _Text,
]  # fmt: skip
_ids = msgspec.json.Decoder(list[int]).decode
_invocation_rows = msgspec.json.Decoder(list[_InvocationRow], strict=False).decode
_record_rows = msgspec.json.Decoder(list[_RecordRow], strict=False).decode


def ids(db: Database, query: str, values: Sequence[Any] = ()) -> list[int]:
    """The ids that a query of one column `id` gives, in its order."""
    if not db.dialect.pages:
        return [row[0] for row in db.execute(query, values)]
    return _ids(db.execute(f"SELECT json_group_array(id) FROM ({query})", values).fetchone()[0])


def invocations(db: SqliteDatabase, chosen: Sequence[int]) -> dict[int, Invocation]:
    """Invocations by id."""
    found: dict[int, Invocation] = {}
    for at in range(0, len(chosen), PAGE_MAX):
        text, payloads = db.execute(_INVOCATIONS, (_list(chosen[at : at + PAGE_MAX]),)).fetchone()
        begin = 0
        for row in _invocation_rows(text):
            end = begin + row[3]
            found[row[0]] = invocation_of((*row[:3], payloads[begin:end], *row[4:]))
            begin = end
    return found


def records(db: Database, chosen: Sequence[int]) -> list[Record]:
    """Records in the order of `chosen`; what is gone meanwhile is left out."""
    if not db.dialect.pages:
        return _rows(db, chosen)
    found: dict[int, Record] = {}
    for at in range(0, len(chosen), PAGE_MAX):
        text, payloads, results = db.execute(_RECORDS, (_list(chosen[at : at + PAGE_MAX]),)).fetchone()
        begin = result_begin = 0
        for row in _record_rows(text):
            end, result_end = begin + row[3], result_begin + (row[20] or 0)
            result = None if row[20] is None else results[result_begin:result_end]
            found[row[0]] = record_of((*row[:3], payloads[begin:end], *row[4:20], result, *row[21:]))
            begin, result_begin = end, result_end
    return [found[id] for id in chosen if id in found]


def _rows(db: Database, chosen: Sequence[int]) -> list[Record]:
    query = f"SELECT {RECORD} FROM invocation WHERE {db.dialect.among('id')}"
    rows = db.execute(query, (db.dialect.listed(chosen),)) if chosen else ()
    found = {row[0]: record_of(row) for row in rows}
    return [found[id] for id in chosen if id in found]


def _list(chosen: Sequence[int]) -> Any:
    return SQLITE.listed(chosen)
