"""Forms: the body of an HTTP call as a browser's form sends it, with its files.

Imports nothing of Headrace; the parser of multipart bodies is imported when one comes. Everything is bounded,
since a body of a few bytes for each part could otherwise cost far more memory than it has bytes.
"""

from typing import Any
from urllib.parse import parse_qsl

import msgspec

PARTS_MAX = 1_000
FIELD_BYTES_MAX = 1 << 20
PART_HEADER_BYTES_MAX = 16 << 10
"""The bounds of one form: its parts, one field that is no file, and all headers of one part."""

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


class InvalidForm(ValueError):
    """A form that cannot be read: (why)."""


class FormFile(msgspec.Struct, frozen=True):
    """A file that came with a form: the name that the sender gave it, its content type, and its bytes.

    The name is the sender's: nothing says that it is safe to write to.
    """

    filename: str
    content_type: str
    data: bytes

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def read_form(body: bytes, content_type: str, *, lists: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields of a form: a text or a FormFile each, a list of them where a name occurs several times or
    is one of `lists`.

    Raises InvalidForm for a body of another form, or beyond the bounds.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        pairs = _multipart(body, content_type)
    else:
        pairs = _urlencoded(body)
    out: dict[str, Any] = {}
    repeated: set[str] = set(lists)
    for name, value in pairs:
        if name not in out:
            out[name] = [value] if name in lists else value
        elif name in repeated:
            out[name].append(value)
        else:
            repeated.add(name)
            out[name] = [out[name], value]
    return out


def _urlencoded(body: bytes) -> list[tuple[str, Any]]:
    try:
        return list(
            parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=PARTS_MAX, errors="strict")
        )
    except UnicodeDecodeError:
        raise InvalidForm("it is not UTF-8") from None
    except ValueError:
        raise InvalidForm(f"it has more than {PARTS_MAX:,} fields") from None


def _multipart(body: bytes, content_type: str) -> list[tuple[str, Any]]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 256:
        raise InvalidForm("its content type names no boundary")
    reader = _Parts()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidForm(f"it is not multipart/form-data: {error}"[:300]) from None
    if not reader.ended:
        raise InvalidForm("it ends before its last boundary")
    return [reader.field(part, parse_options_header) for part in reader.parts]


class _Part(msgspec.Struct):
    headers: dict[str, bytes]
    data: list[bytes]


class _Parts:
    """Collects the parts that the parser tells of, within their bounds."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._name = self._value = b""
        self._header_bytes = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_part_data": self._on_data,
            "on_end": self._on_end,
        }

    def field(self, part: _Part, options_of: Any) -> tuple[str, Any]:
        """A part's name and its value."""
        kind, options = options_of(part.headers.get("content-disposition", b""))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise InvalidForm("a part has no name")
        data = b"".join(part.data)
        media = part.headers.get("content-type", b"").decode("latin-1")
        try:
            shown = name.decode()
            if b"filename" in options:
                media = media or "application/octet-stream"
                return shown, FormFile(options[b"filename"].decode(), media, data)
            if len(data) > FIELD_BYTES_MAX:
                raise InvalidForm(f"the field {shown[:100]!r} is larger than {FIELD_BYTES_MAX:,} bytes")
            return shown, data.decode()
        except UnicodeDecodeError:
            raise InvalidForm("a name or a field is not UTF-8") from None

    def _begin(self) -> None:
        if len(self.parts) >= PARTS_MAX:
            raise InvalidForm(f"it has more than {PARTS_MAX:,} parts")
        self.parts.append(_Part({}, []))
        self._name = self._value = b""
        self._header_bytes = 0

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _on_header(self) -> None:
        self.parts[-1].headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data.append(data[start:end])

    def _on_end(self) -> None:
        self.ended = True

    def _count(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > PART_HEADER_BYTES_MAX:
            raise InvalidForm(f"a part has more than {PART_HEADER_BYTES_MAX:,} bytes of headers")
