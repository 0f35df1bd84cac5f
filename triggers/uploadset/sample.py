"""A sample event of a set, as the trigger's source makes it.

Imports the trigger protocol and its own room.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from headrace.runtime.errors import BadRequest
from headrace.runtime.model.event import UploadSetEvent
from headrace.runtime.trigger import Options, moment_option, number_option, the_option
from headrace.triggers.uploadset.condition import Count, Facts, Marker, Named, SetFile
from headrace.triggers.uploadset.event import EVENT_FILES_MAX, Telling, described, event_of
from headrace.triggers.uploadset.pattern import WHOLE
from headrace.triggers.uploadset.trigger import UploadSet

SIZE = 1024
FILES = 3
EXAMPLE = UploadSet("inbox", pattern="{day}/*.csv", complete=Marker("_SUCCESS"))


def sample_set(
    options: Options, like: UploadSet | None, name: str, moment: float, id: str
) -> Mapping[str, Any]:
    """See Sampled: a set that has just become complete. Raises: BadRequest for what is no file of it."""
    trigger = like or EXAMPLE
    chosen = the_option(options, "set", "/".join(["example"] * len(trigger.by)) or WHOLE)
    if trigger.by and chosen.count("/") != len(trigger.by) - 1:
        raise BadRequest(
            f"{chosen!r} names no set by {', '.join(trigger.by)}", "Join their values by slashes."
        )
    wanted = max((part.files for part in trigger.complete.parts() if isinstance(part, Count)), default=FILES)
    keys = list(options.get("key", ())) or _keys(trigger, chosen, min(wanted, EVENT_FILES_MAX))
    for key in keys:
        place = trigger.place(key)
        if place is None or place.is_marker or place.name != chosen:
            raise BadRequest(
                f"{key} is no file of the set {chosen!r} of {trigger!r}", "Say which keys it has."
            )
    size, at = number_option(options, "size", SIZE), moment_option(options, "time", moment)
    files = [SetFile(key, hashlib.sha256(f"{key} {size}".encode()).hexdigest()[:32], size) for key in keys]
    files.sort(key=lambda file: file.key)
    markers = trigger.marker_keys(chosen)
    facts = Facts(
        files=files, markers=frozenset(markers.values()), quiet_s=float("inf"),
        manifests={key: [Named(file.key) for file in files] for key in trigger.manifest_keys(chosen)},
    )  # fmt: skip
    verdict = trigger.complete.judge(facts, markers)
    kind = UploadSetEvent.COMPLETE if verdict.complete else UploadSetEvent.INCOMPLETE
    telling = Telling(
        trigger=name or "example", name=chosen, kind=kind, files=files, verdict=verdict, number=1,
        first_at=at, at=at, id=id,
    )  # fmt: skip
    return event_of(trigger, telling, held=described(trigger.bucket, files[:EVENT_FILES_MAX]), list_url=None)


def _keys(trigger: UploadSet, chosen: str, count: int) -> list[str]:
    """Keys of a set, as many as differ by what its wildcards stand for."""
    values = {**dict.fromkeys(trigger.pattern.names, "example"), **trigger.values(chosen)}
    return sorted({trigger.pattern.example(values, str(number)) for number in range(count)})
