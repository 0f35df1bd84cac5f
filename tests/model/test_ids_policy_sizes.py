"""The floor's plain values: ids, retry delays, sizes."""

import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.model.ids import Ids, read_id, show_id
from headrace.runtime.model.job import FAN_IN, reduce_levels, stage_width
from headrace.runtime.model.policy import RetryPolicy, retry_delay
from headrace.runtime.model.size import read_size, show_size

MOMENTS = st.floats(0, 3.8e9, allow_nan=False)


@given(st.lists(st.tuples(MOMENTS, st.integers(1, 50)), min_size=1, max_size=30), st.integers(0, 1 << 20))
@example([(1.8e9, 10_000), (1.7e9, 10_000), (1.8e9, 3)], 5)
@example([(0.0, 5000), (3.8e9, 5000)], 1023)
def test_ids_grow_whatever_the_clock_does(steps: list[tuple[float, int]], node: int) -> None:
    now = 0.0
    ids = Ids(lambda: now, node=node)
    found = []
    for now, count in steps:  # noqa: B007 - the closure reads it
        found += [ids.next() for _ in range(count)]
    assert all(a < b for a, b in itertools.pairwise(found))
    assert all(0 < id < 1 << 63 for id in found)


@given(st.lists(MOMENTS, min_size=1, max_size=20), st.integers(0, 1023), st.integers(0, 1023))
def test_ids_of_two_nodes_never_meet(moments: list[float], one: int, two: int) -> None:
    now = 0.0
    first, second = Ids(lambda: now, node=one), Ids(lambda: now, node=two)
    found = []
    for now in moments:  # noqa: B007 - the closure reads it
        found += [first.next() for _ in range(5)] + [second.next() for _ in range(5)]
    assert one == two or len(set(found)) == len(found)


@given(st.integers(0, (1 << 63) - 1))
def test_an_id_is_read_as_it_was_shown(number: int) -> None:
    assert len(show_id(number)) == 16
    assert read_id(show_id(number)) == number


@pytest.mark.parametrize(
    "text",
    ["", "x", "0" * 17, "-1", "+1", "0x10", "1_0", " 1", "ffffffffffffffff", "١"],  # noqa: RUF001 - that digit is the test
)
def test_what_is_no_id_is_not_read_as_one(text: str) -> None:
    assert read_id(text) is None


@given(st.integers(1, 5000), st.floats(0.001, 1e4), st.floats(0.001, 1e5), st.integers(0, 1 << 32))
def test_a_retry_waits_within_its_bounds(attempt: int, base_s: float, max_s: float, seed: int) -> None:
    policy = RetryPolicy(base_s=base_s, max_s=max_s)
    delay = retry_delay(attempt, policy, random.Random(seed))
    assert 0 <= delay <= max_s
    if attempt <= 30:
        assert delay <= base_s * 2 ** (attempt - 1)


def test_retries_are_spread_over_the_whole_bound() -> None:
    chance = random.Random(1)
    delays = [retry_delay(4, RetryPolicy(), chance) for _ in range(1000)]
    assert min(delays) < 0.4
    assert max(delays) > 7.6
    assert 3.5 < sum(delays) / 1000 < 4.5


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        retry_delay(0, RetryPolicy(), random.Random(1))
    assert RetryPolicy(retries=3).attempts_max == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4 MiB", 4 << 20),
        ("4MiB", 4 << 20),
        ("64 KiB", 64 << 10),
        ("1 MB", 10**6),
        ("1.5 GiB", 3 << 29),
        ("7", 7),
        (7, 7),
        (" 2 gb ", 2 * 10**9),
        ("1 TiB", 1 << 40),
        ("10 b", 10),
        ("8k", 8192),
    ],
)
def test_sizes_are_read_as_people_write_them(text: int | str, size: int) -> None:
    assert read_size(text, field="memory") == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "4 MiBs", "-1", "4,5 MiB", "1e3", 0, -5, True, "0", "0.2 B", None, 1.5]
)
def test_what_is_no_size_is_refused_by_its_field(text: int | str) -> None:
    with pytest.raises(InvalidSettings, match="memory"):
        read_size(text, field="memory")


@given(st.integers(1, 1 << 50))
def test_a_shown_size_is_near_to_what_it_shows(size: int) -> None:
    shown = show_size(size)
    assert abs(read_size(shown, field="x") - size) <= max(size * 0.06, 1)


@given(st.integers(0, 1 << 24))
def test_a_reduce_tree_narrows_to_one(chunks: int) -> None:
    levels = reduce_levels(chunks)
    assert stage_width(chunks, 0) == chunks
    if chunks > 1:
        assert stage_width(chunks, levels) == 1
        assert stage_width(chunks, levels - 1) > 1
        assert FAN_IN ** (levels - 1) < chunks <= FAN_IN**levels
    else:
        assert levels == 0
