"""Events of sets: what a function is told of one.

Imports the trigger protocol's model and its own room.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.runtime.model.event import UploadSetEvent
from headrace.triggers.upload.arrival import iso
from headrace.triggers.uploadset.condition import SetFile, Verdict
from headrace.triggers.uploadset.trigger import UploadSet

EVENT_FILES_MAX = 500
EVENT_FILES_BYTES = 96 << 10
"""What an event holds of its files; with more of them, they are an object that it names."""


class Telling(msgspec.Struct, frozen=True, kw_only=True):
    """One event of one set.

    `kind` is one of UploadSetEvent's; `files` are those that it is of; `number` counts the set's events from
    1; moments are UTC epoch seconds; `id` is the event's, and `trigger` the trigger's name.
    """

    trigger: str
    name: str
    kind: str
    files: Sequence[SetFile]
    verdict: Verdict
    number: int
    first_at: float
    at: float
    id: str


def described(bucket: str, files: Sequence[SetFile]) -> list[dict[str, Any]]:
    """Files as events and jobs have them."""
    found: list[dict[str, Any]] = []
    for file in files:
        one = {"bucket": bucket, "key": file.key, "etag": file.etag, "size": file.size}
        found.append(one if file.version_id is None else {**one, "version-id": file.version_id})
    return found


def fitting(files: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of the described files, as many as an event holds."""
    sizes = itertools.accumulate(len(msgspec.json.encode(file)) for file in files[:EVENT_FILES_MAX])
    return list(files[: sum(1 for size in sizes if size <= EVENT_FILES_BYTES)])


def event_of(
    trigger: UploadSet, telling: Telling, *, held: Sequence[Mapping[str, Any]], list_url: str | None
) -> UploadSetEvent:
    """The event. `held` are the described files that it holds, `list_url` where all are if those are some."""
    detail = {
        "by": trigger.values(telling.name),
        "complete": telling.verdict.complete,
        "late": telling.kind == UploadSetEvent.LATE,
        "reason": telling.verdict.why,
        "number": telling.number,
        "first-seen": iso(telling.first_at),
        "count": len(telling.files),
        "size": sum(file.size for file in telling.files),
        "files": held,
        "list": list_url,
        "missing": list(telling.verdict.missing),
        "missing-count": telling.verdict.missing_count,
    }
    return UploadSetEvent.of(
        telling.trigger, bucket=trigger.bucket, name=telling.name, kind=telling.kind, time=iso(telling.at),
        id=telling.id, detail=detail,
    )  # fmt: skip
