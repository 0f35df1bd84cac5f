"""`Upload(...)`: turns each object that appears in a bucket into an event.

Imports the trigger protocol, the model and the key rules. Source of the events' names: "Supported event types
for SQS, SNS, and Lambda", Amazon S3 User Guide.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from headrace.runtime.errors import InvalidBucketName, InvalidFunction, InvalidSettings
from headrace.runtime.model.size import read_size
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.objects.key import SYSTEM_BUCKET, check_bucket
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import Options, Route, Source, TriggerContext

EVENTS = (
    "ObjectCreated:*",
    "ObjectCreated:Put",
    "ObjectCreated:Post",
    "ObjectCreated:Copy",
    "ObjectCreated:CompleteMultipartUpload",
    "ObjectRemoved:*",
    "ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated",
)
"""The events that can be asked for. A folder, and a sweep of any bucket, knows `ObjectCreated:Put` and
`ObjectRemoved:Delete` only.
"""

HOPS_MAX = 16
"""How many uploads in a row functions may write, each on account of the one before."""


class Upload:
    """Call the function for every object that appears in a bucket, or is replaced.

    Args:
        bucket: its name; a folder store makes the bucket when it is missing.
        prefix: only keys that begin with it.
        suffix: only keys that end with it.
        glob: only keys that match as a whole: `*` and `?` stay within one segment, `**/` stands for any
        folders,
            `[a-z]` and `[!a-z]` for one character.
        events: S3's names of what happened, with or without `s3:`.
        min_size: the smallest size, in bytes or as `"1 MiB"`.
        max_size: the largest size, likewise, inclusive.
        metadata: events also have `userMetadata` and `contentType`.
        tags: events also have `tags`; an S3 server is asked for them each time.
        max_hops: how many uploads in a row may each be written by a function on account of the one before;
            the next one is a dead letter (`upload_loop`). 0 stops every upload that such a function wrote.
        existing: `skip` passes over what was in the bucket before the trigger first started, `run` does not.

    Raises: InvalidFunction.
    """

    kind: ClassVar[str] = "upload"
    sample_options: ClassVar[Mapping[str, str]] = {
        "bucket": "the bucket's name",
        "key": "the object's key, as it is",
        "size": "bytes",
        "etag": "the object's ETag",
        "sequencer": "hexadecimal text that grows with each state of the key",
        "time": "when it happened: ISO 8601 with a time zone",
        "event": "what happened: ObjectCreated:Put and the like",
        "version-id": "of a versioned bucket",
        "source": "who told: headrace:folder, minio:s3",
    }

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        suffix: str = "",
        glob: str | None = None,
        events: Sequence[str] = ("ObjectCreated:*",),
        min_size: int | str | None = None,
        max_size: int | str | None = None,
        metadata: bool = False,
        tags: bool = False,
        max_hops: int = HOPS_MAX,
        existing: str = "skip",
    ) -> None:
        for name, value in (("bucket", bucket), ("prefix", prefix), ("suffix", suffix), ("glob", glob or "")):
            if not isinstance(value, str):
                raise InvalidFunction(
                    f"Upload({bucket!r})", f"{name} is {value!r}, not text", "Write it in quotes."
                )
        self.bucket = bucket
        self.prefix = prefix
        self.suffix = suffix
        self.glob = glob
        self.events = tuple(
            name.removeprefix("s3:") for name in ((events,) if isinstance(events, str) else events)
        )
        self.metadata = metadata
        self.tags = tags
        self.max_hops = max_hops
        self.existing = existing
        for name, flag in (("metadata", metadata), ("tags", tags)):
            if not isinstance(flag, bool):
                raise self._invalid(f"{name} is {flag!r}", "Use True or False.")
        if not isinstance(max_hops, int) or isinstance(max_hops, bool) or not 0 <= max_hops <= 1_000_000:
            raise self._invalid(f"max_hops is {max_hops!r}", "Use a whole number from 0 to 1,000,000.")
        try:
            check_bucket(bucket)
        except InvalidBucketName as error:
            raise self._invalid(f"the bucket's name {error.args[1]}", error.hint) from None
        if bucket == SYSTEM_BUCKET:
            raise self._invalid("this bucket is Headrace's own and never triggers", "Use a bucket of yours.")
        unknown = [name for name in self.events if name not in EVENTS]
        if unknown or not self.events:
            what = f"{unknown[0]!r} is no event that this trigger knows" if unknown else "events is empty"
            raise self._invalid(what, f"Use {', '.join(EVENTS)}.")
        if existing not in ("skip", "run"):
            raise self._invalid(f"existing is {existing!r}", 'Use "skip" or "run".')
        self.min_size = self._size(min_size, "min_size")
        self.max_size = self._size(max_size, "max_size")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise self._invalid("min_size is above max_size", "No object would match; exchange them.")
        try:
            self._glob = None if glob is None else re.compile(glob_source(glob), re.DOTALL)
        except re.error as error:
            raise self._invalid(
                f"the glob {glob!r} cannot be read: {error}", "Write for example **/*.csv."
            ) from None

    def __repr__(self) -> str:
        given = {name: value for name, value in self.fields().items() if value != _DEFAULTS.get(name)}
        given.pop("bucket")
        shown = [repr(self.bucket), *(f"{name}={value!r}" for name, value in given.items())]
        return f"Upload({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Upload) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((self.bucket, self.prefix, self.suffix, self.glob))

    def fields(self) -> dict[str, Any]:
        return {
            "bucket": self.bucket,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "glob": self.glob,
            "events": list(self.events),
            "min_size": self.min_size,
            "max_size": self.max_size,
            "metadata": self.metadata,
            "tags": self.tags,
            "max_hops": self.max_hops,
            "existing": self.existing,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(fields["bucket"], **{name: value for name, value in fields.items() if name != "bucket"})

    def matches_key(self, key: str) -> bool:
        """Whether a key passes prefix, suffix and glob."""
        if not (key.startswith(self.prefix) and key.endswith(self.suffix)):
            return False
        return self._glob is None or self._glob.fullmatch(key) is not None

    @property
    def wants_created(self) -> bool:
        """Whether objects that come are events."""
        return any(name.startswith("ObjectCreated") for name in self.events)

    @property
    def wants_removed(self) -> bool:
        """Whether objects that go are events."""
        return any(name.startswith("ObjectRemoved") for name in self.events)

    def matches(self, info: ObjectInfo, name: str = "ObjectCreated:Put") -> bool:
        """Whether an object passes all filters; `name` is the event that brought it. The size of an object
        that has gone is not known, and does not count.
        """
        # What a server else counts among ObjectCreated, such as new tags of an old object, is no upload.
        wanted = name in self.events or (name in EVENTS and f"{name.partition(':')[0]}:*" in self.events)
        if not wanted:
            return False
        return self.matches_key(info.key) if name.startswith("ObjectRemoved") else self.tracks(info)

    def tracks(self, info: ObjectInfo) -> bool:
        """Whether an object passes the filters of key and size, whatever happened to it."""
        if self.min_size is not None and info.size < self.min_size:
            return False
        if self.max_size is not None and info.size > self.max_size:
            return False
        return self.matches_key(info.key)

    def covers(self, info: ObjectInfo) -> bool:
        """Whether an object lies in the bucket and passes the filters of key and size."""
        return info.bucket == self.bucket and self.tracks(info)

    def check(self, function: FunctionSpec) -> None:
        """Raises: InvalidFunction when the function's own results would set it off, for ever, or when a job
        is to have removed objects as input.
        """
        if function.job is not None and self.wants_removed:
            raise InvalidFunction(
                function.name, "an object that has gone is no input of a job", "Ask for ObjectCreated only."
            )
        places = [("on_failure", function.on_failure), ("on_success", function.on_success)]
        leading = [(name, place) for name, place in places if place and place.startswith("s3://")]
        if function.job is not None and function.job.output:
            leading.append(("output", f"s3://{function.job.output}"))
        for name, place in leading:
            bucket, _, prefix = place.removeprefix("s3://").partition("/")
            below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
            if bucket == self.bucket and any(self.matches_key(below + key) for key in _RESULTS[name]):
                raise InvalidFunction(
                    function.name,
                    f"its {name}, {place}, lies where Upload({self.bucket!r}) sets it off again, without end",
                    "Write to another bucket or prefix, or narrow the trigger.",
                )

    def source(self, context: TriggerContext) -> Source:
        # Whoever declares a trigger, a worker for instance, needs no watcher.
        from headrace.triggers.upload.open import open_source

        return open_source(self, context)

    def routes(self) -> Sequence[Route]:
        return ()

    @classmethod
    def sample(
        cls, options: Options, *, like: Self | None, name: str, moment: float, id: str
    ) -> Mapping[str, Any]:
        """See Sampled."""
        from headrace.triggers.upload.sample import sample_upload

        return sample_upload(options, like, moment)

    def _size(self, value: int | str | None, name: str) -> int | None:
        if value is None or (value == 0 and not isinstance(value, bool)):
            return value if value is None else 0
        try:
            return read_size(value, field=name)
        except InvalidSettings as error:
            raise self._invalid(str(error), error.hint) from None

    def _invalid(self, why: str, hint: str) -> InvalidFunction:
        return InvalidFunction(f"Upload({self.bucket!r})", why, hint)


# Keys as they are below a job's output and below a destination.
_RECORDS = ("2026/01/01/0123456789abcdef.json", "0123456789abcdef.json")
_RESULTS = {
    "output": tuple(
        f"0123456789abcdef/{name}" for name in ("result.json", "manifest.json", "chunks/000000.1.json")
    ),
    "on_failure": _RECORDS,
    "on_success": _RECORDS,
}

_DEFAULTS: dict[str, Any] = {
    "prefix": "",
    "suffix": "",
    "glob": None,
    "events": ["ObjectCreated:*"],
    "min_size": None,
    "max_size": None,
    "metadata": False,
    "tags": False,
    "max_hops": HOPS_MAX,
    "existing": "skip",
}

_GLOB_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def glob_source(glob: str) -> str:
    """The regular expression, for use with DOTALL, that a glob over keys stands for."""
    parts = []
    for part in _GLOB_PARTS.findall(glob):
        if part == "**/":
            parts.append("(?:.*/)?")
        elif part == "**":
            parts.append(".*")
        elif part == "*":
            parts.append("[^/]*")
        elif part == "?":
            parts.append("[^/]")
        elif part.startswith("[") and len(part) > 1:
            inside = part[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("&&", r"&\&")
            if inside.startswith("!"):
                inside = "^/" + inside[1:]
            elif inside.startswith("^"):
                inside = "\\" + inside
            parts.append(f"[{inside}]")
        else:
            parts.append(re.escape(part))
    return "".join(parts)
