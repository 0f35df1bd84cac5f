"""The HTTP backend against sockets that misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from headrace.runtime.client import Client
from headrace.runtime.client.http import HttpBackend
from headrace.runtime.errors import InvalidSettings, Unreachable

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
Answer = Callable[[socket.socket, int], None]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads one request per connection, then does what `answer` says with it and its number."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                requests.append(connection.recv(65536))
                answer(connection, len(requests))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def drop_first(connection: socket.socket, number: int) -> None:
    if number > 1:
        connection.sendall(OK)


def test_a_read_is_made_again_after_a_broken_connection() -> None:
    with server(drop_first) as (url, requests), Client(url, "t") as client:
        assert client.stats() == {}
        assert len(requests) == 2


def test_a_call_is_never_made_again_after_a_broken_connection() -> None:
    with server(drop_first) as (url, requests), Client(url, "t") as client:
        with pytest.raises(Unreachable, match="the call may have been made"):
            client.invoke("a.b")
        assert len(requests) == 1


def test_a_submission_with_an_idempotency_key_is_made_again() -> None:
    def answer(connection: socket.socket, number: int) -> None:
        if number > 1:
            body = b'{"invocation_id":"00000000000000ff"}'
            connection.sendall(b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    with server(answer) as (url, requests):
        client = Client(url, "t")
        assert client.submit("a.b", idempotency_key="k").invocation_id == "00000000000000ff"
        assert all(b"Idempotency-Key: k\r\n" in request for request in requests[:2])
        client.close()


def test_an_answer_cut_short_is_an_error() -> None:
    def cut(connection: socket.socket, number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")

    with server(cut) as (url, _), Client(url, "t") as client, pytest.raises(Unreachable):
        client.invoke("a.b")


def test_the_token_is_sent_as_a_bearer() -> None:
    with (
        server(lambda connection, _: connection.sendall(OK)) as (url, requests),
        Client(url, "s3cret") as client,
    ):
        client.stats()
        assert b"Authorization: Bearer s3cret\r\n" in requests[0]


def test_a_path_prefix_is_kept() -> None:
    with (
        server(lambda connection, _: connection.sendall(OK)) as (url, requests),
        Client(f"{url}/hr/") as client,
    ):
        client.stats()
        assert requests[0].startswith(b"GET /hr/v1/stats HTTP/1.1\r\n")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", ""])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings):
        HttpBackend(url)


def test_nobody_listening_is_unreachable() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match="refused"):
        client.stats()
