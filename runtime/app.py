"""`App`: a named group of functions, jobs and their triggers, declared by decorators.

Imports the floor, `jobs` and `binding`; `node` only when `app.node()` is called. Decorators return the
function unchanged, so that calling it in a unit test just calls it.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec

from headrace.runtime.binding import Entry, Signature
from headrace.runtime.errors import HeadraceError, InvalidFunction
from headrace.runtime.model.destination import bucket_and_prefix, check_webhook, kind_of
from headrace.runtime.model.policy import RetryPolicy
from headrace.runtime.model.route import Cors
from headrace.runtime.model.size import read_duration, read_size
from headrace.runtime.model.spec import (
    DEFAULT_IDEMPOTENCY_TTL_S,
    DEFAULT_MAX_AGE_S,
    DEFAULT_MEMORY_BYTES,
    DEFAULT_TIMEOUT_S,
    IDEMPOTENCY_TTL_S_MAX,
    IDEMPOTENCY_TTL_S_MIN,
    FunctionSpec,
    JobSpec,
    TriggerSpec,
)
from headrace.runtime.objects.key import SYSTEM_BUCKET, check_bucket, check_key
from headrace.runtime.trigger import Checked, Trigger

if TYPE_CHECKING:
    from headrace.runtime.embedded import EmbeddedNode
    from headrace.runtime.jobs.split import Split

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")


class Declared:
    """One function or job as it was declared."""

    def __init__(self, spec: FunctionSpec, signature: Signature, entry: Entry) -> None:
        self.spec = spec
        self.signature = signature
        self.entry = entry


class App:
    """A named group of functions. A function's full name is `APP.NAME`.

    Args:
        name: letters, digits, `-` and `_`, beginning with a letter.
        start: `fork` or `spawn` to say how workers begin; None lets Headrace decide by what the code imports.
        cors, key, max_body, etag: what holds for those of its `Http` routes that do not say otherwise.

    Raises: InvalidFunction for another name.
    """

    def __init__(
        self,
        name: str,
        *,
        start: str | None = None,
        cors: Cors | None = None,
        key: bool | str | None = None,
        max_body: int | str | None = None,
        etag: bool | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidFunction(
                f"App({name!r})",
                "is not a valid name",
                "Use letters, digits, - and _, beginning with a letter.",
            )
        if start not in (None, "fork", "spawn"):
            raise InvalidFunction(f"App({name!r})", f"start is {start!r}", 'Use "fork", "spawn" or None.')
        self.name = name
        self.start = start
        self._http = {"cors": cors, "key": key, "max_body": max_body, "etag": etag}
        self.declared: dict[str, Declared] = {}
        self._pending: dict[int, tuple[Callable[..., Any], list[Trigger]]] = {}

    def __repr__(self) -> str:
        return f"App({self.name!r}, {len(self.declared)} functions)"

    def on(self, trigger: Trigger) -> Callable[[F], F]:
        """Invoke the function when the trigger's source has an event. Written above `@app.function` or
        `@app.job`.

        Raises: InvalidFunction when `trigger` is none, or when the function was not declared below it.
        """
        if not hasattr(trigger, "kind") or not hasattr(trigger, "fields"):
            raise InvalidFunction(
                f"{self.name}.on({trigger!r})", "is not a trigger", "Use Upload(…), Schedule(…) or Http(…)."
            )

        def attach(function: F) -> F:
            for name, declared in self.declared.items():
                if declared.signature.function is function:
                    fields = trigger.fields()
                    if trigger.kind == "http":
                        _check_path(declared, trigger)
                        fields = trigger.under(self._http).fields()  # type: ignore[attr-defined]
                    if isinstance(trigger, Checked):
                        trigger.check(declared.spec)
                    added = TriggerSpec(kind=trigger.kind, fields=fields)
                    callbacks = declared.spec.callbacks or bool(
                        trigger.kind == "http" and fields.get("callback")
                    )
                    spec = msgspec.structs.replace(
                        declared.spec, triggers=(added, *declared.spec.triggers), callbacks=callbacks
                    )
                    self.declared[name] = Declared(spec, declared.signature, declared.entry)
                    return function
            raise InvalidFunction(
                f"{self.name}.{getattr(function, '__name__', function)}",
                "has a trigger but is no function of this app",
                "Write @app.function or @app.job below @app.on(…).",
            )

        return attach

    @overload
    def function(self, function: F, /) -> F: ...

    @overload
    def function(
        self,
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        memory: int | str = DEFAULT_MEMORY_BYTES,
        retries: int | RetryPolicy = 2,
        max_age: float = DEFAULT_MAX_AGE_S,
        memory_max: int | str | None = None,
        reserved_concurrency: int | None = None,
        rate: str | None = None,
        rate_burst: int | None = None,
        concurrency_key: str | None = None,
        key_concurrency: int | None = None,
        weight: int = 1,
        priority: int = 0,
        on_failure: str | None = None,
        on_success: str | None = None,
        idempotency_ttl: float | str = DEFAULT_IDEMPOTENCY_TTL_S,
    ) -> Callable[[F], F]: ...

    def function(  # type: ignore[misc]  # mypy counts a positional-only default against the keywords
        self, function: Any = None, /, **settings: Any
    ) -> Any:
        """Register a function.

        Args:
            name: default the function's own.
            timeout: seconds one attempt may take, above 0.
            memory: bytes above the worker's own size, or a text such as "128 MiB", over the whole process
                tree.
            retries: attempts after the first, 0 and up, or a RetryPolicy.
            max_age: seconds after which an event that has not succeeded is dead (`expired`).
            memory_max: up to this an attempt that ran out of memory is made again with twice as much, which
                costs none of its retries.
            reserved_concurrency: the most attempts at once; 0 stops the function. None: no limit.
            rate: the most attempts begun in a time: "100/s", "10/m", "500/h"; "100/s:20" lets 20 begin at
                once, else a tenth of a second's worth may, at least one.
            rate_burst: the same as what follows the colon.
            concurrency_key: where in the event the key is, such as "customer.id": of one key no more than
                `key_concurrency` attempts are made at once.
            key_concurrency: the most attempts at once of one key, 1 and up; 1 when there is a
                `concurrency_key`.
            weight: its share of the workers beside other functions, 1 to 1,000.
            priority: higher runs first, -100 to 100.
            on_failure: where the events go whose last attempt failed: a function by its full name, a bucket
                `s3://BUCKET/PREFIX`, or a webhook `https://…`.
            on_success: where the results go, likewise.
            idempotency_ttl: how long an idempotency key is remembered, in seconds or as "24 h": 1 s to 30
                days.

        Raises: InvalidFunction for a wrong setting, a name that is taken, or a signature that an event cannot
        fill.
        """

        def register(target: F) -> F:
            full = self._name(target, settings.pop("name", None))
            signature = Signature(target, name=full)
            self._add(full, target, signature, signature.entry(), settings, None)
            return target

        return register if function is None else register(function)

    def job(
        self,
        *,
        split: "Split",
        reduce: Callable[..., Any] | None = None,
        finish: Callable[..., Any] | None = None,
        initial: Any = None,
        output: str | None = None,
        max_concurrency: int | None = None,
        tolerated_failures: int | float = 0,
        name: str | None = None,
        **settings: Any,
    ) -> Callable[[F], F]:
        """Register a job: the decorated function maps one chunk, and the results are aggregated.

        Args:
            split: how the input is cut: Csv(…), JsonLines(…), Lines(…) or Items(…).
            reduce: an associative function of two results, or `all_results` for a function of all of
                them; None keeps them apart.
            finish: a last step over the aggregated result; takes (result) or (result, context).
            initial: the result when there are no chunks. JSON.
            output: `BUCKET` or `BUCKET/PREFIX`, where the results are written; None keeps them in the store.
            max_concurrency: the most chunks at once.
            tolerated_failures: a count of chunks, or a fraction of them below 1.
            settings: as for `function`.

        Raises: InvalidFunction as `function` does.
        """

        def register(target: F) -> F:
            from headrace.runtime.jobs.runner import job_entry

            full = self._name(target, name)
            for setting in ("concurrency_key", "key_concurrency"):
                if settings.get(setting) is not None:
                    raise InvalidFunction(
                        full, f"a job has no {setting}", "Use max_concurrency= for the chunks of one job."
                    )
            if not hasattr(split, "to_dict"):
                raise InvalidFunction(
                    full, f"split is {split!r}", "Use Csv(…), JsonLines(…), Lines(…) or Items(…)."
                )
            if reduce is not None and not callable(reduce):
                raise InvalidFunction(full, f"reduce is {reduce!r}", "Give a function of two results.")
            if finish is not None and not callable(finish):
                raise InvalidFunction(
                    full, f"finish is {finish!r}", "Give a function of the aggregated result."
                )
            if finish is not None and reduce is None:
                raise InvalidFunction(
                    full,
                    "finish has no aggregated result to work on",
                    "Give reduce= as well, or all_results(…).",
                )
            try:
                msgspec.json.encode(initial)
            except (TypeError, msgspec.MsgspecError):
                raise InvalidFunction(
                    full, f"initial is a {type(initial).__name__}, which JSON cannot hold", "Use JSON types."
                ) from None
            if max_concurrency is not None and max_concurrency < 1:
                raise InvalidFunction(full, f"max_concurrency is {max_concurrency}", "It must be at least 1.")
            if tolerated_failures < 0:
                raise InvalidFunction(
                    full, f"tolerated_failures is {tolerated_failures}", "It cannot be negative."
                )
            signature = Signature(target, name=full, first_is_chunk=True)
            entry, kind = job_entry(
                full,
                target,
                split=split,
                reduce=reduce,
                finish=finish,
                initial=initial,
                wants_context="context" in signature.names,
            )
            spec = JobSpec(
                split=split.to_dict(),
                reduce=kind,
                finish=finish is not None,
                initial=initial,
                output=output,
                max_concurrency=max_concurrency,
                tolerated_failures=tolerated_failures,
            )
            self._add(full, target, signature, entry, settings, spec)
            return target

        return register

    def entries(self) -> Mapping[str, Entry]:
        """What runs an event, by full name."""
        return {name: declared.entry for name, declared in self.declared.items()}

    def node(
        self, *, data: str | Path = "./data", workers: int | None = None, **settings: Any
    ) -> "EmbeddedNode":
        """A whole node in this process, in an event-loop thread of its own: `with app.node() as client: …`.

        Args:
            data: the folder of the node's state; made when missing.
            workers: worker processes; default the number of cores.
            settings: any setting of `headrace.toml`.

        The functions travel to the workers by cloudpickle, so that those of `__main__` need no `if __name__`
        guard.
        Raises (on entry): DataInUse, DataTooNew, DataDamaged, InvalidSettings, LoadFailed.
        """
        from headrace.runtime.embedded import EmbeddedNode

        return EmbeddedNode.of_app(self, data=data, workers=workers, **settings)

    def _name(self, function: Any, name: str | None) -> str:
        if not callable(function) or isinstance(function, type):
            raise InvalidFunction(
                f"{self.name}.function", f"{function!r} is not a function", "Decorate a function."
            )
        own = name or str(getattr(function, "__name__", ""))
        full = f"{self.name}.{own}"
        if not _NAME.fullmatch(own):
            raise InvalidFunction(full, "is not a valid name", 'Give one: @app.function(name="…").')
        if full in self.declared:
            other = self.declared[full].spec
            raise InvalidFunction(
                full,
                f"the name is taken by {other.file}:{other.line}",
                'Rename one, or give it a name: name="…".',
            )
        return full

    def _add(
        self,
        full: str,
        function: Any,
        signature: Signature,
        entry: Entry,
        settings: dict[str, Any],
        job: JobSpec | None,
    ) -> None:
        signature.prepare()
        code = getattr(inspect.unwrap(function), "__code__", None)
        spec = FunctionSpec(
            name=full,
            module=getattr(function, "__module__", ""),
            file=code.co_filename if code else "",
            line=code.co_firstlineno if code else 0,
            doc=inspect.getdoc(function) or "",
            typed=signature.typed,
            parameters=signature.describe(),
            streams=signature.streams,
            output_schema=signature.returns_schema()
            if job is None and signature.returns is not None
            else None,
            job=job,
            **_settings(full, settings),
        )
        self.declared[full] = Declared(spec, signature, entry)


def _settings(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """The checked form of a function's settings."""
    out: dict[str, Any] = {}

    def number(name: str, low: float, high: float, *, whole: bool = False) -> float:
        value = given[name]
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise InvalidFunction(
                function, f"{name} is {value!r}", f"It must be {kind} from {low:g} to {high:g}."
            )
        return value  # type: ignore[no-any-return]

    known = (
        "timeout",
        "memory",
        "retries",
        "max_age",
        "memory_max",
        "reserved_concurrency",
        "rate",
        "rate_burst",
        "concurrency_key",
        "key_concurrency",
        "weight",
        "priority",
        "on_failure",
        "on_success",
        "idempotency_ttl",
    )
    for name in given:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            raise InvalidFunction(
                function,
                f"there is no setting {name!r}",
                f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.",
            )
    if "timeout" in given:
        out["timeout_s"] = float(number("timeout", 0.001, 86_400))
    for name in ("memory", "memory_max"):
        if name not in given or (name == "memory_max" and given[name] is None):
            continue
        try:
            size = read_size(given[name], field=name)
        except HeadraceError as error:
            raise InvalidFunction(function, str(error), error.hint) from None
        if size < 1 << 20:
            raise InvalidFunction(function, f"{name} is {given[name]!r}", "It must be at least 1 MiB.")
        out[f"{name}_bytes"] = size
    if out.get("memory_max_bytes", 1 << 62) < out.get("memory_bytes", 0):
        raise InvalidFunction(
            function, f"memory_max is {given['memory_max']!r}", "It must not be below memory=."
        )
    if "retries" in given:
        retries = given["retries"]
        if isinstance(retries, RetryPolicy):
            out["retry"] = retries
        else:
            out["retry"] = RetryPolicy(retries=int(number("retries", 0, 1000, whole=True)))
    if "max_age" in given:
        out["max_age_s"] = float(number("max_age", 1, 365 * 86_400))
    if given.get("reserved_concurrency") is not None:
        out["reserved_concurrency"] = number("reserved_concurrency", 0, 100_000, whole=True)
    if given.get("rate") is not None:
        out["rate"], out["rate_burst"] = _rate(function, given["rate"])
    if given.get("rate_burst") is not None:
        burst = float(number("rate_burst", 1, 1_000_000, whole=True))
        if "rate" not in out or ":" in given["rate"]:
            raise InvalidFunction(
                function, f"rate_burst is {given['rate_burst']!r}", 'Give it with a rate="100/s" without one.'
            )
        out["rate_burst"] = burst
    if given.get("concurrency_key") is not None:
        path = given["concurrency_key"]
        if not isinstance(path, str) or not all(path.split(".")) or len(path) > 500:
            raise InvalidFunction(
                function, f"concurrency_key is {path!r}", 'Give a dotted path into the event: "customer.id".'
            )
        out["concurrency_key"] = tuple(path.split("."))
        out["key_concurrency"] = 1
    if given.get("key_concurrency") is not None:
        out["key_concurrency"] = number("key_concurrency", 1, 100_000, whole=True)
    if "weight" in given:
        out["weight"] = number("weight", 1, 1000, whole=True)
    if "priority" in given:
        out["priority"] = number("priority", -100, 100, whole=True)
    for name in ("on_failure", "on_success"):
        if given.get(name) is not None:
            out[name] = _destination(function, name, given[name])
    if "idempotency_ttl" in given:
        try:
            seconds = read_duration(given["idempotency_ttl"], field="idempotency_ttl")
        except HeadraceError as error:
            raise InvalidFunction(function, str(error), error.hint) from None
        if not IDEMPOTENCY_TTL_S_MIN <= seconds <= IDEMPOTENCY_TTL_S_MAX:
            raise InvalidFunction(
                function, f"idempotency_ttl is {given['idempotency_ttl']!r}", "It must be 1 s to 30 days."
            )
        out["idempotency_ttl_s"] = seconds
    return out


def _destination(function: str, setting: str, given: Any) -> str:
    """A destination of a form that can be delivered to. What is wrong with a webhook is told without its URL,
    which may hold a secret.
    """
    hint = "Give the full name of a function, APP.NAME, s3://BUCKET/PREFIX or https://HOST/PATH."
    if not isinstance(given, str):
        raise InvalidFunction(function, f"{setting} is {given!r}", hint)
    try:
        kind = kind_of(given)
        if kind == "webhook":
            check_webhook(given)
        elif kind == "bucket":
            bucket, prefix = bucket_and_prefix(given)
            check_bucket(bucket)
            if prefix:
                check_key(f"{prefix}/2000/01/01/0000000000000000.json")
            if bucket == SYSTEM_BUCKET:
                raise ValueError(f"the bucket {bucket} is the node's own")
    except (ValueError, HeadraceError) as error:
        raise InvalidFunction(function, f"{setting}: {error}", hint) from None
    return given


def _check_path(declared: Declared, trigger: Any) -> None:
    taken = declared.signature
    if "event" in taken.names or taken.whole is not None:
        return
    for name in trigger.parameters:
        if name not in taken.bound:
            raise InvalidFunction(
                declared.spec.name,
                f"the path of {trigger!r} has {{{name}}}, but the function has no parameter {name!r}",
                f"Add a parameter {name}, or take `event`.",
            )


_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?) */ *(s|m|h)(?: *: *([0-9]+))?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _rate(function: str, text: Any) -> tuple[float, float]:
    """Attempts begun a second, and the burst, of a text such as "100/s" or "10/m:5"."""
    found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    hint = 'Write how many in a second, minute or hour: "100/s", "10/m", "500/h", or "100/s:20" with a burst.'
    if found is None:
        raise InvalidFunction(function, f"rate is {text!r}", hint)
    rate = float(found[1]) / _SECONDS[found[2]]
    burst = float(found[3]) if found[3] else float(max(int(rate / 10), 1))
    if not 1 / 86_400 <= rate <= 1_000_000 or not 1 <= burst <= 1_000_000:
        raise InvalidFunction(
            function,
            f"rate is {text!r}",
            "It must be from one a day to 1,000,000 a second, its burst at least 1.",
        )
    return rate, burst
