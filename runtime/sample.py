"""Sample events: what a trigger would give to its function, made on request.

Imports the floor and the trigger protocol; the trigger itself when it is asked for.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.runtime.errors import BadRequest, InvalidFunction
from headrace.runtime.kinds import trigger_class, trigger_kinds
from headrace.runtime.trigger import Sampled


def sampled_kinds() -> dict[str, Mapping[str, str]]:
    """The installed kinds of triggers that make samples, with what may be said of each."""
    found = {}
    for kind in trigger_kinds():
        try:
            trigger = trigger_class(kind)
        except InvalidFunction:
            continue  # a package that is broken makes no samples
        if isinstance(trigger, Sampled):
            found[kind] = trigger.sample_options
    return found


def sample_event(
    kind: str,
    options: Mapping[str, Sequence[str]],
    *,
    function: str = "",
    triggers: Sequence[Mapping[str, Any]] = (),
    moment: float,
    id: str,
) -> dict[str, Any]:
    """An event of the first of a function's triggers of that kind, or of any such trigger when it has none.

    Args:
        options: what is said of it.
        function: the function's full name; "" without one.
        triggers: the function's, each with its `kind` and its own fields.
        moment: when it happens, in epoch seconds.
        id: for an event that has to hold its own.

    Raises: BadRequest for a kind or an option that is unknown, and for a value that cannot be.
    """
    try:
        trigger = trigger_class(kind)
    except InvalidFunction:
        trigger = None
    if not isinstance(trigger, Sampled):
        raise BadRequest(
            f"there are no sample events of the kind {kind!r}", f"Use {' or '.join(sampled_kinds())}."
        )
    for name in options:
        if name not in trigger.sample_options:
            near = difflib.get_close_matches(name, trigger.sample_options, 1)
            known = f"Did you mean {near[0]}?" if near else f"Use {', '.join(trigger.sample_options)}."
            raise BadRequest(f"the {kind} event has no {name!r}", known)
    like, name = None, ""
    for each in triggers:
        if each["kind"] == kind:
            fields = {key: value for key, value in each.items() if key != "kind"}
            like = trigger_class(kind).from_fields(fields)
            name = f"{function}/{kind}/{fields.get('name') or 0}"
            break
    return dict(trigger.sample(options, like=like, name=name, moment=moment, id=id))
