"""Replaying: the process in which a past invocation is run again, under a debugger when asked.

`python -m headrace.runtime.cli.replaying FOLDER`: reads `replay.json` in the folder, leaves `outcome.json`
there. It talks to the node only where the function's own context does.
"""

import asyncio
import inspect
import pdb
import sys
import sysconfig
import time
from bdb import BdbQuit
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from headrace.runtime.client.client import Client
from headrace.runtime.client.objects import NodeObjects
from headrace.runtime.errors import LoadFailed, UnknownFunction
from headrace.runtime.loading import load
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.pool.code import show_log_records
from headrace.runtime.pool.context import Context, Toolbox, WorkerConfig
from headrace.runtime.pool.failure import describe
from headrace.runtime.pool.result import encode_result

REQUEST, PAYLOAD, OUTCOME = "replay.json", "payload.json", "outcome.json"


class Request(msgspec.Struct, kw_only=True):
    """What to run: the loader's `argument`, its function, and as which attempt of which invocation.

    `imports` go before what is installed on the import path. `debug` is empty, `pdb` or `break`. The node's
    address and token come by HEADRACE_URL and HEADRACE_TOKEN. `pinned` has the versions to read of objects
    that have changed since.
    """

    argument: bytes
    imports: list[str]
    function: str
    invocation_id: int
    attempt: int
    debug: str = ""
    write: bool = False
    pinned: dict[str, str] = {}


class Written(msgspec.Struct, kw_only=True):
    """An object that the function wrote."""

    url: str
    size: int


class Report(msgspec.Struct, kw_only=True):
    """How it ended: `value` when ok, else `error`; `refused` when it was not run."""

    value: msgspec.Raw | None = None
    error: dict[str, Any] | None = None
    refused: dict[str, str] | None = None
    duration_s: float = 0.0
    written: list[Written] = []


class _Tools(Toolbox):
    """What a replay's context shares: objects and client of the node, progress on the error stream."""

    def __init__(self, folder: Path, *, write: bool, pinned: dict[str, str]) -> None:
        super().__init__(WorkerConfig(), folder / "scratch", _show_progress)
        self._through = Client()
        self.kept = NodeObjects(self._through, folder / "objects", through=write, pinned=pinned)

    @property
    def objects(self) -> ObjectStore:
        return self.kept

    @property
    def client(self) -> Client:
        return self._through


def main() -> None:
    """Run what the folder in the arguments asks for."""
    folder = Path(sys.argv[1])
    request = msgspec.msgpack.decode((folder / REQUEST).read_bytes(), type=Request)
    report = _replay(request, folder)
    (folder / OUTCOME).write_bytes(msgspec.json.encode(report))


def _replay(request: Request, folder: Path) -> Report:
    sys.path[:] = _ahead_of_installed(sys.path, request.imports)
    loaded = load(request.argument)
    entry = loaded.entries.get(request.function)
    spec = loaded.manifest.function(request.function)
    if entry is None or spec is None:
        faults = loaded.manifest.errors
        error: LoadFailed | UnknownFunction = UnknownFunction(request.function)
        if faults:
            error = LoadFailed(faults[0].file, faults[0].line, faults[0].message)
        return Report(refused={"message": str(error), "hint": error.hint})
    show_log_records()
    tools = _Tools(folder, write=request.write, pinned=request.pinned)
    payload = msgspec.json.decode((folder / PAYLOAD).read_bytes())
    began = time.monotonic()
    context = Context(
        tools, 0, request.invocation_id, request.function, request.attempt, began + spec.timeout_s
    )
    report = Report()
    try:
        if request.debug == "break":
            _break_at(spec)
        value = entry(payload, context)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        report.value = msgspec.Raw(encode_result(value))
    except BdbQuit:
        report.refused = {"message": "the debugger was left before the function had ended", "hint": ""}
    except BaseException as error:  # user code: whatever it raises is the outcome
        sys.settrace(None)
        _, report.error = describe(error)
        if request.debug:
            _look_at(error)
    finally:
        sys.settrace(None)
        context.close()
    report.duration_s = time.monotonic() - began
    report.written = [Written(url=f"s3://{o.bucket}/{o.key}", size=o.size) for o in tools.kept.written]
    sys.stdout.flush()
    sys.stderr.flush()
    return report


def _break_at(spec: FunctionSpec) -> None:
    """Begin to debug when the function is called: at its first line."""

    def on_call(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if event != "call" or code.co_firstlineno != spec.line or code.co_filename != spec.file:
            return None
        debugger = pdb.Pdb(nosigint=True)
        debugger.set_trace(frame)
        trace: Callable[..., Any] = debugger.trace_dispatch
        return trace

    sys.settrace(on_call)


def _look_at(error: BaseException) -> None:
    """Post mortem, in the frame that raised."""
    text = str(error).splitlines()
    sys.stdout.write(f"{type(error).__name__}: {text[0] if text else ''}\n")
    if error.__traceback__ is not None:
        debugger = pdb.Pdb(nosigint=True)
        debugger.reset()
        try:
            debugger.interaction(None, error.__traceback__)
        except BdbQuit:
            pass


def _show_progress(message: Any) -> None:
    told = message["progress"]
    total = f" of {told['total']:g}" if "total" in told else ""
    sys.stderr.write(f"progress {told['done']:g}{total} {told.get('message', '')}".rstrip() + "\n")


def _ahead_of_installed(path: list[str], imports: list[str]) -> list[str]:
    """The import path with `imports` behind the standard library, of which a user's file may bear a name, and
    ahead of everything else, which may hold the same files as they are now.
    """
    library = sysconfig.get_path("stdlib")
    standard = [
        entry
        for entry in path
        if "site-packages" not in entry and (entry.startswith(library) or entry.endswith(".zip"))
    ]
    return [*standard, *imports, *(entry for entry in path if entry not in standard)]


if __name__ == "__main__":
    main()
