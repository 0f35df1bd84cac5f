"""An object store with one bucket, nodes on it, and what the nodes' function notes of the uploads."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from s3_servers import MinioServer, S3Server
from webhook_proxy import Weather, WebhookProxy

from tests.serving import Serving, wait_until

CODE = Path(__file__).with_name("upload_functions.py")
BUCKET = "inbox"
FUNCTION = "chaos.effect"
SENTINEL = "~~~/"
"""The keys of objects that show that a sweep has passed; the last ones of a listing."""

SECRET = "the-secret-of-the-tests"
"""The bearer token of people and of the store."""


class Scene:
    """An object store with a bucket, nodes on it, and what the nodes' function has noted.

    Args:
        folder: of the test.
        proxy: what the store sends its events to, None where it sends them to the node, or none.
        port: where a single node listens, 0 for any.
        count: how many nodes; several share `database`, the address of a PostgreSQL database.
    """

    def __init__(
        self,
        server: S3Server,
        folder: Path,
        *,
        proxy: WebhookProxy | None = None,
        sweep_s: float = 1,
        port: int = 0,
        count: int = 1,
        database: str | None = None,
    ) -> None:
        self.server = server
        self._proxy = proxy
        self._effects = folder / "effects"
        self._read = 0
        self._noted: dict[str, tuple[str, str]] = {}
        self._sentinels = 0
        shutil.copy(CODE, folder / "functions.py")
        flags = ["--objects", server.objects, "--port", str(port)]
        flags += [] if database is None else ["--store", database]
        env = {
            **server.credentials,
            "HEADRACE_SWEEP_S": str(sweep_s),
            "HEADRACE_TOKENS": f"tests:admin:{SECRET}",
            "HEADRACE_NODE_LEASE_S": "2",
        }
        self.nodes = []
        for number in range(count):
            place = folder / f"node{number}"
            place.mkdir()
            self.nodes.append(
                Serving(folder / "functions.py", folder=place, token=SECRET, flags=flags, env=env)
            )

    @property
    def node(self) -> Serving:
        """The first node that runs."""
        return next(node for node in self.nodes if node.alive)

    def start_nodes(self) -> None:
        """Start the nodes that do not run."""
        for node in self.nodes:
            if not node.alive:
                node.start()
        if self._proxy is not None:
            facts = [json.loads((node.data / "node.json").read_text()) for node in self.nodes]
            self._proxy.nodes = [str(fact["url"]) for fact in facts]

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def connect(self) -> None:
        """Have the store tell the nodes of each upload by both ways."""
        connected = self.node.client.connect_bucket(BUCKET)
        assert connected["connected"], connected

    def noted(self) -> dict[str, tuple[str, str]]:
        """Key and ETag by invocation: an attempt that was repeated counts once."""
        with contextlib.suppress(FileNotFoundError), self._effects.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is just being written
                self._read += len(line)
                id, key, etag = json.loads(line)
                self._noted[id] = (key, etag)
        return self._noted

    def listed(self) -> dict[str, str]:
        """What the bucket holds, by the store's own account: ETag by key."""
        found = self.server.client().list_objects(BUCKET, recursive=True)
        return {str(entry.object_name): str(entry.etag).strip('"') for entry in found}

    def wait_noted(self, wanted: set[tuple[str, str]], *, within_s: float) -> None:
        def missing() -> set[tuple[str, str]]:
            return wanted - set(self.noted().values())

        try:
            wait_until(lambda: not missing(), "an effect of each upload", within_s=within_s)
        except AssertionError:
            raise AssertionError(
                f"{len(missing())} of {len(wanted)} without effect: {sorted(missing())[:5]}"
            ) from None

    def wait_deliveries(self, *, within_s: float) -> None:
        """Return when no delivery is under way that could still reach the node."""
        server, proxy = self.server, self._proxy
        if proxy is not None:
            assert isinstance(server, MinioServer)
            wait_until(
                lambda: server.queued() == 0 and proxy.held == 0, "the last delivery", within_s=within_s
            )

    def let_sweeps_pass(self, count: int) -> None:
        """Return when so many sweeps have begun and ended, by objects that no delivery tells of."""
        if self._proxy is not None:
            self._proxy.weather.update(dict.fromkeys(self._proxy.weather, Weather(dropped=1.0)))
        for _ in range(count):
            self._sentinels += 1
            key = f"{SENTINEL}{self._sentinels}"
            put = self.server.client().put_object(BUCKET, key, BytesIO(key.encode()), len(key))
            self.wait_noted({(key, str(put.etag))}, within_s=60)

    def wait_quiet(self, *, within_s: float) -> dict[str, Any]:
        """The function's stats once nothing waits or runs."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.node.client.stats()["functions"][FUNCTION]
            return None if found["waiting"] or found["running"] else found

        found: dict[str, Any] = wait_until(look, "nothing to wait or run", within_s=within_s)
        return found


@contextlib.contextmanager
def scene_of(server: S3Server, folder: Path, **options: Any) -> Iterator[Scene]:
    """A scene whose store has an empty bucket and whose nodes are ready."""
    server.start().client().make_bucket(BUCKET)
    scene = Scene(server, folder, **options)
    try:
        scene.start_nodes()
        yield scene
    except BaseException:
        print(*(node.words()[-6000:] for node in scene.nodes), server.log(), sep="\n")
        raise
    finally:
        scene.close()
