"""A running LocalPool with what a test wants to ask of it."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from headrace.runtime.clock import SystemClock
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.pool.local import LocalPool
from headrace.runtime.pool.protocol import PoolEvents

HERE = Path(__file__).parent
PATIENCE_S = 20.0


class Bench:
    """A pool, the outcomes it reported, and ways to wait for them; every wait has a deadline."""

    def __init__(self, scratch_root: Path, loader: str, argument: bytes, **settings: Any) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.order: list[int] = []
        self.progress: list[tuple[int, dict[str, Any]]] = []
        self.scratch_root = scratch_root
        self._tokens = itertools.count(1)
        self._changed = asyncio.Event()
        settings.setdefault("workers", 1)
        env = {"PYTHONPATH": str(HERE), **settings.pop("env", {})}
        self.pool = LocalPool(
            loader,
            argument,
            events=PoolEvents(self._reports, self._changed.set, self._progress),
            scratch_root=scratch_root,
            clock=SystemClock(),
            env=env,
            **settings,
        )

    def _reports(self, reports: Any) -> None:
        for report in reports:
            assert isinstance(report, Report)
            assert report.token not in self.outcomes, "an attempt was reported twice"
            self.outcomes[report.token] = report.outcome
            self.order.append(report.token)
        self._changed.set()

    def _progress(self, token: int, told: dict[str, Any]) -> None:
        self.progress.append((token, told))
        self._changed.set()

    def attempt(self, function: str, event: Any = None, **fields: Any) -> Attempt:
        token = next(self._tokens)
        fields = {
            "timeout_s": 30.0,
            "memory_bytes": 512 << 20,
            "invocation_id": token,
            "attempt": 1,
            **fields,
        }
        return Attempt(token=token, function=function, payload=msgspec.json.encode(event), **fields)

    def offer(self, function: str, event: Any = None, **fields: Any) -> int:
        """Offer one attempt that must find room; returns its token."""
        attempt = self.attempt(function, event, **fields)
        assert self.pool.offer(attempt), "there is no room"
        return attempt.token

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something the pool tells of, or something outside it, is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                try:
                    async with asyncio.timeout(0.01):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def outcome(self, token: int) -> Outcome:
        await self.until(lambda: token in self.outcomes)
        return self.outcomes[token]

    async def run(self, function: str, event: Any = None, **fields: Any) -> Outcome:
        """Offer as soon as there is room, and wait for the outcome."""
        attempt = self.attempt(function, event, **fields)
        await self.until(lambda: self.pool.offer(attempt))
        return await self.outcome(attempt.token)

    async def value(self, function: str, event: Any = None, **fields: Any) -> Any:
        outcome = await self.run(function, event, **fields)
        assert outcome.ok, outcome
        return msgspec.json.decode(outcome.value)

    async def executing(self, token: int) -> None:
        await self.until(lambda: any(running == token for running, _ in self.pool.running()))


SERVERS = ("postgres", "minio", "versitygw")


def processes() -> list[psutil.Process]:
    """This process's living descendants, but for the servers that other tests of this process started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if one.status() != psutil.STATUS_ZOMBIE and one.name() not in SERVERS:
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts a pool with the given settings; it is stopped with the test, and must leave nothing behind."""
    benches: list[Bench] = []
    descriptors = len(os.listdir("/proc/self/fd"))

    async def begin(loader: str = "pool_code:load", argument: bytes = b"", **settings: Any) -> Bench:
        bench = Bench(tmp_path, loader, argument, **settings)
        benches.append(bench)
        await bench.pool.start()
        return bench

    yield begin
    for bench in benches:
        await bench.pool.stop(grace_s=0)
        assert bench.pool.load()["held"] == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith("pool-")]
    assert processes() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1, "descriptors leak"
