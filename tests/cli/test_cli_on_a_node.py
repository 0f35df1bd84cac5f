"""The command line against a real node."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.cli.command import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))
from served_node import RunningNode, serving

HEADRACE = [sys.executable, "-m", "headrace"]
Headrace = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    yield from serving(tmp_path_factory.mktemp("node"))


@pytest.fixture
def headrace(
    running_node: RunningNode, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Headrace:
    """Runs a command in an empty folder: exit code, output, errors. The node is found by its data."""
    monkeypatch.setenv("HEADRACE_DATA", str(running_node.data))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        sys.stdout.flush()
        shown = capfdbinary.readouterr()
        return code, shown.out.decode(), shown.err.decode()

    return call


def test_invoke_prints_the_result(headrace: Headrace) -> None:
    assert headrace("invoke", "shop.echo", "--payload", '{"a": "ü"}') == (0, '{"a":"ü"}\n', "")


def test_a_payload_may_come_from_a_file(headrace: Headrace) -> None:
    Path("body.json").write_text("[1]", encoding="utf-8")

    assert headrace("invoke", "shop.echo", "-p", "@body.json")[:2] == (0, "[1]\n")


def test_a_payload_may_come_from_standard_input(running_node: RunningNode) -> None:
    done = subprocess.run(
        [*HEADRACE, "invoke", "shop.echo", "-p", "-", "--url", running_node.url],
        env={**os.environ, "HEADRACE_TOKEN": running_node.token},
        input=b'"piped"',
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )

    assert (done.returncode, done.stdout) == (0, b'"piped"\n')


def test_a_failing_function_is_one_line(headrace: Headrace) -> None:
    code, out, err = headrace("invoke", "shop.fail", "-p", '{"why": "two\\nlines"}')

    assert (code, out) == (1, "")
    assert err.startswith("error: ValueError: two lines. ")
    assert err.count("\n") == 1


def test_async_prints_the_id_and_wait_its_result(headrace: Headrace) -> None:
    code, out, _ = headrace("invoke", "shop.echo", "-p", "5", "--async", "--tag", "cli")
    id = out.strip()

    assert code == 0
    assert headrace("invocations", "show", id, "--wait", "20", "--json")[0] == 0
    assert id in headrace("invocations", "list", "--tag", "cli")[1]
    assert headrace("invoke", "shop.echo", "-p", "6", "--wait")[:2] == (0, "6\n")
    assert json.loads(headrace("invoke", "shop.echo", "-p", "7", "--async", "--json")[1]).keys() == {
        "invocation_id"
    }


def test_an_invocation_is_cancelled(headrace: Headrace) -> None:
    id = headrace("invoke", "shop.never", "--async")[1].strip()

    assert headrace("invocations", "cancel", id)[0] == 0
    record = json.loads(headrace("invocations", "show", id, "--wait", "20", "--json")[1])
    assert record["status"] == "cancelled"
    code, _, err = headrace("invocations", "cancel", id)
    assert code == 1
    assert "cancelled" in err


def test_dead_letters_are_listed_shown_and_redriven(headrace: Headrace) -> None:
    id = headrace("invoke", "shop.fail", "-p", '{"why": "bad"}', "--async")[1].strip()
    headrace("invocations", "show", id, "--wait", "20")

    assert id in [
        item["invocation_id"] for item in json.loads(headrace("dead-letters", "list", "--json")[1])["items"]
    ]
    assert "ValueError: bad" in headrace("dead-letters", "list")[1]
    assert "ValueError: bad" in headrace("dead-letters", "show", id)[1]
    assert headrace("dead-letters", "redrive", id)[:2] == (0, f"{id} is waiting again.\n")
    headrace("invocations", "show", id, "--wait", "20")
    code, out, _ = headrace("dead-letters", "redrive", "--function", "shop.fail")
    assert code == 0
    assert "shop.fail are waiting again" in out


def test_all_of_a_function_and_of_a_tag_are_cancelled(headrace: Headrace) -> None:
    ids = [headrace("invoke", "shop.never", "--async", "--tag", tag)[1].strip() for tag in "xxy"]

    code, out, _ = headrace("invocations", "cancel", "--function", "shop.never", "--tag", "x")
    assert (code, out) == (0, "2 that waited are cancelled, 0 that ran are being stopped.\n")
    code, out, _ = headrace("invocations", "cancel", "--function", "shop.never", "--json")
    assert (code, json.loads(out)) == (0, {"cancelled": 1, "stopping": 0})
    for id in ids:
        assert json.loads(headrace("invocations", "show", id, "--json")[1])["status"] == "cancelled"
    code, _, err = headrace("invocations", "cancel", "--job", "00ff")
    assert code == 1
    assert "00ff" in err


def test_a_dead_letter_is_redriven_with_an_edited_event_and_given_up(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = headrace("invoke", "shop.fail", "-p", '{"why": "first"}', "--async", "--tag", "edit")[1].strip()
    headrace("invocations", "show", id, "--wait", "20")

    assert headrace("dead-letters", "redrive", id, "--payload", '{"why": "second"}')[0] == 0
    headrace("invocations", "show", id, "--wait", "20")
    assert "ValueError: second" in headrace("dead-letters", "show", id)[1]
    Path("editor.py").write_text(
        "import sys, pathlib\nfile = pathlib.Path(sys.argv[1])\n"
        "file.write_text(file.read_text().replace('second', 'third'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} editor.py")
    assert headrace("dead-letters", "redrive", id, "--edit")[:2] == (0, f"{id} is waiting again.\n")
    headrace("invocations", "show", id, "--wait", "20")
    shown = json.loads(headrace("dead-letters", "show", id, "--json")[1])
    assert (shown["payload"], shown["error"]["message"]) == ({"why": "third"}, "third")
    code, _, err = headrace("dead-letters", "redrive", id, "--edit")
    assert code == 1
    assert "was not changed" in err
    found = ["dead-letters", "list", "--tag", "edit", "--code", "function_error", "--since", "1h", "--json"]
    assert [item["invocation_id"] for item in json.loads(headrace(*found)[1])["items"]] == [id]
    assert headrace("dead-letters", "discard", id)[:2] == (0, f"{id} is cancelled.\n")
    assert json.loads(headrace(*found)[1])["items"] == []


def test_a_keys_time_is_given_in_words(headrace: Headrace) -> None:
    options = ["--async", "--idempotency-key", "order 1", "--idempotency-ttl", "15 min"]
    first = headrace("invoke", "shop.echo", "-p", "1", *options)
    assert (first[0], headrace("invoke", "shop.echo", "-p", "1", *options)[1]) == (0, first[1])
    for wrong in (["--idempotency-ttl", "31 d"], ["--idempotency-ttl", "soon"]):
        code, _, err = headrace("invoke", "shop.echo", "--idempotency-key", "k", *wrong)
        assert (code, "idempotency" in err) == (1, True)
    assert headrace("invoke", "shop.echo", "--idempotency-ttl", "5")[0] == 1


def test_logs_show_what_was_printed(headrace: Headrace) -> None:
    id = headrace("invoke", "shop.fail", "-p", '{"why": "x"}', "--async")[1].strip()
    headrace("invocations", "show", id, "--wait", "20")

    assert "  about to fail\n" in headrace("logs", id)[1]
    [entry] = json.loads(headrace("logs", id, "--json")[1])["entries"]
    assert entry["text"] == "about to fail\n"


def test_functions_are_listed_and_shown(headrace: Headrace) -> None:
    code, out, _ = headrace("functions")

    assert code == 0
    assert out.splitlines()[0].split() == ["NAME", "KIND", "TRIGGERS", "STATE", "ABOUT"]
    assert "Raises what it is told." in out
    assert json.loads(headrace("functions", "shop.echo", "--json")[1])["name"] == "shop.echo"
    assert headrace("functions", "shop.eco")[0] == 1


def test_objects_go_in_and_come_out(headrace: Headrace) -> None:
    Path("photo.jpg").write_bytes(b"\xff\xd8")

    assert headrace("buckets", "make", "photos")[0] == 0
    assert json.loads(headrace("buckets", "list", "--json")[1])["buckets"] == ["photos"]
    assert headrace("objects", "put", "photo.jpg", "s3://photos/in/")[:2] == (0, "s3://photos/in/photo.jpg\n")
    assert "in/photo.jpg" in headrace("objects", "list", "s3://photos/in")[1]
    assert headrace("objects", "get", "s3://photos/in/photo.jpg", "copy.jpg")[:2] == (0, "copy.jpg\n")
    assert Path("copy.jpg").read_bytes() == b"\xff\xd8"
    code, _, err = headrace("objects", "get", "s3://photos/none", "none.jpg")
    assert code == 1
    assert "there is no object s3://photos/none" in err
    assert sorted(path.name for path in Path().iterdir()) == ["copy.jpg", "photo.jpg"]


def test_the_books_balance(headrace: Headrace) -> None:
    code, out, _ = headrace("verify")

    assert code == 0
    assert out.endswith("The books balance.\n")
    assert json.loads(headrace("verify", "--json")[1])["balanced"] is True


def test_doctor_finds_the_node(headrace: Headrace) -> None:
    [node] = [c for c in json.loads(headrace("doctor", "--json")[1])["checks"] if c["name"] == "node"]

    assert node["status"] == "ok"


def test_a_job_is_submitted_waited_for_and_listed(headrace: Headrace) -> None:
    Path("lines.txt").write_bytes(b"12345\n" * 1000)
    headrace("buckets", "make", "inbox")
    headrace("buckets", "make", "results")
    headrace("objects", "put", "lines.txt", "s3://inbox/")
    job = ["job", "submit", "shop.lengths", "--input", "s3://inbox/lines.txt", "--wait"]

    assert headrace("job", "list")[:2] == (0, "There are no such jobs.\n")
    code, out, _ = headrace(*job)
    assert (code, out) == (0, "5000\n")
    record = json.loads(headrace(*job, "--json")[1])
    assert (record["status"], record["result"]) == ("succeeded", 5000)
    assert record["job_id"] in headrace("job", "list", "--status", "succeeded")[1]
    assert "shop.lengths" in headrace("job", "show", record["job_id"])[1]
    assert len(headrace("job", "show", record["job_id"], "--chunks")[1].splitlines()) == record["chunks"] + 1


def test_an_unknown_job_is_named(headrace: Headrace) -> None:
    code, _, err = headrace("job", "show", "00000000000000aa")
    assert code == 1
    assert "there is no job" in err
