"""The examples as a user meets them: on a whole node, through its client."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from functions import hello, nightly, reviews, thumbnails
from headrace import Client, UploadEvent
from headrace.runtime.cli.demo.reviews_file import write_reviews
from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import FunctionError, InvalidEvent, JobFailed

WAIT_S = 30.0


def wait_for(client: Client, found: Iterator[Any]) -> Any:
    """What `found` yields first that is not None, asked again and again until a deadline."""
    left = client.deadline(WAIT_S, "what the test waits for")
    for value in found:
        if value is not None:
            return value
        client.pause_s(min(0.05, left()))
    raise AssertionError("the search ended without a find")


def upload(client: Client, folder: Path, *, bucket: str, key: str, data: bytes) -> None:
    """Put a file into a bucket's folder as a user would: written elsewhere, then moved in."""
    client.make_bucket(bucket)
    (folder / "incoming").write_bytes(data)
    (folder / "incoming").replace(folder / "node" / "buckets" / bucket / key)


def test_hello_answers_by_name(tmp_path: Path) -> None:
    with hello.app.node(data=tmp_path, workers=1) as client:
        assert client.invoke("hello.greet", {"name": "Ada", "shout": True}) == {"greeting": "HELLO, ADA!"}
        assert client.invoke("hello.greet_all", {"names": ["Alan"]}) == {"greetings": ["Hello, Alan!"]}
        assert client.invoke("hello.add", {"a": 2, "b": 3}) == 5
        with pytest.raises(InvalidEvent, match="shout"):
            client.invoke("hello.greet", {"name": "Ada", "shout": "perhaps"})


def test_an_uploaded_file_of_reviews_is_analysed_as_in_one_process(tmp_path: Path) -> None:
    write_reviews(tmp_path / "made.csv", 300_000, Random(8))
    data = (tmp_path / "made.csv").read_bytes()

    def started() -> Iterator[dict[str, Any] | None]:
        while True:
            yield next(client.jobs(function="reviews.score"), None)

    with reviews.app.node(data=tmp_path / "node", workers=2) as client:
        upload(client, tmp_path, bucket="inbox", key="made.csv", data=data)
        handle = client.job(wait_for(client, started())["job_id"])
        found = handle.result(WAIT_S)
        kept = json.loads(client.get_object(f"s3://results/{handle.id}/result.json"))
        rated = client.invoke("reviews.rate", {"product": "kettle", "body": {"text": "I love it!"}})

    with (tmp_path / "made.csv").open(newline="", encoding="utf-8") as file:
        expected = reviews.summary(reviews.tally(csv.DictReader(file)))
    assert found == expected
    assert kept == expected
    assert rated["sentiment"] == "positive"


def test_a_file_without_the_column_fails_its_job_with_the_columns_it_has(tmp_path: Path) -> None:
    with reviews.app.node(data=tmp_path / "node", workers=1, defaults={"retries": 0}) as client:
        upload(client, tmp_path, bucket="store", key="bad.csv", data=b"id,comment\n1,great\n")
        handle = client.submit_job("reviews.score", "s3://store/bad.csv")

        assert handle.wait(WAIT_S)["status"] == "failed"
        with pytest.raises(JobFailed, match="the file has: id, comment"):
            handle.result()


def test_the_published_snippets_give_the_published_figure_on_a_node(
    tmp_path: Path, shared_data: Path
) -> None:
    data = (shared_data / "reviews" / "amazon_review_snippets.tsv").read_bytes()
    with reviews.app.node(data=tmp_path / "node", workers=2) as client:
        upload(client, tmp_path, bucket="store", key="snippets.tsv", data=data)
        found = client.submit_job("reviews.score_snippets", "s3://store/snippets.tsv").result(WAIT_S)

    assert found["reviews"] == 3708
    assert found["correlation"] == pytest.approx(0.5896, abs=5e-5)


def test_an_uploaded_picture_gets_its_thumbnails(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (400, 200), (10, 90, 200)).save(out, "PNG")

    def thumbnail() -> Iterator[dict[str, Any] | None]:
        while True:
            shown = client.list_objects("s3://thumbnails/sea.png/")
            yield next((item for item in shown if item["key"].endswith("small.webp")), None)

    with thumbnails.app.node(data=tmp_path / "node", workers=1) as client:
        client.make_bucket("thumbnails")
        upload(client, tmp_path, bucket="pictures", key="sea.png", data=out.getvalue())
        found = wait_for(client, thumbnail())
        data = client.get_object(f"s3://thumbnails/{found['key']}")

    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (128, 64)


def test_the_nightly_report_is_written_when_it_is_asked_for(tmp_path: Path) -> None:
    tomorrow = datetime.fromtimestamp(SystemClock().now(), UTC) + timedelta(days=1)
    found = {"reviews": 4, "positive": 3, "neutral": 1, "negative": 0, "mean_compound": 0.5}
    with nightly.app.node(data=tmp_path, workers=1) as client:
        client.make_bucket("results")
        client.put_object("s3://results/job-1/result.json", json.dumps(found).encode())
        report = client.invoke("nightly.report", {"time": tomorrow.isoformat()})
        kept = json.loads(client.get_object(f"s3://reports/{report['day']}.json"))

    assert report["jobs"] == ["job-1"]
    assert kept == report


def test_a_damaged_picture_ends_with_a_message_that_names_it(tmp_path: Path) -> None:
    with thumbnails.app.node(data=tmp_path / "node", workers=1) as client:
        client.make_bucket("other")
        client.put_object("s3://other/letter.txt", b"Dear Sir or Madam")
        event = UploadEvent.of(
            "other", "letter.txt", size=17, etag="1", sequencer="01", time="2026-03-01T00:00:00Z"
        )
        with pytest.raises(FunctionError, match="is not a picture"):
            client.invoke("thumbnails.make", event)
