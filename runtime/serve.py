"""Serving: a node in the foreground, as `headrace serve` and `headrace dev` run it.

Imports the node and what is below it. A signal ends it in order, a second one at once.
"""

import asyncio
import signal
import sys
from typing import Any

import structlog

from headrace.runtime.code import request_for, watched_folders
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.node import Node
from headrace.runtime.settings import Settings, function_defaults

RELOAD_QUIET_S = 0.05

_log = structlog.get_logger("headrace")


def serve(settings: Settings, paths: list[str], *, dev: bool = False) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal ends it without waiting. Returns the exit code.

    `paths` are files, folders or modules of functions. With `dev` the code is reloaded when a file is saved,
    and what functions print is shown as it comes. Raises what `Node.start` does.
    """
    configure_log(settings, dev=dev)
    work = _run(settings, paths, dev=dev)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def _run(settings: Settings, paths: list[str], *, dev: bool) -> int:
    node = Node(
        settings, request_for(paths, defaults=function_defaults(settings)), on_output=_echo if dev else None
    )
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    await node.start()
    _log.info(
        f"serving {node.manifest.own} functions at {node.url}",
        data=str(settings.data),
        workers=settings.workers,
    )
    watcher = _Watcher(node, paths) if dev else None
    if watcher is not None:
        watcher.start()
    await stop.wait()
    _log.info("stopping: what runs may end, nothing else begins", grace_s=settings.drain_s)
    if watcher is not None:
        watcher.stop()
    stopping = loop.create_task(node.stop())
    hurried = loop.create_task(hurry.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not stopping.done():
        stopping.cancel()
        _log.warning("stopped without waiting; what ran is run again by the next start")
        return 1
    await stopping
    return 0


class _Watcher:
    """Reloads the code when a Python file of it is saved."""

    def __init__(self, node: Node, paths: list[str]) -> None:
        self._node = node
        self._folders = watched_folders(paths)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._observer: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        changed, loop = self._changed, self._loop

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                place = str(getattr(event, "dest_path", "") or event.src_path)
                if event.event_type in ("modified", "created", "moved", "deleted") and place.endswith(".py"):
                    loop.call_soon_threadsafe(changed.set)

        self._observer = Observer()
        for folder in self._folders:
            self._observer.schedule(Handler(), str(folder), recursive=True)
        self._observer.start()
        self._task = self._loop.create_task(self._reload())

    def stop(self) -> None:
        self._observer.stop()
        if self._task is not None:
            self._task.cancel()

    async def _reload(self) -> None:
        while True:
            await self._changed.wait()
            await self._node.clock.sleep(RELOAD_QUIET_S)  # editors write a file in several steps
            self._changed.clear()
            await self._node.reload()


def _echo(function: str, id: str, outcome: Outcome) -> None:
    """Show what an attempt printed, each line behind its function."""
    for line in outcome.output.decode("utf-8", "replace").splitlines():
        sys.stderr.write(f"{function} {id[-6:]} | {line}\n")


def configure_log(settings: Settings, *, dev: bool) -> None:
    """Send the node's own log to stderr: for people in development or on a terminal, else as JSON."""
    human = settings.log_format == "human" or (settings.log_format == "auto" and (dev or sys.stderr.isatty()))
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
    ]
    processors.append(
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if human
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(levels[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
