"""Sets of uploads on real S3 servers: told of by MinIO's webhooks, found by sweeps, and on several nodes."""

import io
import random
from collections import Counter
from pathlib import Path

import pytest
from minio import Minio
from s3_servers import MinioServer, S3Server, free_port

from tests.postgres_server import PostgresServer
from tests.serving import Serving, run_command, wait_until

CODE = Path(__file__).with_name("set_functions.py")
TOKEN = "secret-of-the-webhooks"
BUCKETS = ("days", "images", "loop", "slow", "tables")
NAMES = ["2026-01-31", "a b+c", "100%", "ünï", "x=1&y", "q'\"q"]
pytestmark = [pytest.mark.service, pytest.mark.timeout(90)]


def put(client: Minio, key: str, data: bytes = b"1", bucket: str = "days") -> None:
    client.put_object(bucket, key, io.BytesIO(data), len(data))


def node_on(server: S3Server, folder: Path, *flags: str, sweep_s: float, port: int = 0) -> Serving:
    return Serving(
        CODE, folder=folder, workers=1, token="all",
        flags=["--objects", server.objects, "--port", str(port), *flags],
        env={
            **server.credentials, "HEADRACE_SWEEP_S": str(sweep_s), "HEADRACE_NODE_LEASE_S": "2",
            "HEADRACE_TOKENS": f"all:admin:all,minio:events:{TOKEN}",
        },
    )  # fmt: skip


def days(node: Serving) -> list[str]:
    """The sets that `sets.day` has ended with, each as often as it did."""
    found = node.client.invocations(function="sets.day", status="succeeded")
    return sorted(one["result"]["set"] for one in found)


def wait_days(node: Serving, names: list[str]) -> None:
    wait_until(lambda: len(days(node)) >= len(names), f"{len(names)} sets", within_s=45)
    assert Counter(days(node)) == Counter(names)


def put_all(client: Minio, names: list[str]) -> None:
    """Three files of each set, in an order of their own."""
    keys = [f"{name}/{file}.csv" for name in names for file in "abc"]
    random.Random(3).shuffle(keys)
    for key in keys:
        put(client, key)


def with_buckets(server: S3Server) -> Minio:
    client: Minio = server.start().client()
    for bucket in BUCKETS:
        client.make_bucket(bucket)
    return client


@pytest.fixture(params=["minio", "versity"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"own_{request.param}")
    return found


def test_sweeps_find_sets_without_any_notification(server: S3Server, tmp_path: Path) -> None:
    client = with_buckets(server)
    node = node_on(server, tmp_path, sweep_s=1)
    try:
        node.start()
        put_all(client, NAMES)
        for number in range(2):
            rows = "".join(f"{n}\n" for n in range(number * 100, number * 100 + 100))
            put(client, f"d1/{number}.csv", f"n\n{rows}".encode(), "tables")
        put(client, "d1/_SUCCESS", b"", "tables")
        wait_days(node, NAMES)
        job = wait_until(lambda: next(iter(node.client.jobs(function="sets.total")), None), "the job")
        assert node.client.job(job["job_id"]).wait(30)["result"] == sum(range(200))
        node.restart()
        put(client, "later/a.csv")
        put(client, "later/b.csv")
        put(client, "later/c.csv")
        wait_days(node, [*NAMES, "later"])
        node.check_books()
    finally:
        node.close()


def test_notifications_complete_sets_at_once(own_minio: MinioServer, tmp_path: Path) -> None:
    port = free_port()
    own_minio.env = own_minio.webhook_targets(f"http://127.0.0.1:{port}/v1/events/minio", TOKEN)
    client = with_buckets(own_minio)
    node = node_on(own_minio, tmp_path, sweep_s=3600, port=port)
    try:
        node.start()
        env = {"HEADRACE_URL": f"http://127.0.0.1:{port}", "HEADRACE_TOKEN": "all"}
        done = run_command("buckets", "connect", "days", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        put_all(client, NAMES)
        wait_days(node, NAMES)
        wait_until(lambda: own_minio.queued() == 0, "all that was queued to be delivered")
        wait_days(node, NAMES)
        node.check_books()
    finally:
        node.close()


@pytest.mark.slow
def test_of_several_nodes_one_fires_each_set_although_they_are_killed(
    own_minio: MinioServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    client, url = with_buckets(own_minio), postgres_server.database()
    nodes: list[Serving] = []
    names = [f"day-{number}" for number in range(20)]
    try:
        for number in range(2):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            nodes.append(node_on(own_minio, folder, "--store", str(url), sweep_s=1).start())
        put_all(client, names[:10])
        nodes[0].kill()
        put_all(client, names[10:])
        nodes[0].start()
        nodes[1].kill()
        wait_days(nodes[0], names)
        nodes[1].start()
        put_all(client, ["last"])
        wait_days(nodes[1], [*names, "last"])
        nodes[1].check_books()
    finally:
        for node in nodes:
            node.close()
