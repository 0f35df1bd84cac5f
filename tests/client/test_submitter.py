"""Submitting: batches, bounds, and how futures end when the node misbehaves; on a node of a few lists."""

import gc
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import msgspec
import pytest

from headrace.runtime.client import submitter as room
from headrace.runtime.client.answer import ClientClosed
from headrace.runtime.client.backend import PLAIN, SubmitOptions
from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.client.submitter import Ended, Gathered, Submitter
from headrace.runtime.errors import Cancelled, HeadraceError, Unknown, UnknownInvocation, Unreachable

WAIT_S = 20


class Node:
    """What a submitter calls. Functions echo; `hold` ones never end, `lost` ones are forgotten."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[bytes]]] = []
        self.polls: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.refusal: HeadraceError | None = None
        self.poll_refusal: HeadraceError | None = None
        self._results: dict[str, tuple[str, bytes]] = {}
        self._wake = threading.Event()

    def accept_many(self, name: str, payloads: Sequence[bytes]) -> list[str]:
        self.entered.release()
        assert self.open.wait(WAIT_S)
        if self.refusal is not None:
            raise self.refusal
        self.batches.append((name, list(payloads)))
        ids = [f"{len(self._results) + n:016x}" for n in range(len(payloads))]
        self._results.update({id: (name, payload) for id, payload in zip(ids, payloads, strict=True)})
        return ids

    def accept_one(self, name: str, payload: bytes, options: SubmitOptions) -> str:
        return self.accept_many(name, [payload])[0]

    def gather(self, ids: Sequence[str], wait_s: float) -> Gathered | None:
        self.polls.append(len(ids))
        if self.poll_refusal is not None:
            raise self.poll_refusal
        ended, pending = [], []
        for id in ids:
            name, payload = self._results[id]
            if name == "echo":
                ended.append(Ended(id, "succeeded", msgspec.Raw(payload)))
            elif name == "large":
                ended.append(Ended(id, "succeeded", result_ref="s3://headrace-system/x"))
            elif name == "hold":
                pending.append(id)
        if not ended and len(pending) == len(ids):
            if self._wake.wait(wait_s):
                self._wake.clear()
                return None
        return Gathered(ended, pending)

    def interrupt(self) -> None:
        self._wake.set()

    def record(self, invocation_id: str) -> Ended:
        return Ended(invocation_id, "succeeded", msgspec.Raw(self._results[invocation_id][1]))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def submitter(node: Node) -> Iterator[Submitter]:
    submitter = Submitter(node)
    yield submitter
    node.open.set()
    submitter.close(WAIT_S)


def submit(
    submitter: Submitter, name: str, payload: bytes = b"1", options: SubmitOptions = PLAIN
) -> InvocationFuture:
    future = InvocationFuture(name, lambda id: True)
    submitter.submit(name, payload, options=options, future=future)
    return future


def test_what_comes_while_a_batch_is_under_way_makes_the_next(node: Node, submitter: Submitter) -> None:
    node.open.clear()
    first = submit(submitter, "echo", b"0")
    assert node.entered.acquire(timeout=WAIT_S)
    rest = [submit(submitter, "echo", b"%d" % n) for n in range(1, 2001)]
    node.open.set()

    assert [future.result(WAIT_S) for future in [first, *rest]] == list(range(2001))
    assert [len(payloads) for _, payloads in node.batches] == [1, 1000, 1000]


def test_a_batch_has_at_most_a_mebibyte(node: Node, submitter: Submitter) -> None:
    node.open.clear()
    futures = [submit(submitter, "echo", b"0")]
    assert node.entered.acquire(timeout=WAIT_S)
    futures += [submit(submitter, "echo", b'"' + b"x" * (600 << 10) + b'"') for _ in range(3)]
    node.open.set()
    for future in futures:
        future.result(WAIT_S)

    assert [len(payloads) for _, payloads in node.batches] == [1, 1, 1, 1]


def test_functions_take_turns(node: Node, submitter: Submitter) -> None:
    node.open.clear()
    futures = [submit(submitter, "echo")]
    assert node.entered.acquire(timeout=WAIT_S)
    futures += [submit(submitter, name) for _ in range(1500) for name in ("echo", "large")]
    node.open.set()
    for future in futures:
        future.result(WAIT_S)

    assert [(name, len(payloads)) for name, payloads in node.batches] == [
        ("echo", 1), ("echo", 1000), ("large", 1000), ("echo", 500), ("large", 500),
    ]  # fmt: skip


def test_unsent_work_is_bounded(node: Node, submitter: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "UNSENT_ITEMS_MAX", 10)
    node.open.clear()
    futures = [submit(submitter, "echo")]
    assert node.entered.acquire(timeout=WAIT_S)
    futures += [submit(submitter, "echo") for _ in range(10)]
    done = threading.Event()

    def one_more() -> None:
        futures.append(submit(submitter, "echo"))
        done.set()

    thread = threading.Thread(target=one_more)
    thread.start()
    assert not done.wait(0.05)
    node.open.set()
    assert done.wait(WAIT_S)
    thread.join()
    assert [future.result(WAIT_S) for future in futures] == [1] * 12


def test_a_refusal_is_every_future_s_of_its_batch(node: Node, submitter: Submitter) -> None:
    node.refusal = Unknown("there is no such function")

    assert isinstance(submit(submitter, "echo").exception(WAIT_S), Unknown)
    node.refusal = None
    assert submit(submitter, "echo").result(WAIT_S) == 1


def test_one_that_is_cancelled_before_it_is_sent_is_not_sent(node: Node, submitter: Submitter) -> None:
    node.open.clear()
    submit(submitter, "echo", b"0")
    assert node.entered.acquire(timeout=WAIT_S)
    dropped, kept = submit(submitter, "echo", b"1"), submit(submitter, "echo", b"2")
    assert dropped.cancel()
    node.open.set()

    assert kept.result(WAIT_S) == 2
    assert [payloads for _, payloads in node.batches] == [[b"0"], [b"2"]]
    with pytest.raises(CancelledError):
        dropped.result(0)
    with pytest.raises(CancelledError):
        dropped.invocation_id  # noqa: B018 - the look-up is what is tested


def test_the_news_of_a_cancelled_invocation_may_overtake_the_answer_to_its_cancel() -> None:
    def cancel(id: str) -> bool:
        future.failed(Cancelled("it was cancelled"))
        return True

    future = InvocationFuture("hold", cancel)
    future.sending(lambda _: None)
    future.accepted("00000000000000ff")

    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()


def test_a_new_one_interrupts_the_poll_for_the_old(node: Node, submitter: Submitter) -> None:
    held = submit(submitter, "hold")
    held.wait_accepted(WAIT_S)

    assert submit(submitter, "echo", b"5").result(WAIT_S / 2) == 5
    assert not held.done()


def test_a_large_result_is_asked_for_alone(submitter: Submitter) -> None:
    assert submit(submitter, "large", b'"big"').result(WAIT_S) == "big"


def test_one_that_the_node_has_forgotten_is_unknown(submitter: Submitter) -> None:
    assert isinstance(submit(submitter, "lost").exception(WAIT_S), UnknownInvocation)


def test_more_than_one_poll_s_worth_are_all_asked_about(
    node: Node, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "POLL_IDS_MAX", 5)
    held = [submit(submitter, "hold") for _ in range(7)]
    for future in held:
        future.wait_accepted(WAIT_S)

    assert submit(submitter, "echo", b"9").result(WAIT_S) == 9
    assert max(node.polls) == 5


def test_futures_that_nobody_holds_are_forgotten(node: Node, submitter: Submitter) -> None:
    for _ in range(50):
        submit(submitter, "hold").wait_accepted(WAIT_S)
    gc.collect()
    kept = submit(submitter, "hold")
    kept.wait_accepted(WAIT_S)
    submit(submitter, "echo").result(WAIT_S)

    assert len(submitter._gatherer._open) <= 2


def test_a_poll_that_is_refused_for_good_fails_the_futures(node: Node, submitter: Submitter) -> None:
    node.poll_refusal = Unknown("there is nothing at /v1/invocations/wait")

    assert isinstance(submit(submitter, "echo").exception(WAIT_S), Unknown)


def test_a_node_that_is_away_for_a_moment_is_waited_for(node: Node, submitter: Submitter) -> None:
    node.poll_refusal = Unreachable("http://x", "it restarts")
    future = submit(submitter, "echo")
    future.wait_accepted(WAIT_S)
    node.poll_refusal = None

    assert future.result(WAIT_S) == 1


def test_close_sends_what_is_unsent_and_fails_what_goes_on(node: Node) -> None:
    submitter = Submitter(node)
    futures = [submit(submitter, "hold", b"%d" % n) for n in range(100)]
    alone = submit(submitter, "hold", b"100", SubmitOptions(priority=1))
    submitter.close(WAIT_S)
    submitter.close(WAIT_S)

    sent = sorted(int(payload) for _, payloads in node.batches for payload in payloads)
    assert sent == list(range(101))
    assert all(isinstance(future.exception(0), ClientClosed) for future in [*futures, alone])
    with pytest.raises(ClientClosed):
        submit(submitter, "echo")
