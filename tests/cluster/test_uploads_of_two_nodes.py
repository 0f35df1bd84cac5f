"""A bucket whose two webhooks lead to two nodes: both are proved, and what both hear of fires once."""

import hashlib
import io
import sys
from pathlib import Path

import pytest
from s3_servers import MinioServer, free_port

from tests.serving import Serving, run_command, wait_until

CODE = Path(__file__).parent.parent / "endtoend" / "upload_functions.py"


@pytest.mark.service
@pytest.mark.timeout(120)
def test_each_webhook_may_lead_to_another_node(
    own_minio: MinioServer, postgres_url: str, tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]
    first, second = (f"http://127.0.0.1:{port}" for port in ports)
    path = "/v1/events/minio"
    own_minio.env = own_minio.webhook_targets(f"{first}{path}", "secret", queued_url=f"{second}{path}")
    client = own_minio.start().client()
    client.make_bucket("inbox")
    nodes = []
    for number, port in enumerate(ports):
        place = tmp_path / f"node{number}"
        place.mkdir()
        nodes.append(
            Serving(
                CODE, folder=place, token="all",
                flags=["--port", str(port), "--store", postgres_url, "--objects", own_minio.objects],
                env={
                    **own_minio.credentials, "HEADRACE_SWEEP_S": "2",
                    "HEADRACE_TOKENS": "all:admin:all,minio:events:secret",
                },
            )
        )  # fmt: skip
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready()
        for url in (first, second):
            done = run_command(
                "buckets", "connect", "inbox", env={"HEADRACE_URL": url, "HEADRACE_TOKEN": "all"}
            )
            assert done.returncode == 0, done.stdout + done.stderr
        expected = set()
        for number in range(100):
            data = f"{number}".encode()
            client.put_object("inbox", f"{number % 70}", io.BytesIO(data), len(data))
            expected.add((f"{number % 70}", hashlib.md5(data).hexdigest()))
        there = {(found.object_name, found.etag) for found in client.list_objects("inbox")}

        def effects() -> list[tuple[str, str]]:
            results = [one["result"] for one in nodes[0].client.invocations(function="up.seen")]
            return [(one["key"], one["etag"]) for one in results if one]

        wait_until(lambda: there <= set(effects()), "every object that is there to have fired")
        wait_until(lambda: own_minio.queued() == 0, "all that was queued to be delivered")
        fired = effects()
        assert len(fired) == len(set(fired))
        assert set(fired) <= expected
        for node in nodes:
            node.check_books()
    except BaseException:
        for node in nodes:
            sys.stderr.write(node.words()[-1000:])
        raise
    finally:
        for node in nodes:
            node.close()
