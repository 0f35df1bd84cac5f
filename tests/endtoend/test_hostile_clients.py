"""Callers who do what they should not, at a running node: it answers them as they deserve, stays small, and
serves the others meanwhile.
"""

import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.serving import Serving, serving, wait_until

HERE = Path(__file__).parent
MANY = 1000
NEIGHBOUR_S = 5.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    code = (HERE / "plain_functions.py", HERE / "streaming_functions.py")
    with serving(*code, folder=tmp_path_factory.mktemp("hostile"), workers=2) as found:
        found.client.invoke("plain.double", {"n": 1})
        yield found


@pytest.fixture
def crowd(node: Serving) -> Iterator["Crowd"]:
    with Crowd(node) as found:
        yield found


class Crowd:
    """Many raw connections to a node, which are closed with the test."""

    def __init__(self, node: Serving) -> None:
        self._place = urlsplit(node.client.url)
        self.members: list[socket.socket] = []

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.close()

    def join(self, count: int = 1, *, receive_bytes: int | None = None) -> list[socket.socket]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 2 * MANY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * MANY), hard))
        found = []
        for _ in range(count):
            member = socket.socket()
            if receive_bytes is not None:
                member.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            member.settimeout(30)
            member.connect((self._place.hostname or "", self._place.port or 0))
            found.append(member)
        self.members += found
        return found


def post(path: str, body: bytes, *, length: int | None = None, headers: bytes = b"") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
        + headers
        + b"content-length: %d\r\n\r\n" % (len(body) if length is None else length)
        + body
    )


def answer(member: socket.socket) -> tuple[int, bytes]:
    """The status and the body of one answer that has a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = member.recv(65536)
        if not piece:
            raise AssertionError(f"no answer: {data!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += member.recv(65536)
    return int(head.split()[1]), body


def serves_neighbours(node: Serving, calls: int = 20) -> None:
    for n in range(calls):
        begun = time.monotonic()
        assert node.client.invoke("plain.double", {"n": n}) == 2 * n
        assert time.monotonic() - begun < NEIGHBOUR_S


ORDER = b'{"product": "tea", "count": 3}'
PATH = "/shops/a/orders/1"


def test_a_thousand_who_stop_in_the_middle_cost_little_and_are_answered_in_the_end(
    node: Serving, crowd: Crowd
) -> None:
    serves_neighbours(node)
    before = node.resident_bytes()
    request = post(PATH, ORDER)
    members = crowd.join(MANY)
    for member in members:
        member.sendall(request[:-5])
    serves_neighbours(node)
    assert node.resident_bytes() - before < 64 * MIB
    for member in members:
        member.sendall(request[-5:])
    answers = [answer(member) for member in members]
    # Whoever finds no worker in a second is told so, and nobody is left without an answer.
    assert {status for status, _ in answers} <= {200, 429}
    good = [json.loads(body) for status, body in answers if status == 200]
    assert len(good) > MANY / 2
    assert all(found["total"] == 3 for found in good)
    serves_neighbours(node)


def test_callers_who_send_byte_by_byte_harm_nobody(node: Serving, crowd: Crowd) -> None:
    request = post(PATH, ORDER, headers=b"x-filler: " + b"a" * 40 + b"\r\n")
    members = crowd.join(100)
    for at in range(len(request)):
        for member in members:
            member.send(request[at : at + 1])
        if at % 50 == 0:
            serves_neighbours(node, 1)
    assert [answer(member)[0] for member in members] == [200] * 100


def test_headers_of_ten_thousand_bytes_are_read_and_of_a_hundred_thousand_refused(
    node: Serving, crowd: Crowd
) -> None:
    [fine, large] = crowd.join(2)
    fine.sendall(post(PATH, ORDER, headers=b"x: " + b"a" * 10_000 + b"\r\n"))
    assert answer(fine)[0] == 200
    large.sendall(post(PATH, ORDER, headers=b"x: " + b"a" * 100_000 + b"\r\n"))
    status, body = answer(large)
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"product": "tea"} extra', b"[" * 100_000])
def test_a_body_that_is_no_json_is_the_callers_fault(node: Serving, crowd: Crowd, body: bytes) -> None:
    [member] = crowd.join()
    member.sendall(post(PATH, body))
    status, said = answer(member)
    assert (status, json.loads(said)["error"]["code"]) in ((422, "invalid_event"), (400, "invalid_payload"))


def test_a_body_shorter_than_it_says_is_not_run_and_its_caller_is_told(node: Serving, crowd: Crowd) -> None:
    [member] = crowd.join()
    before = node.client.stats()["functions"]["plain.place"]["sync"]
    member.sendall(post(PATH, ORDER, length=len(ORDER) + 10))
    member.shutdown(socket.SHUT_WR)
    assert answer(member)[0] == 400
    assert node.client.stats()["functions"]["plain.place"]["sync"] == before


def test_a_caller_who_closes_his_half_gets_his_answer(node: Serving, crowd: Crowd) -> None:
    for member in crowd.join(20):
        member.sendall(post(PATH, ORDER))
        member.shutdown(socket.SHUT_WR)
    for member in crowd.members:
        assert answer(member)[0] == 200
        assert member.recv(1) == b""


def test_a_body_above_its_limit_is_refused_before_it_is_read(node: Serving, crowd: Crowd) -> None:
    before = node.resident_bytes()
    for member in crowd.join(50):
        member.sendall(post(PATH, b"x" * 60_000, length=100 * MIB))
    assert {answer(member)[0] for member in crowd.members} == {413}
    assert node.resident_bytes() - before < 32 * MIB


def test_callers_who_hang_up_at_once_leave_nothing_behind(node: Serving, crowd: Crowd) -> None:
    request = post(PATH, ORDER)
    for at in range(MANY):
        [member] = crowd.join()
        member.sendall(request[: at % (len(request) + 1)])
        member.close()
        crowd.members.clear()
    serves_neighbours(node)
    wait_until(lambda: health(node)["attempts_held"] == 0, "a node at rest")


def health(node: Serving) -> dict[str, float]:
    text = node.client.backend.request("GET", "/metrics").body.decode()
    found = [line.split() for line in text.splitlines() if line.startswith("headrace_node_")]
    return {name.removeprefix("headrace_node_"): float(value) for name, value in found}


def test_readers_who_do_not_read_keep_only_their_functions_busy(
    node: Serving, crowd: Crowd, tmp_path: Path
) -> None:
    before = node.resident_bytes()
    where = quote(str(tmp_path))
    for number, member in enumerate(crowd.join(5, receive_bytes=16384)):
        member.sendall(
            f"GET /flood?folder={where}&name=r{number} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        )
    for number in range(5):
        wait_until((tmp_path / f"r{number}-given").exists, f"reader {number}")
    serves_neighbours(node)
    assert node.resident_bytes() - before < 32 * MIB
    for member in crowd.members:
        member.close()
    for number in range(5):
        wait_until((tmp_path / f"r{number}-ended").exists, f"the end of {number}")
