"""Retention on a node, on both stores: one look removes all that is out of date, in however many batches."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.runtime.upkeep import ROW_BATCH
from tests.serving import Serving, wait_until

CODE = Path(__file__).with_name("plain_functions.py")
EVERY_S = 4.0
KEPT = 10
COUNT = 3 * ROW_BATCH + KEPT


@pytest.fixture(params=["sqlite", "postgres"])
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if request.param == "sqlite":
        return ()
    return ("--store", request.getfixturevalue("postgres_url"))


@pytest.fixture
def filled(flags: tuple[str, ...], tmp_path: Path) -> Iterator[Serving]:
    """A node that is down, and has left so many ended invocations."""
    node = Serving(CODE, folder=tmp_path, flags=flags)
    try:
        node.start()
        node.client.call(
            "POST", "/v1/functions/plain.double/invoke-many", body=[{"n": n} for n in range(COUNT)]
        )
        wait_until(lambda: node.client.stats()["total"]["succeeded"] == COUNT, "the end of all")
        assert node.stop() == 0
        yield node
    finally:
        node.close()


def test_one_look_removes_all_that_is_out_of_date(
    filled: Serving, flags: tuple[str, ...], tmp_path: Path
) -> None:
    env = {"HEADRACE_KEPT_SUCCEEDED_ROWS": str(KEPT), "HEADRACE_KEPT_EVERY_S": str(EVERY_S)}
    node = Serving(CODE, folder=tmp_path, flags=flags, env=env)
    try:
        node.start()
        began = time.monotonic()
        wait_until(lambda: len(list(node.client.invocations(limit=KEPT + 1))) <= KEPT, "the removal")
        assert time.monotonic() - began < 2 * EVERY_S, "it took a second look"
        assert len(list(node.client.invocations())) == KEPT
        books = node.check_books()["functions"]["plain.double"]
        assert (books["accepted"], books["succeeded"]) == (COUNT, COUNT)
    finally:
        node.close()
