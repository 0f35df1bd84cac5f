"""The servers that other tests use: they start, keep what they acknowledged, and send events."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from minio import Minio
from minio.notificationconfig import NotificationConfig, QueueConfig
from s3_servers import REGION, MinioServer, S3Server

pytestmark = pytest.mark.service
BODY = b"of an object"


@pytest.fixture(params=["minio", "versity"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"own_{request.param}")
    return found.start()


def put(client: Minio, bucket: str, key: str) -> str:
    return str(client.put_object(bucket, key, io.BytesIO(BODY), len(BODY)).etag)


def test_a_server_that_is_killed_starts_again_with_what_it_acknowledged(server: S3Server) -> None:
    client, bucket = server.client(), server.bucket()
    etag = put(client, bucket, "a/b.txt")

    server.restart(crash=True)

    assert client.get_object(bucket, "a/b.txt").data == BODY
    assert client.stat_object(bucket, "a/b.txt").etag == etag


def test_a_versioned_bucket_keeps_what_was_overwritten(server: S3Server) -> None:
    client, bucket = server.client(), server.bucket(versioned=True)
    put(client, bucket, "k")
    put(client, bucket, "k")

    assert len(list(client.list_objects(bucket, include_version=True))) == 2


def test_buckets_of_one_server_are_each_fresh(server: S3Server) -> None:
    put(server.client(), first := server.bucket(), "k")

    assert [] == list(server.client().list_objects(second := server.bucket()))
    assert first != second


def test_minio_sends_an_upload_to_both_targets_with_the_token(own_minio: MinioServer) -> None:
    shown: list[str | None] = []
    both = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if b"the+key" in body:
                shown.append(self.headers["Authorization"])
                if len(shown) == 2:
                    both.set()

        def log_message(self, *_: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    serving = threading.Thread(target=receiver.serve_forever)
    serving.start()
    try:
        own_minio.env = own_minio.webhook_targets(f"http://127.0.0.1:{receiver.server_port}/", "the-token")
        client, bucket = own_minio.start().client(), own_minio.bucket()
        client.set_bucket_notification(
            bucket,
            NotificationConfig(
                queue_config_list=[
                    QueueConfig(
                        queue=f"arn:minio:sqs:{REGION}:{target}:webhook", events=["s3:ObjectCreated:*"]
                    )
                    for target in ("HEADRACE", "HEADRACEQ")
                ]
            ),
        )

        put(client, bucket, "the key")

        assert both.wait(20)
        assert set(shown) == {"Bearer the-token"}
    finally:
        receiver.shutdown()
        serving.join()
        receiver.server_close()
