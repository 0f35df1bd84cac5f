"""Results: what a function returned, as JSON, or the exact place where JSON cannot hold it.

Imports the floor only. msgspec writes NaN as null without a word, so an encoding that has a null in it is
looked at again.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec

from headrace.runtime.errors import UnserialisableResult

_DEPTH_MAX = 200


def encode_result(value: Any) -> bytes:
    """The value's JSON.

    Takes what JSON has, and dataclasses, pydantic models, msgspec structs, tuples, sets, enums, datetimes
    (ISO 8601), UUIDs, Decimals (as text), bytes (as base64), numpy scalars and arrays.

    Raises: UnserialisableResult with `path` and `type` in its detail; whatever a model's own serialiser
    raises.
    """
    try:
        data = _encode(value)
    except Exception:
        fault = _find_fault(value)
        if fault is None:
            raise
        raise fault from None
    if b"null" in data and value is not None:
        fault = _find_fault(value)
        if fault is not None:
            raise fault
    return data


def _plain(value: Any) -> Any:
    """What stands for a value that msgspec does not know."""
    kind = type(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(kind, "model_dump"):  # pydantic, which need not be imported for this
        return value.model_dump(mode="json")
    if kind.__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"JSON cannot hold a {_name(kind)}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _find_fault(value: Any) -> UnserialisableResult | None:
    for path, part, why in _faults(value, "$", 0):
        kind = _name(type(part))
        message = f"the result cannot be JSON: {path} is {why} ({kind})"
        detail: dict[str, object] = {
            "code": UnserialisableResult.code,
            "type": kind,
            "path": path,
            "message": message,
        }
        return UnserialisableResult(message, detail)
    return None


def _faults(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any, str]]:
    """The places that JSON cannot hold, depth first: (path, value, what it is)."""
    if value is None or value is True or value is False or type(value) is int:
        return
    if depth > _DEPTH_MAX:
        yield path, value, f"nested more than {_DEPTH_MAX} deep, or contains itself"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, value, str(float(value)).replace("nan", "NaN").replace("inf", "Infinity")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) and not _encodes({key: 0}):
                yield path, key, f"keyed by {key!r}, which is no text"
            yield from _faults(item, _member(path, key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _faults(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, set | frozenset):
        for item in value:
            yield from _faults(item, f"{path}[]", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _faults(getattr(value, field.name, None), _member(path, field.name), depth + 1)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _faults(getattr(value, name), _member(path, name), depth + 1)
    elif hasattr(type(value), "model_dump"):
        yield from _faults(value.model_dump(), path, depth + 1)
    elif type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        plain = value.tolist()
        if type(plain) is type(value):
            yield path, value, "a value"
        else:
            yield from _faults(plain, path, depth + 1)
    elif not _encodes(value):
        yield path, value, "text that is not Unicode" if isinstance(value, str) else "a value"


def _encodes(value: Any) -> bool:
    try:
        _encode(value)
    except Exception:  # whatever it is, the caller names the place
        return False
    return True


def _member(path: str, key: Any) -> str:
    text = str(key)
    return f"{path}.{text}" if text.isidentifier() else f"{path}[{json.dumps(text)}]"
