"""A node on the test's own event loop: real store, real object store, real API; an inline pool, and a clock
moved by hand.

It is dropped and made again on the same folder as a node is killed and started again.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlencode

import msgspec

from headrace import App
from headrace.runtime.api.access import SCOPES, Access, Token
from headrace.runtime.api.app import Application
from headrace.runtime.api.notifications import Notifications
from headrace.runtime.api.routing import Endpoint, RouteTable
from headrace.runtime.api.services import Limits, Services
from headrace.runtime.api.tickets import Tickets
from headrace.runtime.errors import StorageFull
from headrace.runtime.intake import Intake
from headrace.runtime.jobs.coordinator import Coordinator
from headrace.runtime.model.ids import Ids, show_id
from headrace.runtime.model.invocation import Outcome, Record, Status
from headrace.runtime.model.spec import FunctionSpec, Manifest
from headrace.runtime.model.write import Put
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.logs import LogStore
from headrace.runtime.store.protocol import Counters
from headrace.runtime.store.sqlite import SqliteStore
from headrace.runtime.testing import InlinePool, ManualClock
from headrace.runtime.timetable.backfills import Backfills
from headrace.runtime.timetable.timetable import Timetable
from headrace.runtime.versions import Versions
from headrace.triggers.http import Http

BEGIN = 1_800_000_000.0
TOKEN = "secret"
DEADLINE_S = 30.0


class Reply(msgspec.Struct):
    """What a call of the API answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


class InlineNode:
    """See above. `app` is what is loaded; `clock` goes on over restarts; `said` is what was reported."""

    def __init__(
        self,
        folder: Path,
        *apps: App,
        workers: int = 1,
        held: bool = False,
        window: int = 2048,
        sync_wait_s: float = 1.0,
        clock: ManualClock | None = None,
        connection: type[SqliteDatabase] = SqliteDatabase,
        tokens: Iterable[Token] = (),
        hosts: Iterable[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.clock = clock or ManualClock(BEGIN)
        self.said: list[tuple[str, Mapping[str, Any]]] = []
        self.outputs: list[tuple[str, int, str]] = []
        self.ended: dict[int, Any] = {}
        self._folder = folder
        self._apps = apps
        self._workers, self._held, self._window, self._sync_wait_s = workers, held, window, sync_wait_s
        self._connection = connection
        self._tokens = [Token("all", TOKEN, SCOPES), *tokens]
        self._hosts = hosts
        self._limits = limits or Limits()

    @property
    def specs(self) -> list[FunctionSpec]:
        return [declared.spec for app in self._apps for declared in app.declared.values()]

    # ---- life ----

    async def start(self, *, load: bool = True) -> Self:
        """`load` False leaves out the functions, as while their code is still imported; `use` brings them."""
        now = self.clock.now()
        self.store = SqliteStore(self._folder / "headrace.db", clock=self.clock, connection=self._connection)
        await self.store.start()
        self.lost = await self.store.release_expired(now=now)
        number = await self.store.join("inline", until=now + 1e9, now=now)
        self.name = f"inline#{number}"
        await self.store.join(self.name, until=now + 1e9, now=now)
        self.ids = Ids(self.clock.now, node=number)
        self.objects = FolderStore(self._folder / "buckets", fsync=False)
        self.objects.make_bucket("headrace-system")
        self.dispatcher = Dispatcher(
            self.store,
            node=self.name,
            ids=self.ids,
            clock=self.clock,
            chance=random.Random(7),
            on_output=self._on_output,
            on_error=self._report,
            sync_wait_s=self._sync_wait_s,
            window=self._window,
        )
        self.coordinator = Coordinator(
            self.store,
            self.dispatcher,
            objects=self.objects,
            ids=self.ids,
            clock=self.clock,
            in_thread=asyncio.to_thread,
            on_error=self._report,
        )
        self.dispatcher.ends.jobs = self.coordinator
        self.logs = LogStore(self._folder / "logs")
        self.logs.start()
        self._build_api()
        if load:
            self.use(*self._apps)
        await self.dispatcher.start(paused=await self.store.paused())
        await self.coordinator.start()
        return self

    def use(self, *apps: App, workers: int | None = None) -> InlinePool:
        """Run these apps' functions from now on, in a new pool."""
        self._apps = apps
        entries = {name: entry for app in apps for name, entry in app.entries().items()}
        self.pool = InlinePool(
            entries,
            reports=self.dispatcher.reports,
            clock=self.clock,
            workers=workers or self._workers,
            held=self._held,
            objects=self._folder / "buckets",
            on_progress=self.dispatcher.attempts.progress,
        )
        self.services.manifest = Manifest(version="v1", functions=tuple(self.specs))
        self.services.routes = RouteTable(
            Endpoint(route, spec.name, is_job=spec.job is not None, spec=spec)
            for spec in self.specs
            for trigger in spec.triggers
            if trigger.kind == "http"
            for route in Http.from_fields(trigger.fields).routes()
        )
        self.dispatcher.use(self.pool, self.specs)
        return self.pool

    async def stop(self) -> None:
        """As a node stops: claim nothing more, hand back what is held, flush."""
        self.dispatcher.stop_accepting()
        if hasattr(self, "pool"):
            self.pool.stop()
        await self.coordinator.stop()
        await self.dispatcher.stop()
        await self.store.leave(self.name)
        await self.store.stop()
        self.logs.stop()

    async def crash(self) -> None:
        """As a node is killed: nothing is handed back; only what is durable is left."""
        self.dispatcher._window.open = self.dispatcher._accepting = False
        self.dispatcher._pool = None
        self.coordinator._stopping = True
        for task in [*self.dispatcher._tasks, *self.coordinator._tasks]:
            task.cancel()
        await asyncio.gather(*self.dispatcher._tasks, *self.coordinator._tasks, return_exceptions=True)
        await self.store.stop()
        self.logs.stop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ---- waiting ----

    async def quiet(self, rounds: int = 8) -> None:
        """Return once everything that follows without time passing has happened: each round goes through the
        store's thread.
        """
        for _ in range(rounds):
            with contextlib.suppress(StorageFull):  # its thread has been through, all the same
                await self.store.apply([], now=self.clock.now())
            for _ in range(4):
                await asyncio.sleep(0)

    async def until(self, look: Callable[[], Awaitable[Any] | Any], what: str = "it") -> Any:
        """What `look` gives first that is true, while the store and the pool work and no time passes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DEADLINE_S
        while True:
            found = look()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert loop.time() < end, f"not within {DEADLINE_S:g} s: {what}; {self.said[-3:]}"
            await self.quiet(1)

    async def drive(self, *ids: int, step_s: float = 60.0, within_s: float = 7 * 86_400) -> dict[int, Record]:
        """Move the clock until all of these have ended; their records."""
        end = self.clock.now() + within_s
        while True:
            await self.quiet()
            found = await self.store.ended(ids)
            if len(found) == len(set(ids)):
                return {record.invocation.id: record for record in found}
            assert self.clock.now() < end, [await self.store.get(id) for id in ids]
            await self.clock.advance(step_s)

    async def idle(self) -> None:
        """Return once nothing that is due waits, and nothing runs."""

        async def done() -> bool:
            books = await self.books()
            running, ready, _ = self.dispatcher.counts()
            return not running and not ready and not books.running and not await self._due()

        await self.until(done, "an idle node")

    async def _due(self) -> bool:
        waiting = await self.store.find(status=Status.WAITING, limit=1000)
        return any(record.invocation.due_at <= self.clock.now() for record in waiting)

    # ---- what a test does and looks at ----

    async def put(self, function: str, payload: Any = None, **options: Any) -> int:
        """Accept one invocation; its id, the first one's for a repeat."""
        [id] = await self.put_many(function, [payload], **options)
        return id

    async def put_many(self, function: str, payloads: Iterable[Any], **options: Any) -> list[int]:
        """Accept invocations in one step."""
        puts: list[Put] = [
            self.dispatcher.prepare(function, msgspec.json.encode(payload), **options) for payload in payloads
        ]
        answers = await self.dispatcher.accept(puts)
        return [answer.id if answer.id is not None else 0 for answer in answers]

    async def record(self, id: int) -> Record:
        found = await self.store.get(id)
        assert found is not None
        return found

    async def books(self) -> Counters:
        """The sum of all functions' books, which must balance."""
        total = Counters()
        for name, book in (await self.store.counters()).items():
            parts = (book.waiting, book.running, book.succeeded, book.dead, book.cancelled)
            assert min(parts) >= 0, (name, book)
            assert book.accepted == sum(parts), (name, book)
            for field in ("accepted", "waiting", "running", "succeeded", "dead", "cancelled", "deduplicated"):
                setattr(total, field, getattr(total, field) + getattr(book, field))
        return total

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Reply:
        """Call the API in this process. A body that is not bytes goes as JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        sent = {"host": "localhost"}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if body is not None:
            sent["content-type"] = "application/json"
            sent["content-length"] = str(len(data))
        sent.update(headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(dict(query or {})).encode(),
            "headers": [
                (name.lower().encode(), value.encode("latin-1")) for name, value in sent.items() if value
            ],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 1),
        }
        messages: list[dict[str, Any]] = []
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # the caller stays until it is answered
            asked = True
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        async with asyncio.timeout(DEADLINE_S):
            await self.application(scope, receive, send)
        start = messages[0]
        return Reply(
            start["status"],
            {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in messages[1:]),
        )

    # ---- inside ----

    def _build_api(self) -> None:
        self.intake = Intake(
            self.store,
            self.dispatcher,
            self.coordinator,
            ids=self.ids,
            clock=self.clock,
            version=lambda: "v1",
            node=lambda: self.name,
        )
        self.backfills = Backfills(
            self.store,
            declared=lambda: self.services.schedules(),
            accept=self.intake.accept,
            watch=lambda id, ended: None,
            new_id=lambda: show_id(self.ids.next()),
            clock=self.clock,
            report=self._report,
        )
        timetable = Timetable(
            self.store,
            self.backfills,
            declared=lambda: self.services.schedules(),
            accept=self.intake.accept,
            cancel=self.intake.cancel,
            ids=self.ids,
            clock=self.clock,
            in_thread=asyncio.to_thread,
        )
        self.services = Services(
            dispatcher=self.dispatcher,
            coordinator=self.coordinator,
            store=self.store,
            objects=self.objects,
            logs=self.logs,
            versions=Versions(self.store, self.objects, in_thread=asyncio.to_thread),
            timetable=timetable,
            clock=self.clock,
            access=Access(self._tokens, hosts=self._hosts),
            in_thread=asyncio.to_thread,
            ready=lambda: None,
            health=lambda: {"node": self.name},
            report=self._report,
            notifications=Notifications(self._report),
            limits=self._limits,
            tickets=Tickets(b"inline"),
            new_request_id=lambda: show_id(self.ids.next()),
        )
        self.application = Application(self.services)

    def _on_output(self, spec: FunctionSpec, id: int, attempt: int, outcome: Outcome, now: float) -> None:
        self.outputs.append((spec.name, id, outcome.output.decode()))
        self.logs.append(id, attempt, spec.name, now, outcome.output, outcome.output_bytes, outcome.kind)
        self.logs.flush()

    def _report(self, message: str, details: Mapping[str, Any]) -> None:
        self.said.append((message, details))
