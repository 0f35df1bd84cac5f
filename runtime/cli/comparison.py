"""Comparison: what a replay is run on, and how its outcome stands beside the recorded one.

Imports the floor only; plain values in and out.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from headrace.runtime.model.event import UploadEvent

LINES_MAX = 24
"""Lines of a difference that are shown."""


class Input(NamedTuple):
    """The object that an event is about, as it was then; `etag` may be empty where none was recorded."""

    bucket: str
    key: str
    etag: str
    version_id: str | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def input_of(payload: Any) -> Input | None:
    """The object in an upload's event, or in the payload of a job's step; None where there is none."""
    if not isinstance(payload, dict):
        return None
    records = payload.get("Records")
    if (
        isinstance(records, list)
        and len(records) == 1
        and isinstance(records[0], dict)
        and "s3" in records[0]
    ):
        event = UploadEvent(payload)
        return Input(event.bucket, event.key, event.etag, event.record["s3"]["object"].get("versionId"))
    shared = payload.get("shared")
    if isinstance(shared, dict) and "bucket" in shared and "key" in shared:
        return Input(shared["bucket"], shared["key"], str(shared.get("etag") or ""))
    given = payload.get("input")
    if payload.get("stage") == "plan" and isinstance(given, dict) and isinstance(given.get("object"), str):
        bucket, _, key = given["object"].removeprefix("s3://").partition("/")
        return Input(bucket, key, str(given.get("etag") or ""))
    return None


def with_etag(payload: dict[str, Any], etag: str) -> dict[str, Any]:
    """The payload of a job's step, pinned to another state of its object; others are left as they are."""
    if isinstance(payload.get("shared"), dict):
        return {**payload, "shared": {**payload["shared"], "etag": etag}}
    if payload.get("stage") == "plan":
        return {**payload, "input": {**payload["input"], "etag": etag}}
    return payload


class Outcome(NamedTuple):
    """How a run ended: its result when `ok`, else its error; `ok` None when it has not ended."""

    ok: bool | None
    result: Any = None
    error: Mapping[str, Any] | None = None


def recorded(record: Mapping[str, Any]) -> Outcome:
    """The outcome in an invocation's record, as the API shows it."""
    if record["status"] == "succeeded":
        return Outcome(True, record.get("result"))
    if record.get("error"):
        return Outcome(False, error=record["error"])
    return Outcome(None)


class Verdict(NamedTuple):
    """Whether two outcomes are the same (None when there is nothing to compare), and in words."""

    same: bool | None
    text: str


def compare(then: Outcome, now: Outcome, *, of_job: bool = False) -> Verdict:
    """Set the recorded outcome beside the replay's.

    `of_job` leaves out where a job's step put its result, which has a random part.
    """
    if then.ok is None:
        return Verdict(None, "nothing to compare with: no attempt has ended yet")
    if then.ok and now.ok:
        was, is_now = _plain(then.result, of_job), _plain(now.result, of_job)
        if was == is_now:
            return Verdict(True, "same result")
        return Verdict(False, "another result\n" + _difference(_lines(was), _lines(is_now)))
    if not then.ok and not now.ok:
        if _said(then.error) == _said(now.error):
            return Verdict(True, "same error")
        return Verdict(False, "another error\n" + _difference([_said(then.error)], [_said(now.error)]))
    was_said = "a result" if then.ok else _said(then.error)
    return Verdict(False, f"recorded: {was_said}; here: {'a result' if now.ok else _said(now.error)}")


def _plain(result: Any, of_job: bool) -> Any:
    if of_job and isinstance(result, dict) and "object" in result:
        return {key: value for key, value in result.items() if key != "object"}
    return result


def _said(error: Mapping[str, Any] | None) -> str:
    found = error or {}
    kind = found.get("type") or found.get("code") or "error"
    return f"{kind}: {found.get('message') or ''}".rstrip(": ")


def _lines(value: Any) -> list[str]:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).splitlines()


def _difference(then: list[str], now: list[str]) -> str:
    found = list(difflib.unified_diff(then, now, "recorded", "here", lineterm="", n=1))[2:]
    shown = [line[:200] for line in found if not line.startswith("@@")][:LINES_MAX]
    if len(found) > LINES_MAX:
        shown.append(f"({len(found) - LINES_MAX:,} lines more)")
    return "\n".join(shown)
