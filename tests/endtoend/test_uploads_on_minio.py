"""Uploads on a real MinIO, told of by its webhooks and found by sweeps, through a real node."""

import hashlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio
from minio.commonconfig import Tags
from minio.notificationconfig import NotificationConfig, PrefixFilterRule, QueueConfig
from s3_servers import MinioServer, free_port, program_of

from tests.serving import Serving, run_command, serving, wait_until

CODE = Path(__file__).with_name("upload_functions.py")
TOKEN = "secret-of-the-webhooks"
pytestmark = [pytest.mark.service, pytest.mark.timeout(90)]


def effects(node: Serving, prefix: str = "") -> list[tuple[str, str, str]]:
    """What `up.seen` has returned of keys with a prefix: the event's name without its family's, key, ETag."""
    found = node.client.invocations(function="up.seen")
    results = [item["result"] for item in found if item["status"] == "succeeded"]
    return sorted(
        (r["name"].rpartition(":")[2], r["key"], r["etag"]) for r in results if r["key"].startswith(prefix)
    )


def put(client: Minio, key: str, body: str) -> str:
    """Put an object; its ETag."""
    data = body.encode()
    client.put_object("inbox", key, io.BytesIO(data), len(data))
    return hashlib.md5(data).hexdigest()


class Site:
    """A MinIO with both webhook targets and a node that they lead to."""

    def __init__(self, server: MinioServer, folder: Path, *, sweep_s: float = 3600.0) -> None:
        self.server = server
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.node = Serving(
            CODE, folder=folder, token="all",
            flags=["--objects", server.objects, "--port", str(self.port)],
            env={
                **server.credentials, "HEADRACE_SWEEP_S": str(sweep_s),
                "HEADRACE_TOKENS": f"all:admin:all,minio:events:{TOKEN}",
            },
        )  # fmt: skip

    def targets(self) -> dict[str, str]:
        return self.server.webhook_targets(f"{self.url}/v1/events/minio", TOKEN)

    def headrace(self, *arguments: str) -> Any:
        return run_command(*arguments, env={"HEADRACE_URL": self.url, "HEADRACE_TOKEN": "all"})

    def waiting_effects(self, count: int, prefix: str = "") -> list[tuple[str, str, str]]:
        wait_until(lambda: len(effects(self.node, prefix)) >= count, f"{count} effects")
        return effects(self.node, prefix)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With the functions' buckets, which are not connected yet. Each test has a bucket or a prefix."""
    server = MinioServer(program_of("minio"))
    site = Site(server, tmp_path_factory.mktemp("site"))
    server.env = site.targets()
    try:
        client = server.start().client()
        for bucket in ("inbox", "loop", "asked"):
            client.make_bucket(bucket)
        site.node.start()
        yield site
    finally:
        site.node.close()
        server.remove()


def test_a_bucket_is_connected_and_proved_and_its_uploads_and_removals_fire_once(site: Site) -> None:
    client = site.server.client()
    foreign = QueueConfig(
        queue="arn:minio:sqs:us-east-1:HEADRACE:webhook", events=["s3:ObjectAccessed:Get"], config_id="mine",
        prefix_filter_rule=PrefixFilterRule("other/"),
    )  # fmt: skip
    client.set_bucket_notification("inbox", NotificationConfig(queue_config_list=[foreign]))
    done = site.headrace("buckets", "connect", "inbox")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is connected" in done.stdout
    again = site.headrace("buckets", "connect", "inbox", "--json")
    shown = json.loads(again.stdout)
    assert shown["connected"], shown
    assert shown["events"] == ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]  # which the function asks for

    etags = [
        put(client, key, body) for key, body in [("1/a b+ü%.csv", "1"), ("1/a b+ü%.csv", "22"), ("1/b", "3")]
    ]
    client.remove_object("inbox", "1/b")
    found = site.waiting_effects(4, "1/")
    wait_until(lambda: site.server.queued() == 0, "all that was queued to be delivered")

    assert found == effects(site.node, "1/") == sorted([
        ("Put", "1/a b+ü%.csv", etags[0]), ("Put", "1/a b+ü%.csv", etags[1]), ("Put", "1/b", etags[2]),
        ("Delete", "1/b", ""),
    ])  # fmt: skip
    site.node.check_books()

    assert site.headrace("buckets", "disconnect", "inbox").returncode == 0
    assert client.get_bucket_notification("inbox").queue_config_list == []
    put(client, "1/unheard", "4")
    site.node.restart()  # and a sweep finds it at the start
    assert ("Put", "1/unheard", hashlib.md5(b"4").hexdigest()) in site.waiting_effects(5, "1/")


def test_what_comes_while_the_node_is_down_is_delivered_later_and_fires_once(site: Site) -> None:
    assert site.headrace("buckets", "connect", "inbox").returncode == 0
    client = site.server.client()
    put(client, "2/before", "1")
    site.waiting_effects(1, "2/")
    site.node.kill()
    for number in range(50):
        put(client, f"2/down-{number}", "x")
    put(client, "2/down-0", "second")
    client.remove_object("inbox", "2/down-1")
    site.node.start()
    wait_until(lambda: site.server.queued() == 0, "all that was queued to be delivered", within_s=60)
    wait_until(lambda: _ended(site.node, "up.seen"), "all invocations to end")
    site.node.restart()

    fired = [(key, etag) for name, key, etag in effects(site.node, "2/") if name == "Put"]
    there = {(o.object_name, o.etag) for o in client.list_objects("inbox", prefix="2/", recursive=True)}
    assert len(fired) == len(set(fired))
    assert there <= set(fired)
    assert [key for name, key, _ in effects(site.node, "2/") if name == "Delete"] == ["2/down-1"]
    site.node.check_books()


def test_without_any_notification_sweeps_find_uploads_overwrites_and_removals(
    own_minio: MinioServer, tmp_path: Path
) -> None:
    own_minio.start().client().make_bucket("inbox")
    client = own_minio.client()
    put(client, "old", "0")
    site = Site(own_minio, tmp_path, sweep_s=1)
    try:
        site.node.start()
        etags = [put(client, "a", "1"), put(client, "b", "1")]
        site.waiting_effects(2)
        etags.append(put(client, "a", "22"))
        client.remove_object("inbox", "b")
        assert site.waiting_effects(4) == sorted([
            ("Put", "a", etags[0]), ("Put", "b", etags[1]), ("Put", "a", etags[2]), ("Delete", "b", ""),
        ])  # fmt: skip
        site.node.restart()
        put(client, "c", "1")
        assert len(site.waiting_effects(5)) == 5
        site.node.check_books()
    finally:
        site.node.close()


@pytest.mark.slow
def test_the_environment_that_a_server_lacks_is_printed_to_be_pasted_and_then_suffices(
    own_minio: MinioServer, tmp_path: Path
) -> None:
    site = Site(own_minio, tmp_path)
    own_minio.start().client().make_bucket("inbox")
    try:
        site.node.start()
        refused = site.headrace("buckets", "connect", "inbox", "--wait", "1")
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: the bucket inbox is not connected")
        assert len(refused.stderr.strip().splitlines()) == 1
        lines = dict(
            line.split("=", 1) for line in refused.stdout.splitlines() if line.startswith("MINIO_NOTIFY_")
        )
        assert {name.rpartition("_")[0] for name in lines} == {
            f"MINIO_NOTIFY_WEBHOOK_{part}" for part in ("ENABLE", "ENDPOINT", "AUTH_TOKEN", "QUEUE_DIR")
        }
        assert lines["MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_HEADRACE"] == TOKEN

        folder = str(own_minio.folder / "kept")
        own_minio.env = {**lines, "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ": folder}
        own_minio.restart()
        assert site.headrace("buckets", "connect", "inbox").returncode == 0

        # One without a folder to keep events in, and one with a wrong token: each is named by its lines only.
        own_minio.env = {name: value for name, value in lines.items() if "QUEUE_DIR" not in name}
        own_minio.restart()
        half = site.headrace("buckets", "connect", "inbox", "--wait", "3")
        assert half.returncode == 1
        assert [line for line in half.stdout.splitlines() if line.startswith("MINIO_")] == [
            "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ=/var/lib/minio/headrace-queue"
        ]
        own_minio.env = {**lines, "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_HEADRACEQ": folder}
        own_minio.env["MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_HEADRACE"] = "wrong"
        own_minio.restart()
        half = site.headrace("buckets", "connect", "inbox", "--wait", "3")
        named = [line.split("=")[0] for line in half.stdout.splitlines() if line.startswith("MINIO_")]
        assert named == [
            f"MINIO_NOTIFY_WEBHOOK_{part}_HEADRACE" for part in ("ENABLE", "ENDPOINT", "AUTH_TOKEN")
        ]
        own_minio.env = {name: value for name, value in lines.items() if not name.endswith("_HEADRACEQ")}
        own_minio.restart()
        half = site.headrace("buckets", "connect", "inbox", "--wait", "3")
        named = [line.split("=")[0] for line in half.stdout.splitlines() if line.startswith("MINIO_")]
        assert sorted(named) == sorted(name for name in lines if name.endswith("_HEADRACEQ"))
    finally:
        site.node.close()


def test_rules_are_set_with_the_stores_credentials_alone(own_minio: MinioServer) -> None:
    own_minio.env = own_minio.webhook_targets("http://127.0.0.1:9/v1/events/minio", TOKEN)
    client = own_minio.start().client()
    client.make_bucket("inbox")
    done = run_command(
        "buckets", "connect", "inbox", "--objects", own_minio.objects, env=own_minio.credentials
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(client.get_bucket_notification("inbox").queue_config_list) == 2

    missing = run_command(
        "buckets", "connect", "inbox", "--objects", own_minio.objects, "--targets", "ONE,TWO",
        env=own_minio.credentials,
    )  # fmt: skip
    assert missing.returncode == 1
    assert "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_TWO=" in missing.stdout


def test_a_wrong_token_and_a_stranger_get_nothing_in(site: Site) -> None:
    body = json.dumps({"Records": []}).encode()
    for token, status in (("wrong", 401), (TOKEN, 200), ("all", 200)):
        request = urllib.request.Request(
            f"{site.url}/v1/events/minio", body, {"Authorization": f"Bearer {token}"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request) as answer:
                found = answer.status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status


def _ended(node: Serving, function: str) -> dict[str, Any] | None:
    books: dict[str, Any] = node.client.stats()["functions"][function]
    return books if books["waiting"] == books["running"] == 0 else None


def check_loop(node: Serving) -> None:
    """A function that writes what sets it off was stopped, by an error that names the loop."""
    [dead] = wait_until(lambda: list(node.client.dead_letters(function="up.again")), "a dead letter")
    assert dead["error"]["code"] == "upload_loop"
    assert "s3://loop/a" + ".again" * 6 + " is upload 6 in a row" in dead["error"]["message"]
    assert "up.again > up.again" in dead["error"]["message"]
    books = wait_until(lambda: _ended(node, "up.again"), "all invocations to end")
    assert (books["succeeded"], books["dead"]) == (6, 1)
    node.check_books()


def test_a_loop_is_stopped_where_its_uploads_are_told_of(site: Site) -> None:
    client = site.server.client()
    assert site.headrace("buckets", "connect", "loop").returncode == 0
    client.put_object("loop", "a", io.BytesIO(b"1"), 1)
    check_loop(site.node)


@pytest.mark.slow
def test_a_loop_is_stopped_where_its_uploads_are_found_by_sweeps(
    own_minio: MinioServer, tmp_path: Path
) -> None:
    own_minio.start().client().make_bucket("loop")
    site = Site(own_minio, tmp_path, sweep_s=1)
    try:
        site.node.start().client.put_object("s3://loop/a", b"1")
        check_loop(site.node)
    finally:
        site.node.close()


def test_a_loop_is_stopped_in_folders(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        (node.data / "buckets" / "loop" / "a").write_bytes(b"1")
        check_loop(node)


def test_metadata_and_tags_are_in_the_event_when_they_are_asked_for(site: Site) -> None:
    client = site.server.client()
    assert site.headrace("buckets", "connect", "asked").returncode == 0
    tags = Tags.new_object_tags()
    tags["colour"] = "dark blue"
    client.put_object(
        "asked", "a", io.BytesIO(b"1"), 1, content_type="text/x-odd", metadata={"Origin": "shop 3"}, tags=tags
    )

    def look() -> list[Any]:
        return [i["result"] for i in site.node.client.invocations(function="up.asked") if i["result"]]

    [found] = wait_until(look, "an event")
    assert found["userMetadata"] == {"origin": "shop 3"}
    assert found["contentType"] == "text/x-odd"
    assert found["tags"] == {"colour": "dark blue"}
