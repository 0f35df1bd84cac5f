"""Sample events are exactly what the triggers produce."""

from typing import Any

import pytest
import sample_app
from hypothesis import given
from hypothesis import strategies as st

from headrace import HttpEvent, ScheduleEvent, UploadEvent
from headrace.runtime.errors import BadRequest
from headrace.runtime.sample import sample_event, sampled_kinds
from headrace.testing import AppUnderTest, VirtualClock

pytestmark = pytest.mark.headrace(sample_app.app)


def sample(kind: str, **options: Any) -> dict[str, Any]:
    said = {name.replace("_", "-"): [value] for name, value in options.items()}
    return sample_event(kind, said, moment=1_900_000_000.25, id="0" * 16)


@pytest.mark.parametrize("key", ["a.txt", "folder/a b+c%20ü'\".txt"])
def test_the_sample_of_an_upload_is_the_event_of_that_upload(headrace_app: AppUnderTest, key: str) -> None:
    info = headrace_app.put("inbox", key, "hello")
    headrace_app.run_until_idle()
    [real] = headrace_app.events("sample.received")

    made = headrace_app.sample(
        "sample.received", key=key, size=5, etag=info.etag, sequencer=info.sequencer, source="headrace:memory"
    )

    assert made == real
    assert UploadEvent(made).key == key


def test_the_sample_of_an_upload_to_a_folder_is_its_event(tmp_path: Any) -> None:
    code = tmp_path / "watched.py"
    code.write_text(
        "from headrace import App, Upload\napp = App('watched')\n"
        "@app.on(Upload('inbox'))\n@app.function\ndef seen(event):\n    return event\n"
    )
    with AppUnderTest(code, workers=1) as app:
        info = app.put("inbox", "a.txt", "hello")
        app.run_until_idle()
        [real] = app.events("watched.seen")

        made = app.sample(
            "watched.seen", key="a.txt", size=5, etag=info.etag, sequencer=info.sequencer,
            time=real["Records"][0]["eventTime"],
        )  # fmt: skip

    assert made == real


def test_the_sample_of_a_schedule_is_its_next_event(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    made = headrace_app.sample("sample.nightly")
    headrace_clock.advance(86_400)
    [real] = headrace_app.events("sample.nightly")

    assert {**made, "id": ""} == {**real, "id": ""}
    assert len(made["id"]) == len(real["id"])
    assert ScheduleEvent(made).due.isoformat() == "2030-01-01T02:00:00+00:00"


def test_the_sample_of_a_call_is_its_event(headrace_app: AppUnderTest) -> None:
    path, body = "/echo/a%20b?x=1&x=2&y=", {"text": "hé"}
    headers = {
        "Host": "localhost",
        "User-Agent": "headrace",
        "Accept": "*/*",
        "X-By": "me",
        "Cookie": "a=1; b=2",
    }
    real = headrace_app.http("POST", path, json=body, headers=headers).json()

    headers["authorization"] = real["headers"]["authorization"]  # the client of the test has a token
    made = headrace_app.sample(
        "sample.echo",
        path=path,
        body=body,
        header=[f"{name}: {value}" for name, value in headers.items()],
        request_id=real["requestContext"]["requestId"],
    )

    assert made == real
    event = HttpEvent(made)
    assert (event.path, event.path_parameters, event.json()) == ("/echo/a b", {"name": "a b"}, body)
    assert event.query == {"x": "1,2", "y": ""}
    assert made["cookies"] == ["a=1", "b=2"]


def test_a_sample_runs_the_function_as_its_trigger_would(headrace_app: AppUnderTest) -> None:
    headrace_app.objects.put("inbox", "x.txt", b"12345")
    assert headrace_app.invoke("sample.received", headrace_app.sample("sample.received", key="x.txt")) == {
        "key": "x.txt",
        "size": 5,
    }
    assert headrace_app.invoke("sample.nightly", headrace_app.sample("sample.nightly"))


def test_what_is_not_said_is_what_the_trigger_takes(headrace_app: AppUnderTest) -> None:
    event = UploadEvent(headrace_app.sample("sample.received"))
    assert (event.bucket, event.key) == ("inbox", "example.txt")
    with pytest.raises(BadRequest, match="passes over"):
        headrace_app.sample("sample.received", key="x.csv")
    with pytest.raises(BadRequest, match="no path of"):
        headrace_app.sample("sample.note", path="/other")


@given(key=st.text(min_size=1, max_size=60).filter(lambda key: key.isprintable()))
def test_any_key_comes_out_as_it_was_said(key: str) -> None:
    event = UploadEvent(sample("upload", bucket="any", key=key))

    assert (event.bucket, event.key, event.size) == ("any", key, 1024)


def test_samples_need_no_function() -> None:
    assert ScheduleEvent(sample("schedule", time="2030-03-31T01:00:00Z"))["time"] == "2030-03-31T01:00:00Z"
    call = HttpEvent(sample("http", method="put", path="/a/b?c=d", body="text", header="x: y"))
    assert (call.method, call.path, call.query, call.body) == ("PUT", "/a/b", {"c": "d"}, b"text")
    assert call.headers["content-type"] == "text/plain"
    assert call.headers["x"] == "y"
    assert set(sampled_kinds()) >= {"upload", "schedule", "http"}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("uplaod", {}, "no sample events of the kind 'uplaod'"),
        ("upload", {"sise": "3"}, "no 'sise'"),
        ("upload", {"size": "many"}, "no whole number"),
        ("upload", {"time": "yesterday"}, "no moment"),
        ("upload", {"time": "2030-01-01T00:00:00"}, "no moment"),
        ("upload", {"bucket": "No"}, "bucket"),
        ("upload", {"key": "x" * 2000}, "key"),
        ("schedule", {"detail": "{"}, "no JSON"),
        ("http", {"method": "BREW"}, "method"),
        ("http", {"header": "none"}, "header"),
        ("http", {"path": "x"}, "path"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        sample(kind, **options)
