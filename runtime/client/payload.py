"""Payloads: a Python value as the JSON that is sent.

Imports the pool's encoding of results, so that what a function may return and what it may be sent are the
same.
"""

from collections.abc import Callable
from functools import cache

from headrace.runtime.errors import InvalidPayload, UnserialisableResult


@cache
def _encoder() -> Callable[[object], bytes]:
    from headrace.runtime.pool.result import encode_result  # a command that sends a text needs none of it

    return encode_result


def encode_payload(value: object) -> bytes:
    """The value as JSON: JSON types, dataclasses, pydantic models, dates and times (ISO 8601), bytes
    (base64).

    Raises InvalidPayload for what JSON cannot hold, NaN among it, naming its place.
    """
    try:
        return _encoder()(value)
    except UnserialisableResult as error:
        message = str(error.detail.get("message", error)).replace("the result cannot", "it cannot", 1)
        raise InvalidPayload(message) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(str(error)) from None
