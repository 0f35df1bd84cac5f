"""A real node for tests: `headrace serve` as a process of its own, which a test may kill and start again.

Only what is this node's is ever signalled: its own process by pid, and those that bear its data folder.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from headrace import Client

ROOT = Path(__file__).resolve().parent.parent
START_S = 30.0
END_S = 30.0
WAIT_S = 30.0
LOOK_EVERY_S = 0.01
PARTS = ("waiting", "running", "succeeded", "dead", "cancelled")

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], what: str, *, within_s: float = WAIT_S) -> T:
    """What `look` gives first that is true. Raises AssertionError when nothing was in `within_s` seconds."""
    end = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() >= end:
            raise AssertionError(f"not within {within_s:g} s: {what} (last look: {found!r})")
        time.sleep(LOOK_EVERY_S)


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Headrace, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(more or {})}


def run_command(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 30.0,
) -> "subprocess.CompletedProcess[str]":
    """Run `headrace ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "headrace", *map(str, arguments)],
        env=clean_environment(env), cwd=cwd, text=True, capture_output=True, timeout=timeout_s, check=False,
    )  # fmt: skip


class Serving:
    """One data folder and the node that serves it, over any number of starts.

    Args:
        code: files or folders of functions.
        folder: of this test; the node's data is `folder/data`, what it logs `folder/node.log`.
        workers: worker processes.
        flags: more arguments of the command.
        env: added to the node's environment.
        dev: run `headrace dev` instead.
        token: what the client shows, where tokens are configured; else the one in the data folder.
    """

    def __init__(
        self,
        *code: Path,
        folder: Path,
        workers: int = 2,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dev: bool = False,
        token: str | None = None,
    ) -> None:
        self.data = folder / "data"
        self.log = folder / "node.log"
        self._command = [
            sys.executable, "-m", "headrace", "dev" if dev else "serve", *map(str, code), "--port", "0",
            "--data", str(self.data), "--workers", str(workers), *flags,
        ]  # fmt: skip
        self._folder = folder
        self._token = token
        self._env = clean_environment(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    # ---- life ----

    def start(self) -> Self:
        """Start the node and return when it is ready."""
        self.launch()
        return self.wait_ready()

    def launch(self) -> None:
        """Start the node's process and wait for nothing."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env,
                cwd=self._folder, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> Self:
        """Return when the node that was launched is ready. Raises AssertionError when it ends instead."""
        process = self._process
        assert process is not None

        def ready() -> dict[str, Any] | None:
            if process.poll() is not None:
                raise AssertionError(f"the node ended with {process.returncode}:\n{self.words()[-4000:]}")
            try:
                found: dict[str, Any] = json.loads((self.data / "node.json").read_text())
            except (OSError, ValueError):
                return None
            return found if found["pid"] == process.pid else None

        try:
            facts = wait_until(ready, "node.json of the new node", within_s=START_S)
        except AssertionError:
            self.kill()
            raise
        self._client = Client(facts["url"], self._token or (self.data / "token").read_text().strip())
        backend = self._client.backend
        wait_until(lambda: backend.request("GET", "/readyz").status == 200, "the node to be ready")
        return self

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the node's own process."""
        if self._process is not None:
            self._process.send_signal(signum)

    def wait_ended(self, within_s: float = END_S) -> int:
        """The exit code, once the node has ended."""
        assert self._process is not None
        code = self._process.wait(within_s)
        self._close()
        return code

    def kill(self) -> None:
        """SIGKILL, and return when the process is gone. What it leaves behind is for the test to look at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def restart(self) -> Client:
        """Kill the node if it runs, start another on the same data, and return its client."""
        self.kill()
        return self.start().client

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_ended()

    def close(self) -> None:
        """End whatever is left, whoever started it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._close()
        for pid in self.leftover():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _close(self) -> None:
        self._process = None
        if self._client is not None:
            self._client.close()

    # ---- what is seen from outside ----

    def words(self) -> str:
        """What the node has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def zygote(self) -> psutil.Process:
        """The one child that the node has started to fork workers."""
        [found] = psutil.Process(self.pid).children()
        return found

    def workers(self) -> list[psutil.Process]:
        """The zygote's children; none while it is about to start."""
        try:
            return self.zygote().children()
        except (psutil.NoSuchProcess, ValueError):
            return []

    def leftover(self) -> list[int]:
        """The processes of this data folder but the node's own."""
        return [pid for pid in processes_of(self.data) if self._process is None or pid != self._process.pid]

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def check_books(self) -> dict[str, Any]:
        """The stats, after having checked that they balance for each function and in all, and that every row
        agrees with them.
        """
        stats = self.client.stats()
        for name, of in {"total": stats["total"], **stats["functions"]}.items():
            assert of["accepted"] == sum(of[part] for part in PARTS), (name, of)
        verdict = self.client.verify()
        assert verdict["balanced"], verdict["problems"]
        return stats


def processes_of(data: Path) -> list[int]:
    """The processes but this one that bear a data folder in their command, environment or open files."""
    own = str(os.getpid())
    found = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.name != own]
    return [int(entry.name) for entry in found if _bears(entry, str(data))]


def _bears(process: Path, mark: str) -> bool:
    text = mark.encode()
    try:
        if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False  # ended; only its parent has not looked yet
        for name in ("cmdline", "environ"):
            if text in (process / name).read_bytes():
                return True
        return any(str(_target(link)).startswith(mark) for link in (process / "fd").iterdir())
    except OSError:
        return False  # it has ended meanwhile


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@contextlib.contextmanager
def serving(*code: Path, folder: Path, **options: Any) -> Iterator[Serving]:
    """A node that is ready, and whose every process is gone afterwards."""
    node = Serving(*code, folder=folder, **options)
    try:
        yield node.start()
    except BaseException:
        sys.stderr.write(node.words()[-6000:])
        raise
    finally:
        node.close()
