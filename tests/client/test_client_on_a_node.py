"""The client against a real node, over HTTP."""

import asyncio
import io
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.runtime.client import AsyncClient, Client, ClientClosed, WaitTimeout
from headrace.runtime.errors import (
    BadRequest,
    FunctionError,
    InvalidPayload,
    JobFailed,
    NoSuchObject,
    Throttled,
    Unauthorized,
    UnknownFunction,
    UnknownInvocation,
    UnknownJob,
    WrongState,
)
from headrace.runtime.jobs.call import Unpicklable


@pytest.fixture
def client(running_node) -> Iterator[Client]:
    with Client(running_node.url, running_node.token) as client:
        yield client


def test_invoke_gives_the_function_s_result(client: Client) -> None:
    assert client.invoke("shop.echo", {"a": [1, "ü", None]}) == {"a": [1, "ü", None]}


def test_dataclasses_are_sent_as_objects(client: Client) -> None:
    @dataclass
    class Order:
        id: int
        tags: tuple[str, ...]

    assert client.invoke("shop.echo", Order(7, ("x", "y"))) == {"id": 7, "tags": ["x", "y"]}


@pytest.mark.parametrize("payload", [float("nan"), object(), "\ud800"])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(client: Client, payload: object) -> None:
    with pytest.raises(InvalidPayload):
        client.invoke("shop.echo", payload)


def test_a_function_s_error_comes_with_its_type_and_stack(client: Client) -> None:
    with pytest.raises(FunctionError, match=r"^ValueError: no stock$") as caught:
        client.invoke("shop.fail", {"why": "no stock"})

    assert caught.value.detail["type"] == "ValueError"
    assert 'raise ValueError(event["why"])' in str(caught.value.detail["stack"])


def test_an_unknown_function_is_named_with_the_nearest_known_one(client: Client) -> None:
    with pytest.raises(UnknownFunction, match=r"shop\.ecko") as caught:
        client.invoke("shop.ecko")

    assert "shop.echo" in caught.value.hint


def test_a_wrong_token_is_unauthorized(running_node) -> None:
    with Client(running_node.url, "wrong") as client, pytest.raises(Unauthorized):
        client.stats()


def test_a_wait_ends_at_its_deadline_and_the_call_goes_on(client: Client, tmp_path: Path) -> None:
    with pytest.raises(WaitTimeout):
        client.invoke("shop.wait_for", {"file": str(tmp_path / "x")}, timeout_s=0.2)
    (tmp_path / "x").touch()


def test_a_submitted_invocation_has_an_id_and_a_result(client: Client) -> None:
    future = client.submit("shop.echo", {"n": 1})

    assert len(future.invocation_id) == 16
    assert future.result(20) == {"n": 1}
    assert client.invocation(future.invocation_id)["status"] == "succeeded"


def test_thousands_are_submitted_and_each_future_has_its_own_result(client: Client) -> None:
    futures = client.submit_many("shop.echo", range(3000))

    assert [future.result(60) for future in futures] == list(range(3000))
    assert len({future.invocation_id for future in futures}) == 3000


def test_as_completed_gives_what_ended_and_not_what_goes_on(client: Client, tmp_path: Path) -> None:
    slow = client.submit("shop.wait_for", {"file": str(tmp_path / "go")})
    fast = client.submit("shop.echo", 1)
    ended = as_completed([slow, fast], timeout=60)

    assert next(ended) is fast
    (tmp_path / "go").touch()
    assert next(ended) is slow


def test_what_is_submitted_during_a_long_poll_is_not_held_up_by_it(client: Client, tmp_path: Path) -> None:
    slow = client.submit("shop.wait_for", {"file": str(tmp_path / "go")})
    slow.invocation_id  # noqa: B018 - waits until it is accepted, and the poll for it begins
    for n in range(20):
        assert client.submit("shop.echo", n).result(10) == n  # the poll alone would take 20 s
    (tmp_path / "go").touch()
    assert slow.result(20) == "there"


def test_a_failed_submission_raises_by_its_future(client: Client) -> None:
    failed = client.submit("shop.fail", {"why": "broken"})
    unknown = client.submit("shop.nothing")

    with pytest.raises(FunctionError, match="broken"):
        failed.result(20)
    with pytest.raises(UnknownFunction):
        unknown.result(20)
    with pytest.raises(UnknownFunction):
        unknown.invocation_id  # noqa: B018 - the look-up is what is tested


def test_a_repeat_of_an_idempotency_key_is_the_same_invocation(client: Client) -> None:
    first = client.submit("shop.echo", 1, idempotency_key="order-1")
    second = client.submit("shop.echo", 1, idempotency_key="order-1")

    assert first.invocation_id == second.invocation_id


def test_options_of_a_submission_reach_the_record(client: Client) -> None:
    future = client.submit("shop.echo", 1, delay_s=3600, priority=5, tags=["blue", "green"])
    record = client.invocation(future.invocation_id)

    assert record["status"] == "waiting"
    assert (record["priority"], record["tags"]) == (5, ["blue", "green"])
    assert record["due_at"] - record["accepted_at"] == pytest.approx(3600, abs=1)
    assert [r["invocation_id"] for r in client.invocations(tag="green")] == [future.invocation_id]
    assert future.cancel()


def test_cancelling_a_future_cancels_at_the_node(client: Client) -> None:
    future = client.submit("shop.never", 1)
    id = future.invocation_id

    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(0)
    assert client.invocation(id, wait_s=20)["status"] == "cancelled"
    with pytest.raises(WrongState):
        client.cancel(id)


def test_an_ended_future_cannot_be_cancelled(client: Client) -> None:
    future = client.submit("shop.echo", 1)
    future.result(20)

    assert not future.cancel()


def test_a_callback_runs_although_nobody_holds_the_future(client: Client) -> None:
    ended = threading.Event()

    client.submit("shop.echo", 1).add_done_callback(lambda _: ended.set())

    assert ended.wait(20)


def test_closing_the_client_sends_what_was_submitted_and_fails_what_goes_on(running_node) -> None:
    client = Client(running_node.url, running_node.token)
    futures = [client.submit("shop.never", n, tags=["closing"]) for n in range(20)]
    more = client.submit("shop.never", 20)
    client.close()

    with pytest.raises(ClientClosed):
        futures[0].result(0)
    with pytest.raises(ClientClosed):
        client.submit("shop.echo")
    with Client(running_node.url, running_node.token) as other:
        waiting = list(other.invocations(function="shop.never", tag="closing"))
        assert len(waiting) == 20
        assert other.invocation(more.invocation_id)["status"] == "waiting"
        for record in [*waiting, {"invocation_id": more.invocation_id}]:
            other.cancel(record["invocation_id"])


def test_map_by_name_gives_results_in_order(client: Client) -> None:
    assert list(client.map("shop.echo", range(500), progress=False)) == list(range(500))


def test_map_sends_a_callable_with_what_it_closes_over(client: Client) -> None:
    factor = 3

    assert list(client.map(lambda x: (x * factor, {x}), range(5))) == [(x * 3, {x}) for x in range(5)]


def test_map_in_batches_gives_one_result_per_item(client: Client) -> None:
    results = client.map(lambda x: x + 1, iter(range(1001)), batch=100, ordered=False)

    assert sorted(results) == list(range(1, 1002))


def test_map_consumes_no_more_items_than_its_window(client: Client) -> None:
    items = iter(range(100_000))

    results = client.map("shop.echo", items)
    assert next(results) == 0
    assert next(items) <= 1000
    results.close()  # type: ignore[attr-defined]


def test_map_raises_the_first_error_in_order(client: Client) -> None:
    with pytest.raises(FunctionError, match="ZeroDivisionError"):
        list(client.map(lambda x: 1 / x, [1, 0, 2]))


def test_map_can_give_errors_in_place(client: Client) -> None:
    first, second, third = client.map(lambda x: 2 / x, [1, 0, 2], return_exceptions=True, batch=3)

    assert (first, third) == (2.0, 1.0)
    assert isinstance(second, FunctionError)
    assert "division by zero" in str(second.detail["stack"])


def test_map_tells_its_progress(client: Client) -> None:
    seen: list[tuple[int, int | None]] = []

    list(client.map("shop.echo", [1, 2], progress=lambda done, total: seen.append((done, total))))

    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_map_refuses_what_cannot_be_sent(client: Client) -> None:
    lock = threading.Lock()

    with pytest.raises(Unpicklable, match="lock"):
        client.map(lambda x: lock, [1])
    with pytest.raises(BadRequest):
        client.map("shop.echo", [1], batch=2)


def test_invocations_come_in_pages_up_to_the_limit(client: Client) -> None:
    for future in client.submit_many("shop.echo", range(450)):
        future.result(60)

    found = list(client.invocations(function="shop.echo", status="succeeded", limit=430))

    assert len({record["invocation_id"] for record in found}) == 430


def test_logs_hold_what_an_attempt_printed(client: Client) -> None:
    future = client.submit("shop.fail", {"why": "x"})
    future.exception(20)

    [entry] = client.logs(future.invocation_id)
    assert (entry["attempt"], entry["text"]) == (1, "about to fail\n")


def test_a_dead_letter_is_listed_and_redriven_under_its_id(client: Client) -> None:
    future = client.submit("shop.fail", {"why": "x"})
    future.exception(20)
    id = future.invocation_id

    assert id in [record["invocation_id"] for record in client.dead_letters(function="shop.fail")]
    client.redrive(id)
    assert client.invocation(id, wait_s=20)["status"] == "dead"
    with pytest.raises(BadRequest):
        client.redrive()


def test_functions_are_listed(client: Client) -> None:
    assert {"shop.echo", "shop.fail", "shop.lengths"} <= {f["name"] for f in client.functions()}
    assert client.function("shop.fail")["doc"] == "Raises what it is told."


def test_objects_are_written_read_and_listed(client: Client, tmp_path: Path) -> None:
    client.make_bucket("things")
    (tmp_path / "f").write_bytes(b"from a path")
    client.put_object("s3://things/a", b"bytes")
    client.put_object("s3://things/dir/b ü", tmp_path / "f")
    client.put_object("s3://things/dir/c", io.BytesIO(b"a stream without a size"))
    client.put_object("s3://things/dir/empty", b"")

    assert "things" in client.buckets()
    assert client.get_object("s3://things/a") == b"bytes"
    assert client.get_object("s3://things/dir/b ü") == b"from a path"
    assert client.get_object("s3://things/dir/c") == b"a stream without a size"
    assert client.get_object("s3://things/dir/empty") == b""
    assert [o["key"] for o in client.list_objects("s3://things/dir/")] == ["dir/b ü", "dir/c", "dir/empty"]
    with pytest.raises(NoSuchObject):
        client.get_object("s3://things/missing")


def test_a_job_runs_over_an_object_and_tells_its_progress(client: Client) -> None:
    client.make_bucket("inbox")
    client.make_bucket("results")
    client.put_object("s3://inbox/lines.txt", b"0123456789\n" * 1000)

    job = client.submit_job("shop.lengths", "s3://inbox/lines.txt")
    seen = list(job.progress(timeout_s=60))

    assert job.result(60) == 10_000
    assert (seen[-1]["status"], seen[-1]["done"]) == ("succeeded", seen[-1]["chunks"])
    assert len(list(job.chunks())) == seen[-1]["chunks"] > 5
    assert client.job(job.id).status()["job_id"] == job.id
    assert job.id in [found["job_id"] for found in client.jobs(function="shop.lengths", status="succeeded")]
    with pytest.raises(WrongState):
        job.cancel()


def test_a_failed_job_raises_and_names_itself(client: Client) -> None:
    client.make_bucket("inbox")
    client.put_object("s3://inbox/few.txt", b"a\nb\n")

    with pytest.raises(JobFailed, match=r"job [0-9a-f]{16} failed") as caught:
        client.submit_job("shop.broken", "s3://inbox/few.txt").result(90)
    assert caught.value.detail["job_id"]


def test_unknown_ids_are_unknown(client: Client) -> None:
    with pytest.raises(UnknownInvocation):
        client.invocation("00000000000000aa")
    with pytest.raises(UnknownJob):
        client.job("00000000000000aa").status()


def test_a_synchronous_call_without_room_is_throttled_with_a_time_to_come_back(client: Client) -> None:
    with pytest.raises(Throttled) as caught:
        client.invoke("shop.never")

    assert caught.value.retry_after_s >= 1


async def test_the_asyncio_client_gives_the_same(running_node) -> None:
    async with AsyncClient(running_node.url, running_node.token) as client:
        assert await client.invoke("shop.echo", 1) == 1
        future = await client.submit("shop.echo", 2)
        assert await asyncio.wrap_future(future) == 2
        assert [x async for x in client.map("shop.echo", [1, 2, 3])] == [1, 2, 3]
        with pytest.raises(UnknownFunction):
            await client.invoke("shop.nope")
