"""Context: what a function is told about its invocation, and what it may use.

Imports the floor and, once a function asks for them, the object stores. One is made for every invocation, so
it holds a few numbers and makes everything else at first use; what outlives an invocation is the worker's
`Toolbox`.
"""

import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.model.ids import show_id
from headrace.runtime.objects.s3_signature import Credentials

if TYPE_CHECKING:
    from headrace.runtime.objects.protocol import ObjectStore

PROGRESS_INTERVAL_S = 0.1


class WorkerConfig(msgspec.Struct, kw_only=True):
    """What workers may reach: the object store's URL with what opens it, and the node's with a token for it.

    `client_factory` is `module:function`, called as `function(url, token)` in the worker when a function
    first asks for its client. `callback_secret` signs what callers' URLs are told, and `callback_hosts` are
    those that need not be public.
    """

    objects: str | None = None
    credentials: Credentials | None = None
    url: str | None = None
    token: str | None = None
    client_factory: str | None = None
    callback_secret: str = ""
    callback_hosts: tuple[str, ...] = ()


class Toolbox:
    """What the contexts of one worker share.

    Args:
        folder: where scratch folders are made; it need not exist yet.
        send: gives the node one message; safe in any thread.
    """

    def __init__(self, config: WorkerConfig, folder: Path, send: Callable[[Any], None]) -> None:
        self.config = config
        self.folder = folder
        self.send = send
        self.log = Log()
        self._objects: ObjectStore | None = None
        self._client: Any = None

    @property
    def objects(self) -> "ObjectStore":
        if self._objects is None:
            if self.config.objects is None:
                raise InvalidSettings(
                    "no object store is configured for this node", "Start it with --objects."
                )
            from headrace.runtime.objects.url import open_store

            self._objects = open_store(self.config.objects, credentials=self.config.credentials)
        return self._objects

    @property
    def client(self) -> Any:
        if self._client is None:
            factory = self.config.client_factory
            if factory is None:
                raise InvalidSettings(
                    "this worker was given no client", "The node that started it serves no API."
                )
            module, _, name = factory.partition(":")
            self._client = getattr(importlib.import_module(module), name)(self.config.url, self.config.token)
        return self._client


class Log:
    """Writes one line for each call to the invocation's output: `LEVEL message key=value`."""

    def debug(self, message: str, **fields: Any) -> None:
        self._write("DEBUG", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._write("INFO", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._write("WARNING", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._write("ERROR", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        shown = "".join(f" {key}={value!r}" for key, value in fields.items())
        sys.stderr.write(f"{level} {message}{shown}\n")


class Context:
    """One invocation, as its function sees it; of no use after the function has returned.

    `function` is the name it runs under, `attempt` counts from 1, `deadline` is when it will be ended
    (seconds of `time.monotonic()`).
    """

    __slots__ = ("_id", "_progress_at", "_scratch", "_seq", "_tools", "attempt", "deadline", "function")

    def __init__(
        self, tools: Toolbox, seq: int, invocation_id: int, function: str, attempt: int, deadline: float
    ) -> None:
        self._tools = tools
        self._seq = seq
        self._id = invocation_id
        self._progress_at = 0.0
        self._scratch: Path | None = None
        self.function = function
        self.attempt = attempt
        self.deadline = deadline

    @property
    def invocation_id(self) -> str:
        """16 hexadecimal digits, the same over all attempts: what makes a side effect idempotent."""
        return show_id(self._id)

    def remaining(self) -> float:
        """Seconds until the function is ended; below zero when its time is over."""
        return self.deadline - time.monotonic()

    @property
    def log(self) -> Log:
        """`log.info("message", key=value)`, and `debug`, `warning`, `error`: one line each in the
        invocation's output."""
        return self._tools.log

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Tell whoever watches how far the function is.

        At most ten reports a second are passed on, and always the one with `done` equal to `total`.
        """
        now = time.monotonic()
        if now - self._progress_at < PROGRESS_INTERVAL_S and done != total:
            return
        self._progress_at = now
        told: dict[str, Any] = {"done": float(done) if not isinstance(done, int) else int(done)}
        if total is not None:
            told["total"] = float(total) if not isinstance(total, int) else int(total)
        if message is not None:
            told["message"] = str(message)[:1000]
        self._tools.send({"seq": self._seq, "progress": told})

    @property
    def objects(self) -> "ObjectStore":
        """The node's object store. Raises: InvalidSettings where none is configured."""
        return self._tools.objects

    @property
    def client(self) -> Any:
        """A client of the node that runs this. Raises: InvalidSettings where it serves none."""
        return self._tools.client

    @property
    def config(self) -> WorkerConfig:
        """What the node told its workers: for the node's own functions."""
        return self._tools.config

    def scratch(self) -> Path:
        """An empty folder of this invocation's own, removed when the function has returned."""
        if self._scratch is None:
            self._tools.folder.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=self._tools.folder))
        return self._scratch

    def close(self) -> None:
        """Remove the scratch folder, if there is one."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
