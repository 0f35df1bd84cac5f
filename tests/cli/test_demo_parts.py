"""The parts of the demo that need no node: the file it makes, its folder, its chart, its words."""

import csv
import fcntl
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from headrace.runtime.cli.demo import run_demo
from headrace.runtime.cli.demo.chart import draw_chart, ranked
from headrace.runtime.cli.demo.phrases import PRODUCTS
from headrace.runtime.cli.demo.place import (
    LOCK,
    MARK,
    SUFFIXES,
    check_input,
    demo_folder,
    drop,
    functions_folder,
)
from headrace.runtime.cli.demo.report import print_findings, print_places
from headrace.runtime.cli.demo.reviews_file import COLUMNS, write_reviews
from headrace.runtime.cli.demo.run import Demo, source_of
from headrace.runtime.errors import DataInUse, InvalidSettings
from headrace.runtime.objects.folder import FolderStore


def described(reviews: int, mean: float | None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "reviews": reviews, "positive": reviews, "neutral": 0, "negative": 0, "mean_compound": mean,
        "rated": reviews, "mean_rating": mean, "correlation": 0.5,
    }  # fmt: skip
    return found | more


def result_of(products: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    reviews = sum(found["reviews"] for found in products.values())
    histogram = {"from": -1, "to": 1, "counts": [0] * 10 + [reviews] + [0] * 10}
    return (
        described(reviews, 0.0 if reviews else None) | {"products": products, "histogram": histogram} | more
    )


# ---- the file ----


def test_one_seed_makes_one_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_reviews(tmp_path / name, 50_000, Random(seed))

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 10_000, 2_000_000])
def test_the_file_ends_with_the_record_that_reaches_its_size(tmp_path: Path, size: int) -> None:
    reported: list[int] = []

    reviews = write_reviews(tmp_path / "f", size, Random(3), report=reported.append)

    with (tmp_path / "f").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, strict=True))
    assert rows[0] == list(COLUMNS)
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert len(rows) - 1 == reviews >= 1
    assert size <= (tmp_path / "f").stat().st_size <= size + 2_000_000
    assert reported == sorted(reported)
    assert reported[-1] == (tmp_path / "f").stat().st_size


def test_the_file_holds_what_makes_csv_hard(tmp_path: Path) -> None:
    write_reviews(tmp_path / "f", 200_000, Random(4))
    with (tmp_path / "f").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [row["review_text"] for row in rows]
    ratings = [float(row["rating"]) for row in rows if row["rating"]]

    assert any("\n" in text for text in texts)
    assert any('"' in text for text in texts)
    assert any("," in text for text in texts)
    assert not any("{" in text for text in texts)
    assert {row["product"] for row in rows} == set(PRODUCTS)
    assert -4 <= min(ratings) < -2
    assert 2 < max(ratings) <= 4
    assert 0.85 < len(ratings) / len(rows) < 0.95
    assert {row["stars"] for row in rows} == {"1", "2", "3", "4", "5"}


# ---- the folder ----


def test_a_folder_is_made_and_marked(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "new" / "demo", keep=False):
        assert (tmp_path / "new" / "demo" / MARK).is_file()


@pytest.mark.parametrize(("keep", "left"), [(False, {MARK, LOCK}), (True, {MARK, "chart.png", "buckets"})])
def test_the_demos_own_folder_is_emptied_unless_it_is_kept(
    tmp_path: Path, keep: bool, left: set[str]
) -> None:
    with demo_folder(tmp_path / "demo", keep=True):
        (tmp_path / "demo" / "chart.png").write_text("old")
        (tmp_path / "demo" / "buckets" / "inbox").mkdir(parents=True)

    with demo_folder(tmp_path / "demo", keep=keep):
        assert {entry.name for entry in (tmp_path / "demo").iterdir()} == left


def test_a_link_in_the_folder_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with demo_folder(tmp_path / "demo", keep=False):
        (tmp_path / "demo" / "link").symlink_to(tmp_path / "mine")

    with demo_folder(tmp_path / "demo", keep=False):
        assert not (tmp_path / "demo" / "link").is_symlink()

    assert (tmp_path / "mine" / "file").read_text() == "mine"


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_of_somebody_elses_is_refused_untouched(tmp_path: Path, keep: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    with pytest.raises(InvalidSettings, match="holds files that the demo did not make"):
        with demo_folder(tmp_path, keep=keep):
            pass

    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(InvalidSettings, match="is not a folder"):
        with demo_folder(tmp_path / "file", keep=False):
            pass


def test_two_demos_share_no_folder(tmp_path: Path) -> None:
    with demo_folder(tmp_path / "demo", keep=False):
        (tmp_path / "demo" / "work").write_text("of the first")

        with pytest.raises(DataInUse, match="another demo"):
            with demo_folder(tmp_path / "demo", keep=False):
                pass

        assert (tmp_path / "demo" / "work").exists()


def test_a_folder_in_which_a_node_works_is_not_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.runtime.store.holder.PATIENCE_S", 0.1)
    with demo_folder(tmp_path / "demo", keep=False):
        (tmp_path / "demo" / "work").write_text("of the node")

    with (tmp_path / "demo" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataInUse):
            with demo_folder(tmp_path / "demo", keep=False):
                pass

    assert (tmp_path / "demo" / "work").exists()


@pytest.mark.parametrize(
    "key", ["reviews.csv", "my reviews (2).csv", ".reviews.csv", "50%2F.csv", "über.csv"]
)
def test_a_dropped_file_is_the_object_of_its_name(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path / "buckets")
    (tmp_path / "incoming").write_text("data")

    drop(tmp_path / "incoming", tmp_path / "buckets" / "inbox", key=key)

    assert [found.key for found in store.iterate("inbox")] == [key]
    assert not (tmp_path / "incoming").exists()


# ---- the arguments ----


def test_the_example_functions_are_found() -> None:
    assert (functions_folder() / "reviews.py").is_file()


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_the_job_follows_from_the_suffix(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"mine{suffix}").write_text("")

    assert check_input(tmp_path / f"mine{suffix}") == SUFFIXES[suffix]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"input": "missing.csv"}, "missing.csv does not exist"),
        ({"input": "."}, "is not a file"),
        ({"input": "letter.txt"}, r"takes \.csv and \.tsv files, not letter\.txt"),
        ({"size_mb": 0}, "the size is 0 MB"),
        ({"size_mb": 10_001}, "the size is 10001 MB"),
        ({"chart": "chart.bmp"}, r"chart\.bmp is no chart's name"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.txt").write_text("Dear")
    given: dict[str, Any] = {
        name: Path(value) if isinstance(value, str) else value for name, value in arguments.items()
    }

    with pytest.raises(InvalidSettings, match=said):
        run_demo(**given)

    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_without_vader_the_demo_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)  # what an import of it then finds

    with pytest.raises(InvalidSettings, match="needs vaderSentiment") as refused:
        run_demo(data=tmp_path / "demo")

    assert "pip install 'headrace[examples]'" in refused.value.hint
    assert not (tmp_path / "demo").exists()


def test_without_matplotlib_there_is_a_result_and_no_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    demo = Demo(console, data=tmp_path, workers=None)
    found = {"result": result_of(products(2)), "source": "x.csv", "job_id": "j1", "function": "reviews.score"}

    chart = demo.draw(found, tmp_path / "chart.png")

    assert chart is None
    assert demo.document(found, chart)["chart"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("input", "name"),
    [
        ({"object": "s3://inbox/deep/my reviews.csv"}, "my reviews.csv"),
        ({"items": [1]}, "the upload"),
        (None, "the upload"),
    ],
)
def test_a_jobs_source_is_called_by_its_file_name(input: Any, name: str) -> None:
    assert source_of({"input": input}) == name


# ---- chart and report ----


def products(count: int) -> dict[str, dict[str, Any]]:
    return {f"product {i:03}": described(10, round(1 - 2 * i / max(1, count - 1), 3)) for i in range(count)}


def test_products_are_ranked_by_mean_and_those_without_reviews_left_out() -> None:
    found = result_of(
        {"b": described(1, 0.5), "a": described(1, 0.5), "c": described(2, 0.9), "d": described(0, None)}
    )

    assert [name for name, _ in ranked(found)] == ["c", "a", "b"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_a_chart_is_drawn_for_any_number_of_products(tmp_path: Path, suffix: str, count: int) -> None:
    pytest.importorskip("matplotlib")

    draw_chart(result_of(products(count)), tmp_path / f"chart{suffix}", source="reviews.csv")

    head = (tmp_path / f"chart{suffix}").read_bytes()[:600]
    assert {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}[suffix] in head


def test_names_that_look_like_formulas_or_are_long_are_drawn_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = result_of(
        {"$x_{": described(1, 0.5), "a" * 500: described(1, -0.5), "two\nlines_^": described(1, 0.1)}
    )

    draw_chart(found, tmp_path / "chart.png", source="$weird$.csv")

    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.fixture
def console() -> Iterator[Console]:
    with io.StringIO() as out:
        yield Console(file=out, width=100)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_the_best_and_the_worst_of_many(console: Console) -> None:
    print_findings(console, result_of(products(40)), source="reviews.csv")

    text = printed(console)
    assert "product 000" in text
    assert "product 039" in text
    assert "product 020" not in text
    assert "… 24 more" in text
    assert "rating: mean of the people" in text
    assert "400 human ratings: 0.5000" in text


def test_a_table_without_ratings_has_no_column_for_them(console: Console) -> None:
    found = result_of({"[bold]": described(3, 0.2, mean_rating=None)}, rated=0, correlation=None)

    print_findings(console, found, source="[red]x.csv")

    assert "rating" not in printed(console)
    assert "[bold]" in printed(console)
    assert "[red]x.csv" in printed(console)


def test_the_last_words_say_where_everything_is_and_what_to_type(console: Console, tmp_path: Path) -> None:
    print_places(
        console, functions=Path("functions"), data=Path("demo data"), job="j1", result=Path("r.json"),
        chart=None, seconds={"analysing": 1.25},
    )  # fmt: skip

    text = printed(console)
    assert "Took analysing 1.2 s." in text
    assert "pip install 'headrace[examples]'" in text
    assert "headrace serve functions --data 'demo data'" in text
    assert "headrace job show j1" in text
