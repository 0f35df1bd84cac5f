"""A PostgreSQL server of the tests' own: made in a temporary folder, durable as in production, ended by pid.

Set HEADRACE_REQUIRE_SERVICES=1 to fail where there is none instead of skipping.
"""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

USER = "headrace"
KEEPER = "keeper"
"""A role that must give its password, which is `PASSWORD`."""

PASSWORD = "s3cret-of-the-keeper"
_START_S = 60.0
_STOP_S = 30.0
_MISSING = (
    "needs PostgreSQL's server programs (initdb, postgres): install the package `postgresql`, or put the"
    " folder that `pg_config --bindir` names on PATH"
)


def server_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, None when there is none."""
    found: list[Path] = []
    config = shutil.which("pg_config")
    if config is not None:
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, timeout=10, check=False)
        found.append(Path(asked.stdout.strip()))
    initdb = shutil.which("initdb")
    if initdb is not None:
        found.append(Path(initdb).resolve().parent)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


class PostgresServer:
    """One server: `start`, `stop` and again; `database()` makes a fresh database and gives its address.

    `data` and `journal` are folders to be made for its tables and its write-ahead log, in place of its own.
    """

    def __init__(self, programs: Path, *, data: Path | None = None, journal: Path | None = None) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
        self._data = data or self._folder / "data"
        self._journal = journal or self._folder / "journal"
        self._small = self._data if data is not None else self._journal
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count(1)
        self.port = _free_port()
        # The server refuses to run as root.
        self._as: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
            self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self._run("initdb", "--pgdata", str(self._data), "--waldir", str(self._journal),
                  "--username", USER, "--auth=trust",
                  "--encoding=UTF8", "--no-locale", "--no-instructions")  # fmt: skip
        access = self._data / "pg_hba.conf"
        access.write_text(f"host all {KEEPER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")

    def url(self, database: str, *, user: str = USER, password: str = "unused") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The address of a fresh database."""
        name = f"test{next(self._names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        name = url.rsplit("/", 1)[1]
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def start(self) -> None:
        """Start the server, and return when it answers."""
        command = [
            *self._as, str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port),
            "-k", str(self._folder), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100",
            "-c", "shared_buffers=128MB", "-c", "logging_collector=off",
        ]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        probe = [
            str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-t", "5", "-q",
        ]  # fmt: skip
        for _ in range(int(_START_S / 0.05)):
            if self._process.poll() is not None:
                raise AssertionError(f"postgres ended with {self._process.returncode}: {self.log()}")
            if subprocess.run(probe, check=False, timeout=10).returncode == 0:
                return
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"postgres did not answer within {_START_S} s: {self.log()}")

    def stop(self, *, crash: bool = False) -> None:
        """End the server; with `crash` as a power failure would, without a checkpoint."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_S)

    def restart(self, *, crash: bool = False) -> None:
        """`stop` and `start`, on the same port."""
        self.stop(crash=crash)
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def small_bytes(self) -> int:
        """Bytes in the folder that was chosen by the caller."""
        return sum(file.stat().st_blocks * 512 for file in self._small.rglob("*") if file.is_file())

    def log(self, *, lines: int = 20) -> str:
        """The last lines of the server's log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._programs / program), *arguments],
            capture_output=True, text=True, timeout=120, check=False, cwd=self._folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, one for each test process."""
    programs = server_programs()
    if programs is None:
        if os.environ.get("HEADRACE_REQUIRE_SERVICES") == "1":
            pytest.fail(_MISSING)
        pytest.skip(_MISSING)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a fresh database."""
    url = postgres_server.database()
    yield url
    postgres_server.drop(url)
