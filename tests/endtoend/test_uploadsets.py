"""Sets of uploads on a real node: functions and jobs get them whole, once, over kills, and too late."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("set_functions.py")


def drop(node: Serving, bucket: str, key: str, data: bytes = b"1") -> None:
    """As a careful program does it: written beside, then renamed into place."""
    path = node.data / "buckets" / bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = node.data / "beside"
    beside.write_bytes(data)
    beside.replace(path)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("sets")
    with serving(CODE, folder=folder, workers=1, env={"HEADRACE_SWEEP_S": "1"}) as node:
        yield node


def ended(node: Serving, function: str, count: int = 1, status: str = "succeeded") -> list[dict[str, Any]]:
    """The function's invocations, once so many have ended like that."""

    def look() -> list[dict[str, Any]] | None:
        found = list(node.client.invocations(function=function, status=status))
        return found if len(found) >= count else None

    return wait_until(look, f"{count} of {function} to be {status}")


def job_of(node: Serving, function: str, number: int = 1) -> dict[str, Any]:
    """The end of the function's `number`th job."""

    def look() -> dict[str, Any] | None:
        found = list(node.client.jobs(function=function))[::-1]
        return found[number - 1] if len(found) >= number else None

    found = wait_until(look, f"job {number} of {function}")
    wait_until(lambda: node.client.job(found["job_id"]).status()["ended_at"], "the job's end")
    return node.client.job(found["job_id"]).status()


def test_a_function_gets_a_set_when_its_last_file_is_there(node: Serving) -> None:
    for name in ("a", "b", "c"):
        drop(node, "days", f"d 1/{name}.csv", name.encode())
    [one] = ended(node, "sets.day")

    assert one["result"] == {"set": "d 1", "by": {"day": "d 1"}, "text": "abc", "complete": True}
    node.check_books()


def test_a_job_cuts_all_files_of_a_set(node: Serving) -> None:
    for number in range(3):
        rows = "".join(f"{n}\n" for n in range(number * 100, number * 100 + 100))
        drop(node, "tables", f"d1/{number}.csv", f"n\n{rows}".encode())
    drop(node, "tables", "d1/empty.csv", b"")
    drop(node, "tables", "d1/_SUCCESS", b"")
    job = job_of(node, "sets.total")

    assert (job["status"], job["result"], job["input"]) == ("succeeded", sum(range(300)), {"objects": 4})
    assert job["chunks"] > 10


def test_a_job_over_items_gets_the_files_and_later_the_late_ones(node: Serving) -> None:
    for name in range(5):
        drop(node, "images", f"summer/{name}.jpg", b"x" * 10)
    drop(node, "images", "done/summer")
    job = job_of(node, "sets.album")
    assert (job["result"], job["chunks"], job["input"]) == (50, 3, {"items": 5})
    drop(node, "images", "summer/late.jpg", b"x" * 7)

    assert job_of(node, "sets.album", 2)["result"] == 7


def test_a_function_that_writes_into_its_own_set_is_stopped(node: Serving) -> None:
    drop(node, "loop", "x/0")
    [dead] = ended(node, "sets.again", status="dead")

    assert dead["error"]["code"] == "upload_loop"
    assert "sets.again" in dead["error"]["message"]
    assert len(ended(node, "sets.again")) == 3


def test_a_set_whose_time_is_up_is_a_dead_letter_and_a_failed_job(node: Serving) -> None:
    drop(node, "slow", "d1/a")
    [dead] = ended(node, "sets.pair", status="dead")
    [told] = ended(node, "sets.told")
    job = job_of(node, "sets.pairs")

    assert (dead["error"]["code"], dead["attempts"]) == ("set_incomplete", 0)
    assert "1 of 2 files" in dead["error"]["message"]
    assert told["result"] == "set_incomplete"
    assert (job["status"], job["error"]["code"]) == ("failed", "set_incomplete")
    letters = node.client.dead_letters(function="sets.pair")
    assert [one["invocation_id"] for one in letters] == [dead["invocation_id"]]
    node.client.redrive(dead["invocation_id"])
    [again] = ended(node, "sets.pair")
    assert again["result"] == 1
    node.check_books()


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("ledger.after:5", marks=pytest.mark.slow),
        pytest.param("set.before:2", marks=pytest.mark.slow),
        "set.after:2",
    ],
)
def test_each_set_runs_once_although_the_node_is_killed(tmp_path: Path, point: str) -> None:
    env = {"HEADRACE_SWEEP_S": "1", "HEADRACE_FAULT": point, "HEADRACE_FAULT_ONCE": str(tmp_path / "struck")}
    node = Serving(CODE, folder=tmp_path, workers=1, env=env)
    try:
        node.start()
        for name in ("a", "b", "c"):
            for day in range(5):
                drop(node, "days", f"{day}/{name}.csv")
        assert node.wait_ended() == -signal.SIGKILL
        node.start()
        found = ended(node, "sets.day", 5)
        drop(node, "days", "9/a.csv")
        drop(node, "days", "9/b.csv")
        drop(node, "days", "9/c.csv")
        found = ended(node, "sets.day", 6)
        books = node.check_books()["functions"]["sets.day"]
    finally:
        node.close()
    assert Counter(one["result"]["set"] for one in found) == Counter(["0", "1", "2", "3", "4", "9"])
    assert books["accepted"] == 6
