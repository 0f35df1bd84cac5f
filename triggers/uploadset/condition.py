"""Conditions: what makes a set complete, and `judge`, which says whether it is.

Imports the floor. Pure: whoever asks has looked at the bucket and the clock. Conditions combine: `a | b` is
met when either is, `a & b` when both are.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from headrace.runtime.errors import InvalidFunction, InvalidSettings
from headrace.runtime.model.size import read_duration

FILES_MAX = 200_000
"""The most files of one set."""

MISSING_MAX = 100
"""The most missing names that a verdict tells."""


class SetFile(msgspec.Struct, frozen=True):
    """One file of a set; `size` in bytes."""

    key: str
    etag: str
    size: int
    version_id: str | None = None


class Named(msgspec.Struct, frozen=True):
    """What a manifest says of one file; None where it says nothing."""

    key: str
    size: int | None = None
    etag: str | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one set at one moment.

    `files` ascend by key, without markers and manifests. `markers` are the keys of markers and manifests that
    are there. `manifests` are the manifests that could be read, by key; `unread` says why the others could
    not. `quiet_s` is for how long nothing of the set has changed.
    """

    files: Sequence[SetFile] = ()
    markers: frozenset[str] = frozenset()
    manifests: Mapping[str, Sequence[Named]] = {}
    unread: Mapping[str, str] = {}
    quiet_s: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a set is complete, and why or why not.

    `files` are those that belong to it: all, unless a manifest that is met names them. `missing` are up to
    MISSING_MAX keys that are known to be missing, `missing_count` is how many there are. `wait_s` is after
    how long it becomes complete by the passing of time alone; None if it does not.
    """

    complete: bool
    why: str
    files: Sequence[SetFile] = ()
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    wait_s: float | None = None
    named: bool = False
    """Whether a manifest chose the files."""


class Condition:
    """What a set has to meet. Conditions are values: they compare and travel as their fields."""

    kind: ClassVar[str]

    def __or__(self, other: "Condition") -> "Condition":
        return _joined(AnyOf, self, other)

    def __and__(self, other: "Condition") -> "Condition":
        return _joined(AllOf, self, other)

    def fields(self) -> dict[str, Any]:
        """JSON-able, from which `condition_from` makes an equal condition."""
        raise NotImplementedError

    def parts(self) -> Iterator["Condition"]:
        """Itself, or the conditions that it joins, down to the last."""
        yield self

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        """Whether it is met. `keys` are the keys in this set of the names of markers and manifests."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(repr(self))


class Count(Condition):
    """Complete with so many files, or more. `files` is 1 to FILES_MAX."""

    kind = "count"

    def __init__(self, files: int) -> None:
        is_whole = isinstance(files, int) and not isinstance(files, bool)
        if not is_whole or not 1 <= files <= FILES_MAX:
            raise InvalidFunction(
                f"Count({files!r})", "is no number of files", f"Give a whole number from 1 to {FILES_MAX:,}."
            )
        self.files = files

    def __repr__(self) -> str:
        return f"Count({self.files})"

    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": self.files}

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        found = len(facts.files)
        why = f"{found:,} of {self.files:,} files"
        return Verdict(
            complete=found >= self.files,
            why=why,
            files=facts.files,
            missing_count=max(self.files - found, 0),
        )


class Marker(Condition):
    """Complete when an object of this name is there, which its writer puts last: `Marker("_SUCCESS")`.

    Args:
        name: in the set's folder; or, with captures in it, a whole key: `Marker("done/{day}")`.
    """

    kind = "marker"

    def __init__(self, name: str) -> None:
        self.name = _name(name, "Marker")

    def __repr__(self) -> str:
        return f"Marker({self.name!r})"

    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name}

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        key = keys[self.name]
        if key in facts.markers:
            return Verdict(complete=True, why=f"the marker {key} is there", files=facts.files)
        return Verdict(complete=False, why=f"the marker {key} is missing", files=facts.files, missing=(key,),
                       missing_count=1)  # fmt: skip


class Manifest(Condition):
    """Complete when a list of files is there, and all files that it names. It alone says which files those
    are.

    Args:
        name: in the set's folder, or, with captures in it, a whole key. See `names.read_manifest` for what it
            may hold.
    """

    kind = "manifest"

    def __init__(self, name: str) -> None:
        self.name = _name(name, "Manifest")

    def __repr__(self) -> str:
        return f"Manifest({self.name!r})"

    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name}

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        key = keys[self.name]
        named = facts.manifests.get(key)
        if named is None:
            why = facts.unread.get(key)
            if why is not None:
                return Verdict(complete=False, why=f"the manifest {key} cannot be used: {why}",
                               files=facts.files)  # fmt: skip
            return Verdict(complete=False, why=f"the manifest {key} is missing", files=facts.files,
                           missing=(key,), missing_count=1)  # fmt: skip
        there = {file.key: file for file in facts.files}
        files: dict[str, SetFile] = {}
        missing: dict[str, None] = {}
        for one in named:
            file = there.get(one.key)
            if file is not None and _is_as_named(file, one):
                files[one.key] = file
            else:
                missing[one.key] = None
        chosen = sorted((file for name, file in files.items() if name not in missing), key=lambda f: f.key)
        total = len(files.keys() | missing.keys())
        if missing:
            return Verdict(
                complete=False,
                why=f"{total - len(missing):,} of {total:,} files of the manifest {key}",
                files=chosen,
                missing=tuple(sorted(missing)[:MISSING_MAX]),
                missing_count=len(missing),
                named=True,
            )
        return Verdict(
            complete=True, why=f"all {total:,} files of the manifest {key}", files=chosen, named=True
        )


class Quiet(Condition):
    """Complete when nothing of the set has changed for a while: `Quiet("10 minutes")`.

    Args:
        period: seconds, or a text such as `"10 minutes"`.
    """

    kind = "quiet"

    def __init__(self, period: float | str) -> None:
        try:
            self.period_s = read_duration(period, field="the period")
        except InvalidSettings as error:
            raise InvalidFunction(f"Quiet({period!r})", str(error), error.hint) from None

    def __repr__(self) -> str:
        return f"Quiet({self.period_s:g})"

    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "period": self.period_s}

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        if not facts.files:
            return Verdict(complete=False, why="no files yet")
        left = self.period_s - facts.quiet_s
        if left <= 0:
            return Verdict(complete=True, why=f"quiet for {self.period_s:g} s", files=facts.files)
        return Verdict(complete=False, why=f"quiet for {max(facts.quiet_s, 0.0):.0f} of {self.period_s:g} s",
                       files=facts.files, wait_s=left)  # fmt: skip


class _Joined(Condition):
    word: ClassVar[str]

    def __init__(self, *conditions: Condition) -> None:
        self.conditions = conditions

    def __repr__(self) -> str:
        return "(" + f" {self.word} ".join(map(repr, self.conditions)) + ")"

    def fields(self) -> dict[str, Any]:
        return {"kind": self.kind, "conditions": [each.fields() for each in self.conditions]}

    def parts(self) -> Iterator[Condition]:
        for each in self.conditions:
            yield from each.parts()


class AnyOf(_Joined):
    """Complete when one of its conditions is met; the first that is says which files."""

    kind, word = "any", "|"

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        verdicts = [each.judge(facts, keys) for each in self.conditions]
        for verdict in verdicts:
            if verdict.complete:
                return verdict
        waits = [verdict.wait_s for verdict in verdicts if verdict.wait_s is not None]
        return Verdict(
            complete=False,
            why="; ".join(verdict.why for verdict in verdicts),
            files=_chosen(verdicts, facts),
            missing=_missing(verdicts),
            missing_count=min((v.missing_count for v in verdicts if v.missing_count), default=0),
            wait_s=min(waits, default=None),
        )


class AllOf(_Joined):
    """Complete when all of its conditions are met; a manifest among them says which files."""

    kind, word = "all", "&"

    def judge(self, facts: Facts, keys: Mapping[str, str]) -> Verdict:
        verdicts = [each.judge(facts, keys) for each in self.conditions]
        open_ones = [verdict for verdict in verdicts if not verdict.complete]
        waits = [verdict.wait_s for verdict in open_ones]
        return Verdict(
            complete=not open_ones,
            why="; ".join(verdict.why for verdict in (open_ones or verdicts)),
            files=_chosen(verdicts, facts),
            missing=_missing(open_ones),
            missing_count=max((v.missing_count for v in open_ones), default=0),
            # Only if time meets every one that is open.
            wait_s=max((wait for wait in waits if wait is not None), default=None)
            if None not in waits
            else None,
            named=any(verdict.named for verdict in verdicts),
        )


def _joined(kind: type[_Joined], one: Condition, other: Condition) -> Condition:
    if not isinstance(other, Condition):
        raise InvalidFunction(
            repr(other), "is no condition of a set", "Join Count, Manifest, Marker and Quiet by | or &."
        )
    parts = [p for each in (one, other) for p in (each.conditions if type(each) is kind else (each,))]
    return kind(*parts)


def _chosen(verdicts: Sequence[Verdict], facts: Facts) -> Sequence[SetFile]:
    chosen = [verdict.files for verdict in verdicts if verdict.named]
    if not chosen:
        return facts.files
    if len(chosen) == 1:
        return chosen[0]
    return sorted({file.key: file for files in chosen for file in files}.values(), key=lambda file: file.key)


def _missing(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for verdict in verdicts for name in verdict.missing))[:MISSING_MAX]


def _is_as_named(file: SetFile, named: Named) -> bool:
    if named.size is not None and named.size != file.size:
        return False
    return named.etag is None or named.etag.strip('"') == file.etag.strip('"')


def _name(name: object, owner: str) -> str:
    if not isinstance(name, str) or not name or name.startswith("/") or name.endswith("/"):
        raise InvalidFunction(
            f"{owner}({name!r})", "is no name of an object", 'Write for example "_SUCCESS" or "done/{day}".'
        )
    return name


_KINDS: dict[str, type[Condition]] = {
    kind.kind: kind for kind in (Count, Marker, Manifest, Quiet, AnyOf, AllOf)
}


def condition_from(fields: Mapping[str, Any]) -> Condition:
    """The condition that `Condition.fields` described. Raises: InvalidFunction."""
    rest = dict(fields)
    kind = _KINDS.get(rest.pop("kind", ""))
    if kind is None:
        raise InvalidFunction("UploadSet", f"there is no condition {fields.get('kind')!r}",
                              f"There are {', '.join(_KINDS)}.")  # fmt: skip
    if issubclass(kind, _Joined):
        return kind(*(condition_from(each) for each in rest["conditions"]))
    return kind(*rest.values())
