"""Which worker an attempt goes to, what waits behind what, and what is taken back."""

import asyncio
from pathlib import Path

import pytest

from headrace.runtime.errors import PayloadTooLarge


def event_for(folder: Path, name: str) -> dict[str, str]:
    return {"begun": str(folder / f"{name}.begun"), "until": str(folder / f"{name}.until")}


def release(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.until").touch()


async def test_a_function_not_yet_known_gets_each_worker_to_itself(start, tmp_path: Path) -> None:
    bench = await start(workers=2)

    first = bench.offer("wait_for", event_for(tmp_path, "a"))
    second = bench.offer("wait_for", event_for(tmp_path, "b"))

    assert not bench.pool.offer(bench.attempt("wait_for", event_for(tmp_path, "c")))
    release(tmp_path, "a", "b")
    assert (await bench.outcome(first)).value != (await bench.outcome(second)).value


async def test_quick_functions_queue_up_to_a_bound_and_long_ones_do_not(start) -> None:
    bench = await start()
    for _ in range(5):
        await bench.run("echo")
    await bench.run("slow", 0.02)

    quick = 0
    while bench.pool.offer(bench.attempt("echo")):
        quick += 1
    await bench.until(lambda: bench.pool.load()["held"] == 0)
    long = 0
    while bench.pool.offer(bench.attempt("slow", 0.02)):
        long += 1

    assert 1 < quick <= 512
    assert long == 1
    await bench.until(lambda: bench.pool.load()["held"] == 0)
    assert {outcome.kind for outcome in bench.outcomes.values()} == {"ok"}


async def test_a_worker_holds_a_bounded_number_of_bytes(start) -> None:
    bench = await start()
    for _ in range(5):
        await bench.run("echo")

    offered = 0
    while bench.pool.offer(bench.attempt("echo", "x" * (1 << 20))):
        offered += 1

    assert 1 <= offered <= 4
    await bench.until(lambda: bench.pool.load()["held"] == 0)


async def test_room_is_told_after_a_refusal(start) -> None:
    bench = await start()
    told = asyncio.Event()
    bench.pool._events.room = told.set

    bench.offer("slow", 0.05)
    assert not bench.pool.offer(bench.attempt("slow", 0.05))

    async with asyncio.timeout(10):
        await told.wait()


async def test_work_behind_an_item_that_takes_unexpectedly_long_is_taken_back_and_runs_once(
    start, tmp_path: Path
) -> None:
    bench = await start(workers=1)
    ran = tmp_path / "ran"
    quick = {"file": str(ran), "line": "warm"}
    for _ in range(20):
        await bench.run("append", quick)

    stuck = bench.offer("append", {"file": str(ran), "line": "stuck", "seconds": 0.5})
    behind = [bench.offer("append", {"file": str(ran), "line": n}) for n in range(5)]
    for token in behind:
        await bench.outcome(token)

    assert {bench.outcomes[token].kind for token in behind} == {"returned"}
    assert stuck not in bench.outcomes
    assert (await bench.outcome(stuck)).ok
    # The worker skips what was taken back, and takes new work once it has said so.
    assert await bench.value("append", {"file": str(ran), "line": "after"}) == "after"
    assert ran.read_text().split()[20:] == ["stuck", "after"]


async def test_results_before_an_item_that_takes_unexpectedly_long_do_not_wait_for_it(
    start, tmp_path
) -> None:
    bench = await start()
    ran = tmp_path / "ran"
    for _ in range(20):
        await bench.run("append", {"file": str(ran), "line": "warm"})

    before = [bench.offer("append", {"file": str(ran), "line": n}) for n in range(3)]
    stuck = bench.offer("append", {"file": str(ran), "line": "stuck", "seconds": 0.5})
    for token in before:
        assert (await bench.outcome(token)).ok

    assert stuck not in bench.outcomes
    assert (await bench.outcome(stuck)).ok
    assert len(bench.outcomes) == 24


async def test_stealing_under_load_runs_everything_exactly_once(start, tmp_path: Path) -> None:
    bench = await start(workers=2)
    ran = tmp_path / "ran"
    waiting = [{"file": str(ran), "line": n, "seconds": 0.06 if n % 60 == 59 else 0} for n in range(600)]
    lines = {}

    async with asyncio.timeout(30):
        while waiting or any(token not in bench.outcomes for token in lines):
            for token in [token for token in lines if token in bench.outcomes]:
                event = lines.pop(token)
                if bench.outcomes[token].kind == "returned":
                    waiting.append(event)
                else:
                    assert bench.outcomes[token].ok
            while waiting:
                attempt = bench.attempt("append", waiting[-1])
                if not bench.pool.offer(attempt):
                    break
                lines[attempt.token] = waiting.pop()
            await asyncio.sleep(0)

    assert sorted(map(int, ran.read_text().split())) == list(range(600))
    assert any(outcome.kind == "returned" for outcome in bench.outcomes.values())


async def test_an_attempt_that_has_not_begun_is_cancelled_at_once_and_never_runs(
    start, tmp_path: Path
) -> None:
    bench = await start()
    ran = tmp_path / "ran"
    for _ in range(20):
        await bench.run("append", {"file": str(ran), "line": "warm"})

    first = bench.offer("append", {"file": str(ran), "line": "first", "seconds": 0.2})
    middle = bench.offer("append", {"file": str(ran), "line": "middle"})
    last = bench.offer("append", {"file": str(ran), "line": "last"})
    assert bench.pool.kill(middle)

    assert (await bench.outcome(middle)).kind == "cancelled"
    assert (await bench.outcome(last)).kind in ("returned", "ok")
    assert (await bench.outcome(first)).kind in ("returned", "ok")
    assert "middle" not in ran.read_text()
    assert await bench.value("echo", 1) == 1


async def test_killing_what_the_pool_does_not_hold_is_refused(start) -> None:
    bench = await start()

    assert not bench.pool.kill(12345)


async def test_an_urgent_attempt_gets_a_worker_of_its_own_when_all_are_busy(start, tmp_path: Path) -> None:
    bench = await start(workers=1, burst_workers=2)

    bench.offer("wait_for", event_for(tmp_path, "a"))
    urgent = [bench.offer("wait_for", event_for(tmp_path, name), urgent=True) for name in "bc"]

    assert not bench.pool.offer(bench.attempt("wait_for", event_for(tmp_path, "d"), urgent=True))
    assert not bench.pool.offer(bench.attempt("wait_for", event_for(tmp_path, "d")))
    assert bench.pool.load() == {"workers": 1, "busy": 3, "burst": 2, "held": 3}
    release(tmp_path, "b", "c")
    for token in urgent:
        assert (await bench.outcome(token)).ok
    # The workers made for urgent attempts serve the next ones, and nothing else.
    assert not bench.pool.offer(bench.attempt("echo"))
    again = bench.offer("echo", urgent=True)
    assert (await bench.outcome(again)).ok
    release(tmp_path, "a")


async def test_workers_made_for_urgent_attempts_end_when_they_rest(start, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("headrace.runtime.pool.local.BURST_IDLE_S", 0.05)
    bench = await start(workers=1)

    bench.offer("wait_for", event_for(tmp_path, "a"))
    assert (await bench.outcome(bench.offer("echo", urgent=True))).ok

    await bench.until(lambda: bench.pool.load()["burst"] == 0)
    await bench.until(lambda: len(bench.pool._links) == 1)
    release(tmp_path, "a")


async def test_what_runs_is_listed_with_its_time(start, tmp_path: Path) -> None:
    bench = await start()

    token = bench.offer("wait_for", event_for(tmp_path, "a"))
    await bench.until((tmp_path / "a.begun").exists)
    [(running, seconds)] = bench.pool.running()

    assert running == token
    assert 0 <= seconds < 10
    release(tmp_path, "a")
    await bench.outcome(token)
    assert bench.pool.running() == []


async def test_an_attempt_that_is_killed_as_it_begins_is_cancelled_or_done_and_reported_once(start) -> None:
    bench = await start(workers=2, kill_grace_s=0.1)
    for _ in range(5):
        await bench.run("slow", 0.001)

    tokens = []
    for number in range(30):
        attempt = bench.attempt("slow", 0.001)
        await bench.until(lambda attempt=attempt: bench.pool.offer(attempt))
        tokens.append(attempt.token)
        if number % 3:
            await asyncio.sleep(0)
        bench.pool.kill(attempt.token)
    for token in tokens:
        await bench.outcome(token)

    assert {bench.outcomes[token].kind for token in tokens} <= {"cancelled", "ok", "returned"}
    assert "cancelled" in {bench.outcomes[token].kind for token in tokens}


async def test_a_payload_that_no_frame_can_hold_is_refused(start) -> None:
    bench = await start()
    attempt = bench.attempt("echo")
    attempt.payload = bytes(96 << 20)

    with pytest.raises(PayloadTooLarge):
        bench.pool.offer(attempt)

    assert bench.pool.load()["held"] == 0
    assert await bench.value("echo", 1) == 1
