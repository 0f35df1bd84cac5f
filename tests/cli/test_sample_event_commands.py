"""`headrace event`, and `headrace invoke --event`, against a real node."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.cli.command import run
from tests.serving import Serving, serving

CODE = """
from headrace import App, Http, Schedule, Upload

app = App("shown")

@app.on(Upload("inbox", prefix="in/", suffix=".csv"))
@app.function
def upload(event):
    return event

@app.on(Schedule("rate(1 hour)", name="hourly", input={"deep": True}))
@app.function
def schedule(event):
    return event

@app.on(Http("POST", "/things/{name}"))
@app.function
def http(name: str, event):
    return event
"""

Headrace = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("node")
    code = folder / "shown.py"
    code.write_text(CODE)
    with serving(code, folder=folder, workers=1) as node:
        yield node


@pytest.fixture
def headrace(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Headrace:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        sys.stdout.flush()
        shown = capfdbinary.readouterr()
        return code, shown.out.decode(), shown.err.decode()

    return call


@pytest.fixture
def on_the_node(headrace: Headrace, node: Serving, monkeypatch: pytest.MonkeyPatch) -> Headrace:
    monkeypatch.setenv("HEADRACE_DATA", str(node.data))
    return headrace


def test_an_event_is_printed_without_a_node(headrace: Headrace) -> None:
    code, out, err = headrace("event", "upload", "--bucket", "photos", "--key", "a b.jpg", "--size=12")

    assert (code, err) == (0, "")
    found = json.loads(out)["Records"][0]["s3"]
    assert (found["bucket"]["name"], found["object"]["key"], found["object"]["size"]) == (
        "photos",
        "a+b.jpg",
        12,
    )
    assert json.loads(headrace("event", "schedule")[1])["detail-type"] == "Scheduled Event"
    call = json.loads(
        headrace("event", "http", "--path", "/a?b=c", "--header", "X-A: 1", "--header", "X-B: 2")[1]
    )
    assert (call["rawPath"], call["headers"]["x-a"], call["headers"]["x-b"]) == ("/a", "1", "2")


def test_the_kinds_are_listed_with_what_may_be_said(headrace: Headrace) -> None:
    code, out, _ = headrace("event")

    assert code == 0
    assert {"upload", "schedule", "http", "  --key          the object's key, as it is"} <= set(
        out.splitlines()
    )


def test_a_function_runs_on_a_sample_of_its_own_trigger(on_the_node: Headrace, node: Serving) -> None:
    put = node.client.put_object("s3://inbox/elsewhere.csv", b"12345")
    code, out, err = on_the_node("invoke", "shown.upload", "--event", "upload", "--key", "in/a b.csv")
    assert (code, err) == (0, "")
    assert json.loads(out)["Records"][0]["s3"]["object"]["key"] == "in/a+b.csv"
    assert put is not None

    hourly = json.loads(on_the_node("invoke", "shown.schedule", "--event", "schedule")[1])
    assert hourly["resources"] == ["shown.schedule/schedule/hourly"]
    assert hourly["detail"] == {"deep": True}

    called = json.loads(
        on_the_node(
            "invoke", "shown.http", "--event", "http", "--path", "/things/lamp", "--body", '{"a": 1}'
        )[1]
    )
    assert called["pathParameters"] == {"name": "lamp"}
    assert called["body"] == '{"a": 1}'


def test_the_sample_of_an_object_that_is_there_is_about_it_as_it_is(
    on_the_node: Headrace, node: Serving
) -> None:
    node.client.put_object("s3://inbox/in/there.csv", b"12345")
    code, out, _ = on_the_node("invoke", "shown.upload", "--event", "upload", "--key", "in/there.csv")

    [listed] = list(node.client.list_objects("s3://inbox/in/there.csv"))
    found = json.loads(out)["Records"][0]["s3"]["object"]
    assert code == 0
    assert (found["size"], found["eTag"]) == (5, listed["etag"])


def test_an_event_may_be_that_of_a_functions_trigger(on_the_node: Headrace) -> None:
    code, out, _ = on_the_node("event", "upload", "--function", "shown.upload")

    assert code == 0
    assert json.loads(out)["Records"][0]["s3"]["object"]["key"] == "in/example.csv"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["event", "uplaod"], 1, "no sample events of the kind 'uplaod'"),
        (["event", "upload", "--sise", "1"], 1, "Did you mean size?"),
        (["event", "upload", "--size"], 1, "--size has no value"),
        (["event", "upload", "size"], 1, "says nothing of the event"),
        (["event", "upload", "--function", "shown.upload", "--key", "x.csv"], 1, "passes over"),
        (["invoke", "shown.upload", "--sise", "1"], 2, "there is no --sise"),
        (["invoke", "shown.upload", "--event", "upload", "-p", "{}"], 2, "exclude each other"),
    ],
)
def test_what_cannot_be_is_one_line(
    on_the_node: Headrace, arguments: list[str], code: int, said: str
) -> None:
    found, out, err = on_the_node(*arguments)

    assert (found, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
