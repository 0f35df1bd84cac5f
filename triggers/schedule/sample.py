"""A sample event of a schedule, as its source makes it.

Imports the trigger protocol and its own room.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from headrace.runtime.errors import BadRequest
from headrace.runtime.trigger import Options, moment_option, the_option
from headrace.triggers.schedule.trigger import Schedule


def sample_schedule(
    options: Options, like: Schedule | None, name: str, moment: float, id: str
) -> Mapping[str, Any]:
    """See Sampled. The moment is the schedule's next one, unless an option says another."""
    schedule = like or Schedule("rate(1 hour)")
    second = float(math.floor(moment))
    due = moment_option(options, "time", schedule.next_after(second, anchor=second) or second)
    event = schedule.event(the_option(options, "schedule", name or "example"), due, id=id)
    text = the_option(options, "detail", "")
    if text:
        try:
            event = {**event, "detail": json.loads(text)}
        except ValueError as error:
            raise BadRequest(f"detail is no JSON: {error}", "Write for example '{}'.") from None
    return event
