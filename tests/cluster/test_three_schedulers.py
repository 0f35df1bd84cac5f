"""Three nodes on one PostgreSQL, killed at random within the very second in which schedules are due: each
instant fires once.
"""

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace.runtime.timetable.timetable import show_moment
from tests.serving import Serving, wait_until

CODE = Path(__file__).with_name("schedule_functions.py")
POINTS = ("fire.before", "fire.after", "accept", "commit.before", "commit.after")
PERIODS_S = {
    "clock.tick/schedule/a": 1,
    "clock.tick/schedule/b": 1,
    "clock.tick/schedule/c": 2,
    "clock.tock/schedule/0": 1,
    "clock.cut/schedule/job": 5,
}


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(query).fetchall()


def newest(url: str) -> dict[str, float]:
    """The last instant of each schedule."""
    return dict(rows(url, "SELECT schedule, max(due_at) FROM fired GROUP BY schedule"))


def instants(url: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By schedule, the instants that are recorded, and those of the events that were accepted for them."""
    recorded: dict[str, list[float]] = defaultdict(list)
    for schedule, due in rows(url, "SELECT schedule, due_at FROM fired ORDER BY due_at"):
        recorded[schedule].append(due)
    accepted: dict[str, list[float]] = defaultdict(list)
    events = "SELECT {0}->'resources'->>0, extract(epoch FROM ({0}->>'time')::timestamptz)::float8 FROM {1}"
    for events_of in (
        events.format("convert_from(payload, 'UTF8')::jsonb", "invocation WHERE function != 'clock.cut'"),
        # A job's input is kept as the number of its items; its instant is in the row that names it.
        "SELECT f.schedule, f.due_at FROM job JOIN fired f ON f.subject = job.id",
    ):
        for schedule, due in rows(url, events_of):
            accepted[schedule].append(due)
    return recorded, accepted


@pytest.mark.parametrize("deaths", [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_nodes_that_are_killed_in_the_due_second_leave_every_instant_fired_once(
    postgres_url: str, tmp_path: Path, deaths: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    made: list[Serving] = []
    died = Counter[str]()

    def node(fault: str | None) -> Serving:
        place = tmp_path / f"node{len(made)}"
        place.mkdir()
        env = {"HEADRACE_NODE_LEASE_S": "2"} | ({"HEADRACE_FAULT": fault} if fault else {})
        flags = ("--store", postgres_url, "--objects", str(tmp_path / "buckets"))
        found = Serving(CODE, folder=place, workers=1, flags=flags, env=env)
        made.append(found)
        found.launch()
        return found

    def doomed() -> tuple[Serving, str]:
        fault = f"{chance.choice(POINTS)}:{chance.randint(1, 12)}"
        return node(fault), fault

    try:
        node(None).wait_ready().kill()  # the tables
        living = [doomed() for _ in range(3)]
        while sum(died.values()) < deaths:
            dead = wait_until(
                lambda: [each for each in living if not each[0].alive], "the death of a node", within_s=60
            )
            for found in dead:
                assert found[0].wait_ended() == -9, found[0].words()
                died[found[1].partition(":")[0]] += 1
                living[living.index(found)] = doomed()
        for found, _ in living:
            found.kill()
        last = node(None).wait_ready()
        begun = newest(postgres_url)
        wait_until(
            lambda: all(newest(postgres_url)[name] >= begun[name] + 5 for name in PERIODS_S),
            "the schedules to go on",
        )
        assert last.stop() == 0
    finally:
        for each in made:
            each.close()

    recorded, accepted = instants(postgres_url)
    assert set(recorded) == set(accepted) == set(PERIODS_S)
    for name, period_s in PERIODS_S.items():
        first, end = recorded[name][0], recorded[name][-1]
        expected = [first + period_s * n for n in range(round((end - first) / period_s) + 1)]
        assert recorded[name] == expected, [show_moment(due) for due in set(expected) ^ set(recorded[name])]
        assert sorted(accepted[name]) == expected, Counter(accepted[name]) - Counter(expected)
    assert len(died) >= 2, died
