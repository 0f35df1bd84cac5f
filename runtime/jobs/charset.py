"""Charsets: how a text encoding lets itself be cut.

Imports the standard library and `bad_input` only. The question is never how to decode, which Python's codecs
do, but whether the bytes of a newline or a quote can be part of another character; when they can, bytes must
not be searched.
"""

import codecs
import enum
import sys
from dataclasses import dataclass
from functools import lru_cache

from headrace.runtime.jobs.bad_input import InvalidSplit


class Kind(enum.Enum):
    """What may be searched for in the undecoded bytes."""

    ASCII = "ascii"
    """Every byte below 0x80 is that ASCII character, wherever it stands."""
    NEWLINE = "newline"
    """So it is for line ends; other ASCII bytes may be the second half of a character (Shift JIS, GBK,
    Big5).
    """
    WIDE = "wide"
    """Nothing: UTF-16, UTF-32, EBCDIC."""


_ASCII = {"ascii", "utf-8", "utf-8-sig", "euc_jp", "euc_kr", "gb2312", "euc_jis_2004", "euc_jisx0213"}
_NEWLINE = {
    "shift_jis", "shift_jis_2004", "shift_jisx0213", "cp932", "cp949", "cp950", "johab", "gbk", "gb18030",
    "big5", "big5hkscs",
}  # fmt: skip
_UTF16 = {"utf-16", "utf-16-le", "utf-16-be"}
_UTF32 = {"utf-32", "utf-32-le", "utf-32-be"}
_MARKS = (
    ("utf-8", codecs.BOM_UTF8, "utf-8"),
    ("utf-8-sig", codecs.BOM_UTF8, "utf-8"),
    ("utf-16", codecs.BOM_UTF16_LE, "utf-16-le"),
    ("utf-16", codecs.BOM_UTF16_BE, "utf-16-be"),
    ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16-le"),
    ("utf-16-be", codecs.BOM_UTF16_BE, "utf-16-be"),
    ("utf-32", codecs.BOM_UTF32_LE, "utf-32-le"),
    ("utf-32", codecs.BOM_UTF32_BE, "utf-32-be"),
    ("utf-32-le", codecs.BOM_UTF32_LE, "utf-32-le"),
    ("utf-32-be", codecs.BOM_UTF32_BE, "utf-32-be"),
)
_UNMARKED = {
    "utf-8-sig": "utf-8",
    "utf-16": f"utf-16-{sys.byteorder[0]}e",
    "utf-32": f"utf-32-{sys.byteorder[0]}e",
}
MARK_BYTES_MAX = 4


@dataclass(frozen=True, slots=True)
class Charset:
    """An encoding with its byte order settled, so that decoding may start at any record."""

    codec: str
    kind: Kind

    def byte_count(self, text: str) -> int:
        """How many bytes the text has in a wide charset."""
        if self.codec in _UTF16:
            return (
                2 * len(text) + 2 * sum(1 for c in text if c > "\uffff")
                if not text.isascii()
                else 2 * len(text)
            )
        return (4 if self.codec in _UTF32 else 1) * len(text)


@lru_cache(maxsize=64)
def charset(encoding: str) -> Charset:
    """The charset of an encoding's name. Raises InvalidSplit if it is unknown or cannot be cut."""
    try:
        found = codecs.lookup(encoding)
    except (LookupError, ValueError):
        raise InvalidSplit(
            "encoding",
            f"Python knows no encoding {encoding!r}",
            'Usual ones are "utf-8", "cp1252" and "utf-16".',
        ) from None
    name = found.name
    if name in _ASCII:
        return Charset(name, Kind.ASCII)
    if name in _NEWLINE:
        return Charset(name, Kind.NEWLINE)
    if name in _UTF16 | _UTF32:
        return Charset(name, Kind.WIDE)
    kind = _single_byte(name)
    if kind is None:
        raise InvalidSplit(
            "encoding",
            f"{encoding!r} text cannot be cut: what a byte means depends on those before it",
            "Convert the file to UTF-8 first.",
        )
    return Charset(name, kind)


def settle(encoding: str, head: bytes) -> tuple[Charset, int]:
    """The charset to decode a file with from its middle, and how many bytes of byte order mark it begins
    with.

    A mark at the start is skipped in every UTF encoding, also where its name does not say so ("utf-8"),
    because no reader wants it in the first column's name. UTF-16 and UTF-32 without mark or byte order have
    the machine's.
    """
    known = charset(encoding)
    for codec, mark, settled in _MARKS:
        if codec == known.codec and head.startswith(mark):
            return Charset(settled, known.kind), len(mark)
    return Charset(_UNMARKED.get(known.codec, known.codec), known.kind), 0


def _single_byte(name: str) -> Kind | None:
    """The kind of a codec that maps each byte to one character, or None if this one does not."""
    if name.replace("_", "-") in {"unicode-escape", "raw-unicode-escape"}:
        return None
    table: dict[int, str] = {}
    for byte in range(256):
        try:
            text = bytes([byte]).decode(name)
        except (UnicodeError, LookupError):
            continue
        if len(text) != 1:
            return None
        table[byte] = text
    if sum(byte >= 128 for byte in table) < 64:
        return None
    plain = all(table.get(byte) == chr(byte) for byte in range(128))
    return Kind.ASCII if plain and all(table[byte] >= "\x80" for byte in table if byte >= 128) else Kind.WIDE
