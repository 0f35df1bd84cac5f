"""`Client.stream` over HTTP and in one process: the same bytes, the same ends."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import AsyncClient, Client, Sse
from headrace.runtime.client.streamed import Streamed
from headrace.runtime.errors import BadRequest, FunctionError, InvalidEvent, StreamBroken, UnknownFunction
from tests.endtoend.streaming_functions import app
from tests.serving import wait_until


@pytest.fixture(scope="module", params=["http", "in this process"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with app.node(data=tmp_path_factory.mktemp("data"), workers=2, http=True, log_level="error") as embedded:
        if request.param == "http":
            with Client(embedded.url, embedded.backend._node.secret) as client:
                yield client
        else:
            yield embedded


def test_bytes_come_as_the_function_gives_them(client: Client) -> None:
    with client.stream("flow.octets", {"mib": 20}) as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
        assert len(answer.invocation_id) == 16
        assert sum(map(len, answer)) == 20 << 20


def test_items_are_the_values_of_its_lines(client: Client) -> None:
    with client.stream("flow.rows", {"n": 5000}) as answer:
        assert [item["n"] for item in answer.items()] == list(range(5000))


def test_events_are_read_back_as_they_were_given(client: Client) -> None:
    with client.stream("flow.events") as answer:
        assert list(answer.events()) == [
            Sse("first\nline two", event="greeting", id="1", retry_s=1.5),
            Sse('{"n":2}', id="1"),
        ]


def test_a_status_and_headers_of_its_own_are_seen(client: Client) -> None:
    with client.stream("flow.shaped", {"name": "x"}) as answer:
        assert (answer.status, answer.headers["content-type"]) == (203, "text/csv")
        assert list(answer.lines()) == ["x,0", "x,1", "x,2"]


def test_the_result_of_a_function_that_does_not_stream_comes_in_one_piece(client: Client) -> None:
    with client.stream("flow.plain", {"n": 1}) as answer:
        assert list(answer) == [b"2"]


def test_what_goes_wrong_before_the_beginning_is_raised_at_once(client: Client) -> None:
    with pytest.raises(FunctionError, match="before anything"):
        client.stream("flow.fails_at_once")
    with pytest.raises(UnknownFunction):
        client.stream("flow.nobody")
    with pytest.raises(InvalidEvent):
        client.stream("flow.rows", {"n": "many"})


def test_what_goes_wrong_in_the_middle_is_raised_after_what_came_before(client: Client) -> None:
    with client.stream("flow.fails") as answer:
        pieces = iter(answer)
        assert next(pieces) == b"some"
        with pytest.raises(StreamBroken) as broken:
            next(pieces)
    assert broken.value.detail["invocation_id"] == answer.invocation_id


def test_a_caller_who_leaves_ends_the_function(client: Client, tmp_path: Path) -> None:
    with client.stream("flow.ticks", {"folder": str(tmp_path), "name": "left"}) as answer:
        assert next(iter(answer)).startswith(b"tick")
    wait_until((tmp_path / "left-ended").exists, "the function's finally block")


def test_a_stream_takes_no_idempotency_key(client: Client) -> None:
    answer = client.backend.request(
        "POST",
        "/v1/functions/flow.rows/invoke",
        query={"mode": "stream"},
        body=b'{"n": 1}',
        headers={"Content-Type": "application/json", "Idempotency-Key": "k"},
    )
    assert (answer.status, BadRequest.code in answer.body.decode()) == (400, True)


async def test_the_awaited_client_reads_streams_as_well(client: Client) -> None:
    asynchronous = AsyncClient(backend=client.backend)
    async with asyncio.timeout(20):
        assert [item["n"] async for item in asynchronous.stream("flow.rows", {"n": 3}, of="items")] == [
            0,
            1,
            2,
        ]
        pieces = [piece async for piece in asynchronous.stream("flow.text")]
    assert b"".join(pieces).decode() == "one, zwö"


# ---- lines and events, however they are cut ----


class Cut:
    """A backend's stream of given pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self._pieces = iter(pieces)

    def read(self, size: int) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        pass


def test_lines_are_whole_wherever_the_pieces_are_cut() -> None:
    data = "one\r\ntwö\n\nthree".encode()
    for size in range(1, len(data) + 1):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert list(Streamed(Cut(*pieces)).lines()) == ["one", "twö", "", "three"]


def test_comments_and_unknown_fields_of_events_are_skipped() -> None:
    data = b": still here\n\nfoo: 1\nid: 7\nretry: soon\ndata:a\ndata: b\n\nevent: x\n\ndata\n\n"
    assert list(Streamed(Cut(data)).events()) == [Sse("a\nb", id="7"), Sse("", id="7")]
