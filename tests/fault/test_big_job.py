"""The big job: many chunks, every kind of kill, one exact answer."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fault.big_job import CHUNKS
from tests.fault.reviews_csv import expected_of, write_reviews
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("big_job.py")
MADE_BYTES = 8 << 20
FULL_BYTES = 256 << 20
KILLED_BYTES = 9 << 20
ROUNDS = 20


def put_file(node: Serving, path: Path, key: str) -> str:
    node.client.make_bucket("inbox")
    node.client.put_object(f"s3://inbox/{key}", path)
    return f"s3://inbox/{key}"


def check_counted_once(node: Serving, job: dict[str, Any], expected: dict[str, Any]) -> None:
    """The answer is that of one process, and each chunk is in it once: by its number, and by the manifest."""
    result, chunks = job["result"], job["chunks"]
    assert {name: result[name] for name in expected} == expected
    assert result["chunks"] == chunks
    assert result["places"] == chunks * (chunks - 1) // 2
    assert result["squares"] == (chunks - 1) * chunks * (2 * chunks - 1) // 6

    folder = f"s3://results/{job['job_id']}"
    manifest = json.loads(node.client.get_object(f"{folder}/manifest.json"))
    assert [part["index"] for part in manifest["chunks"]] == list(range(chunks))
    assert {part["status"] for part in manifest["chunks"]} == {"succeeded"}
    assert len({part["object"] for part in manifest["chunks"]}) == chunks
    rows = [json.loads(node.client.get_object(part["object"]))["rows"] for part in manifest["chunks"][:20]]
    assert sum(rows) <= expected["rows"]
    assert json.loads(node.client.get_object(f"{folder}/result.json")) == result


def check_accounts(node: Serving, job: dict[str, Any]) -> None:
    """The counters hold the job's invocations once each: its plan, its chunks, and the tree above them."""
    of = node.check_books()["functions"][job["function"]]
    accepted, width = 1 + job["chunks"], job["chunks"]
    while width > 1:
        width = -(-width // 16)
        accepted += width
    accepted += job["chunks"] == 1  # one chunk has no tree: `finish` is a step of its own
    assert (of["accepted"], of["succeeded"]) == (accepted, accepted)


def run_at_sizes(folder: Path, size: int, names: list[str], within_s: float) -> None:
    write_reviews(folder / "made.csv", size)
    expected = expected_of(folder / "made.csv")
    assert expected["newlines"] > 0
    with serving(CODE, folder=folder) as node:
        url = put_file(node, folder / "made.csv", "made.csv")
        for name in names:
            job = node.client.submit_job(f"big.{name}", url).wait(within_s)
            assert job["status"] == "succeeded", job
            assert job["warnings"] == []
            assert (
                job["chunks"]
                >= size // (int(CHUNKS[name].split()[0]) << (20 if "MiB" in CHUNKS[name] else 10)) // 2
            )
            check_counted_once(node, job, expected)
            check_accounts(node, job)


def test_a_file_with_quoted_newlines_gives_the_answer_of_one_process_at_every_chunk_size(
    tmp_path: Path,
) -> None:
    run_at_sizes(tmp_path, MADE_BYTES, ["k16", "k64", "k256", "m1", "m16"], 60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_quarter_gibibyte_gives_the_answer_of_one_process_at_every_chunk_size(tmp_path: Path) -> None:
    run_at_sizes(tmp_path, FULL_BYTES, ["k64", "m1", "m16"], 300)


def kill_something(node: Serving, chance: random.Random) -> str:
    """SIGKILL to the node, its zygote, one worker or all of them; a node is started again."""
    what = chance.choice(("node", "zygote", "worker", "worker", "all workers"))
    if what == "node":
        node.kill()
        wait_until(lambda: not node.leftover(), "no process of the killed node", within_s=10)
        node.start()
        return what
    victims = [node.zygote()] if what == "zygote" else node.workers()
    if what == "worker" and victims:
        victims = [chance.choice(victims)]
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue  # it ended by itself: as good
    return what


@pytest.mark.timeout(240)
def test_a_job_whose_node_zygote_and_workers_are_killed_again_and_again_counts_every_chunk_once(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(1 << 32))
    print(f"replay with FAULT_SEED={seed}")
    chance = random.Random(seed)
    write_reviews(tmp_path / "made.csv", KILLED_BYTES)
    expected = expected_of(tmp_path / "made.csv")
    with serving(CODE, folder=tmp_path) as node:
        url = put_file(node, tmp_path / "made.csv", "made.csv")
        job = node.client.submit_job("big.slow", url)
        killed = []
        for _ in range(ROUNDS):
            done = _done(node, job.id)
            more = done + chance.randint(1, 12)
            wait_until(lambda at=more: _done(node, job.id) >= at, f"{more} chunks")  # type: ignore[misc]
            time.sleep(
                chance.uniform(0.0, 0.08)
            )  # the moment is what is tried out here; nothing waits for it
            assert _status(node, job.id)["status"] in ("planning", "running"), (
                "the kills must land in the middle"
            )
            killed.append(kill_something(node, chance))
        print("killed:", ", ".join(killed))
        ended = node.client.job(job.id).wait(90)

        assert ended["status"] == "succeeded", ended
        check_counted_once(node, ended, expected)
        check_accounts(node, ended)
        assert node.stop() == 0
        assert node.leftover() == []


def _status(node: Serving, id: str) -> dict[str, Any]:
    return node.client.job(id).status()


def _done(node: Serving, id: str) -> int:
    return int(_status(node, id)["done"])
