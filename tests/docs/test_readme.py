"""What README.md shows is run: its file of functions on a node, and its script as it stands."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pages import ROOT, blocks, page

from headrace import Client
from headrace.runtime.code import request_for
from headrace.runtime.embedded import EmbeddedNode
from headrace.runtime.settings import Settings

WAIT_S = 30.0
README = page("README.md")


def written(folder: Path) -> dict[str, Path]:
    """The Python blocks of the page as the files that their first lines name."""
    made = {}
    for block in blocks(README, "python"):
        name = block.splitlines()[0].removeprefix("# ")
        made[name] = folder / name
        made[name].parent.mkdir(exist_ok=True)
        made[name].write_text(block, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    written(folder)
    return folder


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[Client]:
    """A node that serves the folder of functions, as `headrace serve functions/` does."""
    settings = Settings(data=place / "served", workers=2, port=0)
    node = EmbeddedNode(settings, request_for([str(place / "functions")]))
    with node as client:
        yield client


def shown_json() -> list[Any]:
    return [msgspec.json.decode(block) for block in blocks(README, "json")]


def first_job(client: Client) -> str:
    left = client.deadline(WAIT_S, "the upload to start its job")
    while True:
        for job in client.jobs(function="shop.total"):
            return str(job["job_id"])
        client.pause_s(min(0.05, left()))


def test_the_page_holds_a_file_of_functions_and_a_script(tmp_path: Path) -> None:
    assert [*written(tmp_path)] == ["functions/shop.py", "script.py"]


def test_the_route_answers_what_the_page_shows(client: Client) -> None:
    answer = client.backend.request("GET", "/greet/Ada", query={"loud": "true"})

    assert answer.status == 200
    assert msgspec.json.decode(answer.body) == shown_json()[0]


def test_a_wrong_parameter_is_answered_with_its_name(client: Client) -> None:
    answer = client.backend.request("GET", "/greet/Ada", query={"loud": "perhaps"})

    assert answer.status == 422
    assert msgspec.json.decode(answer.body)["error"]["fields"][0]["loc"] == "loud"


def test_the_upload_of_the_page_gives_the_result_of_the_page(client: Client, place: Path) -> None:
    [line] = [line for line in README.splitlines() if line.strip().startswith("printf ")]
    content = line[line.index("'") + 1 : line.rindex("'")].replace("\\n", "\n")
    (place / "served" / "buckets" / "orders" / "monday.csv").write_text(content)

    job = client.job(first_job(client))
    assert job.result(WAIT_S) == shown_json()[1]
    kept = client.get_object(f"s3://totals/{job.id}/result.json")
    assert msgspec.json.decode(kept) == shown_json()[1]


def test_a_unit_test_just_calls_the_function(place: Path) -> None:
    found: dict[str, Any] = {"__name__": "shop"}
    exec((place / "functions" / "shop.py").read_text(encoding="utf-8"), found)

    assert found["greet"]("Ada") == {"greeting": "Hello, Ada!"}


def test_the_script_prints_what_the_page_shows(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=place,
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.returncode) == (blocks(README, "text")[0], 0), done.stderr


def test_the_excerpt_of_the_reviews_job_is_the_example() -> None:
    example = page("functions", "reviews.py").splitlines()
    quoted = README[README.index("## The reviews job") : README.index("`make demo INPUT=")]
    lines = [line[4:] for line in quoted.splitlines() if line.startswith("    ")]

    assert len(lines) == 4
    assert [line for line in lines if line not in example] == []
