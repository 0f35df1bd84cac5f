"""A node under a steady load with random kills: what it uses stays bounded, and nothing is lost or doubled.

Short by default; `make test-full` runs it for `$SOAK_S` seconds, 1,800 when it is not set.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.runtime.errors import HeadraceError
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("soak_functions.py")
RATE = 200
STEP_S = 0.25
KEPT_ROWS = 500
SHORT_S = 12.0
FULL_S = float(os.environ.get("SOAK_S", "1800"))


class Use:
    """What the node uses at one moment."""

    def __init__(self, node: Serving) -> None:
        process = psutil.Process(node.pid)
        family = [process, *process.children(recursive=True)]
        self.handles = process.num_fds()
        self.processes = len(family)
        self.resident = process.memory_info().rss
        self.disk = sum(file.stat().st_size for file in node.data.rglob("*") if file.is_file())


def strike(node: Serving, chance: random.Random) -> str:
    """Kill a worker, the zygote, or the node; a killed node is started again."""
    what = chance.choices(["worker", "zygote", "node"], [6, 2, 1])[0]
    if what == "node":
        node.restart()
        return what
    victims = node.workers() if what == "worker" else [node.zygote()]
    for victim in victims[:1]:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return "nobody"
    return what


def soak(node: Serving, seconds: float, chance: random.Random) -> tuple[int, list[Use], list[str]]:
    """Put at a fixed rate; every now and then kill something. The number accepted, uses over time, kills."""
    accepted, uses, kills = 0, [], []
    began = time.monotonic()
    next_kill = chance.uniform(1, 3)
    step = 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int((elapsed + STEP_S) * RATE)
        payloads = [{"n": n} for n in range(accepted, due)]
        if payloads:
            node.client.call("POST", "/v1/functions/soak.mixed/invoke-many", body=payloads)
            accepted = due
        if elapsed >= next_kill:
            kills.append(strike(node, chance))
            next_kill = elapsed + chance.uniform(1, 3)
        step += 1
        if step % 4 == 0:
            try:
                uses.append(Use(node))
            except (psutil.NoSuchProcess, FileNotFoundError, AssertionError, ValueError):
                continue  # something ended while it was looked at
        time.sleep(max(0.0, (step * STEP_S) - (time.monotonic() - began)))
    return accepted, uses, kills


def check(node: Serving, accepted: int, uses: list[Use]) -> dict[str, Any]:
    """The account, once all has ended; then what was used."""

    def ended() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = node.client.stats()["functions"]["soak.mixed"]
        except HeadraceError:
            return None
        return found if found["succeeded"] + found["dead"] == accepted else None

    books = wait_until(ended, f"the end of {accepted} invocations", within_s=60)
    bad = sum(n % 50 == 0 for n in range(accepted))
    assert (books["accepted"], books["succeeded"], books["dead"]) == (accepted, accepted - bad, bad)
    node.check_books()
    half = len(uses) // 2
    assert max(use.handles for use in uses[half:]) <= max(use.handles for use in uses[:half]) + 20
    assert max(use.processes for use in uses) <= 2 + 2 + 8 + 2
    early, late = max(use.resident for use in uses[:half]), max(use.resident for use in uses[half:])
    assert late <= early * 1.3 + (16 << 20), f"the node grew from {early} to {late} bytes"
    return books


@pytest.mark.timeout(120)
def test_a_short_soak_with_kills_loses_and_doubles_nothing(tmp_path: Path) -> None:
    _run(tmp_path, SHORT_S, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(FULL_S + 600)
def test_a_long_soak_with_kills_stays_bounded(tmp_path: Path) -> None:
    _run(tmp_path, FULL_S, seed=random.randrange(1 << 30))


def _run(folder: Path, seconds: float, *, seed: int, store: str | None = None) -> None:
    chance = random.Random(seed)
    env = {
        "HEADRACE_KEPT_SUCCEEDED_ROWS": str(KEPT_ROWS),
        "HEADRACE_KEPT_DEAD_S": "2",
        "HEADRACE_KEPT_LOGS_BYTES": str(1 << 20),
        "HEADRACE_KEPT_EVERY_S": "0.5",
        "HEADRACE_RECYCLE_AFTER": "300",
    }
    flags = ("--store", store) if store else ()
    with serving(CODE, folder=folder, env=env, flags=flags) as node:
        accepted, uses, kills = soak(node, seconds, chance)
        print(f"seed {seed}: {accepted} accepted, kills {kills}")
        assert kills
        check(node, accepted, uses)
        half = len(uses) // 2
        early, late = max(use.disk for use in uses[:half]), max(use.disk for use in uses[half:])
        assert late <= early * 1.5 + (4 << 20), f"the data folder grew from {early} to {late} bytes"

        def few() -> bool:
            page = node.client.call("GET", "/v1/invocations", query={"status": "succeeded", "limit": "1000"})
            return len(page["items"]) <= KEPT_ROWS

        wait_until(few, f"retention down to {KEPT_ROWS} rows")
        node.check_books()
