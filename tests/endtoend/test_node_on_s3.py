"""A node whose buckets are on a real S3 server: jobs, large payloads, the API's objects, replays, doctor."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import Invalid, NoSuchObject, Retryable
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.s3 import S3Store
from headrace.runtime.objects.s3_endpoint import parse_endpoint
from headrace.runtime.objects.s3_signature import Credentials
from tests.s3_servers import MinioServer, S3Server, VersityServer, program_of
from tests.serving import Serving, run_command, serving, wait_until

pytestmark = pytest.mark.service
CODE = Path(__file__).with_name("s3_functions.py")
LARGE = "x" * 400_000


@pytest.fixture(scope="module", params=["minio", "versity"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    kind, program = {"minio": (MinioServer, "minio"), "versity": (VersityServer, "versitygw")}[request.param]
    own = kind(program_of(program))
    try:
        yield own.start()
    finally:
        own.remove()


@pytest.fixture(scope="module")
def node(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("node")
    flags = ("--objects", server.objects)
    with serving(CODE, folder=folder, flags=flags, env=server.credentials) as node:
        for bucket in ("inbox", "work", "results"):
            node.client.make_bucket(bucket)
        yield node


@pytest.fixture(scope="module")
def store(server: S3Server) -> S3Store:
    credentials = Credentials(server.access_key, server.secret_key)
    return S3Store(parse_endpoint(server.objects), credentials, clock=SystemClock())


def test_a_job_reads_its_input_from_the_server_and_leaves_its_result_there(
    node: Serving, store: S3Store
) -> None:
    rows = [f"lamp {number},{number % 9}" for number in range(30_000)]
    data = ("product,amount\n" + "\n".join(rows) + "\n").encode()
    node.client.put_object("s3://inbox/a b+c/ü.csv", data)
    expected = sum(number % 9 for number in range(30_000))

    job = node.client.submit_job("stored.amount", "s3://inbox/a b+c/ü.csv")

    assert job.result(60) == expected
    done = node.client.job(job.id).wait(10)
    assert done["chunks"] > 4
    keys = [info.key for info in store.iterate("results", f"{job.id}/")]
    assert {f"{job.id}/result.json", f"{job.id}/manifest.json"} <= set(keys)
    assert json.loads(store.get("results", f"{job.id}/result.json")) == expected


def test_large_payloads_and_results_rest_on_the_server(node: Serving, store: S3Store) -> None:
    before = {info.key for info in store.iterate(SYSTEM_BUCKET)}
    sent = node.client.submit("stored.echo", {"text": LARGE})
    assert sent.result(60) == {"text": LARGE}
    assert {info.key for info in store.iterate(SYSTEM_BUCKET)} - before
    assert SYSTEM_BUCKET not in node.client.buckets()
    node.check_books()


def test_functions_write_on_conditions(node: Serving) -> None:
    assert node.client.invoke("stored.swap") == ["PreconditionFailed", "2"]


def test_objects_go_through_the_node_in_both_directions(node: Serving, tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000
    (tmp_path / "file").write_bytes(body)
    node.client.put_object("s3://work/large", tmp_path / "file")
    assert node.client.get_object("s3://work/large") == body
    backend = node.client.backend
    part = backend.request("GET", "/v1/objects/work/large", headers={"range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, body[1000:2000])
    assert [found["key"] for found in node.client.list_objects("s3://work/lar")] == ["large"]
    with pytest.raises(NoSuchObject):
        node.client.get_object("s3://work/absent")
    etag = part.headers["etag"]
    assert (
        backend.request("PUT", "/v1/objects/work/large", body=b"", headers={"if-match": '"x"'}).status == 412
    )
    assert (
        backend.request("PUT", "/v1/objects/work/large", body=b"1", headers={"if-match": etag}).status == 201
    )
    assert backend.request("DELETE", "/v1/objects/work/large").status == 204


def test_links_lead_past_the_node(node: Serving) -> None:
    url = "s3://work/by link/ü.txt"
    with urllib3.PoolManager() as anybody:
        writing = node.client.link_object(url, method="PUT", expires_s=60)
        assert anybody.request("PUT", writing, body=b"sent").status == 200
        assert node.client.get_object(url) == b"sent"
        assert anybody.request("GET", node.client.link_object(url)).data == b"sent"
    with pytest.raises(Invalid, match="link is"):
        node.client.link_object(url, expires_s=8 * 86_400)
    assert node.client.backend.request("GET", f"/v1/objects/{SYSTEM_BUCKET}/x?link=").status == 403
    env = {"HEADRACE_URL": node.client.url, "HEADRACE_TOKEN": (node.data / "token").read_text().strip()}
    shown = run_command("objects", "link", url, "--expires", "10 min", env=env)
    assert "X-Amz-Expires=600&" in shown.stdout, shown.stderr


def test_an_older_version_is_read_and_replayed(node: Serving, server: S3Server) -> None:
    bucket, client = server.bucket(versioned=True), node.client
    first = client.put_object(f"s3://{bucket}/k", b"as it was")
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": "k", "size": 9, "eTag": first["etag"]}},
    }
    ran = client.submit("stored.content", {"Records": [record]})
    assert ran.result(30) == "as it was"
    client.put_object(f"s3://{bucket}/k", b"as it is")

    assert [found["etag"] for found in client.object_versions(f"s3://{bucket}/k")][1:] == [first["etag"]]
    pieces = client.read_object(f"s3://{bucket}/k", version_id=first["version_id"])
    assert b"".join(pieces) == b"as it was"
    env = {"HEADRACE_URL": client.url, "HEADRACE_TOKEN": (node.data / "token").read_text().strip()}
    shown = run_command("objects", "get", f"s3://{bucket}/k", "--version", first["version_id"], env=env)
    assert shown.stdout == "as it was", shown.stderr
    listed = run_command("objects", "versions", f"s3://{bucket}/k", env=env)
    assert first["version_id"] in listed.stdout
    replayed = run_command("replay", ran.invocation_id, "--json", env=env)
    told = json.loads(replayed.stdout)
    assert told["same"], (told, replayed.stderr)
    assert first["version_id"] in told["notes"][0]


@pytest.mark.timeout(90)
def test_a_job_outlives_a_server_that_is_killed(own_minio: MinioServer, tmp_path: Path) -> None:
    own_minio.start()
    rows = [f"lamp {number},{number % 9}" for number in range(40_000)]
    with serving(
        CODE, folder=tmp_path, flags=("--objects", own_minio.objects), env=own_minio.credentials
    ) as node:
        client = node.client
        for bucket in ("inbox", "work", "results"):
            client.make_bucket(bucket)
        client.put_object("s3://inbox/x.csv", ("product,amount\n" + "\n".join(rows) + "\n").encode())
        job = client.submit_job("stored.amount_slowly", "s3://inbox/x.csv")
        wait_until(lambda: list(client.list_objects("s3://work/seen/")), "a first chunk to be through")
        own_minio.restart(crash=True)
        assert job.result(60) == sum(number % 9 for number in range(40_000))
        node.check_books()


@pytest.mark.slow  # it waits until the node has given the server up
@pytest.mark.timeout(90)
def test_a_node_serves_on_while_the_server_is_away(own_minio: MinioServer, tmp_path: Path) -> None:
    own_minio.start()
    with serving(
        CODE, folder=tmp_path, flags=("--objects", own_minio.objects), env=own_minio.credentials
    ) as node:
        client = node.client
        client.make_bucket("work")
        client.put_object("s3://work/k", b"1")
        own_minio.kill()
        with pytest.raises(Retryable) as caught:
            client.get_object("s3://work/k")
        assert caught.value.code == "object_server_unavailable"
        # From then on nobody waits long for it, and what needs no objects works as ever.
        began = time.monotonic()
        with pytest.raises(Retryable):
            client.get_object("s3://work/k")
        assert time.monotonic() - began < 3
        assert client.invoke("stored.echo", [1]) == [1]
        own_minio.start()
        assert client.get_object("s3://work/k") == b"1"


@pytest.mark.slow  # it waits until a worker has given the server up
@pytest.mark.timeout(90)
def test_a_payload_that_cannot_be_fetched_just_now_costs_no_attempt(
    own_minio: MinioServer, tmp_path: Path
) -> None:
    own_minio.start()
    with serving(
        CODE, folder=tmp_path, flags=("--objects", own_minio.objects), env=own_minio.credentials
    ) as node:
        client = node.client
        client.pause("stored.once")
        sent = client.submit("stored.once", {"text": LARGE})
        id = sent.invocation_id  # once it is accepted
        own_minio.kill()
        client.resume("stored.once")
        wait_until(lambda: list(client.closures()), "the function to wait", within_s=60)
        assert own_minio.endpoint in next(iter(client.closures()))["reason"]
        own_minio.start()
        assert sent.result(60) == len(LARGE)
        assert client.invocation(id)["attempts"] == 1
        node.check_books()


def test_a_node_begins_only_when_the_server_answers(own_minio: MinioServer, tmp_path: Path) -> None:
    node = Serving(CODE, folder=tmp_path, flags=("--objects", own_minio.objects), env=own_minio.credentials)
    node.launch()
    own_minio.start()  # later than the node
    try:
        assert node.wait_ready().client.buckets() == []
    finally:
        node.close()


def test_servers_with_tls_are_checked_against_the_authorities_of_the_environment(
    own_versity: VersityServer, tmp_path: Path
) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    server = TlsVersity(own_versity.program, tmp_path)
    url = f"s3://{server.endpoint}?tls=true"
    trusted = {**server.credentials, "SSL_CERT_FILE": str(tmp_path / "cert.pem")}
    server.start()
    try:
        refused = run_command(
            "doctor", "--json", cwd=tmp_path, env={**server.credentials, "HEADRACE_OBJECTS": url}
        )
        [check] = [each for each in json.loads(refused.stdout)["checks"] if each["name"] == "object server"]
        assert "certificate" in check["found"].lower()
        with serving(CODE, folder=tmp_path, flags=("--objects", url), env=trusted) as node:
            node.client.make_bucket("work")
            assert node.client.invoke("stored.swap") == ["PreconditionFailed", "2"]  # from a worker
    finally:
        server.remove()


class TlsVersity(VersityServer):
    """With the certificate in a folder."""

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__(program)
        self._certificate = ["--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem")]

    def command(self) -> list[str]:
        return [*self._certificate, *super().command()]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def test_doctor_looks_at_the_server(server: S3Server, tmp_path: Path) -> None:
    def checks(**env: str) -> dict[str, dict[str, str]]:
        shown = run_command(
            "doctor", "--json", "--url", "http://127.0.0.1:1",
            env={**server.credentials, "HEADRACE_OBJECTS": server.objects, **env}, cwd=tmp_path,
        )  # fmt: skip
        return {check["name"]: check for check in json.loads(shown.stdout)["checks"]}

    found = checks()
    assert found["object server"]["status"] == "ok"
    assert server.endpoint in found["object server"]["found"]
    refused = checks(AWS_SECRET_ACCESS_KEY="wrong")["object server"]
    assert (refused["status"], "AWS_SECRET_ACCESS_KEY" in refused["hint"]) == ("fail", True)
    assert checks(AWS_SECRET_ACCESS_KEY="")["object server"]["status"] == "fail"


def test_a_node_without_credentials_says_what_is_missing(server: S3Server, tmp_path: Path) -> None:
    ended = run_command(
        "serve", CODE, "--data", tmp_path / "data", "--port", "0", "--objects", server.objects
    )
    assert ended.returncode == 1
    assert "AWS_ACCESS_KEY_ID" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
