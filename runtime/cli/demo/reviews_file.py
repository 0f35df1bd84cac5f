"""The reviews file that the demo makes when it is given none: invented, repeatable, and awkward to cut.

Imports its phrases only. Commas, doubled quotes and line breaks stand inside quoted fields, so that only a
parse, or Headrace's counting of quotes, can tell where a record ends.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from headrace.runtime.cli.demo.phrases import BAD, GOOD, PLAIN, PRODUCTS, TIMES

COLUMNS: Final = ("review_id", "date", "product", "stars", "rating", "review_text")
ROWS_PER_REPORT = 2_000
LINE_BREAKS = (" ", " ", " ", " ", " ", " ", "\n", "\n\n")


def write_reviews(
    path: Path, size_bytes: int, chance: Random, *, report: Callable[[int], None] = lambda written: None
) -> int:
    """Write a CSV file of reviews.

    `rating` is what people who read the review thought of it, from -4 to 4 in steps of 0.05; one in ten has
    none. It follows from the same mood as the sentences, and noise: it agrees with a good analysis, but
    not wholly.

    Args:
        path: written from the start; the folder must exist.
        size_bytes: the file ends with the record that reaches this size; at least one record is written.
        chance: where everything invented comes from; one seed makes one file, byte for byte.
        report: called now and then with the bytes written so far.

    Returns: the number of reviews.
    """
    products = list(PRODUCTS.items())
    uniform, gauss, choice = chance.random, chance.gauss, chance.choice
    reviews = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file).writerow
        write(COLUMNS)
        while reviews == 0 or file.tell() < size_bytes:
            for _ in range(ROWS_PER_REPORT if size_bytes > 1 << 20 else 1):
                name, (quality, parts) = products[int(len(products) * uniform() ** 1.3)]
                mood = max(-1.0, min(1.0, gauss(quality, 0.45)))
                text = _review(mood, parts, chance)
                stars = max(1, min(5, round(3 + 2 * mood + gauss(0, 0.4))))
                felt = max(-4.0, min(4.0, 3 * mood + gauss(0, 0.9)))
                rating = f"{round(felt * 20) / 20:.2f}" if uniform() >= 0.1 else ""
                reviews += 1
                write((reviews, f"2025-{choice(_MONTHS)}-{choice(_DAYS)}", name, stars, rating, text))
            report(file.tell())
    return reviews


_MONTHS = [f"{month:02}" for month in range(1, 13)]
_DAYS = [f"{day:02}" for day in range(1, 29)]


def _review(mood: float, parts: tuple[str, ...], chance: Random) -> str:
    """Two to seven sentences; the better the mood, the more of them are praise."""
    uniform, choice = chance.random, chance.choice
    pieces: list[str] = []
    for _ in range(2 + int(6 * uniform())):
        if uniform() < 0.35:
            pool = PLAIN
        else:
            pool = GOOD if 2 * uniform() - 1 < mood else BAD
        if pieces:
            pieces.append(choice(LINE_BREAKS))
        pieces.append(choice(pool).format(part=choice(parts), time=choice(TIMES)))
    return "".join(pieces)
