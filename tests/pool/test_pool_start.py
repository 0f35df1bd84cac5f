"""How a pool starts, what the code that it loads may do, and how it stops."""

import asyncio
import os
from pathlib import Path

import pytest
from conftest import Bench, processes


async def test_the_manifest_comes_from_the_loader_with_what_the_import_printed(start) -> None:
    bench = await start("pool_code:load_loudly", b"argument")

    assert [function.name for function in bench.pool.manifest.functions] == ["echo"]
    assert (bench.pool.manifest.start, bench.pool.manifest.why) == ("fork", "")
    assert bench.pool.load_output == "printed by the import\nwritten by the import\n"
    assert await bench.value("echo") == "argument"


async def test_a_large_argument_arrives_whole(start) -> None:
    bench = await start("pool_code:load_loudly", b"x" * (5 << 20))

    assert len(await bench.value("echo")) == 5 << 20


async def test_a_thread_left_by_the_import_means_that_workers_are_spawned(start) -> None:
    bench = await start("pool_code:load_with_thread", workers=2)

    assert bench.pool.manifest.start == "spawn"
    assert "'metrics'" in bench.pool.manifest.why
    assert await bench.value("echo", 1) == 1
    crashed = await bench.run("end_process", 4)
    assert crashed.error is not None
    assert crashed.error["exit_code"] == 4
    assert crashed.output == b"goodbye\n"
    assert (await bench.run("end_well", timeout_s=0.1)).kind == "timeout"
    assert await bench.value("echo", 2) == 2


async def test_threads_of_a_native_pool_that_survives_a_fork_are_no_reason_to_spawn(start) -> None:
    bench = await start("pool_code:load_numpy", env={"OPENBLAS_NUM_THREADS": "2"}, workers=2)

    assert bench.pool.manifest.start == "fork"
    assert await bench.value("multiply") == 200.0**3
    draws = [(await bench.value("numbers"))[3] for _ in range(4)]
    assert len(set(draws)) == 4


async def test_the_environment_is_scrubbed_and_native_pools_have_one_thread(start, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bench = await start(env={"GIVEN": "1", "MKL_NUM_THREADS": "3"})

    environment = (await bench.value("who"))["environment"]

    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["PATH"] == os.environ["PATH"]
    assert (environment["GIVEN"], environment["MKL_NUM_THREADS"]) == ("1", "3")
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


async def test_a_worker_has_no_descriptor_but_its_own(start, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    bench = await start(hold_fds=(lock,), workers=2)
    files = (await bench.value("who"))["descriptors"]
    os.close(lock)

    assert len([file for file in files if file.startswith("socket:")]) == 1
    assert not any("lock" in file for file in files)
    assert len(files) <= 6, files


async def test_workers_draw_different_random_numbers(start) -> None:
    bench = await start(workers=2)

    draws = {}
    while len(draws) < 2:
        tokens = [bench.offer("who"), bench.offer("who")] if not draws else []
        for token in tokens:
            await bench.outcome(token)
        told = await bench.value("who")
        draws[told["pid"]] = told["random"]

    assert len(set(draws.values())) == 2


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("pool_code:load_badly", "ImportError: no module named pandas"),
        ("pool_code:load_to_death", "importing the code ended its process (exit code 3)"),
        ("pool_code:absent", "AttributeError: module 'pool_code' has no attribute 'absent'"),
        ("absent_module:load", "ModuleNotFoundError: No module named 'absent_module'"),
    ],
)
async def test_code_that_cannot_be_loaded_is_an_error_in_the_manifest(
    start, loader: str, message: str
) -> None:
    bench = await start(loader)

    [error] = bench.pool.manifest.errors
    assert error.message == message
    assert not bench.pool.offer(bench.attempt("echo"))


async def test_what_dying_code_printed_last_is_the_hint(start) -> None:
    bench = await start("pool_code:load_to_death")

    assert bench.pool.manifest.errors[0].hint == "about to die"


async def test_code_that_never_finishes_loading_is_given_up(start, monkeypatch) -> None:
    monkeypatch.setattr("headrace.runtime.pool.local.LOAD_TIME_MAX_S", 0.5)

    bench = await start("pool_code:load_for_ever")

    assert "longer than 0.5 s" in bench.pool.manifest.errors[0].message


async def test_a_pool_can_be_stopped_while_its_code_loads(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "pool_code:load_for_ever", b"")
    starting = asyncio.create_task(bench.pool.start())
    await bench.until(lambda: len(processes()) >= 2)

    await bench.pool.stop(grace_s=10)

    assert (await starting).errors
    assert processes() == []
    assert os.listdir(tmp_path) == []


async def test_stopping_waits_for_what_runs_and_returns_what_had_not_begun(start, tmp_path: Path) -> None:
    bench = await start()
    for _ in range(20):
        await bench.run("append", {"file": str(tmp_path / "ran"), "line": "warm"})
    running = bench.offer("append", {"file": str(tmp_path / "ran"), "line": "running", "seconds": 0.2})
    behind = [bench.offer("append", {"file": str(tmp_path / "ran"), "line": n}) for n in range(3)]
    await bench.executing(running)

    await bench.pool.stop(grace_s=10)

    assert bench.outcomes[running].ok
    assert {bench.outcomes[token].kind for token in behind} == {"returned"}
    assert not bench.pool.offer(bench.attempt("echo"))
    assert processes() == []


async def test_stopping_kills_what_does_not_end_in_time_and_returns_it(start, tmp_path: Path) -> None:
    bench = await start(workers=2)
    hung = bench.offer("hung_children", str(tmp_path / "pids"))
    deaf = bench.offer("loop_in_c")
    await bench.until((tmp_path / "pids.complete").exists)
    await bench.executing(deaf)

    begun = asyncio.get_running_loop().time()
    await bench.pool.stop(grace_s=0.1)

    assert asyncio.get_running_loop().time() - begun < 5
    assert {bench.outcomes[token].kind for token in (hung, deaf)} == {"returned"}
    assert processes() == []


async def test_stopping_twice_or_before_the_start_is_harmless(start, tmp_path: Path) -> None:
    bench = await start()

    await bench.pool.stop(grace_s=1)
    await bench.pool.stop(grace_s=1)
    await Bench(tmp_path, "pool_code:load", b"").pool.stop(grace_s=1)

    assert processes() == []


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Bench(tmp_path, "pool_code:load", b"", workers=0)
    with pytest.raises(ValueError, match="the limit is"):
        Bench(tmp_path, "pool_code:load", b"x" * ((64 << 20) + 1))
