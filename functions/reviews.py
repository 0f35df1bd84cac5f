"""Reviews: how customers feel about each product, from files of any size.

Upload a CSV file into the bucket `inbox`. Headrace cuts it into chunks, runs `score` on all of them in
parallel, adds the results up with `merge`, and writes what `summary` returns to the bucket `results`.

The file needs a column `review_text`, `text` or `sentence`. It may have `product`, and `rating` (a number
that people gave the same text); where there are ratings, the result says how well the sentiment agrees.

Try it:   headrace serve functions/ --data ./data
          cp my-reviews.csv ./data/buckets/inbox/
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, Field
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from headrace import App, Chunk, Context, Csv, Http, Upload

app = App("reviews")

TEXT_COLUMNS = ("review_text", "text", "sentence")
PRODUCT_COLUMNS = ("product", "product_id")
BINS = 21  # of the histogram, from -1 to 1; an odd number, so that 0 is in the middle of one

Sums = dict[str, float]


class Tally(TypedDict):
    """What one chunk found: only counts and sums, so that the tallies of two chunks can simply be added."""

    products: dict[str, Sums]
    histogram: list[int]


def nothing() -> Tally:
    return {"products": {}, "histogram": [0] * BINS}


def merge(a: Tally, b: Tally) -> Tally:
    """Add two tallies.

    Chunks are added in groups, then groups of groups, so this must be associative: a mean of two means would
    be wrong, a sum of two sums is right.
    """
    products = dict(a["products"])
    for product, sums in b["products"].items():
        products[product] = added(products.get(product, {}), sums)
    histogram = [x + y for x, y in zip(a["histogram"], b["histogram"], strict=True)]
    return {"products": products, "histogram": histogram}


def added(a: Sums, b: Sums) -> Sums:
    return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}


def summary(tally: Tally) -> dict[str, Any]:
    """Runs once, on the sum of all chunks: turns sums into means and correlations."""
    products = dict(sorted(tally["products"].items()))
    total: Sums = {}
    for sums in products.values():
        total = added(total, sums)
    return {
        **described(total),
        "histogram": {"from": -1, "to": 1, "counts": tally["histogram"]},
        "products": {product: described(sums) for product, sums in products.items()},
    }


# The two jobs differ only in how their files are written, so they share everything else.


@app.on(Upload("inbox", suffix=".csv"))
@app.job(split=Csv(chunk="4 MiB"), reduce=merge, initial=nothing(), finish=summary, output="results")
def score(chunk: Chunk, context: Context) -> Tally:
    """Score one chunk of a CSV file whose first line names the columns."""
    return tally(chunk.records())


@app.on(Upload("inbox", suffix=".tsv"))
@app.job(
    split=Csv(chunk="1 MiB", delimiter="\t", quoting=False, header=["id", "rating", "text"]),
    reduce=merge,
    initial=nothing(),
    finish=summary,
    output="results",
)
def score_snippets(chunk: Chunk, context: Context) -> Tally:
    """Score one chunk of a tab-separated file without a header, in which quotes mean nothing."""
    return tally(chunk.records())


# The same analysis for one review at a time, over HTTP:
#   curl localhost:8080/reviews/kettle -H 'content-type: application/json' -d '{"text": "Lovely, and quick!"}'


class Review(BaseModel):
    text: str = Field(min_length=1, max_length=20_000)


class Rating(BaseModel):
    product: str
    compound: float = Field(ge=-1, le=1, description="-1 is as negative as can be, 1 as positive")
    sentiment: Literal["positive", "neutral", "negative"]


@app.on(Http("POST", "/reviews/{product}"))
@app.function(timeout=5, memory="128 MiB", reserved_concurrency=4)
def rate(product: str, body: Review) -> Rating:
    """Score one review. A body that is not a `Review` is refused with status 422 before this runs."""
    compound = analyser().polarity_scores(body.text)["compound"]
    return Rating(product=product, compound=compound, sentiment=sentiment(compound))


# What the functions above are made of. None of it knows Headrace, so a test calls it as it is.


def tally(records: Iterable[Mapping[str, str]]) -> Tally:
    """Count and sum over the records of one chunk."""
    found = nothing()
    score_text = analyser().polarity_scores
    for product, text, rating in readings(records):
        compound = score_text(text)["compound"]
        found["histogram"][min(int((compound + 1) / 2 * BINS), BINS - 1)] += 1
        sums = found["products"].setdefault(product, {"positive": 0, "negative": 0, "neutral": 0})
        sums[sentiment(compound)] += 1
        count(sums, reviews=1, compound=compound)
        if rating is not None:
            x, y = compound, rating
            count(sums, n=1, sx=x, sy=y, sxx=x * x, syy=y * y, sxy=x * y)
    return found


def readings(records: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str, float | None]]:
    """Product, text and human rating of each record; without such a column, the product is `all`."""
    names: tuple[str, str | None] | None = None
    for record in records:
        if names is None:
            text_column = next((name for name in TEXT_COLUMNS if name in record), None)
            if text_column is None:
                raise ValueError(
                    f"no column named {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}; "
                    f"the file has: {', '.join(filter(None, record))}"
                )
            names = text_column, next((name for name in PRODUCT_COLUMNS if name in record), None)
        text, product = names
        yield (
            (record.get(product) or "(unnamed)") if product else "all",
            record.get(text) or "",
            number(record.get("rating")),
        )


def number(text: str | None) -> float | None:
    """The number in a cell; None for a blank cell and for what is no number ("n/a")."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def count(sums: Sums, **more: float) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value


def sentiment(compound: float) -> Literal["positive", "neutral", "negative"]:
    """The class of a compound score, with the thresholds that VADER's authors recommend."""
    if compound >= 0.05:
        return "positive"
    return "negative" if compound <= -0.05 else "neutral"


def described(sums: Sums) -> dict[str, Any]:
    """The figures that a reader wants, from sums."""
    reviews, rated = sums.get("reviews", 0), sums.get("n", 0)
    return {
        "reviews": reviews,
        "positive": sums.get("positive", 0),
        "neutral": sums.get("neutral", 0),
        "negative": sums.get("negative", 0),
        "mean_compound": sums["compound"] / reviews if reviews else None,
        "rated": rated,
        "mean_rating": sums["sy"] / rated if rated else None,
        "correlation": correlation(sums) if rated else None,
    }


def correlation(sums: Sums) -> float | None:
    """Pearson's r between compound score (x) and human rating (y); None where one of them never varies."""
    n, sx, sy = sums["n"], sums["sx"], sums["sy"]
    spread_x = n * sums["sxx"] - sx * sx
    spread_y = n * sums["syy"] - sy * sy
    if spread_x <= 0 or spread_y <= 0:
        return None
    r = (n * sums["sxy"] - sx * sy) / math.sqrt(spread_x * spread_y)
    return max(-1.0, min(1.0, r))


@cache
def analyser() -> SentimentIntensityAnalyzer:
    """VADER with its lexicon, read once per worker at first use, not once per chunk."""
    return SentimentIntensityAnalyzer()
