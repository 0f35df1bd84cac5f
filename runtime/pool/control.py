"""Control: the node's end of its zygote, a child process that is started, told and listened to without ever
waiting.

Imports the floor and this room.
"""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.runtime import fault
from headrace.runtime.clock import Clock
from headrace.runtime.pool import capture, process
from headrace.runtime.pool.code import Setup
from headrace.runtime.pool.frame import FrameReader, FrameTooLarge, pack
from headrace.runtime.pool.page import open_memory

MARK_NAME = "HEADRACE_POOL"
_KEPT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    *fault.VARIABLES,
)
_KEPT_PREFIXES = ("PYTHON", "LC_")
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")


def worker_environment(given: Mapping[str, str], *, mark: str) -> dict[str, str]:
    """The environment of user code: what a program needs to run, one thread for each native pool, then
    what was `given`."""
    environment = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    environment.update((f"{name}_NUM_THREADS", "1") for name in _THREADS if name != "VECLIB_MAXIMUM")
    environment["VECLIB_MAXIMUM_THREADS"] = "1"
    environment.update(given)
    environment[MARK_NAME] = mark
    # Where this very package is, last, so that the zygote finds it however the node was started.
    package = importlib.util.find_spec("headrace")
    if package is not None and package.submodule_search_locations:
        root = str(Path(next(iter(package.submodule_search_locations))).parent)
        paths = [path for path in (environment.get("PYTHONPATH", ""), root) if path]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


class Control:
    """One zygote.

    Args:
        setup: what it loads; its `held` descriptors are passed on to it.
        folder: for files without names.
        on_message: called on the event loop with each message.
        on_gone: called once, when the zygote has closed its end.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        environment: Mapping[str, str],
        folder: Path,
        clock: Clock,
        on_message: Callable[[list[Any]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._on_message = on_message
        self._on_gone = on_gone
        self._reader = FrameReader()
        self._loop = asyncio.get_running_loop()
        data = msgspec.msgpack.encode(setup)
        setup_at = open_memory(folder, len(data))
        self._output = capture.open_capture(folder)
        self._socket, theirs = socket.socketpair()
        try:
            for start in range(0, len(data), 1 << 20):
                os.pwrite(setup_at, data[start : start + (1 << 20)], start)
            # Started from the event loop's thread, which lives as long as the node does: PDEATHSIG means a
            # thread.
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "headrace.runtime.pool.zygote",
                    str(theirs.fileno()), str(setup_at), str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, env=dict(environment),
                pass_fds=(theirs.fileno(), setup_at, *setup.held), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self._socket.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
            os.close(setup_at)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._listening = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def take_output(self) -> str:
        """What the zygote's process has printed since the last call: head and tail within a MiB."""
        if self._output < 0:
            return ""
        data, _ = capture.head_and_tail(self._output)
        capture.empty(self._output)
        return data.decode("utf-8", "replace")

    def fork(self, number: int, slot: int, descriptors: tuple[int, ...]) -> None:
        """Have a worker made over these descriptors, which stay the caller's to close."""
        self._tell(["fork", number, slot], descriptors)

    def signal(self, number: int, signum: signal.Signals) -> None:
        """Signal a worker; SIGKILL goes to its whole process group."""
        self._tell(["signal", number, int(signum)])

    def stop(self) -> None:
        """Have all workers killed and the zygote end."""
        self._tell(["stop"])

    def kill(self) -> None:
        """End the zygote itself, at once, and what shares its process group."""
        if self._process.poll() is None:
            process.kill_group(self._process.pid)

    async def wait_ended(self) -> int:
        """The exit code, once the process is gone. To be called when it has been told to end."""
        while (code := self._process.poll()) is None:
            await self._clock.sleep(0.002)
        return code

    def close(self) -> None:
        """Release this side; the process should have ended."""
        self._quit_listening()
        if self._output >= 0:
            os.close(self._output)
            self._output = -1

    def _tell(self, message: list[Any], descriptors: tuple[int, ...] = ()) -> None:
        if not self._listening:
            return
        try:
            socket.send_fds(self._socket, [pack(message)], descriptors)
        except BlockingIOError:
            self.kill()  # thousands of messages unread: it hangs, and its pool starts another
        except OSError:
            return  # it is gone, which `on_gone` tells

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        try:
            messages = self._reader.feed(data)
        except (FrameTooLarge, msgspec.DecodeError):
            self.kill()
            data, messages = b"", []
        for message in messages:
            self._on_message(message)
        if not data and self._listening:
            self._quit_listening()
            self._on_gone()

    def _quit_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
