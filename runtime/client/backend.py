"""Backends: what a `Client` needs of a node, whether over HTTP or in this process.

Imports nothing at run time but the future. Paths, queries and bodies are those of the HTTP API in both cases,
so that the client has no second way to say anything; only `invoke` and `submit`, the hot paths, have methods
of their own.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

if TYPE_CHECKING:
    from headrace.runtime.client.future import InvocationFuture


class SubmitOptions(NamedTuple):
    """How an invocation is to be accepted; the defaults are those of a plain submit."""

    delay_s: float = 0.0
    priority: int | None = None
    tags: tuple[str, ...] = ()
    idempotency_key: str | None = None
    key: str | None = None
    idempotency_ttl_s: float | None = None


PLAIN = SubmitOptions()

MANY_MAX = 1_000


class Answer(NamedTuple):
    """An answer read whole. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream(Protocol):
    """An answer that is read piece by piece; the caller closes it."""

    status: int
    headers: Mapping[str, str]

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        ...

    def close(self) -> None:
        """Let go of the connection; twice is harmless."""
        ...


class Backend(Protocol):
    """What a Client needs of a node. Methods are called from any thread, and block it."""

    url: str
    """Where the node is, as errors show it."""

    def invoke(self, name: str, payload: bytes, *, wait: float | None = None) -> bytes:
        """Run a function and return its result's JSON; `wait` is the most seconds to wait for it, None for no
        limit.

        Raises the answer's error: InvocationFailed and its kinds, Unknown, Throttled, Unreachable;
        WaitTimeout after `wait`.
        """
        ...

    def submit(
        self, name: str, payload: bytes, *, options: SubmitOptions, future: "InvocationFuture"
    ) -> None:
        """Have an invocation accepted, and report to the future: `accepted`, then `succeeded` or `failed`.

        Returns before the node has accepted it. Blocks while more is unsent than the backend's bounds. Raises
        nothing about the invocation itself: that goes to the future.
        """
        ...

    def submit_many(
        self, name: str, payloads: Sequence[bytes], *, futures: "Sequence[InvocationFuture]"
    ) -> None:
        """`submit` of many without options, at most MANY_MAX, and one future for each."""
        ...

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Make one call of the HTTP API. Any status is an answer; raises Unreachable when there is none.

        A file as body is sent from where it stands to its end. GET, HEAD, PUT and DELETE may be made again
        after a broken connection, other methods never.
        """
        ...

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stream:
        """As `request`, with an answer that is read piece by piece."""
        ...

    def close(self) -> None:
        """Send what was submitted, then let go of threads and connections. Twice is harmless."""
        ...
