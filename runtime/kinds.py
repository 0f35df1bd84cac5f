"""Kinds: the triggers that are installed, by the entry points of their distributions.

Imports the floor only; a trigger when it is asked for.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.spec import FunctionSpec

GROUP = "headrace.triggers"

_classes: dict[str, Any] = {}


def trigger_class(kind: str) -> Any:
    """The class of the triggers of a kind. Raises: InvalidFunction when there is none."""
    found = _classes.get(kind)
    if found is None:
        for entry in importlib.metadata.entry_points(group=GROUP, name=kind):
            try:
                found = _classes[kind] = entry.load()
            except Exception as error:  # another distribution's code, which may fail in any way
                what = f"cannot be loaded from {entry.value}: {type(error).__name__}: {error}"
                raise InvalidFunction(
                    f"trigger {kind!r}", what, "Install the package that provides it anew."
                ) from error
        if found is None:
            raise InvalidFunction(
                f"trigger {kind!r}", "is not installed", "Install the package that provides it."
            )
    return found


def trigger_kinds() -> list[str]:
    """The kinds that are installed, sorted."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def trigger_name(spec: FunctionSpec, kind: str, fields: Mapping[str, Any], index: int) -> str:
    """What identifies a trigger over restarts: its own name, or its place among its kind's."""
    return f"{spec.name}/{kind}/{fields.get('name') or index}"
