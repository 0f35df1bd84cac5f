"""A made reviews file: quoted commas, doubled quotes and quoted newlines, in a quarter of its rows."""

import csv
import io
import random
from pathlib import Path
from typing import Any

from tests.fault.big_job import count, sort_products

WORDS = (
    "kettle boils fast slowly never again café the a handle broke after two weeks great poor value 日本 and"
    " price quality returned box loud quiet shiny would buy recommend not very arrived late early"
).split()
PRODUCTS = ["kettle", "toaster, large", 'lamp "Aurora"', "radio", "fan"]
BLOCK_ROWS = 2000


def write_reviews(path: Path, size: int, *, seed: int = 1) -> None:
    """Write at least `size` bytes of CSV with a header. A block of made rows is repeated under other ids."""
    chance = random.Random(seed)
    rows = [_row(chance) for _ in range(BLOCK_ROWS)]
    number = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("id,product,rating,text\r\n")
        while file.tell() < size:
            block = io.StringIO()
            csv.writer(block).writerows((number + at, *row) for at, row in enumerate(rows))
            file.write(block.getvalue())
            number += len(rows)


def _row(chance: random.Random) -> tuple[str, int, str]:
    words = chance.choices(WORDS, k=chance.randint(3, 60))
    for _ in range(chance.choice((0, 0, 0, 1, 2, 5))):
        words.insert(chance.randrange(len(words)), chance.choice((",", "\n", '"so-called"', "\n\n", '",\n"')))
    return chance.choice(PRODUCTS), chance.randint(1, 5), " ".join(words)


def expected_of(path: Path) -> dict[str, Any]:
    """The answer of one process, by Python's csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return sort_products(count(csv.DictReader(file)))
