"""What an attempt's outcome is, for all that a function may return, raise or print."""

import asyncio
from pathlib import Path

import msgspec

KEPT = 1 << 20


async def test_a_function_gets_its_event_and_returns_its_value(start) -> None:
    bench = await start()

    outcome = await bench.run("echo", {"a": [1, None, "ä"]})

    assert outcome.kind == "ok"
    assert msgspec.json.decode(outcome.value) == {"a": [1, None, "ä"]}
    assert outcome.output == b""
    assert 0 <= outcome.duration_s < 1
    assert outcome.started_at > 1.7e9


async def test_thousands_of_attempts_are_each_reported_once_and_in_full(start) -> None:
    bench = await start(workers=2)

    wanted = {}
    for number in range(5000):
        attempt = bench.attempt("echo", number)
        wanted[attempt.token] = b"%d" % number
        if not bench.pool.offer(attempt):
            await bench.until(lambda attempt=attempt: bench.pool.offer(attempt))

    await bench.until(lambda: len(bench.outcomes) == len(wanted))
    assert {token: outcome.value for token, outcome in bench.outcomes.items()} == wanted


async def test_an_exception_is_an_error_with_the_users_frames_only(start) -> None:
    bench = await start()

    outcome = await bench.run("fail", "bad")

    assert outcome.kind == "error"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["type"]) == ("function_error", "ValueError")
    assert outcome.error["message"] == "bad"
    assert "in inner" in outcome.error["stack"]
    assert "worker.py" not in outcome.error["stack"]
    cause = (await bench.run("fail_with_cause")).error
    assert cause is not None
    assert "KeyError: 'missing'" in cause["stack"]


async def test_leaving_or_interrupting_is_an_error_and_the_worker_lives_on(start) -> None:
    bench = await start()
    before = await bench.value("who")

    left = await bench.run("leave", 3)
    interrupted = await bench.run("interrupt")

    assert left.error is not None
    assert left.error["message"] == "the function called sys.exit(3)"
    assert interrupted.error is not None
    assert interrupted.error["type"] == "KeyboardInterrupt"
    assert (await bench.value("who"))["pid"] == before["pid"]


async def test_a_refused_event_is_told_with_its_fields(start) -> None:
    bench = await start()

    outcome = await bench.run("refuse")

    assert outcome.kind == "invalid_event"
    assert outcome.error is not None
    assert outcome.error["fields"] == [{"loc": "body.x", "msg": "missing"}]


async def test_an_unknown_function_is_an_error(start) -> None:
    bench = await start()

    outcome = await bench.run("nobody")

    assert outcome.error is not None
    assert "no function 'nobody'" in outcome.error["message"]


async def test_models_dataclasses_and_bytes_become_json(start) -> None:
    bench = await start()

    assert await bench.value("shapes") == {
        "model": {"x": 1.0, "y": 0.0},
        "pair": {"left": 1, "right": [2, 3]},
        "bytes": "AP8=",
        "none": None,
    }


async def test_what_json_cannot_hold_is_named_by_its_path(start) -> None:
    bench = await start()

    not_finite = (await bench.run("not_finite")).error
    not_json = (await bench.run("not_json")).error

    assert not_finite is not None
    assert not_json is not None
    assert (not_finite["code"], not_finite["path"]) == ("unserialisable_result", "$.rows[2].score")
    assert (not_json["path"], not_json["type"]) == ("$.rows[1].what", "object")


async def test_numpy_numbers_are_values_and_its_nan_is_found(start) -> None:
    bench = await start("pool_code:load_numpy")

    numbers = await bench.value("numbers")
    error = (await bench.run("not_a_number")).error

    assert numbers[:3] == [1.5, 2, [0, 1, 2]]
    assert error is not None
    assert error["path"] == "$.mean"


async def test_an_async_function_runs_to_its_end_and_what_it_left_is_cancelled(start) -> None:
    bench = await start()

    first = await bench.value("asynchronous", 7)
    second = await bench.value("asynchronous", 8)

    assert (first["event"], second["event"]) == (7, 8)
    assert first["loop"] == second["loop"]


async def test_all_that_is_printed_at_any_level_is_captured(start) -> None:
    bench = await start()

    talked = await bench.run("talk")
    silent = await bench.run("echo")

    for line in ("from print", "to stderr", "from os.write", "from C", "from echo", "INFO logged rows=3"):
        assert line.encode() + b"\n" in talked.output
    assert b"WARNING lib by logging\n" in talked.output
    assert talked.output.endswith(b"no newline")
    assert talked.output_bytes == len(talked.output)
    assert silent.output == b""


async def test_of_much_output_the_head_and_the_tail_are_kept(start) -> None:
    bench = await start()

    outcome = await bench.run("flood", 100_000)

    assert outcome.ok
    assert outcome.output_bytes == 100_000_000 + len("the first line\nthe last line\n")
    assert KEPT < len(outcome.output) < KEPT + 100
    assert outcome.output.startswith(b"the first line\nxxx")
    assert outcome.output.endswith(b"xxx\nthe last line\n")
    assert b" bytes cut ..." in outcome.output


async def test_closed_streams_are_open_again_for_the_next(start) -> None:
    bench = await start()

    closed = await bench.run("close_streams")
    talked = await bench.run("talk")

    assert closed.output == b"before closing\n"
    assert b"from print\n" in talked.output
    assert b"to stderr\n" in talked.output


async def test_what_a_running_attempt_has_printed_can_be_read(start) -> None:
    bench = await start(kill_grace_s=0.1)

    token = bench.offer("ignore_the_end")
    await bench.executing(token)
    bench.pool.kill(token)

    await bench.until(lambda: b"not now" in bench.pool.output(token))
    assert (await bench.outcome(token)).output == b"not now\n"
    assert bench.pool.output(token) == b""


async def test_a_context_tells_the_invocation(start) -> None:
    bench = await start()

    told = await bench.value("who", invocation_id=0xABC, attempt=3, timeout_s=5.0)

    assert (told["id"], told["attempt"], told["function"]) == ("0000000000000abc", 3, "who")
    assert 4 < told["remaining"] <= 5
    assert told["group"] == told["pid"]


async def test_progress_is_passed_on_at_a_bounded_rate_and_its_end_always(start) -> None:
    bench = await start()

    token = bench.offer("tell", 1000)
    await bench.outcome(token)

    assert {seen for seen, _ in bench.progress} == {token}
    assert bench.progress[0][1] == {"done": 0, "total": 1000, "message": "on the way"}
    assert bench.progress[-1][1]["done"] == 1000
    assert len(bench.progress) < 20


async def test_a_scratch_folder_is_removed_even_when_the_worker_dies(start) -> None:
    bench = await start()

    folder = await bench.value("scratch")
    assert folder.startswith(str(bench.scratch_root))
    assert not any(bench.scratch_root.glob("pool-*/w*/scratch-*"))

    died = await bench.run("scratch", "die")
    assert died.kind == "crashed"
    await bench.until(lambda: not any(bench.scratch_root.glob("pool-*/w*/scratch-*")))


async def test_a_large_result_comes_whole_where_no_store_is_configured(start) -> None:
    bench = await start()

    assert len(await bench.value("big", 3 << 20)) == 3 << 20


async def test_with_a_store_large_results_and_payloads_go_through_it(start, tmp_path: Path) -> None:
    from headrace.runtime.objects.url import open_store
    from headrace.runtime.pool.context import WorkerConfig

    objects = open_store(tmp_path / "objects")
    objects.make_bucket("bucket")
    objects.make_bucket("headrace-system")
    objects.put("bucket", "payload.json", b'"from afar"')
    bench = await start(config=WorkerConfig(objects=str(tmp_path / "objects")))

    large = await bench.run("big", 1 << 20, invocation_id=7, attempt=2)
    fetched = await bench.value("echo", payload_ref="s3://bucket/payload.json")
    stored = await bench.value("store")
    missing = await bench.run("echo", payload_ref="s3://bucket/nothing")

    assert large.value == b""
    assert large.result_ref == "s3://headrace-system/results/0000000000000007/2.json"
    assert len(objects.get("headrace-system", "results/0000000000000007/2.json")) == (1 << 20) + 2
    assert fetched == "from afar"
    assert stored == "ZGF0YQ=="
    assert missing.error is not None
    assert missing.error["type"].endswith("NoSuchObject")


async def test_a_client_is_made_by_the_configured_factory(start) -> None:
    from headrace.runtime.pool.context import WorkerConfig

    config = WorkerConfig(url="http://127.0.0.1:1", token="t", client_factory="pool_code:make_client")
    bench = await start(config=config)

    assert await bench.value("client") == ["http://127.0.0.1:1", "t"]


async def test_without_configuration_the_context_says_what_is_missing(start) -> None:
    bench = await start()

    client, store = await bench.run("client"), await bench.run("store")

    assert client.error is not None
    assert store.error is not None
    assert "given no client" in client.error["message"]
    assert "no object store is configured" in store.error["message"]


async def test_a_child_that_returns_like_its_parent_reports_nothing(start) -> None:
    bench = await start()

    assert await bench.value("fork_and_return") == "parent"
    assert await bench.value("echo", 1) == 1


async def test_a_child_of_user_code_can_be_terminated_as_usual(start) -> None:
    bench = await start()

    assert await bench.value("terminate_child") == -15


async def test_attempts_offered_in_one_turn_leave_together_and_keep_their_order(start) -> None:
    bench = await start()
    await bench.run("echo")

    tokens = [bench.offer("echo", number) for number in range(100)]
    await asyncio.gather(*(bench.outcome(token) for token in tokens))

    assert bench.order[1:] == tokens
