"""`UploadSet(...)`: turns uploads that belong together into one event.

Imports the trigger protocol, the model, the upload trigger and its own room.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

from headrace.runtime.errors import InvalidFunction, InvalidSettings
from headrace.runtime.model.size import read_duration
from headrace.runtime.trigger import Options, Route, Source, TriggerContext
from headrace.triggers.upload.trigger import HOPS_MAX, Upload
from headrace.triggers.uploadset.condition import (
    Condition,
    Manifest,
    Marker,
    Quiet,
    condition_from,
)
from headrace.triggers.uploadset.decision import LATE_S, Incomplete, Late, Policy
from headrace.triggers.uploadset.pattern import WHOLE, KeyPattern


class Place(msgspec.Struct, frozen=True):
    """Where a key belongs: the set's name, and whether the key is a marker's or a manifest's."""

    name: str
    is_marker: bool


class UploadSet:
    """Call the function once for a set of objects, as soon as the set is complete.

    Args:
        bucket: its name; a folder store makes the bucket when it is missing.
        pattern: the keys of the files, with captures: `{day}/*.csv`. `{name}` stands for one or more
            characters other than a slash; `*`, `?`, `**/` and `[a-z]` are those of `Upload(glob=)`.
        by: the captures that tell the sets from each other: a name or several; by default all.
        complete: `Count(24)`, `Manifest("manifest.json")`, `Marker("_SUCCESS")`, `Quiet("10 minutes")`, or
            several joined by `|` (either) and `&` (both).
        late: what becomes of files that come, or are replaced, after their set fired: `ignore`; `fire` calls
            the function with them alone; `again` calls it with the whole set, once that is complete with
            them; `dead` makes a dead letter of them.
        timeout: seconds, or a text such as `"6 hours"`, from a set's first file on, after which it no longer
            waits; None waits for ever.
        incomplete: what becomes of a set whose time is up: `dead` makes it a dead letter, `fire` calls the
            function with what is there.
        max_hops: as for `Upload`: how many times in a row a set may come of what a function wrote on account
            of the one before.
        existing: `skip` passes over the sets that were complete before the trigger first started, `run` does
            not.
        name: the trigger's identity beside its function; by default its place among the function's sets.

    Raises: InvalidFunction.
    """

    kind: ClassVar[str] = "uploadset"
    sample_options: ClassVar[Mapping[str, str]] = {
        "set": "the set's name: the captures' values, joined by slashes",
        "key": "a file's key, as it is; may be given several times",
        "size": "bytes of each file",
        "time": "when it became complete: ISO 8601 with a time zone",
    }

    def __init__(
        self,
        bucket: str,
        *,
        complete: Condition,
        pattern: str = "**",
        by: str | Sequence[str] | None = None,
        late: str = "ignore",
        timeout: float | str | None = None,
        incomplete: str = "dead",
        max_hops: int = HOPS_MAX,
        existing: str = "skip",
        name: str | None = None,
    ) -> None:
        self._shown = f"UploadSet({bucket!r})"
        self.bucket = bucket
        if not isinstance(pattern, str) or not pattern:
            raise self._invalid(f"pattern is {pattern!r}", "Write for example {day}/*.csv.")
        self.pattern = KeyPattern(pattern, self._shown)
        self.by = self._names(by)
        if not isinstance(complete, Condition):
            raise self._invalid(
                f"complete is {complete!r}",
                'Use Count(24), Manifest("…"), Marker("…") or Quiet("10 minutes").',
            )
        self.complete = complete
        self.late = self._choice(late, Late, "late")
        self.incomplete = self._choice(incomplete, Incomplete, "incomplete")
        if not isinstance(max_hops, int) or isinstance(max_hops, bool) or not 0 <= max_hops <= 1_000_000:
            raise self._invalid(f"max_hops is {max_hops!r}", "Use a whole number from 0 to 1,000,000.")
        self.max_hops = max_hops
        self.existing = existing
        if existing not in ("skip", "run"):
            raise self._invalid(f"existing is {existing!r}", 'Use "skip" or "run".')
        if name is not None and (not isinstance(name, str) or not name or len(name) > 128):
            raise self._invalid(
                f"the name {name!r} is not a text of 1 to 128 characters", "Give another name."
            )
        self.name = name
        try:
            self.timeout_s = None if timeout is None else read_duration(timeout, field="timeout")
        except InvalidSettings as error:
            raise self._invalid(str(error), error.hint) from None
        named = [part for part in complete.parts() if isinstance(part, Marker | Manifest)]
        self.markers = {part.name: self._marker(part.name) for part in named}
        self._manifests = frozenset(part.name for part in named if isinstance(part, Manifest))
        texts = [pattern, *(marker.text for marker in self.markers.values())]
        beginnings = [self.pattern.beginning({}), *(marker.beginning({}) for marker in self.markers.values())]
        self.members = _Members(self, _common(beginnings), texts)

    def __repr__(self) -> str:
        defaults: dict[str, Any] = {
            "pattern": "**",
            "late": "ignore",
            "incomplete": "dead",
            "existing": "skip",
        }
        defaults["max_hops"] = HOPS_MAX
        defaults["by"] = list(self.pattern.names)
        fields = {name: value for name, value in self.fields().items() if value != defaults.get(name)}
        del fields["bucket"], fields["complete"]
        given = [f"{name}={value!r}" for name, value in fields.items()]
        return f"UploadSet({', '.join([repr(self.bucket), *given, f'complete={self.complete!r}'])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UploadSet) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((self.bucket, self.pattern.text, self.name))

    def fields(self) -> dict[str, Any]:
        return {
            "bucket": self.bucket,
            "pattern": self.pattern.text,
            "by": list(self.by),
            "complete": self.complete.fields(),
            "late": self.late.value,
            "timeout": self.timeout_s,
            "incomplete": self.incomplete.value,
            "max_hops": self.max_hops,
            "existing": self.existing,
            "name": self.name,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        rest = {name: value for name, value in fields.items() if name not in ("bucket", "complete")}
        return cls(fields["bucket"], complete=condition_from(fields["complete"]), **rest)

    @property
    def definition(self) -> str:
        """What makes its sets what they are, as canonical text; another one makes other sets."""
        return msgspec.json.encode([self.bucket, self.pattern.text, list(self.by)]).decode()

    @property
    def has_folders(self) -> bool:
        """Whether all that a set has lies in a folder of its own, so that a listing has it in one piece."""
        folder = self.pattern.folder()
        is_own = set(KeyPattern(folder, self._shown).names) == set(self.by) and bool(self.by)
        return is_own and all(marker.text.startswith(folder) for marker in self.markers.values())

    @property
    def policy(self) -> Policy:
        quiet = [part.period_s for part in self.complete.parts() if isinstance(part, Quiet)]
        return Policy(
            late=self.late,
            incomplete=self.incomplete,
            timeout_s=self.timeout_s,
            gather_s=max(quiet, default=LATE_S),
            keeps_time=bool(quiet),
        )

    def place(self, key: str) -> Place | None:
        """The set that a key belongs to; None if to none."""
        for marker in self.markers.values():
            values = marker.match(key)
            if values is not None:
                return Place(self._set(values), True)
        values = self.pattern.match(key)
        return None if values is None else Place(self._set(values), False)

    def values(self, name: str) -> dict[str, str]:
        """What the captures hold in the set of that name."""
        return dict(zip(self.by, name.split("/"), strict=True)) if self.by else {}

    def marker_keys(self, name: str) -> dict[str, str]:
        """The keys of the set's markers and manifests, by the names that they were declared with."""
        values = self.values(name)
        return {declared: pattern.beginning(values) for declared, pattern in self.markers.items()}

    def manifest_keys(self, name: str) -> list[str]:
        return [key for declared, key in self.marker_keys(name).items() if declared in self._manifests]

    def job_input(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """All files of the set: a job's input."""
        detail = event["detail"]
        return {"objects": detail["files"] if detail["list"] is None else detail["list"]}

    def source(self, context: TriggerContext) -> Source:
        # Whoever declares a trigger, a worker for instance, needs no watcher.
        from headrace.triggers.uploadset.source import SetSource

        return SetSource(self, context)

    def routes(self) -> Sequence[Route]:
        return ()

    @classmethod
    def sample(
        cls, options: Options, *, like: Self | None, name: str, moment: float, id: str
    ) -> Mapping[str, Any]:
        """See Sampled."""
        from headrace.triggers.uploadset.sample import sample_set

        return sample_set(options, like, name, moment, id)

    # ---- inside ----

    def _set(self, values: Mapping[str, str]) -> str:
        return "/".join(values[name] for name in self.by) if self.by else WHOLE

    def _names(self, by: str | Sequence[str] | None) -> tuple[str, ...]:
        names = self.pattern.names if by is None else (by,) if isinstance(by, str) else tuple(by)
        for name in names:
            if name not in self.pattern.names:
                raise self._invalid(
                    f"by names {name!r}, and the pattern {self.pattern.text!r} has no {{{name}}}",
                    "Name captures of the pattern.",
                )
        return names

    def _choice(self, value: str, kind: Any, field: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise self._invalid(
                f"{field} is {value!r}", f"Use one of {', '.join(repr(one.value) for one in kind)}."
            ) from None

    def _marker(self, name: str) -> KeyPattern:
        """Where the marker or manifest of that name lies: one key for each set."""
        pattern = KeyPattern(name if "{" in name else self.pattern.folder() + name, self._shown)
        if not pattern.is_fixed or set(pattern.names) != set(self.by):
            by = ", ".join(f"{{{one}}}" for one in self.by) or "no captures"
            raise self._invalid(
                f"{name!r} is not one key for each set: it would be {pattern.text!r}",
                f"Write its whole key with {by} and no wildcards.",
            )
        return pattern

    def _invalid(self, why: str, hint: str) -> InvalidFunction:
        return InvalidFunction(self._shown, why, hint)


class _Members(Upload):
    """The uploads of all sets: what the general source looks for and keeps its ledger of."""

    def __init__(self, sets: UploadSet, prefix: str, texts: list[str]) -> None:
        super().__init__(sets.bucket, prefix=prefix, existing="run")
        self._sets = sets
        self._texts = texts

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "patterns": self._texts}

    def matches_key(self, key: str) -> bool:
        return key.startswith(self.prefix) and self._sets.place(key) is not None


def _common(beginnings: list[str]) -> str:
    """What all of them begin with."""
    low, high = min(beginnings), max(beginnings)
    return low[
        : next((at for at, pair in enumerate(zip(low, high, strict=False)) if len(set(pair)) > 1), len(low))
    ]
