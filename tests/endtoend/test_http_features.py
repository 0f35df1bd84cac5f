"""Routes on a real node: what is checked before a 202, callbacks, webhooks, files, and a node that stops."""

import hashlib
import hmac
import http.client
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from standardwebhooks.webhooks import Webhook
from urllib3 import encode_multipart_formdata

from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("http_functions.py")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENVIRONMENT = {
    "HEADRACE_CALLBACK_SECRET": SECRET,
    "HEADRACE_CALLBACK_HOSTS": "127.0.0.1",
    "HEADRACE_ACCESS_LOG": "true",
    "HEADRACE_LOG_FORMAT": "json",
    "GITHUB_SECRET": "hush",
}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    node: Serving, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Reply:
    place = urlsplit(node.client.url)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {
        **({} if isinstance(body, bytes | None) else {"Content-Type": "application/json"}),
        **(headers or {}),
    }
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request(method, path, body=data, headers=sent)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def bearer(node: Serving) -> dict[str, str]:
    return {"Authorization": f"Bearer {(node.data / 'token').read_text().strip()}"}


class Receiver:
    """A caller's own server: it verifies what it is told as the specification's library does."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.told: list[tuple[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                message = Webhook(SECRET).verify(body, {k.lower(): v for k, v in self.headers.items()})
                status = receiver.answers.pop(0) if receiver.answers else 204
                receiver.told.append((self.headers["webhook-id"], message))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/told"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(CODE, folder=tmp_path_factory.mktemp("web"), env=ENVIRONMENT) as found:
        yield found


def test_an_asynchronous_route_refuses_what_does_not_fit_before_it_accepts(node: Serving) -> None:
    before = node.client.stats()["functions"]["web.order"]["accepted"]
    refused = ask(node, "POST", "/orders", {"count": "many"})
    unread = ask(node, "POST", "/orders", b"{", {"Content-Type": "application/json"})

    assert (refused.status, refused.json["error"]["code"]) == (422, "invalid_event")
    assert {one["loc"] for one in refused.json["error"]["fields"]} == {"body.product", "body.count"}
    assert unread.status == 422
    assert node.client.stats()["functions"]["web.order"]["accepted"] == before


def test_the_caller_is_told_of_the_end_and_can_verify_who_tells(node: Serving, receiver: Receiver) -> None:
    receiver.answers = [500]
    accepted = ask(node, "POST", "/orders", {"product": "tea"}, {"Headrace-Callback": receiver.url})
    assert accepted.status == 202
    wait_until(lambda: len(receiver.told) == 2, "the second try")
    (first, _), (again, message) = receiver.told

    assert first == again
    assert message["type"] == "invocation.succeeded"
    assert message["data"]["invocation_id"] == accepted.json["invocation_id"]
    assert message["data"]["result"]["product"] == "tea"
    status = ask(node, "GET", accepted.json["status_url"] + "?wait_s=10").json
    assert (status["status"], status["result"]) == ("succeeded", message["data"]["result"])


def test_a_failure_is_told_and_so_is_an_event_too_large_for_a_row(node: Serving, receiver: Receiver) -> None:
    large = {"product": "x" * 300_000}
    for body, kind in (({"product": "tea", "count": -1}, "dead"), (large, "succeeded")):
        receiver.told.clear()
        accepted = ask(node, "POST", "/orders", body, {"Headrace-Callback": receiver.url})
        assert accepted.status == 202
        wait_until(lambda: receiver.told, "the caller to be told")
        [(_, message)] = receiver.told
        assert message["type"] == f"invocation.{kind}"
    assert message["data"]["too_large"] is True


def test_what_a_service_sends_twice_runs_once(node: Serving) -> None:
    body = b'{"ref": "refs/heads/main"}'
    signature = "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest()
    headers = {
        "X-Hub-Signature-256": signature,
        "X-GitHub-Delivery": "d-1",
        "Content-Type": "application/json",
    }
    first, again = (ask(node, "POST", "/hooks/github", body, headers) for _ in range(2))
    forged = ask(
        node, "POST", "/hooks/github", body, {**headers, "X-Hub-Signature-256": signature[:-1] + "x"}
    )

    assert (first.status, again.status, forged.status) == (202, 202, 401)
    assert first.json["invocation_id"] == again.json["invocation_id"]
    assert again.headers["headrace-repeated"] == "true"
    assert ask(node, "GET", first.json["status_url"] + "?wait_s=10").json["result"] == "refs/heads/main"
    assert node.check_books()["functions"]["web.pushed"]["accepted"] == 1


def test_a_webhook_without_its_secret_is_not_served_and_the_log_says_why(node: Serving) -> None:
    assert ask(node, "POST", "/hooks/none", b"{}").status == 404
    assert "has no NOWHERE_SECRET" in node.words()
    errors = ask(node, "GET", "/v1/functions", headers=bearer(node)).json["errors"]
    assert any("NOWHERE_SECRET" in one["message"] for one in errors)


def test_a_file_of_any_bytes_comes_with_a_form(node: Serving) -> None:
    data = bytes(range(256)) * 4096
    body, kind = encode_multipart_formdata({"title": "Ä", "file": ("a b.bin", data)})
    answer = ask(node, "POST", "/files", body, {"Content-Type": kind})
    assert answer.json == {"title": "Ä", "name": "a b.bin", "bytes": len(data)}


def test_requests_are_in_the_access_log(node: Serving) -> None:
    ask(node, "GET", "/healthz?token=secret", headers={"X-Request-Id": "find-me"})

    def line() -> dict[str, Any] | None:
        for text in node.words().splitlines():
            if "find-me" in text:
                found: dict[str, Any] = json.loads(text)
                return found
        return None

    found = wait_until(line, "the line")
    assert (found["method"], found["path"], found["status"]) == ("GET", "/healthz", 200)
    assert "token=secret" not in node.words()


def test_a_node_that_stops_lets_the_running_call_end_and_refuses_new_ones(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path, workers=1, env=ENVIRONMENT) as node:
        held: list[Reply] = []
        caller = threading.Thread(target=lambda: held.append(ask(node, "POST", "/hold", str(tmp_path))))
        caller.start()
        wait_until((tmp_path / "began").exists, "the call to run")
        url = node.client.url
        node.signal(signal.SIGTERM)

        def unready() -> Reply | None:
            answer = ask(node, "GET", "/readyz")
            return answer if answer.status == 503 else None

        answer = wait_until(unready, "the node to stop")
        assert answer.headers["connection"] == "close"
        refused = ask(node, "POST", "/files", b"", {"Content-Type": "multipart/form-data; boundary=b"})
        assert (refused.status, refused.json["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1
        (tmp_path / "open").touch()
        caller.join(20)

        assert [(one.status, one.json) for one in held] == [(200, "held")]
        assert node.wait_ended() == 0
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection(urlsplit(url).netloc, timeout=5).connect()
