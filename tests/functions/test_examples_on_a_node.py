"""The examples on a served node, in worker processes: what the tests beside this one leave out."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from functions import reviews, thumbnails
from headrace import Client
from headrace.runtime.cli.demo.reviews_file import write_reviews

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
