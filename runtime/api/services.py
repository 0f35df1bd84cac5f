"""What the API needs of the node, as one value that the composition root fills.

Imports the rooms below it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.runtime.api.access import Access
from headrace.runtime.api.notifications import Notifications
from headrace.runtime.api.routing import RouteTable
from headrace.runtime.api.tickets import Tickets
from headrace.runtime.clock import Clock
from headrace.runtime.jobs.coordinator import Coordinator
from headrace.runtime.model.spec import FunctionSpec, Manifest
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.queue.outbound import Callbacks
from headrace.runtime.store.logs import LogStore
from headrace.runtime.store.protocol import Store
from headrace.runtime.timetable.timetable import Timetable
from headrace.runtime.trigger import Timed
from headrace.runtime.versions import Versions


@dataclass(slots=True)
class Limits:
    """Bounds of one call, in bytes and seconds."""

    sync_body_bytes: int = 6 << 20
    async_body_bytes: int = 1 << 20
    object_bytes: int = 1 << 40
    wait_s: float = 60.0
    sse_s: float = 0.25
    stream_idle_s: float = 60.0
    keep_alive_s: float = 15.0


@dataclass(slots=True)
class Services:
    """The node as the API sees it. `routes` and `manifest` change when the code is loaded anew; `schedules`
    gives those of the present code by the names under which the store keeps their state. `events_token` is
    the secret that an object store shows with its notifications, `objects_url` where the objects are.
    """

    dispatcher: Dispatcher
    coordinator: Coordinator
    store: Store
    objects: ObjectStore
    logs: LogStore
    versions: Versions
    timetable: Timetable
    clock: Clock
    access: Access
    in_thread: Callable[..., Awaitable[Any]]
    ready: Callable[[], str | None]
    health: Callable[[], Mapping[str, Any]]
    report: Callable[[str, Mapping[str, Any]], None]
    tickets: Tickets
    notifications: Notifications = field(default_factory=Notifications)
    events_token: Callable[[], str] = str
    objects_url: str = ""
    schedules: Callable[[], Mapping[str, tuple[FunctionSpec, Timed]]] = dict
    routes: RouteTable = field(default_factory=RouteTable)
    manifest: Manifest = field(default_factory=lambda: Manifest(version=""))
    limits: Limits = field(default_factory=Limits)
    new_request_id: Callable[[], str] = lambda: ""
    log_request: Callable[[Mapping[str, Any]], None] | None = None
    """Told of each request when there is an access log."""
    callbacks: Callbacks | None = None
    """Which URLs are called back; None when the node has no secret to sign with."""
    draining: bool = False
    """The node is stopping: answers close their connections."""
