"""The error tree: what can go wrong, split by what a caller does next.

    HeadraceError
    ├── Invalid            the caller fixes the call (400 to 422)
    │   ├── BadRequest, InvalidPayload, PayloadTooLarge, UnsupportedMediaType, InvalidEvent
    │   ├── InvalidCallback, TargetTooLong, HeadersTooLarge
    │   ├── InvalidKey, InvalidBucketName, InvalidObjectUrl
    │   ├── Unknown        UnknownFunction, UnknownInvocation, UnknownJob, UnknownSubject, UnknownSchedule,
    │   │                  UnknownBackfill, UnknownVersion, NoSuchBucket, NoSuchObject
    │   ├── Conflict       PreconditionFailed, IdempotencyMismatch, InProgress, WrongState, AlreadyFired,
    │   │                  Overlapping
    │   ├── Unauthorized, Forbidden
    │   └── InvalidSettings, InvalidFunction, LoadFailed
    ├── Retryable          the caller tries again later (429, 503, 507)
    │   ├── Throttled, Overloaded, RequestTimeout, Contended
    │   ├── NodeStopping, StorageFull, ReadOnlyStorage, StoreUnavailable, Unreachable
    │   └── LeaseLost      the runtime tries again elsewhere
    ├── InvocationFailed   the function's own outcome (500, 504)
    │   ├── FunctionError, FunctionTimeout, OutOfMemory, WorkerCrashed, UnserialisableResult
    │   └── StreamBroken, Expired, NodeLost, Cancelled, JobFailed
    ├── Duplicate          it is recorded already: nothing is to be done
    └── Unusable           an operator must act: DataInUse, DataTooNew, DataDamaged, PortInUse

Rooms that own a noun define its errors beside it, below one of these classes.

Imports nothing. Every class takes its fields as positional arguments, which are its `args`, so that it
pickles between processes; `code` is stable and part of the API, `hint` says what to do, `http_status` is the
answer over HTTP.
"""

from collections.abc import Sequence
from typing import ClassVar


class HeadraceError(Exception):
    """The root of every error that Headrace raises on purpose."""

    code: ClassVar[str] = "internal_error"
    hint: str = ""
    http_status: ClassVar[int] = 500
    final: ClassVar[bool] = False
    """Raised in a function, it is not tried again: the same input will fail again."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.code


# ---- fix the call ----


class Invalid(HeadraceError):
    """The call itself is wrong; the same call will fail again."""

    code = "bad_request"
    http_status = 400


class BadRequest(Invalid):
    """A request whose form is wrong: (message, hint)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.hint = hint


class InvalidPayload(Invalid):
    """A payload that is not JSON: (why)."""

    code = "invalid_payload"
    hint = "Send a JSON document with content type application/json."

    def __str__(self) -> str:
        return f"the payload is not valid JSON: {self.args[0]}"


class PayloadTooLarge(Invalid):
    """A body above its limit: (size in bytes, or -1 when unknown; limit in bytes)."""

    code = "payload_too_large"
    hint = "Put the data into a bucket and send its s3:// address instead."
    http_status = 413

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size, self.limit = size, limit

    def __str__(self) -> str:
        shown = f"{self.size:,} bytes" if self.size >= 0 else "larger"
        return f"the payload is {shown}; the limit is {self.limit:,} bytes"


class TargetTooLong(Invalid):
    """A request's path and query are above their limit: (limit in bytes)."""

    code = "target_too_long"
    hint = "Send in the body what does not fit into the address."
    http_status = 414

    def __str__(self) -> str:
        return f"the path and query of a request may take {self.args[0]:,} bytes"


class HeadersTooLarge(Invalid):
    """A request's headers are above their limit: (limit in bytes)."""

    code = "headers_too_large"
    hint = "Send in the body what does not fit into headers; cookies add up."
    http_status = 431

    def __str__(self) -> str:
        return f"the headers of a request may take {self.args[0]:,} bytes"


class UnsupportedMediaType(Invalid):
    """A body of a form that is not taken: (what it is, what is taken)."""

    code = "unsupported_media_type"
    http_status = 415

    def __init__(self, what: str, taken: str) -> None:
        super().__init__(what, taken)
        self.hint = f"Send {taken}."

    def __str__(self) -> str:
        return f"a body of {self.args[0]} is not taken"


class InvalidCallback(Invalid):
    """A URL that is not called back: (why)."""

    code = "invalid_callback"
    http_status = 422
    final = True
    hint = "Name an https:// URL that is reached from the public network."

    def __str__(self) -> str:
        return f"the callback URL cannot be used: {self.args[0]}"


class InvalidEvent(Invalid):
    """An event that the function's declared types refuse: (function, fields: list of {"loc", "msg"})."""

    code = "invalid_event"
    hint = "The listed fields do not match the types that the function declares."
    http_status = 422

    def __init__(self, function: str, fields: list[dict[str, str]]) -> None:
        super().__init__(function, fields)
        self.function, self.fields = function, fields

    def __str__(self) -> str:
        shown = "; ".join(f"{f['loc']}: {f['msg']}" for f in self.fields[:5])
        return f"{self.function} refuses the event: {shown}"


class InvalidKey(Invalid):
    """An object key that cannot be stored: (key, why)."""

    code = "invalid_key"
    hint = "Use a key of plain path segments, at most 1,024 bytes long."

    def __str__(self) -> str:
        return f"the object key {self.args[0]!r} cannot be used: {self.args[1]}"


class InvalidBucketName(Invalid):
    """A bucket name outside S3's rules: (name, why)."""

    code = "invalid_bucket"
    hint = "Use 3 to 63 lower-case letters, digits, dots and hyphens."

    def __str__(self) -> str:
        return f"the bucket name {self.args[0]!r} cannot be used: {self.args[1]}"


class InvalidObjectUrl(Invalid):
    """A text that names no object: (text, why)."""

    code = "invalid_object_url"
    hint = "Name an object as s3://BUCKET/KEY."

    def __str__(self) -> str:
        return f"{self.args[0]!r} names no object: {self.args[1]}"


class Unknown(Invalid):
    """Something that was named does not exist."""

    code = "not_found"
    http_status = 404


class UnknownFunction(Unknown):
    """No function of that name is loaded: (name, nearest known name or "")."""

    code = "unknown_function"

    def __init__(self, name: str, nearest: str = "") -> None:
        super().__init__(name, nearest)
        self.hint = f"Did you mean {nearest}?" if nearest else "`headrace functions` lists what is loaded."

    def __str__(self) -> str:
        return f"there is no function named {self.args[0]!r}"


class UnknownInvocation(Unknown):
    """No invocation of that id is kept: (id)."""

    code = "unknown_invocation"
    hint = "It may have been removed: ended invocations are kept for the retention time only."

    def __str__(self) -> str:
        return f"there is no invocation {self.args[0]!r}"


class UnknownJob(Unknown):
    """No job of that id is kept: (id)."""

    code = "unknown_job"
    hint = "`headrace job list` shows the jobs that are kept."

    def __str__(self) -> str:
        return f"there is no job {self.args[0]!r}"


class UnknownSubject(Unknown):
    """A name stands for no invocation, job, schedule or function: (name, schedules that end in it)."""

    code = "unknown_subject"

    def __init__(self, name: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(name, tuple(candidates))
        self.hint = (
            f"Give one of these in full: {', '.join(candidates)}."
            if candidates
            else "Give an invocation's or a job's id, or the name of a function or a schedule; what has ended"
            " is kept for the retention time only."
        )

    def __str__(self) -> str:
        what = "several schedules are" if self.args[1] else "no invocation, job, schedule or function is"
        return f"{what} named {self.args[0]!r}"


class UnknownSchedule(Unknown):
    """A name stands for no schedule: (name, schedules that it may mean)."""

    code = "unknown_schedule"

    def __init__(self, name: str, candidates: Sequence[str] = ()) -> None:
        super().__init__(name, tuple(candidates))
        self.hint = (
            f"Give one of these in full: {', '.join(candidates)}."
            if candidates
            else "`headrace schedule list` shows those that there are."
        )

    def __str__(self) -> str:
        return f"{'several schedules are' if self.args[1] else 'no schedule is'} named {self.args[0]!r}"


class UnknownBackfill(Unknown):
    """No backfill of that id is kept: (id)."""

    code = "unknown_backfill"
    hint = "`headrace schedule backfills` shows those that are kept."

    def __str__(self) -> str:
        return f"there is no backfill {self.args[0]!r}"


class UnknownVersion(Unknown):
    """The code of a version is not kept: (version, why)."""

    code = "unknown_version"
    hint = "Replay with the code that you have: `headrace replay ID --code here`."

    def __str__(self) -> str:
        why = f": {self.args[1]}" if self.args[1] else ""
        return f"the code of version {self.args[0] or '(none)'} is not kept{why}"


class NoSuchBucket(Unknown):
    """(bucket)."""

    code = "no_such_bucket"

    def __init__(self, bucket: str) -> None:
        super().__init__(bucket)
        self.hint = f"Make it with `headrace buckets make {bucket}`, or create the folder."

    def __str__(self) -> str:
        return f"there is no bucket {self.args[0]!r}"


class NoSuchObject(Unknown):
    """(bucket, key)."""

    code = "no_such_object"
    hint = "Check the key's spelling; keys are case-sensitive."

    def __str__(self) -> str:
        return f"there is no object s3://{self.args[0]}/{self.args[1]}"


class Conflict(Invalid):
    """The call does not fit the present state."""

    code = "conflict"
    http_status = 409


class PreconditionFailed(Conflict):
    """An object is not the one that was expected: (bucket, key, expected ETag, found ETag)."""

    code = "precondition_failed"
    hint = "The object was changed by somebody else; read it again."
    http_status = 412

    def __str__(self) -> str:
        bucket, key, expected, found = self.args
        return f"s3://{bucket}/{key} has ETag {found!r}, not {expected!r}"


class IdempotencyMismatch(Conflict):
    """An idempotency key came again with another payload: (function, key)."""

    code = "idempotency_mismatch"
    hint = "Use a new key for a new payload."
    http_status = 422

    def __str__(self) -> str:
        return f"the idempotency key {self.args[1]!r} of {self.args[0]} was used with another payload"


class InProgress(Conflict):
    """An accepted call has not ended in time: (invocation id, whether it is an earlier one with the same
    idempotency key).
    """

    code = "in_progress"
    hint = "Ask for the invocation by its id, or call again later."

    def __str__(self) -> str:
        if len(self.args) > 1 and not self.args[1]:
            return f"invocation {self.args[0]} is accepted and has not ended yet"
        return f"invocation {self.args[0]} with the same idempotency key has not ended"


class WrongState(Conflict):
    """A thing cannot do that now: (thing, its state, what was asked)."""

    code = "wrong_state"

    def __str__(self) -> str:
        return f"{self.args[0]} is {self.args[1]} and cannot {self.args[2]}"


class AlreadyFired(Conflict):
    """A schedule has fired for that instant, or it is not remembered whether it has: (schedule, instant)."""

    code = "already_fired"
    hint = "To fire it once more, ask for it again: --again."

    def __str__(self) -> str:
        return f"{self.args[0]} has fired for {self.args[1]}, or that is not remembered any more"


class Overlapping(Conflict):
    """What a schedule fired before has not ended: (schedule, ids of invocations or jobs)."""

    code = "overlapping"
    hint = "It is tried again when they have ended."

    def __init__(self, schedule: str, ids: Sequence[str]) -> None:
        super().__init__(schedule, tuple(ids))
        self.ids: tuple[str, ...] = tuple(ids)

    def __str__(self) -> str:
        return f"what {self.args[0]} fired before has not ended: {', '.join(self.ids) or 'one that waits'}"


class Unauthorized(Invalid):
    """No valid token came with the call: (message)."""

    code = "unauthorized"
    hint = "Send `Authorization: Bearer TOKEN`; the first start writes a token to DATA/token."
    http_status = 401


class Forbidden(Invalid):
    """The token lacks a scope, or the caller's origin is not allowed: (message)."""

    code = "forbidden"
    http_status = 403


class InvalidSettings(Invalid):
    """A setting is unknown or has a wrong value: (message, hint)."""

    code = "invalid_settings"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.hint = hint


class InvalidFunction(Invalid):
    """A function was declared wrongly: (function, why, hint)."""

    code = "invalid_function"

    def __init__(self, function: str, why: str, hint: str = "") -> None:
        super().__init__(function, why, hint)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class LoadFailed(Invalid):
    """A file of functions could not be loaded: (file, line, why)."""

    code = "load_failed"
    hint = "Mend the file; the rest is served meanwhile."

    def __str__(self) -> str:
        line = f":{self.args[1]}" if self.args[1] else ""  # a path as a whole has no line
        return f"{self.args[0]}{line}: {self.args[2]}"


# ---- try again ----


class Retryable(HeadraceError):
    """Nothing is wrong with the call: it may succeed later."""

    code = "unavailable"
    http_status = 503


class Throttled(Retryable):
    """No room at present: (what is full, seconds after which to try again)."""

    code = "throttled"
    hint = "Try again after the time in Retry-After, or invoke with mode=async."
    http_status = 429

    def __init__(self, what: str, retry_after_s: float = 1.0) -> None:
        super().__init__(what, retry_after_s)
        self.retry_after_s = retry_after_s


class Contended(Retryable):
    """Another node is deciding about the same thing at this moment: (what)."""

    code = "contended"
    hint = "Try again at once."

    def __str__(self) -> str:
        return f"another node is deciding about {self.args[0]}"


class RetryAfter(Throttled):
    """Raised in a function: try again later, which costs no attempt: (seconds, key).

    Until then nothing of the key is begun, in any function; without one, nothing of the invocation's own
    concurrency key; and when it has none, nothing of the function. `seconds` are 0 to a year.
    """

    code = "retry_after"
    hint = "Try again after the time in Retry-After."

    def __init__(self, seconds: float, key: str | None = None) -> None:
        if not 0 <= seconds <= 366 * 86_400:
            raise ValueError(f"RetryAfter takes 0 to {366 * 86_400} seconds, not {seconds!r}")
        if key is not None and not (isinstance(key, str) and 0 < len(key.encode("utf-8", "replace")) <= 256):
            raise ValueError("RetryAfter takes a key of 1 to 256 bytes")
        HeadraceError.__init__(self, seconds, key)
        self.retry_after_s = float(seconds)
        self.key = key

    def __str__(self) -> str:
        shown = f" for the key {self.key!r}" if self.key is not None else ""
        return f"not before {self.retry_after_s:g} s from now{shown}"


class NodeStopping(Retryable):
    """The node is shutting down: (message)."""

    code = "stopping"
    hint = "Call again; another node, or the next start, answers."


class Overloaded(Retryable):
    """Callers take as much of the node as it gives: (what there is too much of)."""

    code = "overloaded"
    hint = "Try again later, and use connections more than once."

    def __str__(self) -> str:
        return f"the node is overloaded: {self.args[0]}"


class RequestTimeout(Retryable):
    """A request did not come to its end in time: (what was missing)."""

    code = "request_timeout"
    hint = "Send it faster, or again."
    http_status = 408

    def __str__(self) -> str:
        return f"the request did not come in time: {self.args[0]} missing"


class StorageFull(Retryable):
    """The disk is full: (path)."""

    code = "storage_full"
    hint = "Free disk space; what was accepted before is kept, and nothing else is accepted meanwhile."
    http_status = 507

    def __str__(self) -> str:
        return f"no space is left for {self.args[0]}"


class ReadOnlyStorage(Retryable):
    """A place cannot be written: (path)."""

    code = "read_only_storage"
    hint = (
        "Check the folder's owner and mode, and that the disk is not mounted read-only; of a database, what"
        " its user may do there."
    )

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be written"


class StoreUnavailable(Retryable):
    """The database did not answer: (message)."""

    code = "store_unavailable"


class Unreachable(Retryable):
    """No node answers at an address: (url, why)."""

    code = "unreachable"
    hint = "Start a node with `headrace serve`, or name one with --url or HEADRACE_URL."

    def __str__(self) -> str:
        return f"no node answers at {self.args[0]}: {self.args[1]}"


class LeaseLost(Retryable):
    """An outcome came for an attempt that is no longer its node's own: (invocation id, node, attempt)."""

    code = "lease_lost"
    hint = "It runs again elsewhere. If this repeats, look for a blocked event loop or raise node_lease_s."
    http_status = 409

    def __str__(self) -> str:
        return f"{self.args[1]} ended attempt {self.args[2]} of {self.args[0]}, which was no longer its own"


class Duplicate(HeadraceError):
    """A write found that its happening is already recorded: (what)."""

    code = "duplicate"
    hint = "Nothing is to be done: the first one stands."
    http_status = 409


# ---- the function's own outcome ----


class InvocationFailed(HeadraceError):
    """An invocation ended without a result: (message, detail).

    `detail` is the recorded error: `{"code", "type", "message", "stack", "invocation_id", …}`.
    """

    code = "function_error"

    def __init__(self, message: str, detail: dict[str, object] | None = None) -> None:
        super().__init__(message, detail)
        self.detail: dict[str, object] = detail or {}


class FunctionError(InvocationFailed):
    """The function raised."""

    hint = "The function's own exception; `headrace logs ID` shows what it printed."


class FunctionTimeout(InvocationFailed):
    """The function ran longer than its timeout and was ended."""

    code = "timeout"
    hint = "Raise timeout= on the function, or do less in one call."
    http_status = 504


class OutOfMemory(InvocationFailed):
    """The function, or its processes, used more than its memory."""

    code = "out_of_memory"
    hint = "Raise memory= on the function, or work on smaller chunks."


class WorkerCrashed(InvocationFailed):
    """The worker process died while it ran the function."""

    code = "worker_crashed"
    hint = "The function ended its own process (a signal, os._exit, or a native crash)."


class UnserialisableResult(InvocationFailed):
    """The function returned what JSON cannot hold."""

    code = "unserialisable_result"
    hint = "Return JSON types (finite numbers, text, lists, dicts with text keys), dataclasses or models."


class StreamBroken(InvocationFailed):
    """A streamed result broke off after it had begun; what came before is not all of it."""

    code = "stream_broken"
    hint = "`headrace logs INVOCATION_ID` says why; the id is in the header Headrace-Invocation-Id."


class Expired(InvocationFailed):
    """The event was older than the function's maximum age before it could succeed."""

    code = "expired"
    hint = "Raise max_age= on the function, or add workers."


class NodeLost(InvocationFailed):
    """The node that ran the attempt disappeared."""

    code = "node_lost"


class SetIncomplete(InvocationFailed):
    """A set of uploads was not complete in time."""

    code = "set_incomplete"
    hint = "Bring what is missing and redrive it, or raise timeout= on the UploadSet."


class LateFiles(InvocationFailed):
    """Files came after their set of uploads had fired."""

    code = "late_files"
    hint = "Redrive it to run the function on them."


class Cancelled(InvocationFailed):
    """Somebody cancelled it."""

    code = "cancelled"
    http_status = 409


class JobFailed(InvocationFailed):
    """A job ended as failed or cancelled."""

    code = "job_failed"
    hint = "`headrace job show ID` names the failed chunks; `headrace job redrive ID` runs them again."


# ---- an operator must act ----


class Unusable(HeadraceError):
    """The node cannot start or go on as things are."""

    code = "unusable"


class DataInUse(Unusable):
    """Another node holds the data folder: (path, holder)."""

    code = "data_in_use"
    hint = "Stop that node, or give this one another --data folder."

    def __str__(self) -> str:
        return f"the data folder {self.args[0]} is held by {self.args[1]}"


class DataTooNew(Unusable):
    """The database was written by a newer release: (path, its schema, ours)."""

    code = "data_too_new"
    hint = "Install the newer release of headrace, or give another --data folder."

    def __str__(self) -> str:
        return f"{self.args[0]} has schema {self.args[1]}, which this release ({self.args[2]}) cannot read"


class DataDamaged(Unusable):
    """The database is damaged: (path, what was found)."""

    code = "data_damaged"
    hint = (
        "Stop the node, and restore the database from a backup; of a SQLite file with the files beside it, or"
        " save what can be read with `sqlite3 FILE .recover`. Nothing was changed since it was found."
    )

    def __str__(self) -> str:
        return f"{self.args[0]} is damaged: {self.args[1]}"


class PortInUse(Unusable):
    """The address to listen on is taken: (host, port)."""

    code = "port_in_use"
    hint = "Choose another with --port, or --port 0 for any free one."

    def __str__(self) -> str:
        return f"{self.args[0]}:{self.args[1]} is already in use"


BY_CODE: dict[str, type[InvocationFailed]] = {
    kind.code: kind
    for kind in (
        FunctionError,
        FunctionTimeout,
        OutOfMemory,
        WorkerCrashed,
        UnserialisableResult,
        StreamBroken,
        Expired,
        NodeLost,
        Cancelled,
        JobFailed,
    )
}


def failure(detail: dict[str, object]) -> InvocationFailed:
    """The error that a recorded outcome stands for; an unknown code is a `FunctionError`."""
    kind = BY_CODE.get(str(detail.get("code", "")), FunctionError)
    name = detail.get("type")
    message = str(detail.get("message", ""))
    return kind(f"{name}: {message}" if name and kind is FunctionError else message, detail)
