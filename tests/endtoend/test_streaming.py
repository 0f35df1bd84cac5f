"""Streamed answers of a running node: what they carry, that nothing heaps up, and how each may end early."""

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest

from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("streaming_functions.py")
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    flags = ["--workers", "2"]
    with serving(CODE, folder=tmp_path_factory.mktemp("streams"), flags=flags) as found:
        yield found


class Caller:
    """One GET that is read as its reader likes."""

    def __init__(self, node: Serving, path: str, *, receive_bytes: int | None = None) -> None:
        place = urlsplit(node.client.url)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        self._connection.connect()
        if receive_bytes is not None:
            self._connection.sock.setsockopt(1, 8, receive_bytes)  # SOL_SOCKET, SO_RCVBUF
        self._connection.request("GET", path)
        self.answer = self._connection.getresponse()

    def leave(self) -> None:
        self.answer.close()
        self._connection.close()

    def __enter__(self) -> http.client.HTTPResponse:
        return self.answer

    def __exit__(self, *_: object) -> None:
        self.leave()


def ended(folder: Path, name: str) -> None:
    wait_until((folder / f"{name}-ended").exists, f"the function's finally block for {name}")


def log_of(node: Serving, id: str) -> str:
    def look() -> str:
        return "".join(str(entry["text"]) for entry in node.client.logs(id))

    return wait_until(look, f"the log of {id}")


# ---- what a stream carries ----


def test_plain_values_are_lines_of_json(node: Serving) -> None:
    with Caller(node, "/rows?n=1000") as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert [json.loads(line)["n"] for line in answer] == list(range(1000))
        assert len(answer.headers["headrace-invocation-id"]) == 16


def test_text_and_bytes_are_sent_as_they_are(node: Serving) -> None:
    with Caller(node, "/text") as answer:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.read().decode() == "one, zwö"
    with Caller(node, "/bytes?mib=3") as answer:
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.read() == bytes(range(256)) * 4096 * 3


def test_events_have_the_form_that_browsers_read(node: Serving) -> None:
    with Caller(node, "/events") as answer:
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == (
            "text/event-stream",
            "no-store",
        )
        assert answer.read().decode() == (
            'id: 1\nevent: greeting\nretry: 1500\ndata: first\ndata: line two\n\ndata: {"n":2}\n\n'
        )


def test_a_stream_may_have_a_status_and_headers_of_its_own(node: Serving) -> None:
    with Caller(node, "/shaped?name=row") as answer:
        assert (answer.status, answer.headers["content-type"]) == (203, "text/csv")
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.read() == b"row,0\nrow,1\nrow,2\n"


def test_a_callers_input_cannot_write_headers(node: Serving) -> None:
    with Caller(node, "/split?value=" + quote("a\r\nset-cookie: b")) as answer:
        assert answer.status == 500
        assert "set-cookie" not in answer.headers


def test_a_stream_of_nothing_is_an_answer(node: Serving) -> None:
    with Caller(node, "/nothing") as answer:
        assert (answer.status, answer.read()) == (200, b"")


def test_a_failure_before_the_first_piece_is_answered_as_any_other(node: Serving) -> None:
    with Caller(node, "/fails-at-once") as answer:
        assert answer.status == 500
        assert json.loads(answer.read())["error"]["code"] == "function_error"


def test_a_caller_who_takes_no_stream_gets_all_pieces_as_a_list(node: Serving) -> None:
    assert node.client.invoke("flow.rows", {"n": 3}) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert node.client.invoke("flow.events") == [
        {"data": "first\nline two", "event": "greeting", "id": "1", "retry_s": 1.5},
        {"data": {"n": 2}},
    ]
    assert node.client.submit("flow.text").result(timeout=20) == ["one, ", "zwö"]


def test_many_short_streams_at_once_are_not_mixed_up(node: Serving) -> None:
    def call(n: int) -> bool:
        if n % 3 == 0:
            return bool(node.client.invoke("flow.plain", {"n": n}) == n + 1)
        with Caller(node, f"/rows?n={n}") as answer:
            return answer.status == 200 and [json.loads(line)["n"] for line in answer] == list(range(n))

    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(call, range(300)))


# ---- nothing heaps up ----


@pytest.mark.parametrize("path", ["/bytes", "/async-bytes"])
def test_two_hundred_megabytes_pass_through_a_node_and_a_worker_that_stay_small(
    node: Serving, path: str
) -> None:
    with Caller(node, f"{path}?mib=8") as answer:
        answer.read()
    before = {pid: resident(pid) for pid in [node.pid, *(one.pid for one in node.workers())]}
    most: dict[int, int] = {}
    total = 0
    with Caller(node, f"{path}?mib=200") as answer:
        while piece := answer.read(4 * MIB):
            total += len(piece)
            for pid in before:
                most[pid] = max(most.get(pid, 0), resident(pid))
    assert total == 200 * MIB
    for pid, was in before.items():
        assert most[pid] - was < 12 * MIB, (pid == node.pid, most[pid] - was)


def resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def test_a_reader_who_stops_holds_the_function_up_and_neighbours_are_served(
    node: Serving, tmp_path: Path
) -> None:
    caller = Caller(node, f"/flood?folder={quote(str(tmp_path))}&name=slow", receive_bytes=65536)
    given = tmp_path / "slow-given"
    wait_until(given.exists, "the first MiB")
    steady = Steady(given)
    wait_until(steady.look, "a function that waits for its caller")
    held_up = int(given.read_text())
    assert held_up < 12
    for n in range(20):
        assert node.client.invoke("flow.plain", {"n": n}) == n + 1
    assert int(given.read_text()) == held_up
    assert len(caller.answer.read(30 * MIB)) == 30 * MIB
    caller.leave()
    ended(tmp_path, "slow")


class Steady:
    """Whether a file says the same at fifty looks in a row."""

    def __init__(self, path: Path) -> None:
        self._path, self._text, self._times = path, "", 0

    def look(self) -> bool:
        text = self._path.read_text()
        self._times = self._times + 1 if text == self._text else 0
        self._text = text
        return self._times >= 50


# ---- how a stream may end early ----


@pytest.mark.parametrize("path", ["ticks", "stuck", "async-stuck", "flood"])
def test_a_function_whose_caller_leaves_ends_with_its_finally_block(
    node: Serving, tmp_path: Path, path: str
) -> None:
    caller = Caller(node, f"/{path}?folder={quote(str(tmp_path))}&name=left")
    assert caller.answer.read(3)
    caller.leave()
    ended(tmp_path, "left")
    assert node.client.invoke("flow.plain", {"n": 1}) == 2


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/fails", "RuntimeError: the pump has run dry"),
        ("/unserialisable", "$.b"),
        ("/dies", "exit code 3"),
    ],
)
def test_a_failure_in_mid_stream_breaks_the_connection_off_and_is_logged(
    node: Serving, path: str, said: str
) -> None:
    with Caller(node, path) as answer:
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        log = log_of(node, answer.headers["headrace-invocation-id"])
    assert "the stream was broken off" in log
    assert said in log


def test_a_function_that_streams_beyond_its_timeout_is_ended_and_cut_off(
    node: Serving, tmp_path: Path
) -> None:
    with Caller(node, f"/slow-pieces?folder={quote(str(tmp_path))}") as answer:
        with pytest.raises(http.client.IncompleteRead) as broken:
            answer.read()
        assert broken.value.partial.startswith(b"....")
        assert "ran longer than its 0.5 s" in log_of(node, answer.headers["headrace-invocation-id"])
    ended(tmp_path, "too-long")


def test_a_worker_that_is_killed_cuts_its_stream_off(node: Serving, tmp_path: Path) -> None:
    with Caller(node, f"/ticks?folder={quote(str(tmp_path))}&name=killed") as answer:
        assert answer.read(5) == b"tick\n"
        wait_until((tmp_path / "killed-begun").exists, "the second piece")
        pid = wait_until((tmp_path / "killed-begun").read_text, "the worker's pid")
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert "SIGKILL" in log_of(node, answer.headers["headrace-invocation-id"])
    assert node.client.invoke("flow.plain", {"n": 1}) == 2


def test_a_stream_that_broke_off_is_in_the_access_log_as_such(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path, workers=1, env={"HEADRACE_ACCESS_LOG": "true"}) as node:
        for path in ("/text", "/fails"):
            with Caller(node, path) as answer, contextlib.suppress(http.client.IncompleteRead):
                answer.read()

        def lines() -> dict[str, bool] | None:
            found = [json.loads(line) for line in node.words().splitlines() if '"bytes"' in line]
            shown = {line["path"]: line.get("broken", False) for line in found}
            return shown if len(shown.keys() & {"/text", "/fails"}) == 2 else None

        found = wait_until(lines, "both lines")
        assert (found["/text"], found["/fails"]) == (False, True)


def test_a_caller_who_takes_nothing_for_too_long_is_cut_off(tmp_path: Path) -> None:
    env = {"HEADRACE_STREAM_IDLE_S": "0.3"}
    with serving(CODE, folder=tmp_path, workers=1, env=env) as node:
        caller = Caller(node, f"/flood?folder={quote(str(tmp_path))}&name=idle", receive_bytes=65536)
        ended(tmp_path, "idle")
        caller.leave()


def test_a_node_that_stops_lets_a_stream_end_and_ends_those_of_events(tmp_path: Path) -> None:
    where = quote(str(tmp_path))
    with (
        serving(CODE, folder=tmp_path, workers=2) as node,
        Caller(node, f"/finish?folder={where}&name=fin") as finishing,
        Caller(node, f"/async-stuck?folder={where}&name=sse") as listening,
    ):
        for name in ("fin", "sse"):
            wait_until((tmp_path / f"{name}-begun").exists, f"the first piece of {name}")
        node.signal(signal.SIGTERM)
        assert listening.read() == b"data: one\n\n"  # to its end: browsers come again by themselves
        ended(tmp_path, "sse")
        (tmp_path / "fin-go").touch()
        assert finishing.read() == b"one\ntwo\n"
        assert node.wait_ended() == 0


def test_a_node_that_stops_cuts_off_what_does_not_end_in_time(tmp_path: Path) -> None:
    with (
        serving(CODE, folder=tmp_path, workers=1, env={"HEADRACE_DRAIN_S": "0.2"}) as node,
        Caller(node, f"/ticks?folder={quote(str(tmp_path))}&name=drain") as answer,
    ):
        wait_until((tmp_path / "drain-begun").exists, "the first piece")
        node.signal(signal.SIGTERM)
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert (tmp_path / "drain-ended").exists()
        assert node.wait_ended() == 0
