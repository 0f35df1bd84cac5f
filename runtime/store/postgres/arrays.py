"""Arrays: columns of many rows, in the binary form that PostgreSQL reads without parsing.

Imports nothing of the house. Source of the form: `array_recv` and the element types' `recv` functions, as
documented by PostgreSQL's "Message Formats" (network byte order): dimensions, whether there are NULLs, the
element type, then length and lower bound of the dimension, then each element with its length in bytes.
"""

import struct
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_NULL = b"\xff\xff\xff\xff"
_length = struct.Struct(">i").pack


class Column:
    """One encoded column; each subclass is an array type."""

    __slots__ = ("data",)
    oid = 0

    def __init__(self, data: bytes) -> None:
        self.data = data


class Smallints(Column):
    oid = 1005


class Integers(Column):
    oid = 1007


class Bigints(Column):
    oid = 1016


class Doubles(Column):
    oid = 1022


class Texts(Column):
    oid = 1009


class Blobs(Column):
    oid = 1001


def _head(element: int, count: int, nulls: bool) -> bytes:
    if count == 0:
        return struct.pack(">iii", 0, 0, element)
    return struct.pack(">iiiii", 1, int(nulls), element, count, 1)


def _fixed(code: str, size: int, element: int, values: Sequence[Any]) -> bytes:
    count = len(values)
    flat: list[Any] = [size] * (2 * count)
    flat[1::2] = values
    return _head(element, count, False) + struct.pack(f">{f'i{code}' * count}", *flat)


def _fixed_or_null(code: str, size: int, element: int, values: Sequence[Any]) -> bytes:
    if None not in values:
        return _fixed(code, size, element, values)
    pack = struct.Struct(f">i{code}").pack
    parts = [_NULL if value is None else pack(size, value) for value in values]
    return _head(element, len(values), True) + b"".join(parts)


def smallints(values: Sequence[int | None]) -> Smallints:
    return Smallints(_fixed_or_null("h", 2, 21, values))


def integers(values: Sequence[int | None]) -> Integers:
    return Integers(_fixed_or_null("i", 4, 23, values))


def bigints(values: Sequence[int | None]) -> Bigints:
    return Bigints(_fixed_or_null("q", 8, 20, values))


def doubles(values: Sequence[float | None]) -> Doubles:
    return Doubles(_fixed_or_null("d", 8, 701, values))


def texts(values: Sequence[str | None]) -> Texts:
    """Names repeat from row to row, so each is encoded once. Raises UnicodeEncodeError."""
    known: dict[str | None, bytes] = {None: _NULL}
    parts: list[bytes] = []
    for value in values:
        part = known.get(value)
        if part is None:
            encoded = value.encode()  # type: ignore[union-attr]
            part = known[value] = _length(len(encoded)) + encoded
        parts.append(part)
    return Texts(_head(25, len(values), None in values) + b"".join(parts))


def blobs(values: Sequence[bytes | None]) -> Blobs:
    parts: list[bytes] = []
    nulls = False
    for value in values:
        if value is None:
            parts.append(_NULL)
            nulls = True
        else:
            parts.append(_length(len(value)))
            parts.append(value)
    return Blobs(_head(17, len(values), nulls) + b"".join(parts))


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Column) -> bytes:
        return obj.data


def _dumper(column: type[Column]) -> type[_ColumnDumper]:
    return type(f"{column.__name__}Dumper", (_ColumnDumper,), {"oid": column.oid})


_DUMPERS = {column: _dumper(column) for column in (Smallints, Integers, Bigints, Doubles, Texts, Blobs)}


def register(raw: "psycopg.Connection[Any]") -> None:
    """Let a connection take columns as values."""
    for column, dumper in _DUMPERS.items():
        raw.adapters.register_dumper(column, dumper)
