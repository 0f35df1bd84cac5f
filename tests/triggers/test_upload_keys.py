"""Keys of every kind arrive in a function as they were uploaded, through real object stores and nodes."""

import itertools
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3_servers import MinioServer, S3Server, VersityServer, free_port, program_of
from upload_scene import BUCKET, SECRET, Scene, scene_of

pytestmark = pytest.mark.service

KEY_BYTES = 1024
SEGMENT_BYTES = 255
AWKWARD = [
    "a b", " a", "a ", "a+b", "a%b", "a%2Fb", "a%20b", "%", "%zz", "+", "'", '"', "a'b\"c", "é", "e\u0301",
    "\u65e5\u672c/\u8a9e", "\U0001f600", "a\\b", "a\tb", "a\nb", "a\rb", "\x01", "a\x7f", "a\u00a0",
    "\u202e", "\ufffe", "\U0010ffff", "?", "#", "a&b=c", "a;b:c@d", "*", "|", "<a>&amp;", "[a]{b}",
    "^`~", ".a", "a.part", "a~", "...", "-", "a/b/c", "folder/", "/".join(["x" * 204] * 5),
    "/".join(["é" * 127] * 4), "x" * SEGMENT_BYTES,
]  # fmt: skip


def fits(key: str) -> bool:
    """Whether both stores take the key: they keep objects as files, and files have names."""
    segments = key.split("/")
    return (
        len(key.encode()) <= KEY_BYTES
        and key.strip() != ""
        and all(0 < len(segment.encode()) <= SEGMENT_BYTES for segment in segments)
        and not {".", ".."} & set(segments)
    )


segments = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0") | st.sampled_from(" +%'\"&?#\\é"),
    min_size=1,
    max_size=80,
)
keys = st.lists(segments, min_size=1, max_size=6).map("/".join).filter(fits)


def apart(keys: list[str]) -> list[str]:
    """The keys without those that cannot lie beside another in a file system: `a` beside `a/b`."""
    found = {tuple(key.rstrip("/").split("/")): key for key in keys}
    folders = {path[:length] for path in found for length in range(1, len(path))}
    return [key for path, key in found.items() if path not in folders]


class Uploads:
    """Uploads keys to the bucket of a scene, always with contents of their own, and waits for the effects."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._client = scene.server.client()
        self._serial = itertools.count()

    def arrive(self, keys: list[str], *, within_s: float = 20.0) -> None:
        before = set(self.scene.noted())
        wanted = set()
        for key in apart(keys):
            body = f"contents {next(self._serial)}".encode()
            put = self._client.put_object(BUCKET, key, BytesIO(body), len(body))
            wanted.add((key, str(put.etag)))
        self.scene.wait_noted(wanted, within_s=within_s)
        noted = self.scene.noted()
        assert {noted[id] for id in noted.keys() - before} == wanted
        for key, _ in wanted:
            self._client.remove_object(BUCKET, key)


@pytest.fixture(scope="module")
def notified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    """Of a MinIO that tells the node of each upload; sweeps come too rarely to take part."""
    server, port = MinioServer(program_of("minio")), free_port()
    server.env = server.webhook_targets(f"http://127.0.0.1:{port}/v1/events/minio", SECRET)
    folder = tmp_path_factory.mktemp("notified")
    try:
        with scene_of(server, folder, sweep_s=3600, port=port) as scene:
            scene.connect()
            yield Uploads(scene)
    finally:
        server.remove()


@pytest.fixture(scope="module", params=[MinioServer, VersityServer])
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    """Of a store that tells nobody."""
    server: S3Server = request.param(program_of("minio" if request.param is MinioServer else "versitygw"))
    try:
        with scene_of(server, tmp_path_factory.mktemp("swept"), sweep_s=1) as scene:
            yield Uploads(scene)
    finally:
        server.remove()


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(keys=st.lists(keys, min_size=1, max_size=8))
@example(keys=AWKWARD)
def test_a_key_comes_out_of_a_notification_as_it_went_in(notified: Uploads, keys: list[str]) -> None:
    notified.arrive(keys)


@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
@given(keys=st.lists(keys, min_size=40, max_size=60))
@example(keys=AWKWARD)
def test_a_key_comes_out_of_a_sweep_as_it_went_in(swept: Uploads, keys: list[str]) -> None:
    if isinstance(swept.scene.server, VersityServer):
        # Its listings hold U+FFFD in place of what XML cannot hold, and it keeps no content in a folder.
        keys = [key for key in keys if is_xml(key) and not key.endswith("/")]
    swept.arrive(keys)


def is_xml(key: str) -> bool:
    """Whether XML 1.0 can hold all of a text's characters (section 2.2, Char)."""
    return all(c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") for c in key)
