"""Payloads: a Python value as the JSON that is sent.

Imports `errors` only. The standard library's encoder, since it refuses NaN, which JSON does not have.
"""

import dataclasses
import json
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from headrace.runtime.errors import InvalidPayload


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a value of type {type(value).__name__} is no JSON")


_ENCODE = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain).encode


def encode_payload(value: object) -> bytes:
    """The value as JSON: JSON types, dataclasses, pydantic models, dates and times (ISO 8601).

    Raises InvalidPayload for what JSON cannot hold: NaN, bytes, sets, text with lone surrogates, a value
    inside itself.
    """
    try:
        return _ENCODE(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(str(error)) from None
