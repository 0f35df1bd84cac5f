"""Time, chance and ids are handed in: the engine names no clock and no randomness but where it is listed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"

# Where the real clock is wrapped, where concrete things are chosen, and what people run by hand.
OWNERS = ("clock.py", "node.py", "cli.py", "cli/", "testing.py", "testing/")

# Every other file that may, and why.
ALLOWED = {
    "pool/context.py": "runs in a worker process, where the only clock is the machine's",
    "pool/worker.py": "runs in a worker process, where the only clock is the machine's",
    "pool/zygote.py": "runs in the zygote's process, where the only clock is the machine's",
}

FORBIDDEN = {
    "time": {
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "sleep",
        "localtime",
        "gmtime",
    },
    "datetime.datetime": {"now", "utcnow", "today"},
    "datetime.date": {"today"},
    "uuid": {"uuid1", "uuid4", "uuid6", "uuid7"},
}
# Of `random`, all is forbidden but the class whose seed the caller chooses.
RANDOM_CLASS = "random.Random"


def forbidden(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module == "random":
        return name != RANDOM_CLASS
    return attribute in FORBIDDEN.get(module, ())


def uses(source: str) -> Iterator[tuple[int, str]]:
    """Each line that names a forbidden thing, called or handed on, and its full name, whatever its alias.

    `random.Random()` without a seed is one of them, since it is seeded from the machine.
    """
    tree = ast.parse(source)
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def name_of(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return full.get(node.id, "")
        if isinstance(node, ast.Attribute):
            owner = name_of(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and forbidden(name_of(node)):
            yield node.lineno, name_of(node)
        elif (
            isinstance(node, ast.Call)
            and name_of(node.func) == RANDOM_CLASS
            and not (node.args or node.keywords)
        ):
            yield node.lineno, f"{RANDOM_CLASS}()"


def test_the_engine_reads_no_clock_and_draws_no_chance_of_its_own() -> None:
    found = [
        f"runtime/{name}:{line} names {what}"
        for path in sorted(RUNTIME.rglob("*.py"))
        if not (name := path.relative_to(RUNTIME).as_posix()).startswith(OWNERS) and name not in ALLOWED
        for line, what in uses(path.read_text(encoding="utf-8"))
    ]

    assert found == [], "hand in a Clock, a random.Random or a source of ids instead"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import time\ntime.time()", "time.time"),
        ("import time as t\nt.sleep(1)", "time.sleep"),
        ("from time import monotonic as m\nm()", "time.monotonic"),
        ("import time\ndef wait(clock=time.monotonic): ...", "time.monotonic"),
        ("import datetime\ndatetime.datetime.now(datetime.UTC)", "datetime.datetime.now"),
        ("from datetime import datetime as dt, UTC\ndt.now(UTC)", "datetime.datetime.now"),
        ("from datetime import date\ndate.today()", "datetime.date.today"),
        ("import random\nrandom.random()", "random.random"),
        ("from random import choice\nchoice([1])", "random.choice"),
        ("import random\nrandom.Random()", "random.Random()"),
        ("from random import SystemRandom\nSystemRandom()", "random.SystemRandom"),
        ("import uuid\nuuid.uuid4().hex", "uuid.uuid4"),
        ("from uuid import uuid4\nuuid4()", "uuid.uuid4"),
    ],
)
def test_a_clock_or_chance_is_found_under_any_name(source: str, what: str) -> None:
    assert [name for _, name in uses(source)] == [what]


@pytest.mark.parametrize(
    "source",
    [
        "import random\ndef delay(chance: random.Random): return chance.random()",
        "import random\nrandom.Random(7)",
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, tz=UTC)",
        "def pause(clock): return clock.now(), clock.monotonic()",
        "import uuid\nuuid.UUID(int=0)",
    ],
)
def test_what_was_handed_in_may_be_used(source: str) -> None:
    assert list(uses(source)) == []
