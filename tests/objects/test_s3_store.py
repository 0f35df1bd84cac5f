"""What an S3Store does beyond the contract: broken networks, dying servers, forks, links and versions."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

import minio.credentials
import minio.signer
import pytest
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st
from minio import Minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import InvalidKey, InvalidSettings, NoSuchObject, PreconditionFailed
from headrace.runtime.objects.protocol import ObjectServer
from headrace.runtime.objects.s3 import S3Store
from headrace.runtime.objects.s3_endpoint import S3Endpoint, credentials_from, parse_endpoint
from headrace.runtime.objects.s3_errors import (
    ConditionalWritesUnsupported,
    ObjectServerRefuses,
    ObjectServerUnavailable,
)
from headrace.runtime.objects.s3_listing import objects_in_order
from headrace.runtime.objects.s3_signature import (
    UNSIGNED,
    Credentials,
    encode_path,
    encode_query,
    presign,
    sign,
)
from headrace.runtime.objects.s3_upload import PART_BYTES
from tests.objects.s3_proxy import S3Proxy
from tests.s3_servers import MinioServer, S3Server

pytestmark = pytest.mark.service

BODY = os.urandom(1_500_000)


class SetClock(SystemClock):
    """A clock that is wrong by some seconds."""

    def __init__(self, wrong_by_s: float) -> None:
        self.wrong_by_s = wrong_by_s

    def now(self) -> float:
        return super().now() + self.wrong_by_s


def store_at(server: S3Server, endpoint: str | None = None, **options: Any) -> S3Store:
    address = S3Endpoint(endpoint or server.endpoint, False, "us-east-1")
    given = {"clock": SystemClock(), **options}
    return S3Store(address, Credentials(server.access_key, server.secret_key), **given)


@pytest.fixture(params=["minio", "versity"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def proxy(minio_server: MinioServer) -> Iterator[S3Proxy]:
    with S3Proxy(minio_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def behind(minio_server: MinioServer, proxy: S3Proxy) -> S3Store:
    """A store whose way leads through the proxy."""
    return store_at(minio_server, proxy.endpoint)


# ---- networks ----


def test_a_read_goes_on_where_its_connection_broke(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy
) -> None:
    bucket = minio_server.bucket()
    behind.put(bucket, "k", BODY)
    proxy.plan += ["cut 100000", "cut 0", "busy", "cut 700001", "pass"]
    with behind.open(bucket, "k", start=5, end=1_400_000) as stream:
        first = stream.read(10)
        assert first + stream.read() == BODY[5:1_400_000]
    assert not proxy.plan
    proxy.plan += ["cut 1400000", "pass"]
    assert behind.get(bucket, "k") == BODY


def test_a_read_that_cannot_go_on_in_the_same_state_says_so(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy
) -> None:
    bucket = minio_server.bucket()
    before = behind.put(bucket, "k", BODY)
    proxy.plan += ["cut 100000"]
    with behind.open(bucket, "k") as stream:
        assert stream.read(50_000) == BODY[:50_000]
        store_at(minio_server).put(bucket, "k", b"another")
        with pytest.raises(PreconditionFailed) as caught:
            stream.read()
    assert caught.value.args[:3] == (bucket, "k", before.etag)


def test_answers_that_break_again_and_again_without_a_byte_end_the_read(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy
) -> None:
    bucket = minio_server.bucket()
    behind.put(bucket, "k", BODY)
    proxy.plan += ["cut 0"] * 7
    with pytest.raises(ObjectServerUnavailable):
        behind.get(bucket, "k")


def test_a_server_that_falls_silent_is_left_and_asked_again(
    minio_server: MinioServer, proxy: S3Proxy
) -> None:
    bucket = minio_server.bucket()
    store = store_at(minio_server, proxy.endpoint, silence_s=0.3)
    store.put(bucket, "k", BODY)
    proxy.plan += ["stall 200000", "pass"]
    assert store.get(bucket, "k") == BODY


def test_a_busy_server_is_asked_again_and_given_up_in_time(minio_server: MinioServer, proxy: S3Proxy) -> None:
    bucket = minio_server.bucket()
    store = store_at(minio_server, proxy.endpoint, retries=2)
    proxy.plan += ["busy", "busy"]
    assert store.put(bucket, "k", b"1").size == 1
    proxy.plan += ["busy"] * 3
    with pytest.raises(ObjectServerUnavailable):
        store.get(bucket, "k")
    assert not proxy.plan
    assert store.get(bucket, "k") == b"1"


def test_an_impatient_store_waits_for_one_request_only(minio_server: MinioServer, proxy: S3Proxy) -> None:
    bucket = minio_server.bucket()
    store = store_at(minio_server, proxy.endpoint, retries=3, patient=False)
    proxy.plan += ["busy"] * 4
    with pytest.raises(ObjectServerUnavailable):
        store.buckets()
    proxy.plan += ["busy"] * 2
    with pytest.raises(ObjectServerUnavailable):
        store.buckets()
    assert not proxy.plan
    store.put(bucket, "k", b"1")
    proxy.plan += ["busy"] * 3
    assert store.get(bucket, "k") == b"1"  # patient again


def test_a_server_that_is_not_there_is_unavailable() -> None:
    store = S3Store(
        S3Endpoint("127.0.0.1:9", False, "us-east-1"), Credentials("a", "b"), clock=SystemClock(), retries=1
    )
    with pytest.raises(ObjectServerUnavailable, match=r"127\.0\.0\.1:9"):
        store.buckets()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_conditional_put_whose_answer_is_lost_is_known_to_have_won(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy, lost: int
) -> None:
    bucket = minio_server.bucket()
    behind.put(bucket, "first", b"", if_none_match=True)  # asks whether the server heeds conditions
    proxy.plan += ["lose"] * lost
    won = behind.put(bucket, "k", b"mine", if_none_match=True)
    assert (won.size, behind.get(bucket, "k")) == (4, b"mine")
    assert not behind.head(bucket, "k").metadata  # what it was known by is not shown
    proxy.plan += ["lose"] * lost
    assert behind.put(bucket, "k", b"mine again", if_match=won.etag).size == 10
    assert behind.get(bucket, "k") == b"mine again"


def test_the_same_bytes_of_another_writer_are_not_taken_for_ones_own(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy
) -> None:
    bucket = minio_server.bucket()
    store_at(minio_server).put(bucket, "k", b"same", if_none_match=True)
    behind.put(bucket, "first", b"", if_none_match=True)
    proxy.plan += ["lose"]
    with pytest.raises(PreconditionFailed):
        behind.put(bucket, "k", b"same", if_none_match=True)


def test_a_multipart_upload_outlives_lost_answers(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy
) -> None:
    bucket, body = minio_server.bucket(), os.urandom(2 * PART_BYTES + 1)
    # begin, and its answer lost; two parts, one twice; the last part; the end, whose answer is lost
    proxy.plan += ["lose", "pass", "lose", "pass", "pass", "busy", "pass", "lose"]
    info = behind.put(bucket, "k", io.BytesIO(body))
    assert not proxy.plan
    assert info == behind.head(bucket, "k")
    assert behind.get(bucket, "k") == body


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_on_the_way_the_bucket_holds_what_the_calls_said(
    minio_server: MinioServer, behind: S3Store, proxy: S3Proxy, seed: int
) -> None:
    """One caller, two keys, a dict beside; of every call up to two tries are broken."""
    chance, bucket = Random(seed), minio_server.bucket()
    behind.put(bucket, "first", b"", if_none_match=True)
    behind.delete(bucket, "first")
    truth: dict[str, tuple[bytes, str]] = {}

    def put(key: str, condition: dict[str, Any]) -> None:
        body = chance.randbytes(chance.choice((0, 10, 200_000)))
        known = truth[key][1] if key in truth else None
        holds = condition.get("if_match", known) == known and not (
            condition.get("if_none_match") and known is not None
        )
        if holds:
            truth[key] = (body, behind.put(bucket, key, body, **condition).etag)
            return
        with pytest.raises(PreconditionFailed) as refused:
            behind.put(bucket, key, body, **condition)
        assert refused.value.args[3] == known

    for step in range(40):
        key = chance.choice(("a", "b"))
        proxy.plan.clear()
        proxy.plan += chance.choices(["busy", "lose", "cut 1000", "pass"], k=chance.randrange(3))
        match chance.randrange(6):
            case 0 | 1:
                put(key, {})
            case 2:
                put(key, {"if_none_match": True})
            case 3:
                put(key, {"if_match": truth[key][1] if key in truth and chance.random() < 0.7 else "other"})
            case 4:
                behind.delete(bucket, key)
                truth.pop(key, None)
            case _ if key in truth:
                assert behind.get(bucket, key) == truth[key][0], (seed, step)
            case _:
                with pytest.raises(NoSuchObject):
                    behind.get(bucket, key)
    proxy.plan.clear()
    assert {info.key: info.etag for info in behind.list(bucket)} == {
        key: etag for key, (_, etag) in truth.items()
    }


# ---- servers that die ----


def test_reads_and_writes_go_on_over_a_killed_server(own_minio: MinioServer) -> None:
    own_minio.start()
    store, bucket, body = store_at(own_minio), own_minio.bucket(), os.urandom(6 * PART_BYTES)
    store.put(bucket, "k", body)

    with store.open(bucket, "k") as stream, store.writer(bucket, "copy") as writer:
        seen = [stream.read(3 * PART_BYTES)]
        writer.write(seen[0])
        own_minio.kill()
        again = threading.Thread(target=own_minio.start)
        again.start()
        try:
            while piece := stream.read(PART_BYTES):
                seen.append(piece)
                writer.write(piece)
        finally:
            again.join(60)

    assert b"".join(seen) == body
    assert store.get(bucket, "copy") == body


def test_an_upload_that_a_dead_server_ended_leaves_nothing(own_minio: MinioServer) -> None:
    own_minio.start()
    store, bucket = store_at(own_minio, retries=1), own_minio.bucket()
    store.put(bucket, "k", b"old")

    def write_into_the_void() -> None:
        with store.writer(bucket, "k") as writer:
            writer.write(b"x" * (2 * PART_BYTES + 1))
            own_minio.kill()
            writer.write(b"x" * (2 * PART_BYTES))

    with pytest.raises(ObjectServerUnavailable):
        write_into_the_void()
    own_minio.start()
    assert store.get(bucket, "k") == b"old"
    assert [info.key for info in store.list(bucket)] == ["k"]


# ---- processes ----

_FORKING = """
import os, pickle, sys
from headrace.runtime.objects.url import open_store
store = open_store(sys.argv[1])
bucket = sys.argv[2]
store.put(bucket, "k", b"x" * 300_000)
stream = store.open(bucket, "k")
stream.read(1000)
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        good = all(store.get(bucket, "k") == b"x" * 300_000 for _ in range(20))
        store.put(bucket, f"child-{number}", b"%d" % number)
        os._exit(0 if good else 1)
    children.append(pid)
good = all(store.get(bucket, "k") == b"x" * 300_000 for _ in range(20)) and len(stream.read()) == 299_000
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert good and codes == [0] * 4, (good, codes)
assert [info.key for info in store.list(bucket)] == ["child-0", "child-1", "child-2", "child-3", "k"]
assert b"secret" not in repr(store.__dict__).encode()
"""


def test_a_store_with_open_connections_may_be_forked(minio_server: MinioServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FORKING, minio_server.objects, minio_server.bucket()],
        env={**os.environ, **minio_server.credentials},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_many_threads_share_a_store(server: S3Server) -> None:
    store, bucket = store_at(server), server.bucket()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(5):
                body = bytes([number]) * (1000 + round_)
                store.put(bucket, f"{number}", body)
                assert store.get(bucket, f"{number}") == body
        except BaseException as error:  # shown by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


# ---- links ----


def test_a_link_reads_and_a_link_writes_without_credentials(server: S3Server) -> None:
    store, bucket, key = store_at(server), server.bucket(), "a b+c/ü%20'\"&=?.csv"
    with urllib3.PoolManager() as anybody:
        put = anybody.request("PUT", store.link(bucket, key, method="PUT", expires_s=60), body=b"sent")
        assert put.status == 200
        assert store.get(bucket, key) == b"sent"
        got = anybody.request("GET", store.link(bucket, key))
        assert (got.status, got.data) == (200, b"sent")
        part = anybody.request("GET", store.link(bucket, key), headers={"Range": "bytes=1-2"})
        assert (part.status, part.data) == (206, b"en")
        # It opens nothing else.
        assert anybody.request("PUT", store.link(bucket, key), body=b"x").status == 403
        other = store.link(bucket, key).replace("%20", "_", 1)
        assert anybody.request("GET", other).status in (403, 404)


def test_a_link_ends_when_it_was_said_to(server: S3Server) -> None:
    bucket = server.bucket()
    store_at(server).put(bucket, "k", b"1")
    long_ago = store_at(server, clock=SetClock(-3700)).link(bucket, "k", expires_s=3600)
    not_yet = store_at(server, clock=SetClock(-3500)).link(bucket, "k", expires_s=3600)
    with urllib3.PoolManager() as anybody:
        assert anybody.request("GET", long_ago).status == 403
        assert anybody.request("GET", not_yet).status == 200


@pytest.mark.parametrize("expires_s", [0, -1, 7 * 86_400 + 1])
def test_a_link_is_good_for_a_second_to_a_week(minio_server: MinioServer, expires_s: int) -> None:
    with pytest.raises(ValueError, match="604800"):
        store_at(minio_server).link("bucket", "k", expires_s=expires_s)


def test_links_begin_with_the_servers_public_address() -> None:
    address = parse_endpoint("s3://minio:9000?tls=false&public=https://files.example.org", environ={})
    store = S3Store(address, Credentials("who", "what"), clock=SystemClock())
    link = urlsplit(store.link("bucket", "k", expires_s=9))
    assert (link.scheme, link.netloc, link.path) == ("https", "files.example.org", "/bucket/k")
    assert parse_qs(link.query)["X-Amz-Expires"] == ["9"]


# ---- versions ----


def test_older_versions_are_described_and_read(server: S3Server) -> None:
    store, bucket = store_at(server), server.bucket(versioned=True)
    states = [store.put(bucket, "k", b"state %d" % number) for number in range(3)]
    store.put(bucket, "k-other", b"")
    store.delete(bucket, "k")
    assert len({state.version_id for state in states} - {None}) == 3
    with pytest.raises(NoSuchObject):
        store.head(bucket, "k")

    for number, state in enumerate(states):
        assert store.head(bucket, "k", version_id=state.version_id) == state
        assert store.get(bucket, "k", version_id=state.version_id) == b"state %d" % number
        with store.open(bucket, "k", start=6, if_match=state.etag, version_id=state.version_id) as stream:
            assert stream.read() == b"%d" % number
    assert [found.version_id for found in store.versions(bucket, "k")] == [
        state.version_id for state in reversed(states)
    ]
    with urllib3.PoolManager() as anybody:
        link = store.link(bucket, "k", version_id=states[1].version_id)
        assert anybody.request("GET", link).data == b"state 1"


def test_a_version_that_never_was_is_no_object(server: S3Server) -> None:
    store, bucket = store_at(server), server.bucket(versioned=True)
    state = store.put(bucket, "k", b"1")
    store.put(bucket, "other", b"1")
    with pytest.raises(NoSuchObject):
        store.head(bucket, "other", version_id=state.version_id)
    assert store.versions(bucket, "never") == []


# ---- what a server does not let us do ----


def test_wrong_credentials_are_refused_with_what_to_look_at(server: S3Server) -> None:
    for credentials in (Credentials(server.access_key, "wrong"), Credentials("nobody", "wrong")):
        store = S3Store(parse_endpoint(server.objects), credentials, clock=SystemClock())
        for call in (store.buckets, lambda store=store: store.head("bucket", "k")):
            with pytest.raises(ObjectServerRefuses) as caught:
                call()
            assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint


def test_a_wrong_region_is_named(minio_server: MinioServer) -> None:
    address = S3Endpoint(minio_server.endpoint, False, "eu-central-1")
    store = S3Store(
        address, Credentials(minio_server.access_key, minio_server.secret_key), clock=SystemClock()
    )
    with pytest.raises(ObjectServerRefuses, match="us-east-1"):
        store.list(minio_server.bucket())


@pytest.mark.parametrize("wrong_by_s", [-7200.0, 7200.0])
def test_a_clock_that_is_wrong_by_hours_is_no_hindrance(server: S3Server, wrong_by_s: float) -> None:
    store, bucket = store_at(server, clock=SetClock(wrong_by_s)), server.bucket()
    store.put(bucket, "k", b"1")
    assert store.get(bucket, "k") == b"1"
    with urllib3.PoolManager() as anybody:
        assert anybody.request("GET", store.link(bucket, "k")).data == b"1"


class _Careless(BaseHTTPRequestHandler):
    """An S3 server that takes every write, whatever its conditions are."""

    protocol_version = "HTTP/1.1"
    written: dict[str, bytes]

    def _say(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def do_PUT(self) -> None:
        self.written[self.path] = self.rfile.read(int(self.headers.get("content-length", "0")))
        self._say(200)

    def do_HEAD(self) -> None:
        self._say(200 if self.path == "/data" or self.path in self.written else 404)

    def do_DELETE(self) -> None:
        self.written.pop(self.path, None)
        self._say(204)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_a_server_that_ignores_conditions_is_found_out_before_anything_is_overwritten() -> None:
    written: dict[str, bytes] = {"/data/k": b"precious"}
    handler = type("Careless", (_Careless,), {"written": written})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as careless:
        thread = threading.Thread(target=careless.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            store = S3Store(
                S3Endpoint(f"127.0.0.1:{careless.server_address[1]}", False, "us-east-1"),
                Credentials("a", "b"),
                clock=SystemClock(),
            )
            for condition in ({"if_none_match": True}, {"if_match": "other"}):
                with pytest.raises(ConditionalWritesUnsupported):
                    store.put("data", "k", b"new", **condition)
            assert written == {"/data/k": b"precious"}
            store.put("data", "k", b"new")
            assert written == {"/data/k": b"new"}
            store.connection.close()
        finally:
            careless.shutdown()
            thread.join(10)


@pytest.mark.parametrize("key", ["a//b", "/a", "a/./b", "..", "a/..", "nul\0"])
def test_keys_that_servers_take_for_others_are_not_written(server: S3Server, key: str) -> None:
    store, bucket = store_at(server), server.bucket()
    with pytest.raises(InvalidKey):
        store.put(bucket, key, b"")
    with pytest.raises(InvalidKey):
        store.delete(bucket, key)


# ---- large objects and listings ----


def test_a_large_object_goes_up_in_parts_and_comes_down_whole(server: S3Server) -> None:
    store, bucket, body = store_at(server), server.bucket(), os.urandom(3 * PART_BYTES + 12_345)
    with store.writer(bucket, "k", content_type="text/x-large") as writer:
        for start in range(0, len(body), 1_000_003):
            writer.write(body[start : start + 1_000_003])
    assert (writer.info.size, writer.info.content_type) == (len(body), "text/x-large")
    assert writer.info == store.head(bucket, "k")
    assert store.get(bucket, "k") == body
    with store.open(bucket, "k", start=PART_BYTES - 5, end=PART_BYTES + 5) as stream:
        assert stream.read() == body[PART_BYTES - 5 : PART_BYTES + 5]
    for condition in ({"if_none_match": True}, {"if_match": "other"}):
        with pytest.raises(PreconditionFailed):
            store.put(bucket, "k", iter([body]), **condition)
    assert store.get(bucket, "k") == body


def test_pages_follow_each_other(server: S3Server) -> None:
    store, bucket = store_at(server), server.bucket()
    names = sorted(f"{number % 7}/{number:05d} +%" for number in range(260))

    def write(part: list[str]) -> None:
        for name in part:
            store.put(bucket, name, b"")

    threads = [threading.Thread(target=write, args=(names[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [info.key for info in store.iterate(bucket)] == names
    assert [info.key for info in store.iterate(bucket, after=names[150])] == names[151:]
    paged = objects_in_order(store.connection, bucket, prefix="", after="", page=50)
    assert [info.key for info in paged] == names


# ---- signatures, beside those of another library ----

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)


@given(
    key=_TEXT,
    query=st.dictionaries(st.sampled_from(["prefix", "versionId", "a-b", "Zz", "é"]), _TEXT, max_size=4),
    secret=st.text("abcXYZ/+=", min_size=1, max_size=40),
    at=st.integers(0, 4_000_000_000),
    token=st.none() | st.just("lent+/="),
)
@example(key="a b+c/~%/é", query={"prefix": " +/~", "uploads": ""}, secret="s", at=0, token=None)
def test_signatures_are_those_that_minios_client_makes(
    key: str, query: dict[str, str], secret: str, at: int, token: str | None
) -> None:
    ours = Credentials("who", secret, token)
    theirs = minio.credentials.Credentials("who", secret, token)
    date = datetime.fromtimestamp(at, UTC)
    path, text = encode_path(f"/bucket/{key}"), encode_query(query)
    url = SplitResult("http", "host:9000", path, text, "")
    headers = {"host": "host:9000", "x-amz-meta-own": "two  words"}

    signed = sign(
        ours, method="PUT", path=path, query=text, headers=headers, payload_hash=UNSIGNED, region="r", at=at
    )
    expected = minio.signer.sign_v4_s3(
        method="PUT", url=url, region="r", credentials=theirs, content_sha256=UNSIGNED, date=date,
        headers={**headers, **{name: value for name, value in signed.items() if name != "authorization"}},
    )  # fmt: skip
    assert signed["authorization"] == expected["Authorization"]

    if token is None:
        link = presign(
            ours, method="GET", host="host:9000", path=path, query=query, expires_s=60, region="r", at=at
        )
        other = minio.signer.presign_v4(
            method="GET", url=url, region="r", credentials=theirs, date=date, expires=60
        )
        assert parse_qs(link) == parse_qs(other.query)


# ---- addresses and credentials ----


@pytest.mark.parametrize(
    ("url", "base", "region"),
    [
        ("s3://127.0.0.1:9000", "http://127.0.0.1:9000", "us-east-1"),
        ("s3://minio.example.org:443", "https://minio.example.org", "us-east-1"),
        ("s3://host?tls=true", "https://host", "us-east-1"),
        ("s3://host:80?tls=false&region=eu-west-1", "http://host", "eu-west-1"),
        ("s3://[::1]:9000/", "http://[::1]:9000", "us-east-1"),
        ("s3://", "https://s3.us-east-1.amazonaws.com", "us-east-1"),
        ("s3://?region=cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ],
)
def test_an_address_names_a_server(url: str, base: str, region: str) -> None:
    found = parse_endpoint(url, environ={})
    assert (found.base, found.region) == (base, region)
    assert isinstance(S3Store(found, Credentials("a", "b"), clock=SystemClock()), ObjectServer)


def test_the_environment_names_region_and_credentials() -> None:
    environ = {
        "AWS_DEFAULT_REGION": "eu-north-1", "AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "what",
        "AWS_SESSION_TOKEN": "lent",
    }  # fmt: skip
    assert parse_endpoint("s3://host", environ=environ).region == "eu-north-1"
    assert parse_endpoint("s3://host", environ={**environ, "AWS_REGION": "here"}).region == "here"
    assert credentials_from(environ) == Credentials("who", "what", "lent")
    assert "what" not in repr(credentials_from(environ))
    with pytest.raises(InvalidSettings, match="AWS_SECRET_ACCESS_KEY"):
        credentials_from({"AWS_ACCESS_KEY_ID": "who"})


@pytest.mark.parametrize(
    "url",
    [
        "http://host", "s3://host:port", "s3://host/bucket", "s3://host?tls=maybe", "s3://host?tsl=1",
        "s3://who:what@host", "s3://host#x", "s3://:9000", "s3://host?public=files",
    ],
)  # fmt: skip
def test_what_is_no_servers_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_endpoint(url, environ={})
    assert "what" not in str(caught.value)


def test_an_unversioned_bucket_has_its_present_state_as_only_version(server: S3Server) -> None:
    store, bucket = store_at(server), server.bucket()
    store.put(bucket, "k", b"1")
    now = store.put(bucket, "k", b"2")
    assert now.version_id is None
    assert [found.etag for found in store.versions(bucket, "k")] == [now.etag]


def test_versions_turned_off_later_keep_what_there_was(minio_server: MinioServer) -> None:
    store, bucket = store_at(minio_server), minio_server.bucket()
    before = store.put(bucket, "k", b"1")
    client: Minio = minio_server.client()
    client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    after = store.put(bucket, "k", b"2")
    assert [found.etag for found in store.versions(bucket, "k")] == [after.etag, before.etag]
    assert store.get(bucket, "k", version_id="null") == b"1"


def test_the_streams_of_a_closed_reader_are_used_again(minio_server: MinioServer, tmp_path: Path) -> None:
    store, bucket = store_at(minio_server), minio_server.bucket()
    store.put(bucket, "k", BODY)
    for _ in range(50):
        with store.open(bucket, "k") as stream:
            stream.read(10)
        with store.open(bucket, "k", end=20_000) as stream:
            stream.read(10)
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    assert sum(name.startswith("socket:") for name in opened) < 60


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")
