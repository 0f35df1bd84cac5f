"""Events: plain JSON objects with helpers that decode what sources encode."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace import HttpEvent, ScheduleEvent, UploadEvent
from headrace.runtime.binding import as_event
from headrace.runtime.model.event import Event

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(KEYS)
@example("a b+c%20/ü/日本?&=#.csv")
@example("%2F")
@example("+")
def test_an_uploads_key_is_decoded_to_what_it_was(key: str) -> None:
    event = UploadEvent.of("inbox", key, size=3, etag="e", sequencer="0a", time="2026-01-01T00:00:00Z")
    again = UploadEvent(json.loads(json.dumps(event)))
    assert (again.bucket, again.key, again.size, again.etag) == ("inbox", key, 3, "e")
    assert again.url == f"s3://inbox/{key}"
    raw = again["Records"][0]["s3"]["object"]["key"]
    assert raw.isascii()
    assert " " not in raw


def test_an_upload_has_s3s_shape() -> None:
    event = UploadEvent.of(
        "b", "k/x y", size=1, etag="e", sequencer="01", time="t", name="ObjectCreated:Copy", version_id="v"
    )
    [record] = event["Records"]
    assert record["eventName"] == "ObjectCreated:Copy"
    assert record["s3"]["object"] == {
        "key": "k/x+y",
        "size": 1,
        "eTag": "e",
        "sequencer": "01",
        "versionId": "v",
    }
    assert event.record is record


def test_a_schedules_due_instant_is_a_moment_with_a_zone() -> None:
    event = ScheduleEvent.of("app.f/0", due="2026-03-29T01:00:00Z", id="1")
    assert event.due.isoformat() == "2026-03-29T01:00:00+00:00"
    assert event.schedule == "app.f/0"


@given(st.binary(max_size=50))
def test_an_http_body_is_the_bytes_that_were_sent(body: bytes) -> None:
    coded = HttpEvent(body=base64.b64encode(body).decode(), isBase64Encoded=True)
    assert coded.body == body


def test_an_http_event_reads_its_parts() -> None:
    event = HttpEvent(
        {
            "version": "2.0",
            "rawPath": "/a",
            "requestContext": {"http": {"method": "POST"}},
            "headers": {"x": "1"},
            "queryStringParameters": {"q": "2"},
            "pathParameters": {"p": "3"},
            "body": '{"n": 1}',
        }
    )
    assert (event.method, event.path, event.headers, event.query, event.path_parameters) == (
        "POST",
        "/a",
        {"x": "1"},
        {"q": "2"},
        {"p": "3"},
    )
    assert event.json() == {"n": 1}
    bare = HttpEvent()
    assert (bare.headers, bare.query, bare.path_parameters, bare.body) == ({}, {}, {}, b"")
    with pytest.raises(ValueError, match="Expecting value"):
        bare.json()


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"Records": []}, UploadEvent),
        ({"version": "2.0", "requestContext": {}}, HttpEvent),
        ({"source": "headrace.schedule"}, ScheduleEvent),
        ({"a": 1}, Event),
        ([1], list),
        (None, type(None)),
        ("x", str),
    ],
)
def test_a_payload_gets_the_helpers_of_its_kind(payload: object, kind: type) -> None:
    found = as_event(payload)
    assert type(found) is kind
    assert found == payload


def test_an_upload_event_says_what_happened() -> None:
    facts: dict[str, Any] = {"size": 1, "etag": "e", "sequencer": "1", "time": "2026-01-01T00:00:00.000Z"}
    came = UploadEvent.of("b", "k", **facts)
    gone = UploadEvent.of("b", "k", name="s3:ObjectRemoved:Delete", **facts)

    assert (came.name, came.removed) == ("ObjectCreated:Put", False)
    assert (gone.name, gone.removed) == ("ObjectRemoved:Delete", True)
