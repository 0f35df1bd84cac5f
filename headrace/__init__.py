"""The front door: every name that users import, and nothing else.

Each name is loaded from its room when it is first asked for, so that `import headrace`, which every command
and every worker does, costs next to nothing. The table and the imports for type checkers name the same
things; a test compares them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.runtime.app import App
    from headrace.runtime.client import AsyncClient, Client
    from headrace.runtime.errors import HeadraceError, RetryAfter
    from headrace.runtime.jobs.chunk import Chunk
    from headrace.runtime.jobs.reduce import all_results
    from headrace.runtime.jobs.split import Csv, Items, JsonLines, Lines
    from headrace.runtime.model.event import Event, HttpEvent, ScheduleEvent, UploadEvent, UploadSetEvent
    from headrace.runtime.model.form import FormFile
    from headrace.runtime.model.policy import RetryPolicy
    from headrace.runtime.model.route import Cors
    from headrace.runtime.model.stream import Sse, Stream
    from headrace.runtime.pool.context import Context
    from headrace.triggers.http import Http, Webhook
    from headrace.triggers.schedule import Schedule
    from headrace.triggers.upload import Upload
    from headrace.triggers.uploadset import Count, Manifest, Marker, Quiet, UploadSet

    __version__: str

__all__ = [
    "App",
    "AsyncClient",
    "Chunk",
    "Client",
    "Context",
    "Cors",
    "Count",
    "Csv",
    "Event",
    "FormFile",
    "HeadraceError",
    "Http",
    "HttpEvent",
    "Items",
    "JsonLines",
    "Lines",
    "Manifest",
    "Marker",
    "Quiet",
    "RetryAfter",
    "RetryPolicy",
    "Schedule",
    "ScheduleEvent",
    "Sse",
    "Stream",
    "Upload",
    "UploadEvent",
    "UploadSet",
    "UploadSetEvent",
    "Webhook",
    "__version__",
    "all_results",
]

_HOMES = {
    "App": "headrace.runtime.app",
    "AsyncClient": "headrace.runtime.client",
    "Chunk": "headrace.runtime.jobs.chunk",
    "Client": "headrace.runtime.client",
    "Context": "headrace.runtime.pool.context",
    "Cors": "headrace.runtime.model.route",
    "Count": "headrace.triggers.uploadset",
    "Csv": "headrace.runtime.jobs.split",
    "Event": "headrace.runtime.model.event",
    "FormFile": "headrace.runtime.model.form",
    "HeadraceError": "headrace.runtime.errors",
    "Http": "headrace.triggers.http",
    "HttpEvent": "headrace.runtime.model.event",
    "Items": "headrace.runtime.jobs.split",
    "JsonLines": "headrace.runtime.jobs.split",
    "Lines": "headrace.runtime.jobs.split",
    "Manifest": "headrace.triggers.uploadset",
    "Marker": "headrace.triggers.uploadset",
    "Quiet": "headrace.triggers.uploadset",
    "RetryAfter": "headrace.runtime.errors",
    "RetryPolicy": "headrace.runtime.model.policy",
    "Schedule": "headrace.triggers.schedule",
    "ScheduleEvent": "headrace.runtime.model.event",
    "Sse": "headrace.runtime.model.stream",
    "Stream": "headrace.runtime.model.stream",
    "Upload": "headrace.triggers.upload",
    "UploadEvent": "headrace.runtime.model.event",
    "UploadSet": "headrace.triggers.uploadset",
    "UploadSetEvent": "headrace.runtime.model.event",
    "Webhook": "headrace.triggers.http",
    "all_results": "headrace.runtime.jobs.reduce",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("headrace")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
