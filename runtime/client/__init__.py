"""What people call from Python: `Client` and `AsyncClient`, over HTTP or given a node."""

from headrace.runtime.client.asynchronous import AsyncClient
from headrace.runtime.client.backend import Answer, Backend, Stream, SubmitOptions
from headrace.runtime.client.client import Client
from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.client.job import JobHandle

__all__ = [
    "Answer",
    "AsyncClient",
    "Backend",
    "Client",
    "InvocationFuture",
    "JobHandle",
    "Stream",
    "SubmitOptions",
]
