"""The reviews job: piece by piece, as a whole over real chunks, and on a node that the test drives."""

import csv
import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions import reviews
from headrace import Csv
from headrace.runtime.cli.demo.reviews_file import write_reviews
from headrace.runtime.jobs.chunk import chunks_of
from headrace.runtime.jobs.plan import plan
from headrace.runtime.jobs.source import BytesSource
from headrace.testing import AppUnderTest, Faults, VirtualClock

# vaderSentiment opens its lexicon by a function that Python 3.14 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:codecs.open:DeprecationWarning"),
    pytest.mark.headrace(reviews.app),
]

CONTEXT: Any = None  # neither job uses it


def run(data: bytes, spec: Csv, function: Any = reviews.score) -> dict[str, Any]:
    """The job as the runtime runs it, one chunk after the other."""
    source = BytesSource(data)
    tallies = [function(chunk, CONTEXT) for chunk in chunks_of(plan(spec, source), spec, source)]
    total = reviews.nothing()
    for found in tallies:
        total = reviews.merge(total, json.loads(json.dumps(found)))  # results travel as JSON
    return reviews.summary(total)


def csv_of(rows: Iterable[dict[str, object]]) -> bytes:
    rows = list(rows)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def test_reviews_are_counted_by_product_and_sentiment() -> None:
    found = run(
        csv_of(
            [
                {"product": "kettle", "review_text": "I love it, excellent!", "rating": 4},
                {"product": "kettle", "review_text": "Terrible, it broke.", "rating": -3},
                {"product": "lamp", "review_text": "It is a lamp.", "rating": ""},
            ]
        ),
        Csv(),
    )

    assert (found["reviews"], found["positive"], found["neutral"], found["negative"]) == (3, 1, 1, 1)
    assert list(found["products"]) == ["kettle", "lamp"]
    assert found["products"]["kettle"]["reviews"] == 2
    assert found["products"]["lamp"]["mean_compound"] == 0
    assert (found["rated"], found["mean_rating"]) == (2, 0.5)
    assert found["products"]["lamp"]["correlation"] is None
    assert found["correlation"] == pytest.approx(1.0)
    assert sum(found["histogram"]["counts"]) == 3


@pytest.mark.parametrize("column", ["review_text", "text", "sentence"])
def test_each_known_name_of_the_text_column_will_do(column: str) -> None:
    found = run(csv_of([{column: "great"}, {column: "awful"}]), Csv())

    assert (found["positive"], found["negative"]) == (1, 1)
    assert list(found["products"]) == ["all"]
    assert found["correlation"] is None


def test_a_file_without_a_text_column_is_refused_with_the_columns_it_has() -> None:
    with pytest.raises(ValueError, match=r"review_text, text or sentence; the file has: id, comment$"):
        run(csv_of([{"id": 1, "comment": "great"}]), Csv())


def test_cells_that_are_no_numbers_are_no_ratings() -> None:
    cells = ["", "n/a", "nan", "inf", "2.5", " -1 "]
    found = run(csv_of({"text": "good", "rating": cell} for cell in cells), Csv())

    assert (found["reviews"], found["rated"], found["mean_rating"]) == (6, 2, 0.75)
    assert found["correlation"] is None, "the score never varies"


def test_a_row_that_is_too_short_counts_as_neutral_and_unnamed() -> None:
    found = run(b"id,text,product\n1,great,kettle\n2\n", Csv())

    assert (found["positive"], found["neutral"]) == (1, 1)
    assert list(found["products"]) == ["(unnamed)", "kettle"]


def test_an_empty_file_gives_an_empty_summary() -> None:
    found = run(b"", Csv())

    assert found["reviews"] == 0
    assert found["mean_compound"] is None
    assert found["products"] == {}


def test_the_size_of_chunks_changes_no_count_and_no_figure(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", 100_000, Random(5))
    data = (tmp_path / "reviews.csv").read_bytes()

    whole, cut = run(data, Csv(chunk="1 GiB")), run(data, Csv(chunk="7 KiB"))

    assert whole["histogram"] == cut["histogram"]
    for name in [*whole["products"]]:
        for figure, value in whole["products"][name].items():
            assert cut["products"][name][figure] == (
                pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            ), (name, figure)


def test_the_correlation_is_that_of_the_two_columns(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", 100_000, Random(6))
    with (tmp_path / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rated = [row for row in csv.DictReader(file) if row["rating"]]
    scores = [reviews.analyser().polarity_scores(row["review_text"])["compound"] for row in rated]
    expected = statistics.correlation(scores, [float(row["rating"]) for row in rated])

    found = run((tmp_path / "reviews.csv").read_bytes(), Csv(chunk="16 KiB"))

    assert found["rated"] == len(rated)
    assert found["correlation"] == pytest.approx(expected, rel=1e-12)
    assert 0.3 < expected < 0.95, "the demo's people agree with VADER, though not wholly"


def test_the_published_snippets_agree_with_their_raters_as_published(shared_data: Path) -> None:
    """Source of 0.5896: vaderSentiment 3.3.2 over the same sentences in one loop."""
    file = shared_data / "reviews" / "amazon_review_snippets.tsv"
    spec = Csv(chunk="64 KiB", delimiter="\t", quoting=False, header=["id", "rating", "text"])

    found = run(file.read_bytes(), spec, reviews.score_snippets)

    assert (found["reviews"], found["rated"]) == (3708, 3708)
    assert found["correlation"] == pytest.approx(0.5896, abs=5e-5)


SUMS = st.dictionaries(st.sampled_from(["reviews", "positive", "negative", "n"]), st.integers(0, 10**12))
TALLIES = st.fixed_dictionaries(
    {
        "products": st.dictionaries(st.text(max_size=3), SUMS, max_size=4),
        "histogram": st.lists(st.integers(0, 10**9), min_size=reviews.BINS, max_size=reviews.BINS),
    }
)


@given(TALLIES, TALLIES, TALLIES)
def test_merging_is_associative_and_changes_neither_side(a: Any, b: Any, c: Any) -> None:
    before = json.dumps([a, b, c])

    assert reviews.merge(reviews.merge(a, b), c) == reviews.merge(a, reviews.merge(b, c))
    assert reviews.merge(reviews.nothing(), a) == a
    assert json.dumps([a, b, c]) == before


def test_one_review_is_rated_by_a_plain_call() -> None:
    good = reviews.rate("kettle", reviews.Review(text="I love it!"))
    bad = reviews.rate("kettle", reviews.Review(text="I hate it."))

    assert (good.product, good.sentiment, bad.sentiment) == ("kettle", "positive", "negative")
    assert -1 <= bad.compound < 0 < good.compound <= 1


def test_an_uploaded_file_is_analysed_and_the_summary_written(headrace_app: AppUnderTest) -> None:
    rows = [{"product": "kettle", "text": "I love it!"}, {"product": "lamp", "text": "Terrible, it broke."}]
    headrace_app.put("inbox", "a.csv", csv_of(rows * 100))
    headrace_app.run_until_idle()

    [found] = headrace_app.results("reviews.score")
    assert found == run(csv_of(rows * 100), Csv())
    [key] = [key for key in headrace_app.keys("results") if key.endswith("/result.json")]
    assert json.loads(headrace_app.get("results", key)) == found
    headrace_app.verify()


def test_a_file_is_analysed_once_although_commits_fail_and_the_node_is_killed(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    data = csv_of([{"text": "I love it!"}, {"text": "Terrible, it broke."}])
    for number in range(8):
        headrace_faults.fail_store(after=number)
        headrace_app.put("inbox", f"{number}.csv", data)
        headrace_app.run_until_idle()
        headrace_app.crash()
        headrace_app.restart()
    headrace_clock.advance(600)
    headrace_faults.clear()

    assert headrace_app.results("reviews.score") == [run(data, Csv())] * 8
    headrace_app.verify()


def test_a_tab_separated_file_goes_its_own_way(headrace_app: AppUnderTest) -> None:
    headrace_app.put("inbox", "a.tsv", b'1\t4.5\tA "great\tkettle\n2\t-3\tawful\n')
    headrace_app.run_until_idle()

    assert headrace_app.results("reviews.score") == []
    assert [found["reviews"] for found in headrace_app.results("reviews.score_snippets")] == [2]


def test_a_file_without_the_column_fails_its_job_with_the_columns_it_has(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock
) -> None:
    headrace_app.put("inbox", "bad.csv", b"id,comment\n1,great\n")
    headrace_clock.advance(3600)

    [failure] = headrace_app.failures("reviews.score")
    assert "the file has: id, comment" in failure["message"]


def test_one_review_is_rated_over_http(headrace_app: AppUnderTest) -> None:
    found = headrace_app.http("POST", "/reviews/kettle", json={"text": "I love it!"})
    refused = headrace_app.http("POST", "/reviews/kettle", json={"text": ""})

    assert (found.status, found.json()["product"], found.json()["sentiment"]) == (200, "kettle", "positive")
    assert refused.status == 422


def test_the_lexicon_is_read_once() -> None:
    assert reviews.analyser() is reviews.analyser()
