"""Sizes and durations as people write them.

Imports `errors` only.
"""

import re

from headrace.runtime.errors import InvalidSettings

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def read_size(value: int | str, *, field: str) -> int:
    """Bytes of `4194304`, `"4 MiB"`, `"64 KiB"` or `"1 MB"`.

    `field` names the setting in the error. Raises InvalidSettings for a text of another form, or a size below
    1 byte.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InvalidSettings(f"{field} is {value}, not a size", 'Write bytes, or a text such as "4 MiB".')
    if isinstance(value, int):
        size = value
    else:
        found = _SIZE.fullmatch(value)
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise InvalidSettings(
                f"{field} is {value!r}, not a size", 'Write bytes, or a text such as "4 MiB".'
            )
        size = int(float(found[1]) * unit)
    if size < 1:
        raise InvalidSettings(
            f"{field} is {value!r}; it must be at least 1 byte", 'Write a text such as "4 MiB".'
        )
    return size


_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_SECONDS |= {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


def read_duration(value: float | str, *, field: str) -> float:
    """Seconds of `90`, `"90 s"`, `"15 min"`, `"24 h"` or `"30 days"`.

    `field` names the setting in the error. Raises InvalidSettings for a text of another form, or what is not
    above 0.
    """
    hint = 'Write seconds, or a text such as "24 h".'
    seconds = 0.0
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        unit = found[2].lower() if found else ""
        scale = _SECONDS.get(unit) or _SECONDS.get(unit.removesuffix("s"))
        if found is None or scale is None:
            raise InvalidSettings(f"{field} is {value!r}, not a duration", hint)
        seconds = float(found[1]) * scale
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise InvalidSettings(f"{field} is {value}, not a duration", hint)
    if not 0 < seconds < float("inf"):
        raise InvalidSettings(f"{field} is {value!r}; it must be above 0 seconds", hint)
    return seconds


def show_size(size: float) -> str:
    """`4.2 MiB`: a size in bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
