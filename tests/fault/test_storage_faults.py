"""The disk fails a running node: full, read-only, damaged, or the process stops for longer than its lease.

Nothing acknowledged is lost, what cannot be kept is refused in clear words, and the node goes on when it can.
"""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace import Client
from headrace.runtime.errors import DataDamaged
from headrace.runtime.model.invocation import Invocation
from headrace.runtime.model.write import Put
from headrace.runtime.store import sqlite
from headrace.runtime.store.sqlite import SqliteStore
from tests.serving import Serving, run_command, serving, wait_until

CODE = Path(__file__).with_name("storage_functions.py")
PAD = 60_000
ITEMS = 30
MIB = 1 << 20
PAGE_BYTES = 4096


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return Path(shutil.copy(CODE, tmp_path))


def runs(code: Path) -> Counter[str]:
    return Counter(code.with_name("runs").read_text().splitlines())


def invoke(client: Client, n: int, *, pad: int = PAD) -> tuple[int, dict[str, Any]]:
    """Ask for one durable invocation; the answer's status and body."""
    answer = client.backend.request(
        "POST",
        "/v1/functions/kept.echo/invoke",
        query={"mode": "async"},
        body=json.dumps({"n": n, "pad": "." * pad}).encode(),
        headers={"Content-Type": "application/json"},
    )
    return answer.status, json.loads(answer.body)


def accepted_until_refused(client: Client, *, most: int = 2_000) -> tuple[list[str], int, dict[str, Any]]:
    """Ids of invocations that were accepted, then the status and body of the first that was not."""
    ids: list[str] = []
    for n in range(most):
        status, body = invoke(client, n)
        if status != 202:
            return ids, status, body
        ids.append(body["invocation_id"])
    raise AssertionError(f"{most} invocations were all accepted")


def all_ended(node: Serving, ids: list[str]) -> Counter[str]:
    """How the invocations ended, once all have."""
    wanted = set(ids)

    def look() -> Counter[str] | None:
        found = {
            one["invocation_id"]: one for one in node.client.invocations() if one["invocation_id"] in wanted
        }
        assert found.keys() == wanted, "an acknowledged invocation is gone"
        states = Counter(str(one["status"]) for one in found.values())
        return None if states["waiting"] or states["running"] else states

    return wait_until(look, f"the end of {len(ids)} invocations")


# ---- a disk that is full, and then is not ----


@pytest.fixture(params=["tmpfs", "limit"])
def small_disk(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Callable[[Serving], None], Callable[[Serving], None]]]:
    """How the node's disk becomes small, and large again: a file system of 12 MiB, or a limit of size."""
    if request.param == "limit":

        def limit(node: Serving, size: int) -> None:
            _, most = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (size, most))

        yield lambda node: limit(node, 4 * MIB), lambda node: limit(node, resource.RLIM_INFINITY)
        return
    data = tmp_path / "data"
    data.mkdir()
    mount(["-t", "tmpfs", "-o", "size=12m", "tmpfs", str(data)])
    try:
        yield (
            lambda node: None,
            lambda node: mount(["-o", "remount,size=256m", str(data)]),
        )
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True, timeout=20)


def mount(arguments: list[str]) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"needs root that may mount file systems: {done.stderr.strip()}")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux's prlimit(2)")
def test_a_full_disk_refuses_what_is_new_keeps_what_was_accepted_and_goes_on_when_there_is_room(
    tmp_path: Path, code: Path, small_disk: tuple[Callable[[Serving], None], Callable[[Serving], None]]
) -> None:
    fill, make_room = small_disk
    with serving(code, folder=tmp_path) as node:
        job = node.client.submit_job("kept.total", list(range(ITEMS)))
        fill(node)
        ids, status, body = accepted_until_refused(node.client)

        assert (status, body["error"]["code"]) == (507, "storage_full")
        assert str(node.data) in body["error"]["message"]
        assert body["error"]["hint"]
        assert ids
        assert node.client.backend.request("GET", "/healthz").status == 200
        status, body = invoke(node.client, 1)
        if status == 202:  # a checkpoint had just made a little room in the log
            ids.append(body["invocation_id"])
        else:
            assert status == 507
        make_room(node)

        def is_accepted() -> str | None:
            status, body = invoke(node.client, 9_999)
            return body["invocation_id"] if status == 202 else None

        ids.append(wait_until(is_accepted, "room to be noticed"))
        assert all_ended(node, ids) == {"succeeded": len(ids)}
        assert job.wait(30)["result"] == sum(range(ITEMS))
        books = node.check_books()["functions"]["kept.echo"]
        assert (books["accepted"], books["succeeded"]) == (len(ids), len(ids))
        client = node.restart()
        assert all_ended(node, ids) == {"succeeded": len(ids)}
        assert client.job(job.id).status()["status"] == "succeeded"
        assert node.check_books()["functions"]["kept.echo"] | {"sync": 0} == books | {"sync": 0}


# ---- a disk that may only be read ----


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """`data` as a file system of its own on a file, which the kernel makes read-only at its first error."""
    image, data = tmp_path / "disk", tmp_path / "data"
    data.mkdir()
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4: on Debian, apt-get install e2fsprogs")
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=30, capture_output=True)
    mount(["-o", "loop,errors=remount-ro", str(image), str(data)])
    try:
        yield data
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=False, timeout=20)


def trip(data: Path) -> None:
    """Have the kernel believe that it has found an error in the file system, as a failing disk would."""
    device = next(
        line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(data) in line
    )
    switch = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    try:
        switch.write_text("a test\n")
    except OSError as error:
        pytest.skip(f"needs a kernel that lets root trip a file system: {error}")


def test_a_disk_that_becomes_read_only_refuses_what_is_new_and_keeps_what_was_accepted(
    tmp_path: Path, code: Path, real_disk: Path
) -> None:
    with serving(code, folder=tmp_path) as node:
        ids = [invoke(node.client, n, pad=10)[1]["invocation_id"] for n in range(20)]
        assert all_ended(node, ids) == {"succeeded": 20}
        trip(real_disk)

        def refusal() -> tuple[int, dict[str, Any]] | None:
            status, body = invoke(node.client, 99, pad=10)
            if status == 202:
                ids.append(body["invocation_id"])
                return None
            return status, body["error"]

        status, error = wait_until(refusal, "a refusal")
        assert (status, error["code"]) == (503, "read_only_storage")
        assert str(node.data) in error["message"]
        assert node.client.backend.request("GET", "/healthz").status == 200
        assert node.client.stats()["total"]["accepted"] == len(ids)
        assert node.stop() == 0

        done = run_command("serve", code, "--port", "0", "--data", node.data)
        assert done.returncode != 0
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["umount", str(real_disk)], check=True, timeout=20)
        subprocess.run(
            ["fsck.ext4", "-p", str(tmp_path / "disk")], check=False, timeout=30, capture_output=True
        )
        mount(["-o", "loop", str(tmp_path / "disk"), str(real_disk)])
        node.start()
        assert all_ended(node, ids) == {"succeeded": len(ids)}
        node.check_books()


# ---- a file that is damaged ----


async def filled(path: Path, rows: int = 400) -> dict[int, bytes]:
    """A database that was closed in order; what its invocations are to be."""
    store = SqliteStore(path)
    await store.start()
    wanted = {id: json.dumps({"n": id, "pad": "x" * 300}).encode() for id in range(1, rows + 1)}
    puts = [Put(Invocation(id, "f", "f", payload, 1.0, 1.0, 9e9, 0)) for id, payload in wanted.items()]
    await store.apply(puts, now=1.0)
    await store.stop()
    return wanted


async def refusal(path: Path, wanted: dict[int, bytes]) -> DataDamaged | None:
    """What a store on the file says; None when it says nothing, and then everything is as it was."""
    store = SqliteStore(path)
    try:
        await store.start()
        await check_all(store, wanted)
    except DataDamaged as error:
        return error
    finally:
        await store.stop()
    return None


async def check_all(store: SqliteStore, wanted: dict[int, bytes]) -> None:
    for id, payload in wanted.items():
        found = await store.get(id)
        assert found is not None, "an invocation is gone and nothing was said"
        assert found.invocation.payload == payload, "an invocation is another and nothing was said"


def damage(path: Path, page: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(content)


@pytest.mark.parametrize("what", ["noise", "zeros", "another page"])
async def test_a_damaged_page_is_refused_or_was_not_in_use(tmp_path: Path, what: str) -> None:
    whole, path = tmp_path / "whole.db", tmp_path / "h.db"
    wanted = await filled(whole)
    chance = random.Random(17)
    pages = whole.stat().st_size // PAGE_BYTES
    first = whole.read_bytes()[PAGE_BYTES : 2 * PAGE_BYTES]
    refused = 0
    for page in sorted(chance.sample(range(1, pages), min(30, pages - 1))):
        shutil.copy(whole, path)
        content = {"noise": chance.randbytes(PAGE_BYTES), "zeros": bytes(PAGE_BYTES), "another page": first}
        damage(path, page, content[what])
        before = path.read_bytes()
        error = await refusal(path, wanted)
        if error is not None:
            refused += 1
            assert str(path) in str(error)
            assert ".recover" in error.hint
            assert path.read_bytes() == before, "the evidence was changed"
    assert refused > 10


def test_a_node_does_not_start_on_a_damaged_file_and_says_what_to_do(tmp_path: Path, code: Path) -> None:
    with serving(code, folder=tmp_path) as node:
        ids = [invoke(node.client, n, pad=2_000)[1]["invocation_id"] for n in range(100)]
        all_ended(node, ids)
        assert node.stop() == 0
        path = node.data / "headrace.db"
        damage(path, path.stat().st_size // PAGE_BYTES // 2, os.urandom(PAGE_BYTES))
        done = run_command("serve", code, "--port", "0", "--data", node.data)

        assert done.returncode != 0
        assert f"{path} is damaged" in done.stderr
        assert ".recover" in done.stderr
        assert "Traceback" not in done.stderr


async def test_damage_under_a_running_store_ends_its_work_and_is_every_answer(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    wanted = await filled(path)
    store = SqliteStore(path)
    await store.start()
    assert store.problem() is None
    for page in range(2, path.stat().st_size // PAGE_BYTES):
        damage(path, page, os.urandom(PAGE_BYTES))
    with pytest.raises(DataDamaged):
        await check_all(store, wanted)

    assert store.problem() is not None
    with pytest.raises(DataDamaged, match=path.name):
        await store.apply([Put(Invocation(9_000, "f", "f", b"1", 1.0, 1.0, 9e9, 0))], now=2.0)
    with pytest.raises(DataDamaged):
        await store.flows()
    await store.stop()


async def test_a_file_too_large_to_be_looked_through_before_a_start_is_looked_through_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_CHECKED_BYTES", 0)
    monkeypatch.setattr(sqlite, "_CHECKED_AFTER_KILL_BYTES", 0)
    path, copy = tmp_path / "h.db", tmp_path / "copy" / "h.db"
    await filled(path)
    store = SqliteStore(path)
    await store.start()
    await store.apply([Put(Invocation(9_000, "f", "f", b"1", 1.0, 1.0, 9e9, 0))], now=2.0)
    copy.parent.mkdir()
    for name in ("h.db", "h.db-wal"):
        shutil.copy(tmp_path / name, copy.with_name(name))
    await store.stop()
    db = sqlite3.connect(path)
    [root] = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger'").fetchone()
    db.close()
    damage(copy, root - 1, b"\xff" * PAGE_BYTES)

    killed = SqliteStore(copy)
    await killed.start()
    assert killed._checking is not None
    await killed._checking
    assert "damaged" in str(killed.problem())
    await killed.stop()


# ---- a process that does not run for a while ----


@pytest.mark.parametrize(
    "point", ["accept:2", "commit.before:3", "commit.after:3", "result.receive:2", "complete.after:5"]
)
def test_a_node_that_stops_for_longer_than_its_lease_goes_on_with_nothing_lost_or_doubled(
    tmp_path: Path, code: Path, point: str
) -> None:
    lease_s, count = 1.0, 60
    env = {"HEADRACE_NODE_LEASE_S": str(lease_s), "HEADRACE_FAULT": f"{point}:stop"}
    with serving(code, folder=tmp_path, env=env) as node:
        process = psutil.Process(node.pid)
        job = node.client.submit_job("kept.total", list(range(ITEMS)))
        futures = [node.client.submit("kept.echo", {"n": n, "pad": ""}) for n in range(count)]
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, f"the node to stop at {point}")
        time.sleep(2.5 * lease_s)  # the fault itself: nothing is waited for
        process.send_signal(signal.SIGCONT)

        assert [future.result(timeout=30) for future in futures] == [[n, 0] for n in range(count)]
        assert job.wait(30)["result"] == sum(range(ITEMS))
        books = node.check_books()["functions"]
        assert (books["kept.echo"]["accepted"], books["kept.echo"]["succeeded"]) == (count, count)
        assert set(runs(code).values()) == {1}
        assert {one["attempts"] for one in node.client.invocations()} == {1}
