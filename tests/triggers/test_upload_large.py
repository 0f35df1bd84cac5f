"""Sweeps over very many keys: in bounded memory, and on from where a node before stopped."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from s3_servers import VersityServer
from trigger_bench import Engine

from headrace.runtime.model.event import UploadEvent
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.url import open_store
from headrace.runtime.testing import ManualClock
from headrace.triggers.upload import Upload, position
from headrace.triggers.upload.notified import NotifiedUploads
from headrace.triggers.upload.position import PAGES
from headrace.triggers.upload.source import PAGE

NAME = "app.on_upload/upload/0"
NOW = 1_800_000_000.0
MANY = 1_000_000


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path, ManualClock(time.time()))
    await engine.store.start()
    yield engine
    await engine.store.stop()


async def swept(source: NotifiedUploads, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        await source.swept.wait()


@pytest.mark.service
@pytest.mark.timeout(300)
@pytest.mark.parametrize("keys", [5_000, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_a_sweep_of_a_real_server_finds_what_differs_in_bounded_memory(
    own_versity: VersityServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    monkeypatch.setattr(position, "PAGES", 4)
    for name, value in own_versity.credentials.items():
        monkeypatch.setenv(name, value)
    folder = own_versity.data / "inbox"
    folder.mkdir()
    for number in range(keys):
        (folder / f"{number:06}").write_bytes(b"1")
    await asyncio.to_thread(own_versity.start)
    engine.objects = open_store(own_versity.objects)
    source = NotifiedUploads(Upload("inbox"), engine.context())
    await source.start()
    await swept(source)
    await source.stop()
    assert engine.events == []
    changed = [f"{number:06}" for number in (3, keys // 2, keys - 1)]
    for key in changed:
        await asyncio.to_thread(engine.objects.put, "inbox", key, b"22")

    tracemalloc.start()
    source = NotifiedUploads(Upload("inbox"), engine.context())
    await source.start()
    await swept(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    await source.stop()

    assert sorted(engine.keys) == changed
    assert {UploadEvent(event).size for event in engine.events} == {2}
    assert peak < 24 << 20, f"{peak >> 20} MiB"
    assert await engine.store.cursor(f"upload:{NAME}:sweep") is not None


class Generated:
    """A listing without end in sight, made as it is read; `stop_at` breaks it off."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.changed: dict[int, str] = {}
        self.stop_at: int | None = None
        self.begun: list[str] = []

    def iterate(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        self.begun.append(after)
        for number in range(int(after) + 1 if after else 0, self.keys):
            if number == self.stop_at:
                raise ConnectionError("the listing broke off")
            etag = self.changed.get(number, "e")
            at = NOW + (10 if number in self.changed else 0)
            yield ObjectInfo(bucket, f"{number:09}", 1, etag, at, "")

    def head(self, bucket: str, key: str, **options: Any) -> ObjectInfo:
        return next(self.iterate(bucket, after=f"{int(key) - 1:09}" if int(key) else ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_million_keys_are_swept_in_bounded_memory_and_on_from_where_it_stopped(
    engine: Engine,
) -> None:
    bucket = Generated(MANY)
    engine.objects = bucket  # type: ignore[assignment]
    source = NotifiedUploads(Upload("inbox"), engine.context())
    process = psutil.Process()
    before = process.memory_info().rss
    await source.start()
    await swept(source, 600)
    await source.stop()
    assert process.memory_info().rss - before < 96 << 20

    bucket.changed = {5: "f", 500_000: "f", 999_999: "f"}
    bucket.stop_at = 700_000
    source = NotifiedUploads(Upload("inbox"), engine.context())
    await source.start()
    await engine.wait_report("a sweep failed")
    await source.stop()
    assert engine.keys == ["000000005", "000500000"]
    bucket.stop_at = None
    bucket.begun.clear()
    source = NotifiedUploads(Upload("inbox"), engine.context())
    await source.start()
    await swept(source, 600)
    await source.stop()

    [begun, again] = [after for after in bucket.begun if after in ("", bucket.begun[0])][:2]
    assert again == ""
    assert 700_000 - PAGE * (PAGES + 1) <= int(begun) < 700_000
    assert engine.keys == ["000000005", "000500000", "000999999"]
    assert process.memory_info().rss - before < 96 << 20
