"""What people call from Python: `Client` and `AsyncClient`, over HTTP or given a node.

Each name is loaded when it is first asked for: a command that makes one call needs neither asyncio nor
futures.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.runtime.client.answer import ClientClosed, WaitTimeout
    from headrace.runtime.client.asynchronous import AsyncClient, AsyncJob
    from headrace.runtime.client.backend import Answer, Backend, Stream, SubmitOptions
    from headrace.runtime.client.client import Client, worker_client
    from headrace.runtime.client.future import InvocationFuture
    from headrace.runtime.client.job import JobHandle
    from headrace.runtime.client.streamed import Streamed

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncJob",
    "Backend",
    "Client",
    "ClientClosed",
    "InvocationFuture",
    "JobHandle",
    "Stream",
    "Streamed",
    "SubmitOptions",
    "WaitTimeout",
    "worker_client",
]

_HOMES = {
    "Answer": "backend",
    "AsyncClient": "asynchronous",
    "AsyncJob": "asynchronous",
    "Backend": "backend",
    "Client": "client",
    "ClientClosed": "answer",
    "InvocationFuture": "future",
    "JobHandle": "job",
    "Stream": "backend",
    "Streamed": "streamed",
    "SubmitOptions": "backend",
    "WaitTimeout": "answer",
    "worker_client": "client",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
