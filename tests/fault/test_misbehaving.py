"""Misbehaving functions, all at once on one node: each has its own clear end, and nobody else is harmed."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace import App
from headrace.runtime.errors import InvalidSettings
from tests.serving import Serving, processes_of, serving, wait_until

CODE = Path(__file__).with_name("misbehaving_functions.py")
HUGE_BYTES = 24 << 20

# function: (payload, status, the error's code, what its message says)
ENDS: dict[str, tuple[Any, str, str | None, str]] = {
    "loop_in_c": (None, "dead", "timeout", "longer than its 1 s"),
    "allocate": (None, "dead", "out_of_memory", "memory"),
    "allocate_in_children": (None, "dead", "out_of_memory", "its processes used"),
    "leave": (None, "dead", "worker_crashed", "exit code 7"),
    "exit_politely": (None, "dead", "function_error", "sys.exit(3)"),
    "read_nowhere": (None, "dead", "worker_crashed", "SIGSEGV"),
    "fork_and_hang": (None, "dead", "timeout", "longer than its 1 s"),
    "leave_a_daemon": (None, "succeeded", None, ""),
    "print_a_lot": (None, "succeeded", None, ""),
    "recurse": ({"n": 0}, "dead", "function_error", "maximum recursion depth"),
    "complain": (None, "dead", "function_error", "no such kettle"),
    "not_a_number": (None, "dead", "unserialisable_result", "$.values[1] is NaN"),
    "an_object": (None, "dead", "unserialisable_result", "$.it is a value (object)"),
    "huge": ({"bytes": HUGE_BYTES}, "succeeded", None, ""),
    "close_everything": (None, "dead", "worker_crashed", ""),
}


def accepted(node: Serving, function: str, payload: Any) -> str:
    path = f"/v1/functions/bad.{function}/invoke"
    return str(node.client.call("POST", path, query={"mode": "async"}, body=payload)["invocation_id"])


@pytest.mark.timeout(120)
def test_each_misbehaving_function_has_its_own_end_and_its_neighbours_finish(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        pid = node.pid
        ids, neighbours = {}, []
        for function, (payload, *_) in ENDS.items():
            ids[function] = accepted(node, function, payload)
            body = [{"n": n} for n in range(20)]
            found = node.client.call("POST", "/v1/functions/bad.neighbour/invoke-many", body=body)
            neighbours += found["invocation_ids"]
        ends = {name: node.client.invocation(id, wait_s=60) for name, id in ids.items()}

        wrong = {}
        for function, (_, status, code, words) in ENDS.items():
            end = ends[function]
            error = end["error"] or {}
            if (end["status"], error.get("code")) != (status, code) or words not in error.get("message", ""):
                wrong[function] = (end["status"], error)
        assert wrong == {}
        assert ends["leave"]["error"]["exit_code"] == 7
        assert ends["read_nowhere"]["error"]["signal"] == "SIGSEGV"
        assert ends["complain"]["error"]["type"] == "LookupError"
        assert "misbehaving_functions.py" in ends["complain"]["error"]["stack"]

        for id in neighbours:
            end = node.client.invocation(id, wait_s=30)
            assert (end["status"], end["attempts"]) == ("succeeded", 1)

        [entry] = node.client.logs(ids["print_a_lot"])
        assert entry["bytes"] > 100 << 20
        assert len(entry["text"]) <= (1 << 20) + 100
        assert entry["text"].startswith("the first line\n")
        assert entry["text"].endswith("the last line\n")
        assert "bytes cut" in entry["text"]

        assert node.alive
        assert node.pid == pid
        assert node.client.invoke("bad.neighbour", {"n": 1}) == 2
        books = node.check_books()
        assert books["total"]["succeeded"] == len(neighbours) + 3
        assert books["total"]["dead"] == len(ENDS) - 3

        def only_workers() -> bool:
            own = {node.zygote().pid, *(worker.pid for worker in node.workers())}
            return set(node.leftover()) <= own and not [
                child for worker in node.workers() for child in psutil.Process(worker.pid).children()
            ]

        wait_until(only_workers, "no process but the zygote and its workers", within_s=10)
        assert node.stop() == 0
        assert node.leftover() == []


@pytest.mark.timeout(60)
def test_a_function_that_ends_the_zygote_each_time_is_dead_after_its_attempts(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        id = accepted(node, "kill_zygote", None)
        neighbours = [accepted(node, "neighbour", {"n": n}) for n in range(20)]
        end = node.client.invocation(id, wait_s=30)

        assert (end["status"], end["attempts"]) == ("dead", 2), end
        assert end["error"]["code"] == "worker_crashed"
        for at in neighbours:
            assert node.client.invocation(at, wait_s=20)["status"] == "succeeded"
        assert node.client.submit("bad.neighbour", {"n": 1}).result(20) == 2
        node.check_books()


def test_a_node_that_cannot_start_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("no folder")
    with (
        pytest.raises(InvalidSettings, match="objects"),
        App("app").node(data=tmp_path / "data", objects=str(tmp_path / "objects")),
    ):
        pass  # it does not come this far
    assert processes_of(tmp_path / "data") == []


@pytest.mark.timeout(60)
def test_a_synchronous_caller_is_told_each_end_with_its_own_status(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:

        def status(function: str, body: bytes = b"") -> tuple[int, str]:
            path = f"/v1/functions/bad.{function}/invoke"
            headers = {"Content-Type": "application/json"}
            answer = node.client.backend.request("POST", path, body=body, headers=headers)
            found = json.loads(answer.body)
            return answer.status, found["error"]["code"] if isinstance(
                found, dict
            ) and "error" in found else ""

        assert status("loop_in_c") == (504, "timeout")
        assert status("allocate") == (500, "out_of_memory")
        assert status("leave") == (500, "worker_crashed")
        assert status("complain") == (500, "function_error")
        assert status("not_a_number") == (500, "unserialisable_result")
        assert status("huge", b'{"bytes": 1000000}') == (200, "")
        assert status("neighbour", b'{"n": "many"}') == (422, "invalid_event")
