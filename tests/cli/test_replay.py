"""`headrace replay` against a real node: a past invocation runs here, with its code or with mine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Serving, clean_environment, wait_until

FIRST = """
import helper
from headrace import App, Lines, Upload

app = App("shop")

@app.function(retries=0)
def share(event, context):
    print("sharing")
    context.log.info("said", id=context.invocation_id, attempt=context.attempt)
    whole = event["whole"]
    return helper.divide(whole, event["by"])

@app.on(Upload("inbox"))
@app.function(retries=0)
def size(event, context):
    with context.objects.open(event.bucket, event.key, end=3) as head:
        first = head.read()
    context.objects.put("outbox", "size.txt", b"new")
    with context.objects.writer("outbox", "second.txt") as out:
        out.write(b"more")
    names = [info.key for info in context.objects.list("outbox")]
    context.objects.delete("outbox", "size.txt")
    left = [info.key for info in context.objects.iterate("outbox")]
    functions = [item["name"] for item in context.client.functions()]
    data = context.objects.get(event.bucket, event.key)
    return [first.decode(), len(data), names, left, "shop.size" in functions]

@app.job(split=Lines(chunk="1 KiB"))
def lengths(chunk):
    return sum(len(line) for line in chunk.records())
"""
HELPER = "def divide(whole, by):\n    return whole / by\n"


class Place:
    """A node, its code, and commands in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.code = folder / "functions"
        self.code.mkdir()
        (self.code / "app.py").write_text(FIRST)
        (self.code / "helper.py").write_text(HELPER)
        self.serving = Serving(self.code, folder=folder).start()
        # What a replay has written is kept in a temporary folder: here it goes with the test.
        self.env = {"HEADRACE_DATA": str(self.serving.data), "TMPDIR": str(folder)}
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        wait_until(
            lambda: list(self.serving.data.glob("buckets/headrace-system/code/*.json")), "the snapshot"
        )

    def ended(self, function: str, payload: Any) -> str:
        client = self.serving.client
        id = client.submit(function, payload).wait_accepted(10)
        record = client.invocation(id, wait_s=30)
        assert record["status"] in ("succeeded", "dead")
        return id

    def replay(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "headrace", "replay", *arguments], env=clean_environment(self.env),
            cwd=self.elsewhere, input=stdin, text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def facts(self, *arguments: str) -> dict[str, Any]:
        done = self.replay(*arguments, "--json")
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("replay"))
    yield found
    found.serving.close()


@pytest.fixture
def mended(place: Place, tmp_path: Path) -> Path:
    """The code as a developer has mended it, in a folder of its own."""
    folder = tmp_path / "mended"
    folder.mkdir()
    (folder / "app.py").write_text(FIRST)
    (folder / "helper.py").write_text(HELPER.replace("whole / by", "whole / by if by else 0"))
    return folder


def test_the_recorded_code_fails_as_it_did_and_mine_does_not(place: Place, mended: Path) -> None:
    id = place.ended("shop.share", {"whole": 1, "by": 0})
    before = place.serving.client.stats()

    done = place.replay(id)
    assert done.returncode == 1
    assert done.stdout.startswith("sharing\n")
    assert f"INFO said id='{id}' attempt=1" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert done.stdout.endswith("same error\n")
    assert "as served by" in done.stdout

    done = place.replay(id, str(mended))
    assert done.returncode == 0, done.stderr
    assert "result" in done.stdout
    assert done.stdout.endswith("recorded: ZeroDivisionError: division by zero; here: a result\n")
    assert place.serving.client.stats() == before


def test_the_recorded_code_is_not_mixed_with_what_lies_here(place: Place) -> None:
    id = place.ended("shop.share", {"whole": 6, "by": 2})
    here = place.elsewhere / "helper.py"
    here.write_text("raise RuntimeError('the wrong file')\n")
    try:
        found = place.facts(id)
    finally:
        here.unlink()

    assert (found["ok"], found["result"], found["same"]) == (True, 3.0, True)


def test_after_a_reload_the_version_of_its_time_is_replayed(place: Place) -> None:
    failed = place.ended("shop.share", {"whole": 1, "by": 0})
    (place.code / "helper.py").write_text(HELPER.replace("whole / by", "-1"))
    try:
        place.serving.stop()
        place.serving.start()
        place_json = place.serving.data / "buckets" / "headrace-system" / "code"
        wait_until(lambda: len(list(place_json.glob("*.json"))) == 2, "the second snapshot")
        later = place.ended("shop.share", {"whole": 1, "by": 0})

        assert place.facts(failed)["comparison"] == "same error"
        assert place.facts(later)["result"] == -1
    finally:
        (place.code / "helper.py").write_text(HELPER)
        place.serving.stop()
        place.serving.start()


def test_pdb_looks_at_the_exception_in_its_own_frame(place: Place) -> None:
    id = place.ended("shop.share", {"whole": 41, "by": 0})
    done = place.replay(id, "--pdb", stdin="p whole + 1\nup\np event\nq\n")

    assert "(Pdb) 42" in done.stdout
    assert "{'whole': 41, 'by': 0}" in done.stdout
    assert "same error" in done.stdout


def test_break_stops_at_the_functions_first_line(place: Place) -> None:
    id = place.ended("shop.share", {"whole": 8, "by": 2})
    done = place.replay(id, "--break", stdin="p sorted(event)\nn\nc\n")

    assert 'print("sharing")' in done.stdout
    assert done.stdout.index("['by', 'whole']") < done.stdout.index("sharing\n", done.stdout.index("(Pdb)"))
    assert done.stdout.endswith("same result\n")


def test_leaving_the_debugger_early_is_no_outcome(place: Place) -> None:
    id = place.ended("shop.share", {"whole": 8, "by": 2})
    done = place.replay(id, "--break", stdin="q\n")

    assert done.returncode == 1
    assert "the debugger was left before the function had ended" in done.stderr


def test_an_upload_is_replayed_on_its_object_and_writes_stay_here(place: Place) -> None:
    client = place.serving.client
    client.make_bucket("outbox")
    client.make_bucket("inbox")
    client.put_object("s3://outbox/other.txt", b"old")
    client.put_object("s3://inbox/a b.txt", b"abcdef")

    def of_upload() -> str | None:
        found = [item for item in client.invocations(function="shop.size") if item["status"] == "succeeded"]
        return found[0]["invocation_id"] if found else None

    id = wait_until(of_upload, "the upload's invocation")
    client.put_object("s3://outbox/size.txt", b"untouched")

    done = place.replay(id, "--json")
    found = json.loads(done.stdout)
    assert found["result"] == [
        "abc", 6, ["other.txt", "second.txt", "size.txt"], ["other.txt", "second.txt"], True,
    ]  # fmt: skip
    assert [item["url"] for item in found["written"]] == ["s3://outbox/size.txt", "s3://outbox/second.txt"]
    assert Path(found["written_to"], "outbox", "second.txt").read_bytes() == b"more"
    assert client.get_object("s3://outbox/size.txt") == b"untouched"

    assert place.facts(id, "--write")["written"] == []
    assert "size.txt" not in [item["key"] for item in client.list_objects("s3://outbox/")]

    client.put_object("s3://inbox/a b.txt", b"changed!")
    done = place.replay(id)
    assert done.returncode == 1
    assert "s3://inbox/a b.txt has changed since: its ETag was" in done.stderr
    assert "--current" in done.stderr
    found = place.facts(id, "--current")
    assert found["result"][:2] == ["cha", 8]
    assert found["same"] is False
    assert "has changed since" in found["notes"][0]


def test_a_chunk_of_a_job_is_replayed(place: Place) -> None:
    client = place.serving.client
    client.make_bucket("lines")
    client.put_object("s3://lines/a.txt", b"12345\n" * 1000)
    job = client.submit_job("shop.lengths", "s3://lines/a.txt")
    job.result(30)
    [chunk, *_] = client.call("GET", f"/v1/jobs/{job.id}/chunks")["items"]

    assert place.facts(chunk["invocation_id"])["same"] is True


def test_code_that_does_not_load_or_lacks_the_function_is_said(place: Place, tmp_path: Path) -> None:
    id = place.ended("shop.share", {"whole": 8, "by": 2})
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    (tmp_path / "other.py").write_text("from headrace import App\napp = App('other')\n")

    assert "nothing_like_it" in place.replay(id, str(tmp_path / "broken.py")).stderr
    assert "no function named 'shop.share'" in place.replay(id, str(tmp_path / "other.py")).stderr
    assert "there is nothing at" in place.replay(id, "no/such.py").stderr
    assert "there is no invocation" in place.replay("00000000000000aa").stderr


def test_a_process_that_dies_is_an_outcome(place: Place, tmp_path: Path) -> None:
    id = place.ended("shop.share", {"whole": 8, "by": 2})
    (tmp_path / "app.py").write_text(
        "import os\nfrom headrace import App\napp = App('shop')\n"
        "@app.function\ndef share(event):\n    os._exit(3)\n"
    )  # fmt: skip
    found = place.facts(id, str(tmp_path / "app.py"))

    assert found["error"]["message"] == "the process ended with exit code 3 before the function did"


def test_a_node_without_that_version_says_what_to_do(place: Place) -> None:
    id = place.ended("shop.share", {"whole": 8, "by": 2})
    folder = place.serving.data / "buckets" / "headrace-system" / "code"
    hidden = place.serving.data / "hidden"
    os.rename(folder, hidden)
    try:
        place.serving.kill()
        os.chmod(place.code / "app.py", 0o644)
        os.utime(place.code / "app.py", (4e9, 4e9))  # as if it were saved while it is being loaded
        place.serving.start()
        done = place.replay(id)
        assert done.returncode == 1
        assert "--code here" in done.stderr
        assert place.replay(id, str(place.code)).returncode == 0
    finally:
        os.utime(place.code / "app.py", (1e9, 1e9))
        os.rename(hidden, folder)
