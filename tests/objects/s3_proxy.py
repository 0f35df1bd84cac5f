"""A way to an S3 server that breaks as networks do: it loses answers, cuts them short, and says 503."""

import http.client
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BETWEEN_TWO_ONLY = {"connection", "keep-alive", "transfer-encoding"}


class S3Proxy(ThreadingHTTPServer):
    """Forwards requests to `target`, HOST:PORT, and treats each as the first word left in `plan` says.

    Words: `pass`; `busy` answers 503 without forwarding; `lose` forwards and closes without an answer;
    `cut N` closes after N bytes of the answer's body; `stall N` says nothing more after N bytes. Without a
    word, a request passes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.target = target
        self.plan: deque[str] = deque()
        self.seen: list[str] = []
        self.over = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "S3Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join(10)
        self.server_close()


class _Forwarding(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def _any(self) -> None:
        server = self.server
        word, _, count = (server.plan.popleft() if server.plan else "pass").partition(" ")
        server.seen.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if word == "busy":
            self._answer(503, {"Content-Length": "0"})
            return
        onward = http.client.HTTPConnection(server.target, timeout=30)
        try:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _BETWEEN_TWO_ONLY:
                    onward.putheader(name, value)
            onward.endheaders(body or None)
            answer = onward.getresponse()
            data = answer.read()
        finally:
            onward.close()
        if word == "lose":
            self.close_connection = True
            return
        headers = {
            name: value for name, value in answer.getheaders() if name.lower() not in _BETWEEN_TWO_ONLY
        }
        self._answer(answer.status, headers)
        if self.command == "HEAD":
            return
        kept = data[: int(count)] if count else data
        self.wfile.write(kept)
        if word == "stall":
            self.wfile.flush()
            server.over.wait(30)
        if len(kept) < len(data):
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
