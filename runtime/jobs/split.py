"""Splits: how a job's input is cut into chunks.

Imports the floor and the rest of this room's pure code. A split is a frozen value that travels as a JSON
object with a `kind`; cutting is `plan`, reading what was cut is `chunk`.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.jobs.bad_input import InvalidSplit
from headrace.runtime.jobs.charset import Kind, charset
from headrace.runtime.model.size import read_size

ITEMS_PER_BATCH_MAX = 1_000_000


@dataclass(frozen=True)
class Csv:
    """Delimited text, read exactly as Python's `csv.reader` reads the whole file.

    Args:
        chunk: about how many bytes a chunk has (`4194304`, `"4 MiB"`, `"64 KiB"`); at least 1. A chunk ends
            with the record that reaches this size, so one longer record makes a longer chunk.
        delimiter: one character.
        quoting: whether quotes may enclose delimiters and newlines. Off, a quote is a character like any
            other.
        quotechar: one character; doubled, it stands for itself.
        escapechar: one character that takes the meaning from the next, or None. Such files are cut
            sequentially.
        header: True, the first record that is not blank names the columns; False, records are lists; or the
            names themselves, when the file has none. Of two columns of one name the last is kept, as in
            `csv.DictReader`.
        encoding: a Python codec. A byte order mark is skipped. Encodings in which a quote's byte may be part
            of another character (UTF-16, Shift JIS) are cut sequentially.

    Raises: InvalidSplit, naming the field.
    """

    kind: ClassVar[str] = "csv"

    chunk: int | str = "4 MiB"
    _: KW_ONLY
    delimiter: str = ","
    quoting: bool = True
    quotechar: str = '"'
    escapechar: str | None = None
    header: bool | Sequence[str] = True
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        _settle(self, "chunk", _chunk_bytes("Csv", self.chunk))
        for field, char in (("delimiter", self.delimiter), ("quotechar", self.quotechar)):
            _check_char(f"Csv({field}=)", char)
        if self.escapechar is not None:
            _check_char("Csv(escapechar=)", self.escapechar)
        used = [self.delimiter, self.escapechar, self.quotechar if self.quoting else None]
        named = [char for char in used if char is not None]
        if len(set(named)) < len(named):
            raise InvalidSplit("Csv", "delimiter, quotechar and escapechar must differ from each other")
        if not isinstance(self.quoting, bool):
            raise InvalidSplit("Csv(quoting=)", f"{self.quoting!r} is neither True nor False")
        if not isinstance(self.header, bool):
            _settle(self, "header", _names(self.header))
        charset(self.encoding)
        try:
            csv.reader((), **self.dialect())
        except (TypeError, ValueError) as e:
            raise InvalidSplit("Csv", str(e)) from None

    @property
    def chunk_bytes(self) -> int:
        return int(self.chunk)

    @property
    def sequential(self) -> bool:
        """Whether only a parse from the start can tell where records end."""
        if self.escapechar is not None:
            return True
        kind = charset(self.encoding).kind
        if self.quoting:
            return kind is not Kind.ASCII or not self.quotechar.isascii()
        return kind is Kind.WIDE

    def dialect(self) -> dict[str, Any]:
        """The keyword arguments that make `csv.reader` read this format."""
        settings: dict[str, Any] = {"delimiter": self.delimiter, "escapechar": self.escapechar}
        if self.quoting:
            return settings | {"quotechar": self.quotechar}
        return settings | {"quotechar": None, "quoting": csv.QUOTE_NONE}

    def to_dict(self) -> dict[str, Any]:
        return _to_dict(self)


@dataclass(frozen=True)
class Lines:
    """Text, one record a line. A line ends with LF or CR LF, which are no part of it; a lone CR is.

    Args:
        chunk: about how many bytes a chunk has; as in `Csv`.
        encoding: a Python codec. A byte order mark is skipped.

    Raises: InvalidSplit, naming the field.
    """

    kind: ClassVar[str] = "lines"

    chunk: int | str = "4 MiB"
    _: KW_ONLY
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        _settle(self, "chunk", _chunk_bytes("Lines", self.chunk))
        charset(self.encoding)

    @property
    def chunk_bytes(self) -> int:
        return int(self.chunk)

    @property
    def sequential(self) -> bool:
        return charset(self.encoding).kind is Kind.WIDE

    def to_dict(self) -> dict[str, Any]:
        return _to_dict(self)


@dataclass(frozen=True)
class JsonLines:
    """One JSON document a line, in UTF-8; blank lines are skipped, and so is a byte order mark.

    Args:
        chunk: about how many bytes a chunk has; as in `Csv`.

    Raises: InvalidSplit, naming the field.
    Source: jsonlines.org.
    """

    kind: ClassVar[str] = "json_lines"
    encoding: ClassVar[str] = "utf-8"
    sequential: ClassVar[bool] = False

    chunk: int | str = "4 MiB"

    def __post_init__(self) -> None:
        _settle(self, "chunk", _chunk_bytes("JsonLines", self.chunk))

    @property
    def chunk_bytes(self) -> int:
        return int(self.chunk)

    def to_dict(self) -> dict[str, Any]:
        return _to_dict(self)


@dataclass(frozen=True)
class Items:
    """A list of JSON values, from a request or from an object that holds a JSON array.

    Args:
        batch: items to one invocation, 1 to 1,000,000.

    Raises: InvalidSplit, naming the field.
    """

    kind: ClassVar[str] = "items"

    batch: int = 1

    def __post_init__(self) -> None:
        whole = isinstance(self.batch, int) and not isinstance(self.batch, bool)
        if not whole or not 1 <= self.batch <= ITEMS_PER_BATCH_MAX:
            raise InvalidSplit(
                "Items(batch=)", f"{self.batch!r} is no whole number from 1 to {ITEMS_PER_BATCH_MAX:,}"
            )

    def to_dict(self) -> dict[str, Any]:
        return _to_dict(self)


TextSplit = Csv | Lines | JsonLines
Split = Csv | Lines | JsonLines | Items

_KINDS: dict[str, type[Split]] = {kind.kind: kind for kind in (Csv, Lines, JsonLines, Items)}


def split_from_dict(data: Mapping[str, Any]) -> Split:
    """The split that `to_dict` wrote, or that a request holds. Raises InvalidSplit for an unknown kind or
    setting.
    """
    settings = dict(data)
    name = settings.pop("kind", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InvalidSplit("kind", f"there is no split {name!r}", f"Known kinds: {', '.join(_KINDS)}.")
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InvalidSplit(
            kind.__name__, f"unknown setting {unknown[0]!r}", f"Known settings: {', '.join(sorted(known))}."
        )
    return kind(**settings)


def _to_dict(split: Split) -> dict[str, Any]:
    fields = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    return {"kind": split.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _settle(split: Split, field: str, value: object) -> None:
    object.__setattr__(split, field, value)  # the one moment at which a frozen value takes its normal form


def _chunk_bytes(owner: str, value: object) -> int:
    field = f"{owner}(chunk=)"
    if not isinstance(value, int | str):
        raise InvalidSplit(field, f"{value!r} is not a size", 'Write bytes, or a text such as "4 MiB".')
    try:
        return read_size(value, field=field)
    except InvalidSettings as e:
        raise InvalidSplit(field, str(e).removeprefix(f"{field} is "), e.hint) from None


def _check_char(field: str, char: object) -> None:
    if not isinstance(char, str) or len(char) != 1:
        raise InvalidSplit(field, f"{char!r} is not one character", r'A tab is "\t".')
    if char in "\r\n\0":
        raise InvalidSplit(field, f"{char!r} cannot be used: it ends records")


def _names(header: object) -> tuple[str, ...]:
    field = "Csv(header=)"
    if isinstance(header, str) or not isinstance(header, Sequence):
        raise InvalidSplit(field, f"{header!r} is neither True, False nor a list of names")
    names = tuple(header)
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidSplit(field, "the list must hold at least one name, and texts only")
    if len(set(names)) < len(names):
        raise InvalidSplit(field, "two columns have the same name, so one would be lost")
    return names
