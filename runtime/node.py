"""The node: the composition root, the one module that chooses concrete classes and wires them together.

It knows triggers by their protocol only: a spec's kind names an entry point in the group `headrace.triggers`.
"""

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from headrace.runtime.api.tickets import Tickets, shared_secret
from headrace.runtime.clock import Clock, SteadyClock, SystemClock, machine_elapsed
from headrace.runtime.errors import (
    HeadraceError,
    InvalidFunction,
    InvalidSettings,
)
from headrace.runtime.fault import problem as fault_problem
from headrace.runtime.intake import Intake
from headrace.runtime.jobs.coordinator import Coordinator
from headrace.runtime.kinds import trigger_class, trigger_name
from headrace.runtime.model.attempt import Report
from headrace.runtime.model.ids import Ids, read_id, show_id
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.spec import FunctionSpec, LoadError, Manifest
from headrace.runtime.model.write import Deployed
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import credentials_for, open_store
from headrace.runtime.opening import bind, events_token_of, make_folder, open_store_of, server, tokens_of
from headrace.runtime.pool.context import WorkerConfig
from headrace.runtime.pool.local import LocalPool
from headrace.runtime.pool.protocol import Pool, PoolEvents
from headrace.runtime.pool.reading import Reading
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.queue.membership import Membership
from headrace.runtime.queue.outbound import Callbacks
from headrace.runtime.settings import Settings
from headrace.runtime.store.holder import Holder
from headrace.runtime.store.logs import LogStore
from headrace.runtime.store.protocol import Store
from headrace.runtime.timetable.backfills import Backfills
from headrace.runtime.timetable.timetable import Timetable
from headrace.runtime.trigger import Source, Timed, Trigger, TriggerContext
from headrace.runtime.upkeep import LOGS_LOST, Upkeep
from headrace.runtime.versions import Versions

THREADS = 8
CLOCK_BEHIND_S = 1.0
LOADER = "headrace.runtime.loading:load"
CLIENT = "headrace.runtime.client:worker_client"

_log = structlog.get_logger("headrace")


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is made of where that is not what its settings name; None leaves it to them.

    `clock_look_s` is how often a schedule looks whether the wall clock was changed. Of code that a `pool` of
    the caller's runs no snapshot is kept.
    """

    store: Callable[[Clock], Store] | None = None
    objects: ObjectStore | None = None
    pool: Callable[[PoolEvents, Clock, WorkerConfig], Pool] | None = None
    threads: Executor | None = None
    clock_look_s: float | None = None


NO_PARTS = Parts()


class Node:
    """One node: everything between a data folder and its workers. `start` and `stop` it on an event loop.

    Args:
        settings: what the node was told.
        code: the loader's argument: what user code to run.
        clock: the wall clock; the system's by default. Schedules go by it; the queue, leases and ids go by
            `Node.clock`, which begins with it and is steady.
        listen: serve HTTP on the settings' host and port; without it, only this process reaches the node.
        on_output: told what each attempt printed, beside the logs.
        parts: for tests, which bring their own.
    """

    def __init__(
        self,
        settings: Settings,
        code: bytes,
        *,
        clock: Clock | None = None,
        listen: bool = True,
        on_output: Callable[[str, str, Outcome], None] | None = None,
        parts: Parts = NO_PARTS,
    ) -> None:
        self.settings = settings
        self._parts = parts
        self.wall: Clock = clock or SystemClock()
        self.clock = SteadyClock(self.wall, elapsed=machine_elapsed() if clock is None else None)
        self.manifest = Manifest(version="")
        self.url = ""
        self.secret = ""
        self.stopping = asyncio.Event()
        self._code = code
        self._listen = listen
        self._echo = on_output
        self._threads = parts.threads or ThreadPoolExecutor(THREADS, thread_name_prefix="headrace")
        self._sources: list[Source] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pool: Pool | None = None
        self._loading: asyncio.Task[Manifest] | None = None
        self._old_pools: set[asyncio.Task[None]] = set()
        self._lease: asyncio.Task[None] | None = None
        self._store: Store | None = None
        self._holder: Holder | None = None
        self._server: Any = None
        self._served: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._announced = False
        self._joined = False
        self._begun_at = self.clock.now()
        self._chance = random.Random(secrets.randbits(64))
        self._unready: str | None = "starting"

    # ---- life ----

    async def start(self) -> None:
        """Open the data, load the code, start the workers, the triggers and the server.

        Raises: DataInUse, DataTooNew, DataDamaged, ReadOnlyStorage, PortInUse, InvalidSettings. Load errors
        are in `manifest`, and do not keep the node from starting.
        """
        settings = self.settings
        if fault_problem:
            raise InvalidSettings(fault_problem, "Unset it, unless this node is under test.")
        listener = bind(settings.host, settings.port) if self._listen else None
        try:
            await self._open(listener)
        except BaseException:
            if listener is not None:
                listener.close()
            await self.stop(grace_s=0)
            raise

    async def _open(self, listener: socket.socket | None) -> None:
        settings = self.settings
        make_folder(settings.data)
        self._holder = holder = Holder(settings.data / "node.lock")
        await holder.take()
        open_it = self._parts.store or partial(open_store_of, settings.store)
        self._store = store = open_it(self.clock)
        self._membership = membership = Membership(
            store,
            new_id=lambda: f"{socket.gethostname()}#{os.getpid()}-{secrets.token_hex(3)}",
            clock=self.clock,
            lease_s=settings.node_lease_s,
            on_moment=self._on_moment,
            on_error=self._report,
        )
        store.listen(membership.hear)
        await store.start()
        if not store.shared:
            self._go_on_from(await store.latest())
        self.ids = Ids(self.clock.now, node=await membership.join())
        self._joined = True
        self.secret = secrets.token_urlsafe(24)
        tokens = tokens_of(settings, self.secret)
        if listener is not None:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else shown}:{port}"
        scratch = settings.data / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        pool = self._new_pool()
        self._pool = pool  # from here on `stop` ends it, whatever fails next
        loaded_at = self.clock.now()
        self._loading = asyncio.get_running_loop().create_task(pool.start())
        await asyncio.sleep(0)  # the zygote imports user code while this process imports its own
        self.objects: ObjectStore = self._parts.objects or await self.in_thread(
            open_store, settings.objects, patient=False
        )
        await self.in_thread(self.objects.make_bucket, SYSTEM_BUCKET)  # large payloads and results go there
        self.versions = Versions(store, self.objects, in_thread=self.in_thread)
        self.dispatcher = Dispatcher(
            store,
            node=membership.id,
            ids=self.ids,
            clock=self.clock,
            chance=self._chance,
            on_output=self._on_output,
            on_error=self._report,
            sync_wait_s=settings.sync_wait_s,
        )
        self.coordinator = Coordinator(
            store,
            self.dispatcher,
            objects=self.objects,
            ids=self.ids,
            clock=self.clock,
            in_thread=self.in_thread,
            on_error=self._report,
        )
        self.dispatcher.ends.jobs = self.coordinator
        self.intake = Intake(
            store,
            self.dispatcher,
            self.coordinator,
            ids=self.ids,
            clock=self.clock,
            version=lambda: self.manifest.version,
            node=lambda: self._membership.id,
        )
        self.backfills = Backfills(
            store,
            declared=self._schedules,
            accept=self.intake.accept,
            watch=self._watch,
            new_id=lambda: show_id(self.ids.next()),
            clock=self.wall,
            report=self._report,
        )
        self.logs = LogStore(settings.data / "logs")
        await self.in_thread(self.logs.start)
        self._upkeep = Upkeep(
            store,
            self.objects,
            logs=self.logs,
            versions=self.versions,
            kept=settings.kept,
            clock=self.clock,
            wall=self.wall,
            in_thread=self.in_thread,
            report=self._report,
        )
        tickets = Tickets(await self.in_thread(shared_secret, self.objects))
        self._build_api(tokens, tickets)
        if listener is not None:
            self._serve(listener)
        self.manifest = await self._loading
        self._show_load(pool)
        self._use(pool)
        await store.release_expired(now=self.clock.now())
        await self.dispatcher.start(paused=await store.paused())
        await self.coordinator.start()
        await self._start_triggers()
        await membership.beat(self.dispatcher)
        self._lease = asyncio.get_running_loop().create_task(membership.keep(self.dispatcher))
        self._lease.add_done_callback(self._reap)
        upkeep = self._upkeep
        for work in (upkeep.flush_logs(), upkeep.expire(), upkeep.collect(), self.backfills.run()):
            self._spawn(work)
        if store.shared:
            self._spawn(
                membership.follow(self.dispatcher, moved=self.coordinator.heard, control=self._control)
            )
            self._spawn(membership.follow_ends(self.dispatcher))
        self._write_node_file()
        self._unready = None
        self._spawn(self._deployed(self.manifest, loaded_at, self.clock.now()))

    def _go_on_from(self, latest: float) -> None:
        """Be not behind what the store has recorded."""
        behind_s = latest - self.clock.now()
        if behind_s > CLOCK_BEHIND_S:
            _log.warning(
                "the clock is behind what has been recorded; the queue goes on from there, schedules by the"
                " clock",
                behind_s=round(behind_s, 1),
            )
        self.clock.advance_to(latest)

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Stop claiming, let what runs end for `grace_s` (default the setting `drain_s`), hand back the rest.
        Twice is harmless.
        """
        self._unready = "stopping"
        self.stopping.set()
        if hasattr(self, "services"):
            self.services.draining = True
        grace = self.settings.drain_s if grace_s is None else grace_s
        for source in self._sources:
            await source.stop()
        self._sources.clear()
        if hasattr(self, "dispatcher"):
            self.dispatcher.stop_accepting()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pool is not None:
            await self._pool.stop(grace_s=grace)
            self._pool = None
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        await asyncio.gather(*self._old_pools, return_exceptions=True)
        if hasattr(self, "coordinator"):
            await self.coordinator.stop()
        if hasattr(self, "dispatcher"):
            await self.dispatcher.stop()
        if self._server is not None and self._served is not None:
            self._server.should_exit = True
            await self._served
            self._server = None
            if self._watching is not None:
                self._watching.cancel()
        if self._store is not None:
            if self._announced:  # a node that was refused the data must not take back another's word
                with contextlib.suppress(OSError):  # gone already, or a disk that may only be read by now
                    (self.settings.data / "node.json").unlink()
            if self._lease is not None:  # kept until here, so that nobody takes what runs while it drains
                self._lease.cancel()
                await asyncio.gather(self._lease, return_exceptions=True)
            if self._joined:
                await self._leave()
            await self._store.stop()
            self._store = None
        if self._holder is not None:
            self._holder.drop()
        if hasattr(self, "logs"):
            try:
                await self.in_thread(self.logs.stop)
            except HeadraceError as error:
                self._report(LOGS_LOST, {"error": str(error)})
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _leave(self) -> None:
        try:
            await self._membership.leave()
        except HeadraceError as error:
            self._report("the node's lease could not be ended; it runs out by itself", {"error": str(error)})

    @property
    def pool(self) -> Pool | None:
        """The workers of the newest code; None before the start and after the end."""
        return self._pool

    async def in_thread(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """A blocking call in the node's bounded pool of threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    # ---- code ----

    def _new_pool(self) -> Pool:
        settings = self.settings
        events = PoolEvents(self._reports, self._room, self._progress, self._stream)
        assert self._store is not None
        assert self._holder is not None
        locks = (self._holder.fd, self._store.lock_fd)
        objects = settings.objects if "://" in settings.objects else str(Path(settings.objects).absolute())
        config = WorkerConfig(
            objects=objects,
            credentials=credentials_for(settings.objects),
            url=self.url or None,
            token=self.secret,
            client_factory=CLIENT if self.url else None,
            callback_secret=self._callback_secret(),
            callback_hosts=settings.callback_hosts,
        )
        if self._parts.pool is not None:
            return self._parts.pool(events, self.clock, config)
        return LocalPool(
            LOADER,
            self._code,
            events=events,
            workers=settings.workers,
            burst_workers=settings.burst_workers,
            scratch_root=settings.data / "tmp",
            clock=self.clock,
            config=config,
            kill_grace_s=settings.kill_grace_s,
            recycle_after=settings.recycle_after,
            hold_fds=tuple(lock for lock in locks if lock is not None),
        )

    def _reports(self, reports: Sequence[Report]) -> None:
        self.dispatcher.reports(reports)

    def _room(self) -> None:
        if self._unready != "starting":
            self.dispatcher.dispatch()

    def _progress(self, token: int, progress: dict[str, Any]) -> None:
        self.dispatcher.attempts.progress(token, progress)

    def _stream(self, token: int, reading: Reading) -> None:
        self.dispatcher.attempts.opened(token, reading)

    def _use(self, pool: Pool) -> None:
        """Serve the pool's functions from now on."""
        from headrace.runtime.api.routing import Endpoint, RouteTable

        endpoints = []
        for spec in self.manifest.functions:
            for given in spec.triggers:
                trigger = self._trigger(spec, given.kind, given.fields)
                try:
                    routes = trigger.routes() if trigger is not None else ()
                except InvalidFunction as error:  # what it needs of this node is not there
                    self._add_fault(spec, error)
                    continue
                for route in routes:
                    endpoints.append(Endpoint(route, spec.name, is_job=spec.job is not None, spec=spec))
        table = RouteTable()
        kept: list[Endpoint] = []
        for endpoint in endpoints:
            try:
                table = RouteTable([*kept, endpoint])
                kept.append(endpoint)
            except InvalidFunction as error:
                found = self.manifest.function(endpoint.function)
                assert found is not None
                self._add_fault(found, error)
        self.services.routes = table if kept else RouteTable()
        self.services.routes = RouteTable(kept)
        self.services.manifest = self.manifest
        self.dispatcher.use(pool, self.manifest.functions)

    async def reload(self) -> None:
        """Load the code anew and serve it; what runs ends with the code that it began with.

        When a file that was loaded before is broken now, the old code goes on serving until it is mended.
        """
        pool = self._new_pool()
        loaded_at = self.clock.now()
        manifest = await pool.start()
        if manifest.errors and self._pool is not None:
            for fault in manifest.errors:
                self._show_fault(fault)
            _log.warning("the code was not reloaded; the old one is served until it is mended")
            await pool.stop(grace_s=0)
            return
        old, self._pool, self.manifest = self._pool, pool, manifest
        self._use(pool)
        self._spawn(self._deployed(manifest, loaded_at, self.clock.now()))
        await self._restart_triggers()
        _log.info("reloaded", functions=manifest.own, version=manifest.version)
        if old is not None:
            task = asyncio.get_running_loop().create_task(self._retire(old))
            self._old_pools.add(task)
            task.add_done_callback(self._old_pools.discard)

    async def _retire(self, pool: Pool) -> None:
        await pool.stop(grace_s=self.settings.drain_s)
        self.dispatcher.retire(pool)

    async def _deployed(self, manifest: Manifest, loaded_at: float, now: float) -> None:
        """Record what is served from now on, and keep its code, so that a past invocation can be replayed."""
        try:
            if self._parts.pool is not None:
                assert self._store is not None
                await self._store.apply([Deployed(self._membership.id, manifest.version, now)], now=now)
                return
            note = await self.versions.record(
                self._membership.id, manifest, argument=self._code, loaded_at=loaded_at, now=now,
                without=(self.settings.data, Path(self.settings.objects)),
            )  # fmt: skip
        except HeadraceError as error:
            note = str(error)
        if note:
            _log.warning(
                "this version of the code is not kept for replays", version=manifest.version, why=note
            )

    def _show_load(self, pool: Pool) -> None:
        for fault in self.manifest.errors:
            self._show_fault(fault)
        if self.manifest.why:
            _log.info("workers are spawned, not forked", why=self.manifest.why)
        if pool.load_output.strip():
            _log.info("printed while the code was loaded", text=pool.load_output.strip()[:2000])

    def _add_fault(self, spec: FunctionSpec, error: InvalidFunction) -> None:
        """A route of a function cannot be served: it is shown with what could not be loaded."""
        fault = LoadError(file=spec.file, line=spec.line, message=str(error), hint=error.hint)
        self.manifest = msgspec.structs.replace(self.manifest, errors=(*self.manifest.errors, fault))
        self._show_fault(fault)

    def _show_fault(self, fault: LoadError) -> None:
        place = f"{fault.file}:{fault.line}" if fault.line else fault.file
        _log.error(f"{place}: {fault.message}", hint=fault.hint)

    # ---- triggers ----

    def _trigger(self, spec: FunctionSpec, kind: str, fields: dict[str, Any]) -> Trigger | None:
        try:
            return trigger_class(kind).from_fields(fields)  # type: ignore[no-any-return]
        except HeadraceError as error:
            self._report(
                "a trigger cannot be used", {"function": spec.name, "kind": kind, "error": str(error)}
            )
            return None

    async def _start_triggers(self) -> None:
        for spec in self.manifest.functions:
            counts: dict[str, int] = {}
            for given in spec.triggers:
                index = counts[given.kind] = counts.get(given.kind, -1) + 1
                trigger = self._trigger(spec, given.kind, given.fields)
                if trigger is None:
                    continue
                source = trigger.source(self._trigger_context(spec, trigger, given.fields, index))
                if source is None:
                    continue
                try:
                    await source.start()
                    self._sources.append(source)
                except HeadraceError as error:
                    self._report(
                        "a trigger could not start",
                        {"function": spec.name, "kind": given.kind, "error": str(error)},
                    )
        self._notifications.is_open = True

    def _schedules(self) -> dict[str, tuple[FunctionSpec, Timed]]:
        """What the present code declares to happen at moments that are known ahead, by the trigger's name."""
        found: dict[str, tuple[FunctionSpec, Timed]] = {}
        for spec in self.manifest.functions:
            counts: dict[str, int] = {}
            for given in spec.triggers:
                index = counts[given.kind] = counts.get(given.kind, -1) + 1
                trigger: object = self._trigger(spec, given.kind, given.fields)
                if isinstance(trigger, Timed):
                    found[trigger_name(spec, given.kind, given.fields, index)] = (spec, trigger)
        return found

    def _watch(self, id: str, ended: Callable[[], None]) -> None:
        """Have `ended` called when an invocation has ended, as far as this node hears of it."""
        number = read_id(id)
        assert number is not None
        self.dispatcher.watchers.watch(number, lambda _: ended())

    async def _restart_triggers(self) -> None:
        sources, self._sources = self._sources, []
        self._notifications.is_open = False  # what comes between the two would find nobody
        for source in sources:
            await source.stop()
        await self._start_triggers()

    def _trigger_context(
        self, spec: FunctionSpec, trigger: Trigger, fields: dict[str, Any], index: int
    ) -> TriggerContext:
        assert self._store is not None
        return TriggerContext(
            name=trigger_name(spec, trigger.kind, fields, index),
            function=spec,
            objects=self.objects,
            state=self._store,
            clock=self.wall,
            chance=self._chance,
            accept=partial(self.intake.accept, spec, trigger),
            cancel=self.intake.cancel,
            bury=partial(self.intake.bury, spec, trigger),
            new_id=lambda: show_id(self.ids.next()),
            in_thread=self.in_thread,
            report=partial(self._report_of, spec.name),
            sweep_s=self.settings.sweep_s,
            clock_look_s=self._parts.clock_look_s,
            subscribe=self._notifications.subscribe,
        )

    # ---- the API ----

    def _build_api(self, tokens: list[Any], tickets: Tickets) -> None:
        from headrace.runtime.api.access import Access
        from headrace.runtime.api.app import Application
        from headrace.runtime.api.notifications import Notifications
        from headrace.runtime.api.services import Limits, Services

        settings = self.settings
        assert self._store is not None
        self._notifications = Notifications(self._report)
        if self._store.shared:
            from headrace.runtime.api.connecting import leave_stray

            self._notifications.stray = lambda key, target: self._spawn(
                self.in_thread(leave_stray, self.objects, key, target)
            )
        self.services = Services(
            dispatcher=self.dispatcher,
            coordinator=self.coordinator,
            store=self._store,
            objects=self.objects,
            logs=self.logs,
            versions=self.versions,
            timetable=Timetable(
                self._store,
                self.backfills,
                declared=self._schedules,
                accept=self.intake.accept,
                cancel=self.intake.cancel,
                ids=self.ids,
                clock=self.wall,
                in_thread=self.in_thread,
            ),
            schedules=self._schedules,
            clock=self.clock,
            access=Access(tokens, hosts=("127.0.0.1", "localhost", "::1") if settings.loopback else ()),
            in_thread=self.in_thread,
            ready=self._why_unready,
            health=self._health,
            report=self._report,
            notifications=self._notifications,
            events_token=partial(events_token_of, settings),
            objects_url=settings.objects,
            limits=Limits(
                sync_body_bytes=settings.body_bytes_sync,
                async_body_bytes=settings.body_bytes_async,
                stream_idle_s=settings.stream_idle_s,
            ),
            new_request_id=lambda: show_id(self.ids.next()),
            tickets=tickets,
            log_request=self._log_request if settings.access_log else None,
            callbacks=Callbacks(self._callback_secret(), settings.callback_hosts)
            if settings.callback_secret is not None
            else None,
        )
        self.application = Application(self.services)

    def _callback_secret(self) -> str:
        secret = self.settings.callback_secret
        return secret.get_secret_value() if secret is not None else ""

    def _log_request(self, facts: Mapping[str, Any]) -> None:
        _log.info("request", **facts)

    def _serve(self, listener: socket.socket) -> None:
        import uvicorn

        from headrace.runtime.api.connection import Front

        front = Front(self.application, clock=self.clock, report=self._report)
        # What uvicorn asks for is a class, and what it does with it is to call it.
        protocol: Any = front.protocol
        config = uvicorn.Config(
            self.application,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            loop="none",
            http=protocol,
            ws="none",
        )
        self._watching = asyncio.get_running_loop().create_task(front.run())
        self._server = server(config)
        self._served = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    def _why_unready(self) -> str | None:
        if self._unready or self._store is None:
            return self._unready
        if self._membership.fenced:
            return "without its lease, since the database has not answered in time,"
        return self._store.problem()

    def _health(self) -> dict[str, Any]:
        running, ready, calls = self.dispatcher.counts()
        load = self._pool.load() if self._pool is not None else {}
        return {
            "node": self._membership.id,
            "url": self.url,
            "version": self.manifest.version,
            "uptime_s": self.clock.now() - self._begun_at,
            "attempts_held": running,
            "claims_ready": ready,
            "calls_waiting": calls,
            **load,
        }

    def _write_node_file(self) -> None:
        if not self.url:
            return
        facts = {"url": self.url, "node": self._membership.id, "pid": os.getpid(), "token_file": "token"}
        path = self.settings.data / "node.json"
        temporary = path.with_suffix(".json.new")
        temporary.write_bytes(msgspec.json.encode(facts))
        temporary.replace(path)
        self._announced = True

    # ---- upkeep ----

    def _on_output(self, spec: FunctionSpec, id: int, attempt: int, outcome: Outcome, now: float) -> None:
        self.logs.append(id, attempt, spec.name, now, outcome.output, outcome.output_bytes, outcome.kind)
        self._upkeep.logs_dirty = True
        if self._echo is not None:
            self._echo(spec.name, show_id(id), outcome)

    async def _control(self) -> None:
        """Do what operators, or functions, told other nodes."""
        await self.dispatcher.refresh()

    def _on_moment(self, moment: float) -> None:
        """What time it is for all nodes of the store."""
        self.clock.follow(moment)

    def _report(self, message: str, details: Mapping[str, Any]) -> None:
        _log.error(message, **dict(details))

    def _report_of(self, function: str, message: str, details: Mapping[str, Any]) -> None:
        """What a trigger tells: what goes wrong is tried again, and worth a look."""
        tell = _log.warning if "error" in details else _log.info
        tell(message, **{"function": function, **details})

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report("the node's upkeep failed", {"error": f"{type(error).__name__}: {error}"})
