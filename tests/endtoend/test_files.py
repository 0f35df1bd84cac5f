"""Files that are dropped into a bucket of a running node, well made and otherwise."""

import csv
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions import reviews
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("file_jobs.py")
SIZES = ("k1", "k8", "k100", "m4")
HEADER = ["id", "rating", "text"]


def drop(node: Serving, bucket: str, key: str, data: bytes) -> None:
    """As a careful program does it: written beside, then renamed into place."""
    beside = node.data.parent / f"{key}.part"
    beside.write_bytes(data)
    beside.replace(node.data / "buckets" / bucket / key)


def jobs_of(node: Serving, key: str, function: str = "files.listed") -> list[dict[str, Any]]:
    """The jobs over an object, oldest first."""
    found = [job for job in node.client.jobs(function=function) if job["input"]["object"].endswith(f"/{key}")]
    return found[::-1]


def job_of(node: Serving, key: str, *, number: int = 1, function: str = "files.listed") -> dict[str, Any]:
    """The end of the `number`th job over an object."""

    def look() -> dict[str, Any] | None:
        found = jobs_of(node, key, function)
        return found[number - 1] if len(found) >= number else None

    found = wait_until(look, f"job {number} of {key}")
    return node.client.job(found["job_id"]).wait(30)


# ---- the published reviews ----


@pytest.mark.timeout(180)
def test_the_reviews_dropped_into_a_bucket_give_one_process_figures_at_every_chunk_size(
    tmp_path: Path, shared_data: Path
) -> None:
    source = shared_data / "reviews" / "amazon_review_snippets.tsv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, HEADER, delimiter="\t", quoting=csv.QUOTE_NONE)
        expected = reviews.summary(reviews.tally(rows))
    assert expected["reviews"] == 3708
    assert expected["correlation"] == pytest.approx(0.5896, abs=5e-5)

    with serving(CODE, folder=tmp_path) as node:
        drop(node, "inbox", "reviews.tsv", source.read_bytes())
        for size in SIZES:
            job = job_of(node, "reviews.tsv", function=f"files.score_{size}")
            assert job["status"] == "succeeded", job
            assert job["warnings"] == []
            found = job["result"]
            assert found["correlation"] == pytest.approx(expected["correlation"], rel=1e-12)
            assert found["mean_compound"] == pytest.approx(expected["mean_compound"], rel=1e-12)
            for exact in ("reviews", "positive", "neutral", "negative", "rated", "histogram"):
                assert found[exact] == expected[exact]
        node.check_books()


@pytest.mark.timeout(180)
def test_the_reviews_read_as_quoted_csv_equal_pythons_csv_over_the_whole_file(
    tmp_path: Path, shared_data: Path
) -> None:
    source = shared_data / "reviews" / "amazon_review_snippets.tsv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    expected = {"rows": len(rows), "check": sum(zlib.crc32("\x1f".join(row).encode()) for row in rows)}
    assert expected["rows"] == 3546

    with serving(CODE, folder=tmp_path) as node:
        node.client.make_bucket("store")
        node.client.put_object("s3://store/reviews.tsv", source)
        for size in SIZES:
            job = node.client.submit_job(f"files.read_{size}", "s3://store/reviews.tsv").wait(60)
            assert job["status"] == "succeeded", (size, job)
            assert job["result"] == expected, size
        replanned = next(node.client.jobs(function="files.read_k1"))
        assert "quotes are irregular" in " ".join(replanned["warnings"])
        node.check_books()


# ---- all sorts of files ----


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(CODE, folder=tmp_path_factory.mktemp("files")) as found:
        yield found


def rows_of(count: int) -> list[dict[str, str]]:
    return [{"n": str(n), "text": f"row {n}, of {count}"} for n in range(count)]


def csv_of(rows: list[dict[str, str]], *, end: str = "\n") -> str:
    return f"n,text{end}" + "".join(f'{row["n"]},"{row["text"]}"{end}' for row in rows)


@pytest.mark.parametrize(
    ("key", "before", "end", "cut"),
    [
        ("plain.csv", b"", "\n", 0),
        ("mark.csv", b"\xef\xbb\xbf", "\n", 0),
        ("windows.csv", b"", "\r\n", 0),
        ("unended.csv", b"", "\n", 1),
        ("all.csv", b"\xef\xbb\xbf", "\r\n", 2),
    ],
)
def test_a_file_is_read_whatever_its_line_ends_and_its_byte_order_mark(
    node: Serving, key: str, before: bytes, end: str, cut: int
) -> None:
    rows = rows_of(200)
    data = before + csv_of(rows, end=end).encode()
    drop(node, "drop", key, data[:-cut] if cut else data)
    job = job_of(node, key)

    assert job["status"] == "succeeded"
    assert job["chunks"] > 3
    assert job["result"] == rows
    assert job["warnings"] == []


def test_a_file_is_taken_up_when_its_writer_has_closed_it_and_not_before(node: Serving) -> None:
    rows = rows_of(100)
    text = csv_of(rows)
    with (node.data / "buckets" / "drop" / "slow.csv").open("w") as file:
        file.write(text[:700])
        file.flush()
        drop(node, "drop", "meanwhile.csv", csv_of(rows_of(1)).encode())
        job_of(node, "meanwhile.csv")
        assert jobs_of(node, "slow.csv") == []
        file.write(text[700:])

    assert job_of(node, "slow.csv")["result"] == rows
    drop(node, "drop", "afterwards.csv", csv_of(rows_of(1)).encode())
    job_of(node, "afterwards.csv")
    assert len(jobs_of(node, "slow.csv")) == 1


def test_a_file_that_is_replaced_is_taken_up_again(node: Serving) -> None:
    drop(node, "drop", "twice.csv", csv_of(rows_of(3)).encode())
    assert job_of(node, "twice.csv")["result"] == rows_of(3)
    drop(node, "drop", "twice.csv", csv_of(rows_of(5)).encode())
    assert job_of(node, "twice.csv", number=2)["result"] == rows_of(5)
    assert len(jobs_of(node, "twice.csv")) == 2


def test_a_file_that_is_put_over_http_is_taken_up_like_one_that_was_dropped(node: Serving) -> None:
    node.client.put_object("s3://drop/by http/ä #1.csv", csv_of(rows_of(2)).encode())
    assert job_of(node, "by http/ä #1.csv")["result"] == rows_of(2)


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"n,text\n"])
def test_a_file_without_records_succeeds_with_the_initial_result(node: Serving, data: bytes) -> None:
    key = f"empty-{len(data)}.csv"
    drop(node, "drop", key, data)
    job = job_of(node, key)
    assert (job["status"], job["result"]) == ("succeeded", [])


def test_a_file_in_another_encoding_fails_its_job_naming_the_byte(node: Serving) -> None:
    data = csv_of(rows_of(100)).encode() + 'x,"caf\u00e9"\n'.encode("latin-1")
    drop(node, "drop", "latin.csv", data)
    job = job_of(node, "latin.csv")

    assert job["status"] == "failed"
    assert job["error"]["code"] == "bad_encoding" or "ncoding" in job["error"].get("type", ""), job["error"]
    assert f"{data.index(0xE9):,}" in job["error"]["message"]
    assert "utf-8" in job["error"]["message"]


def test_a_row_with_too_few_columns_is_kept_and_the_job_says_where_it_is(node: Serving) -> None:
    whole = csv_of(rows_of(150))
    data = whole.encode() + b"short\n" + b"1,two,three\n"
    drop(node, "drop", "short.csv", data)
    job = job_of(node, "short.csv")

    assert job["status"] == "succeeded"
    assert job["result"][150] == {"n": "short", "text": None}
    warnings = " ".join(job["warnings"])
    assert "1 row has too few columns" in warnings
    assert f"{len(whole):,}" in warnings
    assert "too many columns" in warnings


def test_a_file_that_is_replaced_during_its_job_fails_the_job_and_nothing_is_mixed(
    node: Serving, tmp_path: Path
) -> None:
    head = "n,folder\n"
    line = f"1,{tmp_path}\n"
    node.client.make_bucket("store")
    node.client.put_object("s3://store/changing.csv", (head + line * 400).encode())
    job = node.client.submit_job("files.held", "s3://store/changing.csv")
    wait_until((tmp_path / "began").exists, "a chunk to begin")
    node.client.put_object("s3://store/changing.csv", (head + line * 300).encode())
    (tmp_path / "open").touch()
    ended = job.wait(30)

    assert ended["status"] == "failed"
    assert "s3://store/changing.csv was changed while" in ended["error"]["message"]
    assert node.client.job(job.id).status()["result"] is None
