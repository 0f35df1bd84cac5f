"""The zygote: a process with one thread that has imported the user's code, and forks workers that share it.

Imports the floor and this room. `python -m headrace.runtime.pool.zygote CONTROL SETUP PARENT`, with two open
descriptors. It dies with its node, by signal and by the end of its control socket, and takes all workers and
their descendants along; what its node told it to hold open (the data lock) is thus free only when none of
them is left.

Messages to it: `["fork", number, slot]` with three descriptors (wire, page, output), `["signal", number,
signum]`, `["stop"]`. Messages from it: `["manifest", bytes]`, `["forked", number, pid]`, `["dead", number,
code]` with a code as `subprocess` has it, `["failed", number, why]`.
"""

import contextlib
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from typing import Any, NoReturn

import msgspec

from headrace.runtime.model.spec import LoadError, Manifest
from headrace.runtime.pool import process
from headrace.runtime.pool.code import Loaded, Setup, plain_streams, show_log_records
from headrace.runtime.pool.frame import FrameReader, pack
from headrace.runtime.pool.worker import become_worker, serve

_SWEEPS_MAX = 50
_SWEEP_PAUSE_S = 0.002
_SHUTDOWN_S = 5.0
_FDS_PER_FORK = 3


class Child(msgspec.Struct):
    """A live worker."""

    number: int
    pid: int
    slot: int


class Zygote:
    """Serves one node over `control`.

    Args:
        setup_at: the descriptor of the setup, which spawned workers read again.
    """

    def __init__(self, control: socket.socket, setup: Setup, *, setup_at: int) -> None:
        self._control = control
        self._setup = setup
        self._setup_at = setup_at
        self._workers: dict[int, Child] = {}  # by pid
        self._loaded: Loaded | None = None
        self._forks = True
        self._descriptors: list[int] = []
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def load(self) -> None:
        """Import the code and send its manifest, which says how workers will be started."""
        try:
            self._loaded = self._setup.load()
            manifest = self._loaded.manifest
            show_log_records()
            if "://" in (self._setup.config.objects or ""):
                importlib.import_module("headrace.runtime.objects.s3")  # once, not in every worker
        except BaseException as error:  # whatever the import does, the node must hear of it
            self._send(["manifest", msgspec.msgpack.encode(_load_failure(error))])
            return
        why = manifest.why if manifest.start == "spawn" else _threads_left()
        if why:
            manifest = msgspec.structs.replace(manifest, start="spawn", why=why)
            self._forks = False
        gc.collect()
        gc.freeze()  # so that no worker's collector writes to the pages that all share
        self._send(["manifest", msgspec.msgpack.encode(manifest)])

    def run(self) -> NoReturn:
        """Serve until the node stops it or is gone; then end with everything it started."""
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        reader = FrameReader()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        self._reap()
        while not self._stopping:
            ready = dict(poll.poll())
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in ready:
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
                except ConnectionError:
                    break
                if not data:
                    break
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                self._descriptors += descriptors
                for message in reader.feed(data):
                    self._obey(message)
        self._shut_down()

    def _on_term(self, signum: int, frame: object) -> None:
        self._stopping = True

    def _obey(self, message: list[Any]) -> None:
        if message[0] == "fork":
            self._start_worker(message[1], message[2])
        elif message[0] == "signal":
            for child in self._workers.values():
                if child.number == message[1]:
                    if message[2] == signal.SIGKILL:
                        process.kill_group(child.pid)
                    else:
                        os.kill(child.pid, message[2])
        elif message[0] == "stop":
            self._stopping = True

    # ---- starting ----

    def _start_worker(self, number: int, slot: int) -> None:
        descriptors, self._descriptors = self._descriptors[:_FDS_PER_FORK], self._descriptors[_FDS_PER_FORK:]
        try:
            pid = (
                self._fork(number, slot, descriptors)
                if self._forks
                else self._spawn(number, slot, descriptors)
            )
        except OSError as error:
            self._send(["failed", number, str(error)])
        else:
            self._workers[pid] = Child(number, pid, slot)
            self._send(["forked", number, pid])
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self, number: int, slot: int, descriptors: list[int]) -> int:
        assert self._loaded is not None
        parent = os.getpid()
        pid = _fork_quietly()
        if pid:
            return pid
        try:
            wire, page, output = descriptors
            become_worker(parent, slot, output)
            for descriptor in (self._control.detach(), self._setup_at, self._wake_read, self._wake_write):
                os.close(descriptor)
            for descriptor in self._setup.held:
                os.close(descriptor)
            serve(wire, page, output, setup=self._setup, entries=self._loaded.entries, number=number)
        except BaseException:  # the outermost frame of a process that must never return into the zygote's
            traceback.print_exc()
        finally:
            os._exit(70)

    def _spawn(self, number: int, slot: int, descriptors: list[int]) -> int:
        wire, page, output = descriptors
        passed = (wire, page, output, self._setup_at)
        arguments = (*passed, os.getpid(), slot, number)
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        try:
            return os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", "headrace.runtime.pool.worker", *map(str, arguments)],
                os.environ,
            )
        finally:
            os.set_inheritable(self._setup_at, False)

    # ---- ending ----

    def _reap(self) -> None:
        """Collect what has ended; of a worker, first end everything that it leaves behind."""
        while True:
            pid, code = self._next_dead()
            if not pid:
                return
            child = self._workers.pop(pid, None)
            if child is not None:
                self._sweep(child)
                self._send(["dead", child.number, code])

    def _next_dead(self) -> tuple[int, int]:
        try:
            if hasattr(os, "waitid"):
                # While it is not yet collected its number cannot be another's, so this is the moment to end
                # its group.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return 0, 0
                if found.si_pid in self._workers:
                    process.kill_group(found.si_pid)
                pid, status = os.waitpid(found.si_pid, 0)
            else:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid in self._workers:
                    process.kill_group(pid)
        except ChildProcessError:
            return 0, 0
        return pid, os.waitstatus_to_exitcode(status) if pid else 0

    def _sweep(self, child: Child) -> None:
        """Kill a dead worker's descendants that left its process group: they are the zygote's children
        now."""
        for _ in range(_SWEEPS_MAX):
            strays = self._strays(child)
            if not strays:
                return
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_SWEEP_PAUSE_S)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _strays(self, child: Child | None) -> list[int]:
        """The zygote's children that are no workers: those that `child` left behind, or all."""
        me = os.getpid()
        found = []
        for pid in process.all_pids():
            if pid in self._workers:
                continue
            known = process.parent_and_session(pid)
            if known is None or known[0] != me:
                continue
            if child is None or known[1] == child.pid or process.tag_of(pid) == child.slot:
                found.append(pid)
        return found

    def _shut_down(self) -> NoReturn:
        """Kill and collect every descendant, then exit."""
        until = time.monotonic() + _SHUTDOWN_S
        for pid in self._workers:
            process.kill_group(pid)
        while time.monotonic() < until:
            self._reap()
            strays = self._strays(None)
            if not strays and not self._workers:
                break
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_SWEEP_PAUSE_S)
        os._exit(0)

    def _send(self, message: list[Any]) -> None:
        try:
            self._control.sendall(pack(message))
        except OSError:
            self._stopping = True  # the node is gone


def _ignore(signum: int, frame: object) -> None:
    """A handler that only wakes the loop up, through its descriptor."""


def _fork_quietly() -> int:
    """Fork. Python warns where it sees threads; those that are left here were proven to live with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _threads_left() -> str:
    """Why this process must not fork, or "" when it may.

    A thread that user code left running would be missing in each child, with the locks it held closed for
    ever. Native pools that end their threads before a fork and start them again on both sides (OpenBLAS does)
    are told by doing just that.
    """
    if not process.LINUX:
        return "this system's libraries are not safe after a fork"
    alive = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if alive:
        return f"the import left the thread {alive[0].name!r} running"
    if len(_native_threads()) > 1:
        pid = _fork_quietly()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        left = [name for number, name in _native_threads().items() if number != os.getpid()]
        if left:
            return f"the import left a native thread named {left[0]!r} running"
    return ""


def _native_threads() -> dict[int, str]:
    """The kernel's threads of this process, and their names."""
    found = {}
    for number in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{number}/comm") as file:
            found[int(number)] = file.read().strip()
    return found


def _load_failure(error: BaseException) -> Manifest:
    """The manifest of code that could not be loaded at all."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return Manifest(
        version="",
        errors=(
            LoadError(
                file=last.filename if last else "",
                line=(last.lineno or 0) if last else 0,
                message=f"{type(error).__name__}: {error}",
            ),
        ),
    )


def main() -> None:
    control_at, setup_at, parent = map(int, sys.argv[1:])
    process.die_with_parent(parent, signal.SIGTERM)
    process.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = Setup.read(setup_at)
    for descriptor in (control_at, setup_at, *setup.held):
        os.set_inheritable(descriptor, False)
    plain_streams()
    faulthandler.enable()
    zygote = Zygote(socket.socket(fileno=control_at), setup, setup_at=setup_at)
    zygote.load()
    zygote.run()


if __name__ == "__main__":
    main()
