"""Real S3 servers of the tests' own, MinIO and Versity S3 Gateway: made in temporary folders, ended by pid.

Set HEADRACE_REQUIRE_SERVICES=1 to fail where there is none instead of skipping.
"""

import http.client
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

REGION = "us-east-1"
_START_S = 60.0
_STOP_S = 20.0
_LOOK_EVERY_S = 0.02


class S3Server:
    """One server: `start`, `stop` or `kill`, and again on the same port and folder.

    Args:
        program: the server's executable.
        env: added to its environment at every start; `self.env` may be changed between two starts.
    """

    access_key = "headrace-tests"
    secret_key = "secret-of-the-tests"

    def __init__(self, program: Path, env: Mapping[str, str] | None = None) -> None:
        self.program = program
        self.env = dict(env or {})
        self.folder = Path(tempfile.mkdtemp(prefix=f"headrace-{type(self).__name__.lower()}-"))
        self.data = self.folder / "data"
        self.data.mkdir()
        self.port = free_port()
        self._names = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None

    # ---- what differs between servers ----

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def settings(self) -> Mapping[str, str]:
        """The environment that every start needs."""
        raise NotImplementedError

    health: str
    """The path that answers 200 once objects can be written and read."""

    # ---- how it is reached ----

    @property
    def endpoint(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def objects(self) -> str:
        """What a node is given as `--objects`."""
        return f"s3://{self.endpoint}?tls=false&region={REGION}"

    @property
    def credentials(self) -> dict[str, str]:
        """The environment variables with which a node gets in."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self, *, retries: bool = True) -> Minio:
        """A client with connections of its own, for one thread; without `retries` a call is tried once."""
        once = None if retries else urllib3.PoolManager(timeout=10.0, retries=False)
        return Minio(
            self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=REGION,
            http_client=once,
        )

    def bucket(self, *, versioned: bool = False) -> str:
        """Make a fresh bucket and give its name."""
        name, client = f"bucket-{os.getpid()}-{next(self._names)}", self.client()
        client.make_bucket(name)
        if versioned:
            client.set_bucket_versioning(name, VersioningConfig(ENABLED))
        return name

    # ---- life ----

    def start(self) -> Self:
        """Start the server, and return when it answers."""
        assert self._process is None
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MINIO_", "VGW_"))}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.program), *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, env={**kept, "HOME": str(self.folder), **self.settings(), **self.env},
            )  # fmt: skip
        for _ in range(int(_START_S / _LOOK_EVERY_S)):
            if self._answers():
                return self
            try:
                code = self._process.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            raise AssertionError(f"{self.program.name} ended with {code}: {self.log()}")
        self.kill()
        raise AssertionError(f"{self.program.name} did not answer within {_START_S} s: {self.log()}")

    def stop(self) -> None:
        """End the server as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as the kernel would: without a word."""
        self._end(signal.SIGKILL)

    def restart(self, *, crash: bool = False) -> Self:
        """`stop`, or `kill` with `crash`, and `start`."""
        self._end(signal.SIGKILL if crash else signal.SIGTERM)
        return self.start()

    def remove(self) -> None:
        """End the server and delete what it kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self, *, lines: int = 20) -> str:
        """The last lines of what the server said."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def _end(self, signum: signal.Signals) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signum)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_S)

    def _answers(self) -> bool:
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            asked.request("GET", self.health)
            return asked.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()


class MinioServer(S3Server):
    """MinIO on one folder. Webhook targets are fixed at its start: `webhook_targets` is the `env`."""

    health = "/minio/health/cluster"

    def command(self) -> Sequence[str]:
        return ["server", str(self.data), "--address", self.endpoint, "--quiet"]

    def settings(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_REGION": REGION,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }

    @property
    def queue(self) -> Path:
        """Where the target HEADRACEQ keeps the events that it has still to deliver."""
        return self.folder / "queue"

    def queued(self) -> int:
        """How many files with undelivered events there are."""
        return sum(path.is_file() for path in self.queue.rglob("*"))

    def webhook_targets(self, url: str, token: str, *, queued_url: str | None = None) -> dict[str, str]:
        """The environment of the two targets that a bucket is connected to: HEADRACE delivers at once,
        HEADRACEQ keeps in a folder what it could not deliver. `queued_url` is for that one, where it differs.
        """
        return {
            "MINIO_NOTIFY_WEBHOOK_ENABLE_HEADRACE": "on",
            "MINIO_NOTIFY_WEBHOOK_ENDPOINT_HEADRACE": f"{url}?target=HEADRACE",
            "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_HEADRACE": token,
            "MINIO_NOTIFY_WEBHOOK_ENABLE_HEADRACEQ": "on",
            "MINIO_NOTIFY_WEBHOOK_ENDPOINT_HEADRACEQ": f"{queued_url or url}?target=HEADRACEQ",
            "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_HEADRACEQ": token,
            "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ": str(self.queue),
            "MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_HEADRACEQ": "100000",
        }


class VersityServer(S3Server):
    """Versity S3 Gateway on one folder: an S3 that sends no notifications."""

    health = "/health"

    def command(self) -> Sequence[str]:
        versions, beside = self.folder / "versions", self.folder / "beside"
        versions.mkdir(exist_ok=True)
        # What is known of an object changes together with it where it is in extended attributes. In a folder
        # beside it does not, and a listing may show one upload's ETag with another's time.
        sidecar: list[str] = []
        if not _keeps_attributes(self.data):
            beside.mkdir(exist_ok=True)
            sidecar = ["--sidecar", str(beside)]
        return [
            "--port", self.endpoint, "--region", REGION, "--health", self.health, "--quiet",
            "posix", "--versioning-dir", str(versions), *sidecar, str(self.data),
        ]  # fmt: skip

    def settings(self) -> Mapping[str, str]:
        return {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}


def _keeps_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.headrace-tests", b"1")
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def program_of(server: str) -> Path:
    """The executable of `minio` or `versitygw`; skips the test, or fails it, where there is none."""
    variable = f"HEADRACE_{server.upper()}"
    named = os.environ.get(variable)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for found in (named, shutil.which(server), cache / "headrace" / "bin" / server):
        if found is not None and os.access(found, os.X_OK):
            return Path(found)
    missing = f"needs the server {server}: run `make {server}`, or name its program in {variable}"
    if os.environ.get("HEADRACE_REQUIRE_SERVICES") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


def _running(server: Any) -> Iterator[Any]:
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="session")
def minio_server() -> Iterator[MinioServer]:
    """A running MinIO without webhook targets, one for each test process; not to be stopped by a test."""
    yield from _running(MinioServer(program_of("minio")))


@pytest.fixture(scope="session")
def versity_server() -> Iterator[VersityServer]:
    """A running Versity S3 Gateway, one for each test process; not to be stopped by a test."""
    yield from _running(VersityServer(program_of("versitygw")))


@pytest.fixture
def own_minio() -> Iterator[MinioServer]:
    """A MinIO of the test's own, not yet started: its to configure, to kill and to start again."""
    server = MinioServer(program_of("minio"))
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_versity() -> Iterator[VersityServer]:
    """A Versity S3 Gateway of the test's own, not yet started."""
    server = VersityServer(program_of("versitygw"))
    try:
        yield server
    finally:
        server.remove()
