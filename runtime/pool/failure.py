"""Failures: an exception of user code as the values that are stored and shown.

Imports the floor only. A stack shows the user's frames: the engine's own say nothing about what went wrong.
"""

import os
import traceback
from typing import Any

from headrace.runtime.errors import (
    FunctionError,
    HeadraceError,
    InvalidEvent,
    OutOfMemory,
    RetryAfter,
    UnserialisableResult,
)

MESSAGE_CHARS_MAX = 8 << 10
STACK_BYTES_MAX = 32 << 10
_ENGINE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def describe(error: BaseException) -> tuple[str, dict[str, Any]]:
    """The outcome's kind (`error`, `out_of_memory`, `invalid_event`, `retry_after`) and the error recorded
    of it.
    """
    if isinstance(error, UnserialisableResult) and "path" in error.detail:
        return "error", error.detail
    try:
        shown = {"type": _type_name(type(error)), "message": _message(error), "stack": _stack(error)}
    except MemoryError:  # there may be too little left even to say so
        shown = {"type": _type_name(type(error)), "message": "", "stack": ""}
    if isinstance(error, InvalidEvent):
        return "invalid_event", {"code": InvalidEvent.code, "fields": error.fields, **shown, "stack": ""}
    if isinstance(error, RetryAfter):
        asked = {"seconds": error.retry_after_s, "key": error.key}
        return "retry_after", {"code": RetryAfter.code, **asked, **shown, "stack": ""}
    if isinstance(error, MemoryError):
        message = shown["message"] or "an allocation went beyond the function's memory limit"
        return "out_of_memory", {"code": OutOfMemory.code, **shown, "message": message}
    if isinstance(error, HeadraceError) and error.final:
        return "error", {"code": error.code, "hint": error.hint, "final": True, **shown}
    return "error", {"code": FunctionError.code, **shown}


def _type_name(kind: type[BaseException]) -> str:
    return (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the function called sys.exit({'' if error.code is None else repr(error.code)})"
    try:
        text = str(error)
    except Exception as second:
        text = f"(its text cannot be made: {type(second).__name__})"
    return text if len(text) <= MESSAGE_CHARS_MAX else text[:MESSAGE_CHARS_MAX] + " [...]"


def _stack(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error, compact=True)
    ahead: list[traceback.TracebackException] = [shown]
    seen = set()
    while ahead:
        one = ahead.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.stack = traceback.StackSummary.from_list(
            [f for f in one.stack if not f.filename.startswith(_ENGINE)]
        )
        ahead.extend(other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other)
    text = "".join(shown.format()).encode("utf-8", "backslashreplace")
    if len(text) > STACK_BYTES_MAX:
        half = STACK_BYTES_MAX // 2
        text = text[:half] + b"\n[...]\n" + text[-half:]
    return text.decode("utf-8", "ignore")
