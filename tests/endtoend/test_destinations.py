"""Destinations on a real node: a webhook that fails at first, a bucket, and a node that is killed between."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.errors import FunctionError, InvalidFunction
from tests.serving import serving, wait_until

CODE = """
from headrace import App

app = App("shop")

@app.function(retries=0, on_failure="HOOK/failed?token=s3cret", on_success="s3://records/done/shop")
def sell(event):
    if event["n"] < 0:
        raise ValueError("no such order")
    return {"sold": event["n"]}

@app.function(retries=0, on_failure="s3://records")
def refuse(event):
    raise KeyError("refused")
"""


def code(folder: Path, hook: "Hook") -> Path:
    """The functions, in a file of this test's own, since they name the webhook's port."""
    file = folder / "destinations.py"
    file.write_text(CODE.replace("HOOK", hook.url))
    return file


class Hook:
    """A webhook on this machine that answers as it is told, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[int, str, dict[str, str], Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = hook.answers.pop(0) if hook.answers else 200
                hook.got.append((status, self.path, dict(self.headers), json.loads(body)))
                self.send_response(status)
                if status == 302:
                    self.send_header("location", f"{hook.url}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def taken(self) -> list[Any]:
        return [record for status, _, _, record in self.got if status == 200]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.close()


@pytest.mark.timeout(90)
def test_the_ends_of_invocations_reach_a_webhook_and_a_bucket(tmp_path: Path, hook: Hook) -> None:
    hook.answers = [500, 302]
    with serving(code(tmp_path, hook), folder=tmp_path) as node:
        client = node.client
        bad = client.submit("shop.sell", {"n": -1}).wait_accepted(20)
        good = client.submit("shop.sell", {"n": 7}).wait_accepted(20)
        refused = client.submit("shop.refuse", 1).wait_accepted(20)

        [record] = wait_until(hook.taken, "the record of the failure")
        assert [(status, path) for status, path, _, _ in hook.got] == [
            (500, "/failed?token=s3cret"), (302, "/failed?token=s3cret"), (200, "/failed?token=s3cret"),
        ]  # fmt: skip
        assert len({headers["Headrace-Delivery-Id"] for _, _, headers, _ in hook.got}) == 1
        assert record["requestContext"]["requestId"] == bad
        assert record["requestContext"]["condition"] == "RetriesExhausted"
        assert (record["requestPayload"], record["responsePayload"]["message"]) == (
            {"n": -1},
            "no such order",
        )

        def stored() -> list[str]:
            keys = [item["key"] for item in client.list_objects("s3://records/")]
            return keys if len(keys) == 2 else []

        keys = {key.rpartition("/")[2]: key for key in wait_until(stored, "both records in the bucket")}
        assert keys[f"{good}.json"].startswith("done/shop/2")
        assert len(keys[f"{refused}.json"].split("/")) == 4  # year, month, day
        sold = json.loads(client.get_object(f"s3://records/{keys[f'{good}.json']}"))
        assert (sold["responsePayload"], sold["requestContext"]["condition"]) == ({"sold": 7}, "Success")

        def delivered() -> bool:
            return client.stats()["functions"]["headrace.deliver"]["succeeded"] == 3

        wait_until(delivered, "three deliveries in the books")
        node.check_books()
        shown = json.dumps(client.functions()) + json.dumps(list(client.invocations()))
        assert "s3cret" not in shown + node.words()
        assert f"{hook.url}/…" in [one["on_failure"] for one in client.functions()]
        for mode in ({}, {"mode": "async"}):
            with pytest.raises(InvalidFunction):
                client.call("POST", "/v1/functions/headrace.deliver/invoke", query=mode, body={})


@pytest.mark.timeout(90)
def test_a_record_that_could_not_be_delivered_survives_the_kill_of_its_node(
    tmp_path: Path, hook: Hook
) -> None:
    hook.answers = [503] * 2
    with serving(code(tmp_path, hook), folder=tmp_path) as node:
        future = node.client.submit("shop.sell", {"n": -5})
        with pytest.raises(FunctionError):
            future.result(20)
        wait_until(lambda: len(hook.got) == 1 or None, "the first try")
        node.restart()

        [record] = wait_until(hook.taken, "the record, from the node's next life")
        assert record["requestContext"]["requestId"] == future.invocation_id
        [delivery] = {headers["Headrace-Delivery-Id"] for _, _, headers, _ in hook.got}
        assert node.client.invocation(delivery, wait_s=20)["result"] == {"delivered": f"{hook.url}/…"}
        node.check_books()
