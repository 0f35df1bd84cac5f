"""AppUnderTest: a user's functions on a whole node, driven by the test that looks at them.

Imports the node and everything that it is made of. The dispatcher, the store, the triggers and the HTTP API
are those of a served node. What differs is handed in: time stands still unless the test advances it, buckets
are in memory, and functions run one after another in the test's own thread, so that breakpoints, coverage and
monkeypatching work in them. With `workers` they run in worker processes, and buckets are folders.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
import structlog

from headrace.runtime.app import App
from headrace.runtime.client.client import Client
from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.client.payload import encode_payload
from headrace.runtime.clock import Clock, SystemClock
from headrace.runtime.code import request_for, request_for_app
from headrace.runtime.embedded import NodeBackend
from headrace.runtime.errors import BadRequest, InvalidSettings, LoadFailed, NodeStopping, WrongState
from headrace.runtime.loading import Loaded, assemble, load
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.spec import FunctionSpec, Manifest
from headrace.runtime.node import Node, Parts
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.protocol import ObjectInfo, ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.pool.context import WorkerConfig
from headrace.runtime.pool.local import LocalPool
from headrace.runtime.pool.protocol import Pool, PoolEvents
from headrace.runtime.pool.reading import Reading
from headrace.runtime.sample import sample_event
from headrace.runtime.serve import configure_log
from headrace.runtime.settings import Kept, Settings, function_defaults
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.testing.faults import Faults, FaultyBuckets, WatchedStore, crashed
from headrace.runtime.testing.loop import QuietLoop
from headrace.runtime.testing.notices import Notices
from headrace.runtime.testing.pool import InlinePool, Streaming
from headrace.runtime.testing.virtual import VirtualClock

T = TypeVar("T")
P = ParamSpec("P")

PLACES = 16
"""Attempts that are held at once in this process; they run one after another."""

_DOWN = "the app under test", "without a node", "do this until it is started, or restarted after a crash"

ATTEMPTS_MAX = 100_000
"""Attempts within one `run_until_idle`: more are taken for functions that call each other for ever."""

_CENTURY_S = 100 * 365.25 * 86_400
FOUND_MAX = 10_000
_KEPT = Kept(succeeded_s=_CENTURY_S, dead_s=_CENTURY_S, logs_s=_CENTURY_S)
"""However far time is advanced, results stay, unless the test's own settings say otherwise."""

WAIT_S_MAX = 86_400.0
_RAM = Path("/dev/shm")


class Reply(msgspec.Struct, frozen=True):
    """What an HTTP call was answered. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded. Raises ValueError when it is no JSON."""
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class AppUnderTest:
    """A node with these functions, in a `with` block; pytest's fixture `headrace_app` is one.

    Args:
        code: apps of this process, or paths of files and folders, which are imported.
        clock: of the test; a new VirtualClock when not given.
        workers: worker processes; 0 runs the functions in this process.
        folder: keeps the node's data, and is left as it is in the end; a temporary one when not given.
        settings: settings of the node, as `headrace serve` has them.

    Raises: LoadFailed for code that cannot be loaded.
    """

    def __init__(
        self,
        *code: App | str | Path,
        clock: VirtualClock | None = None,
        workers: int = 0,
        folder: Path | None = None,
        **settings: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.faults = Faults(workers=bool(workers))
        self._code = code
        self._workers = workers
        self._folder = folder
        self._given = settings
        self._data: Path | None = None
        self._depth = 0
        self._thread: ThreadPoolExecutor | None = None
        self._loop: QuietLoop | None = None
        self._node: Node | None = None
        self._store: WatchedStore | None = None
        self._pool: _DrivenPool | None = None
        self._objects: ObjectStore | None = None
        self._buckets: FaultyBuckets | None = None
        self._notices: Notices | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._backend: _DrivenBackend | None = None
        self._client: Client | None = None

    # ---- life ----

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the node, and have its triggers look at what is there. See `restart` for a second start."""
        if self._node is not None:
            return
        if self._loop is None:
            if not structlog.is_configured():
                configure_log(Settings(log_level="warning"), dev=True)  # the test's own output stays its own
            place = _RAM if _RAM.is_dir() else None  # where nothing waits for a disk
            self._data = self._folder or Path(tempfile.mkdtemp(prefix="headrace-test-", dir=place))
            if self._workers:
                self._objects = FolderStore(self._data / "buckets", fsync=False)
            else:
                self._notices = Notices(self.faults, self.clock)
                self._buckets = FaultyBuckets(self.faults, clock=self.clock, told=self._notices.told)
                self._objects = self._buckets
            self._loop = QuietLoop(self._busy)
            self.clock.attach(self)
        self._outside(self._start)
        self.run_until_idle()

    def close(self) -> None:
        """Stop the node and remove its data. Twice is harmless."""
        self.clock.detach(self)
        self.faults.clear()
        if self._node is not None:
            self._outside(self._stop)
        loop, self._loop = self._loop, None
        if loop is not None:
            self._outside(partial(_close, loop))
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        if self._data is not None and self._folder is None:
            shutil.rmtree(self._data, ignore_errors=True)

    @property
    def is_up(self) -> bool:
        """Whether there is a node: not after `crash`, nor after a fault that killed it."""
        return self._node is not None

    def crash(self) -> None:
        """Kill the node: nothing is handed back and nothing more is recorded. `restart` starts another on
        what it left.
        """
        self._running.cut = True
        self._outside(self._stop)

    def restart(self) -> None:
        """Stop the node as on a deploy, unless it crashed, and start another on the same data."""
        if self._node is not None:
            self._outside(self._stop)
        self.start()

    # ---- buckets ----

    @property
    def objects(self) -> ObjectStore:
        """The buckets."""
        if self._objects is None:
            raise WrongState("the app under test", "not started", "show its buckets")
        return self._objects

    def put(self, bucket: str, key: str, data: bytes | str) -> ObjectInfo:
        """Upload an object, into a bucket that is made when it is missing. Text goes as UTF-8.

        Triggers hear of it at the next `run_until_idle`.
        """
        with self._spared():
            self.objects.make_bucket(bucket)
            return self.objects.put(bucket, key, data.encode() if isinstance(data, str) else data)

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object. Raises NoSuchBucket, NoSuchObject."""
        with self._spared():
            return self.objects.get(bucket, key)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of a bucket, in order; none for a bucket that does not exist."""
        with self._spared():
            if bucket not in self.objects.buckets():
                return []
            return [info.key for info in self.objects.iterate(bucket, prefix)]

    # ---- running ----

    def run_until_idle(self) -> None:
        """Do all that is to be done without time passing: triggers, invocations, jobs, retries that are due.

        Raises: AssertionError when that takes more than ATTEMPTS_MAX attempts.
        """
        if self._node is not None:
            self._outside(self._settle)

    def invoke(self, name: str, payload: Any = None) -> Any:
        """Call a function and return its result, as `Client.invoke`. Raises what the client does:
        InvocationFailed for what the function raised, InvalidEvent, UnknownFunction, Throttled.
        """
        return self.client.invoke(name, payload)

    def submit(self, name: str, payload: Any = None, **options: Any) -> str:
        """Have an invocation accepted and return its id. Options are those of `Client.submit`: `delay_s`,
        `priority`, `tags`, `idempotency_key`, `key`. It runs at the next `run_until_idle`.
        """
        self._depth += 1  # accept it, and run nothing yet
        try:
            id: str = self.client.submit(name, payload, **options).invocation_id
        finally:
            self._depth -= 1
        return id

    def sample(self, name: str, kind: str | None = None, **options: Any) -> dict[str, Any]:
        """An event as a function's trigger would make it now; `kind` says of which, when it has several.

        Options are those of `headrace event`, with `_` for `-`; a list gives one several times. A body that
        is no text goes as JSON. Nothing happens: give the event to `invoke` or `submit`.
        """
        spec = self._spec(name)
        if kind is None:
            if not spec.triggers:
                raise BadRequest(f"{name} has no trigger", "Say which kind of event it is to be.")
            kind = spec.triggers[0].kind
        said = {key.replace("_", "-"): _texts(value) for key, value in options.items() if value is not None}
        assert self._node is not None
        return sample_event(
            kind,
            said,
            function=name,
            triggers=[{"kind": each.kind, **each.fields} for each in spec.triggers],
            moment=self.clock.now(),
            id=show_id(self._node.ids.next()),
        )

    def submit_job(self, name: str, input: str | Sequence[Any], **options: Any) -> str:
        """Have a job accepted, of an object (`s3://BUCKET/KEY`) or of items, and return its id."""
        return self.client.submit_job(name, input, **options).id

    def http(
        self,
        method: str,
        path: str,
        *,
        body: bytes | str | None = None,
        json: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make an HTTP call, to a function's route or to the API under `/v1`; what was answered."""
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if json is not None:
            body = encode_payload(json)
            sent.setdefault("content-type", "application/json")
        parts = urlsplit(path)
        asked = [*parse_qsl(parts.query, keep_blank_values=True), *(query or {}).items()]
        data = body.encode() if isinstance(body, str) else body
        if data is not None:
            sent.setdefault("content-type", "text/plain")
            sent.setdefault("content-length", str(len(data)))
        if self._backend is None:
            raise WrongState(*_DOWN)
        found = self._backend.request(method, parts.path, query=asked, body=data, headers=sent)
        return Reply(found.status, dict(found.headers), found.body)

    @property
    def client(self) -> Client:
        """A client of the node, as the functions under test have in `context.client`. What it submits runs
        at once, except what has to wait for time to pass.
        """
        if self._client is None:
            raise WrongState(*_DOWN)
        return self._client

    # ---- what happened ----

    def results(self, name: str) -> list[Any]:
        """The results of a function's invocations that succeeded, or of a job's runs, in the order in which
        they were accepted; at most the newest FOUND_MAX.
        """
        if self._spec(name).job is not None:
            jobs = self._ask(lambda store: store.jobs(function=name, status=["succeeded"], limit=FOUND_MAX))
            return [self._value(job.result, job.result_ref) for job in reversed(jobs)]
        return [
            self._value(record.result, record.result_ref) for record in self._find(name, Status.SUCCEEDED)
        ]

    def failures(self, name: str) -> list[dict[str, Any]]:
        """The errors (`code`, `type`, `message`, …) of a function's dead letters, or of a job's failed runs,
        in the order in which they were accepted.
        """
        if self._spec(name).job is not None:
            jobs = self._ask(lambda store: store.jobs(function=name, status=["failed"], limit=FOUND_MAX))
            return [job.error or {} for job in reversed(jobs)]
        return [record.error or {} for record in self._find(name, Status.DEAD)]

    def events(self, name: str) -> list[Any]:
        """The events of all of a function's invocations, in the order in which they were accepted."""
        return [
            self._value(record.invocation.payload, record.invocation.payload_ref)
            for record in self._find(name)
        ]

    def invocations(self, name: str) -> list[Record]:
        """All of a function's invocations, with status, attempts and times, in the order in which they were
        accepted.
        """
        return self._find(name)

    def output(self, name: str) -> str:
        """What a function has printed and logged, over all of its attempts."""
        return "".join(self._printed.get(name, ()))

    def verify(self) -> None:
        """Check that the books balance and that every row agrees with them, as `headrace verify` does.
        Raises AssertionError with what is wrong.
        """
        found = self.client.verify()
        assert found["balanced"], found["problems"]

    # ---- for the clock ----

    def settle(self) -> None:
        """See Driven."""
        self.run_until_idle()

    def next_due(self) -> float | None:
        """See Driven."""
        return None if self._node is None else self._node.dispatcher.next_timer()

    # ---- within: starting and stopping ----

    def _start(self) -> None:
        assert self._loop is not None
        assert self._data is not None
        given = {"port": 0, "log_level": "warning", "kept": _KEPT, **self._given, "data": self._data}
        settings = Settings(**given, workers=self._workers or PLACES)
        argument = b""
        if self._workers:
            argument = self._request(settings)
        self._printed: dict[str, list[str]] = {}
        node = Node(
            settings,
            argument,
            clock=self.clock,
            listen=bool(self._workers),  # worker processes reach the node's client by HTTP only
            on_output=lambda name, id, outcome: self._printed.setdefault(name, []).append(
                outcome.output.decode(errors="replace")
            ),
            parts=Parts(
                store=partial(self._open_store, settings),
                objects=self._objects,
                pool=partial(self._open_pool, settings, argument),
                threads=_SameThread(),
                clock_look_s=float("inf"),
            ),
        )
        self._node = node
        try:
            self._loop.run_until_complete(node.start())
            if node.manifest.errors:
                first = node.manifest.errors[0]
                raise LoadFailed(first.file, first.line, first.message)
        except BaseException:
            self._stop()
            raise
        if self._notices is not None:
            work = self._notices.deliver(node.services.notifications.tell)
            self._delivering = self._loop.create_task(work)
        self._backend = _DrivenBackend(self, node, self._loop)
        self._client = Client(backend=self._backend, clock=self.clock)

    def _request(self, settings: Settings) -> bytes:
        defaults = function_defaults(settings)
        apps = [app for app in self._code if isinstance(app, App)]
        if not apps:
            return request_for([str(path) for path in self._code], defaults=defaults)
        if len(self._code) > 1:
            raise InvalidSettings(
                "worker processes take one App, or paths", "Give one App, paths only, or leave out workers."
            )
        return request_for_app(apps[0], defaults=defaults)

    def _open_store(self, settings: Settings, clock: Clock) -> Store:
        inner = SqliteStore(Path(settings.store), clock=clock)
        self._store = WatchedStore(inner, self.faults, self.clock.something_happened)
        return cast(Store, self._store)

    def _open_pool(
        self, settings: Settings, argument: bytes, events: PoolEvents, clock: Clock, config: WorkerConfig
    ) -> Pool:
        if self._workers:
            return LocalPool(
                "headrace.runtime.loading:load",
                argument,
                events=events,
                workers=self._workers,
                scratch_root=settings.data / "tmp",
                clock=SystemClock(),  # what a process does takes real time
                config=config,
            )
        self._pool = _DrivenPool(
            partial(self._load, settings),
            events,
            clock,
            config=config,
            objects=self.objects,
            client=lambda: self.client,
            faults=self.faults,
        )
        return self._pool

    def _load(self, settings: Settings) -> Loaded:
        defaults = function_defaults(settings)
        apps = [(app, "") for app in self._code if isinstance(app, App)]
        paths = [str(path) for path in self._code if not isinstance(path, App)]
        if apps and paths:
            raise InvalidSettings("apps and paths are given together", "Give either.")
        if paths:
            found = load(request_for(paths, defaults=defaults))
        else:
            found = assemble(apps, version="test", defaults=defaults)
        for spec in found.manifest.functions:
            for trigger in spec.triggers:
                if isinstance(bucket := trigger.fields.get("bucket"), str):
                    if self._notices is not None:
                        self._notices.buckets.add(bucket)
                    self.objects.make_bucket(bucket)  # a bucket that triggers watch is there before they are
        return found

    def _stop(self) -> None:
        node, self._node = self._node, None
        client, self._client, self._backend = self._client, None, None
        if client is not None:
            client.close()
        delivering, self._delivering = self._delivering, None
        if self._loop is not None and delivering is not None:
            delivering.cancel()
            self._loop.run_until_complete(asyncio.wait([delivering]))
        if self._pool is not None:
            self._pool.close_streams()
        if node is not None and self._loop is not None:
            self._loop.run_until_complete(node.stop(grace_s=0))
        self._pool = self._store = None

    # ---- within: driving ----

    def _busy(self) -> bool:
        if self._store is not None and self._store.in_hand:
            return True
        if self._workers and self._node is not None:
            load = self._node.pool.load() if self._node.pool is not None else {"held": 0, "workers": 1}
            return load["held"] > 0 or load["workers"] == 0  # none: they are being started
        return False

    def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the node's loop to its end, and the functions that it waits for; time passes only
        when it waits for that.
        """
        return self._outside(self._drive, work)

    def _drive(self, work: Coroutine[Any, Any, T]) -> T:
        if self._node is None or self._loop is None:
            work.close()
            raise WrongState(*_DOWN)
        task = self._loop.create_task(work)
        end = self.clock.monotonic() + WAIT_S_MAX
        while True:
            self._loop.run_until_quiet()
            self._bury()
            if task.done():
                return task.result()
            if self._node is None:
                raise NodeStopping("the node was killed")
            if not self._run_attempts() and (self.clock.monotonic() > end or not self.clock.pass_to_next()):
                task.cancel()
                self._loop.run_until_quiet()
                raise AssertionError("the call waits for something that does not come")

    def _settle(self) -> None:
        if self._loop is None or self._depth:
            return
        for _ in range(ATTEMPTS_MAX):
            self._loop.run_until_quiet()
            self._bury()
            if not self._run_attempts():
                return
        raise AssertionError(f"still not idle after {ATTEMPTS_MAX:,} rounds: do functions call each other?")

    def _bury(self) -> None:
        """A node that a fault has killed is gone."""
        if self._store is not None and self._store.cut:
            self._stop()

    def _run_attempts(self) -> bool:
        """Run what is held in this process and has not begun; whether there was anything."""
        pool, loop = self._pool, self._loop
        if pool is None or loop is None:
            return False
        ran = False
        while (token := pool.next()) is not None:
            ran = True
            self._depth += 1
            try:
                pool.run(token)
            finally:
                self._depth -= 1
            if self._pool is not pool:  # the node was killed under it
                return True
            loop.call_soon(pool.flush)
        self._depth += 1
        try:
            streamed = pool.stream()
        finally:
            self._depth -= 1
        if streamed and self._pool is pool:
            loop.call_soon(pool.flush)
        return ran or streamed

    def _outside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that runs the loop: where one runs already, as in an async test, in a thread."""
        if not _is_in_loop():
            return work(*args, **kwargs)
        if self._thread is None:  # one for all calls: worker processes end with the thread that began them
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-test")
        return self._thread.submit(work, *args, **kwargs).result()

    # ---- within: looking ----

    @property
    def _running(self) -> WatchedStore:
        if self._store is None:
            raise WrongState(*_DOWN)
        return self._store

    def _ask(self, ask: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        return self.drive(ask(cast(Store, self._running)))

    def _spec(self, name: str) -> FunctionSpec:
        if self._node is None:
            raise WrongState(*_DOWN)
        return self._node.dispatcher.spec(name)

    def _find(self, name: str, status: Status | None = None) -> list[Record]:
        self._spec(name)
        found = self._ask(lambda store: store.find(function=name, status=status, limit=FOUND_MAX))
        return found[::-1]

    def _value(self, data: bytes | None, ref: str | None) -> Any:
        if ref is not None:
            with self._spared():
                data = self.objects.get(*parse_object_url(ref))
        return msgspec.json.decode(data) if data else None

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """The test's own look at the buckets meets no fault."""
        if self._buckets is None:
            yield
            return
        self._buckets.is_faulty = False
        try:
            yield
        finally:
            self._buckets.is_faulty = True


class _DrivenBackend(NodeBackend):
    """A client's way to the node: whoever calls runs the node's loop until there is an answer."""

    def __init__(self, app: AppUnderTest, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(node, loop)
        self._app = app

    def _run(self, work: Coroutine[Any, Any, T], wait: float | None, what: str) -> T:
        return self._app.drive(work)

    def _put(self, items: Iterable[tuple[str, bytes, Any, InvocationFuture]]) -> None:
        for name, payload, options, future in items:
            if future.sending(self._keep):
                self._app.drive(self._take_alone(name, payload, options, future))
        self._app.run_until_idle()


class _DrivenPool:
    """See Pool: attempts wait here until the test's thread runs them."""

    def __init__(
        self,
        loader: Callable[[], Loaded],
        events: PoolEvents,
        clock: Clock,
        *,
        config: WorkerConfig,
        objects: ObjectStore,
        client: Callable[[], Client],
        faults: Faults,
    ) -> None:
        self.manifest = Manifest(version="")
        self.load_output = ""
        self._loader = loader
        self._events = events
        self._clock = clock
        self._config = config
        self._objects = objects
        self._client = client
        self._faults = faults
        self._begun: set[int] = set()
        self._ended: list[Report] = []
        self._streaming: dict[int, Streaming] = {}
        self._readings: dict[int, Reading] = {}
        self._told: list[Callable[[], None]] = []
        """What the readings are told when the loop runs."""
        self._inner: InlinePool | None = None

    async def start(self) -> Manifest:
        loaded = self._loader()
        self.manifest = loaded.manifest
        self._inner = InlinePool(
            loaded.entries,
            reports=self._events.reports,
            clock=self._clock,
            workers=PLACES,
            held=True,
            config=self._config,
            objects=self._objects,
            client=self._client,
            on_progress=self._events.progress,
        )
        return self.manifest

    async def stop(self, *, grace_s: float) -> None:
        if self._inner is not None:
            self.flush()
            self._inner.stop()

    # ---- the test's thread ----

    def next(self) -> int | None:
        """An attempt that has not begun."""
        attempts = self._inner.attempts if self._inner is not None else ()
        return next((each.token for each in attempts if each.token not in self._begun), None)

    def run(self, token: int) -> None:
        """Run an attempt; `flush` reports it."""
        inner = self._inner
        assert inner is not None
        [attempt] = [each for each in inner.attempts if each.token == token]
        self._begun.add(token)
        dies = self._faults.crash(attempt.function)
        began = self._clock.now()
        found = crashed(began) if dies is False else inner.execute(token)
        if isinstance(found, Streaming):
            self._streaming[token] = found
        else:
            self._ended.append(Report(token, crashed(began) if dies else found))

    def stream(self) -> bool:
        """Take from each stream what its reader has given credit for; whether anything came of that."""
        moved = False
        for streaming in list(self._streaming.values()):
            while streaming.closed or streaming.credit > 0:
                moved = True
                piece = streaming.next()
                if not streaming.opened and streaming.head is not None:
                    streaming.opened = True
                    self._told.append(partial(self._open, streaming))
                if piece is None:
                    del self._streaming[streaming.token]
                    self._ended.append(Report(streaming.token, streaming.end()))
                    break
                self._told.append(partial(self._feed, streaming.token, piece))
        return moved

    def close_streams(self) -> None:
        """End the functions that stream."""
        for streaming in self._streaming.values():
            streaming.end()
        self._streaming.clear()

    def _open(self, streaming: Streaming) -> None:
        def more(message: dict[str, Any]) -> None:
            streaming.credit += message["credit"]

        def close(_: int) -> None:
            streaming.closed = True

        reading = Reading(streaming.token, streaming.head or (), say=more, close=close)
        self._readings[streaming.token] = reading
        self._events.stream(streaming.token, reading)

    def _feed(self, token: int, piece: bytes) -> None:
        if token in self._readings:
            self._readings[token].feed(piece)

    def flush(self) -> None:
        """Report what has ended, on the loop."""
        told, self._told = self._told, []
        for tell in told:
            tell()
        ended, self._ended = self._ended, []
        assert self._inner is not None
        for report in ended:
            self._begun.discard(report.token)
            self._readings.pop(report.token, None)
            if any(each.token == report.token for each in self._inner.attempts):  # not killed meanwhile
                self._inner.end(report.token, report.outcome)

    # ---- Pool ----

    @property
    def _held(self) -> InlinePool:
        assert self._inner is not None, "nothing is offered before the start"
        return self._inner

    def offer(self, attempt: Attempt) -> bool:
        return self._held.offer(attempt)

    def free(self) -> int:
        return 0 if self._inner is None else self._inner.free()

    def kill(self, token: int) -> bool:
        return self._held.kill(token)

    def recall(self, tokens: Collection[int]) -> None:
        self._held.recall(tokens)

    def running(self) -> list[tuple[int, float]]:
        return [] if self._inner is None else self._inner.running()

    def output(self, token: int) -> bytes:
        return b""

    def load(self) -> dict[str, int]:
        held = len(self._inner.attempts) if self._inner is not None else 0
        return {"workers": PLACES, "busy": len(self._begun), "burst": 0, "held": held}


class _SameThread(Executor):
    """Runs at once what the node would hand to a thread: nothing here waits for a disk or a network."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [
        each
        if isinstance(each, str)
        else each.isoformat()
        if isinstance(each, datetime)
        else msgspec.json.encode(each).decode()
        for each in values
    ]


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close(loop: QuietLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
