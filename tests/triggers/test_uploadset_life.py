"""Sets over random lives: two sources on one store, crashes at commits, refusals, overwrites."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from trigger_bench import DEADLINE_S, Engine

from headrace import Count, UploadSet, UploadSetEvent
from headrace.runtime.errors import StorageFull
from headrace.runtime.model.write import Write
from headrace.runtime.testing import ManualClock
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.uploadset.source import SetSource

TRIGGER = UploadSet("inbox", pattern="{day}/*", complete=Count(3), late="fire", existing="run")
NAME = "app.on_upload/uploadset/0"
SETS, FILES = 4, 5


class Life:
    """One node's source. It may die at its next write: before the commit, or after it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dies: str | None = None
        self.dead = asyncio.Event()
        context: TriggerContext = engine.context(NAME)
        context.accept = self._accept
        self.source = SetSource(TRIGGER, context)

    def die(self, when: str) -> None:
        self._dies = when

    async def _accept(self, events: Sequence[Mapping[str, Any]], writes: Sequence[Write]) -> list[str]:
        if self._dies == "before" or self.dead.is_set():
            await self._end()
        # A commit that has begun ends, whoever is stopped meanwhile.
        answer = await asyncio.shield(self._engine.accept(events, writes))
        if self._dies == "after":
            await self._end()
        return answer

    async def _end(self) -> None:
        self.dead.set()
        await asyncio.Event().wait()  # a dead process does nothing more


@pytest.mark.parametrize("seed", range(6))
async def test_every_state_of_every_file_is_told_of_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    clock = ManualClock(time.time() + 3600)
    engine = Engine(tmp_path, clock)
    for bucket in ("inbox", "headrace-system"):
        engine.objects.make_bucket(bucket)
    await engine.store.start()
    lives = [Life(engine), Life(engine)]
    for life in lives:
        await life.source.start()
    try:
        for _ in range(60):
            at = chance.randrange(2)
            match chance.choice(["put", "put", "put", "die", "refuse", "time", "breathe"]):
                case "put":
                    key = f"d{chance.randrange(SETS)}/{chance.randrange(FILES)}"
                    await asyncio.to_thread(engine.objects.put, "inbox", key, chance.randbytes(4))
                case "die":
                    lives[at].die(chance.choice(["before", "after"]))
                case "refuse":
                    engine.refuse.append(StorageFull("the disk"))
                case "time":
                    await clock.advance(chance.choice([1, 3, 301]))
                case "breathe":
                    await asyncio.sleep(0.01)
            if lives[at].dead.is_set():
                await lives[at].source.stop()
                lives[at] = Life(engine)
                await lives[at].source.start()
        for number, life in enumerate(lives):
            await life.source.stop()
            lives[number] = Life(engine)
            await lives[number].source.start()
        there = {(info.key, info.etag) for info in engine.objects.iterate("inbox")}
        in_set = Counter(key.partition("/")[0] for key, _ in there)
        wanted = {state for state in there if in_set[state[0].partition("/")[0]] >= 3}
        async with asyncio.timeout(DEADLINE_S):
            while not wanted <= set(told(engine)):
                await clock.advance(50)
                await asyncio.sleep(0.01)
        for _ in range(10):
            await clock.advance(50)
            await asyncio.sleep(0.01)
    finally:
        for life in lives:
            await life.source.stop()
        await engine.store.stop()

    states = told(engine)
    assert len(states) == len(set(states)), "a state of a file was told of twice"
    first = Counter(UploadSetEvent(event).set for event in engine.events if not UploadSetEvent(event).late)
    assert first == Counter([name for name, count in in_set.items() if count >= 3])


def told(engine: Engine) -> list[tuple[str, str]]:
    """Every file of every event."""
    return [(file["key"], file["etag"]) for event in engine.events for file in UploadSetEvent(event).files()]
