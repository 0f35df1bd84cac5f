"""Submitting over HTTP: what is submitted while a batch is under way makes the next one, and one poll gathers
the ends.

Imports the client's own values. No batch waits to become fuller: the sending thread takes what there is
whenever it is free. Futures that nobody holds any more are forgotten, so that a caller who only submits costs
no memory.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from headrace.runtime.client.answer import ClientClosed, recorded_error
from headrace.runtime.client.backend import PLAIN, SubmitOptions
from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.errors import HeadraceError, Retryable, UnknownInvocation

BATCH_ITEMS_MAX = 1_000
BATCH_BYTES_MAX = 1 << 20
UNSENT_ITEMS_MAX = 20_000
UNSENT_BYTES_MAX = 64 << 20
POLL_IDS_MAX = 10_000
POLL_S = 20.0
LANES = 4  # invocations with options of their own are posted one by one, so many at a time


class Ended(msgspec.Struct):
    """An invocation's record, as far as a future needs it.

    With a `result_ref` the result was too large for the poll's answer, and is asked for alone.
    """

    invocation_id: str
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    result_ref: str | None = None
    error: dict[str, object] | None = None


class Gathered(msgspec.Struct):
    """What a poll found of the ids that it was asked about."""

    ended: list[Ended] = []
    pending: list[str] = []


class Calls(Protocol):
    """The calls that a submitter makes, each blocking."""

    def accept_many(self, name: str, payloads: Sequence[bytes]) -> list[str]:
        """Have all or none accepted; the ids in order."""
        ...

    def accept_one(self, name: str, payload: bytes, options: SubmitOptions) -> str:
        """Have one accepted; its id."""
        ...

    def gather(self, ids: Sequence[str], wait_s: float) -> Gathered | None:
        """Wait until one of the ids has ended, at most `wait_s`; None when interrupted by `interrupt`."""
        ...

    def interrupt(self) -> None:
        """End the `gather` that is under way soon, or the next one if there is none."""
        ...

    def record(self, invocation_id: str) -> Ended:
        """One record, with its result."""
        ...


_Unsent = tuple[bytes, InvocationFuture]


class Submitter:
    """Threads that send what was submitted and tell the futures how it ended; started by the first submit."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.Condition()
        self._queues: dict[str, deque[_Unsent]] = {}
        self._items = self._bytes = 0
        self._sending = False
        self._closing = False
        self._sender: threading.Thread | None = None
        self._lanes: ThreadPoolExecutor | None = None
        self._lane_room = threading.BoundedSemaphore(BATCH_ITEMS_MAX)
        self._gatherer = _Gatherer(calls)

    def submit(self, name: str, payload: bytes, *, options: SubmitOptions, future: InvocationFuture) -> None:
        """Queue one. Blocks while more than 20,000 or 64 MiB are unsent. Raises ClientClosed."""
        if options is not PLAIN and options != PLAIN:
            self._submit_alone(name, payload, options, future)
            return
        self.submit_many(name, (payload,), futures=(future,))

    def submit_many(
        self, name: str, payloads: Sequence[bytes], *, futures: Sequence[InvocationFuture]
    ) -> None:
        """Queue several in order, as `submit` does."""
        with self._lock:
            while (self._items >= UNSENT_ITEMS_MAX or self._bytes >= UNSENT_BYTES_MAX) and not self._closing:
                self._lock.wait()
            if self._closing:
                raise ClientClosed("the client is closed")
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = deque()
            queue.extend(zip(payloads, futures, strict=True))
            self._items += len(payloads)
            self._bytes += sum(map(len, payloads))
            if not self._sending:
                self._sending = True
                if self._sender is None:
                    self._sender = threading.Thread(target=self._send, name="headrace-submit", daemon=True)
                    self._sender.start()
                self._lock.notify_all()

    def close(self, timeout_s: float) -> None:
        """Send what is unsent, for at most `timeout_s`, then let the threads end. Futures that have not ended
        fail.
        """
        with self._lock:
            self._closing = True
            self._lock.notify_all()
            sender, lanes = self._sender, self._lanes
        if lanes is not None:
            lanes.shutdown(wait=True)  # bounded: each call has its own deadline
        if sender is not None and sender is not threading.current_thread():
            sender.join(timeout_s)
        self._gatherer.close()
        with self._lock:
            left = [future for queue in self._queues.values() for _, future in queue]
            self._queues.clear()
        for future in left:
            future.failed(ClientClosed("the client was closed before this was sent"))

    def _submit_alone(
        self, name: str, payload: bytes, options: SubmitOptions, future: InvocationFuture
    ) -> None:
        self._lane_room.acquire()
        try:
            with self._lock:
                if self._closing:
                    raise ClientClosed("the client is closed")
                if self._lanes is None:
                    self._lanes = ThreadPoolExecutor(LANES, thread_name_prefix="headrace-submit")
                self._lanes.submit(self._post, name, payload, options, future)
        except BaseException:
            self._lane_room.release()
            raise

    def _post(self, name: str, payload: bytes, options: SubmitOptions, future: InvocationFuture) -> None:
        try:
            if future.sending(self._gatherer.keep):
                id = self._calls.accept_one(name, payload, options)
                future.accepted(id)
                self._gatherer.add([(id, future)])
        except Exception as error:  # the outermost loop of this piece of work: the future tells it
            future.failed(error)
        finally:
            self._lane_room.release()

    def _send(self) -> None:
        while True:
            with self._lock:
                while not self._queues:
                    self._sending = False
                    if self._closing:
                        return
                    self._lock.wait()
                self._sending = True
                name, batch = self._take()
                self._lock.notify_all()
            self._send_batch(name, batch)
            del batch  # so that what the callers drop is not held while there is nothing to send

    def _take(self) -> tuple[str, list[_Unsent]]:
        """The next batch of one function, functions taking turns."""
        name = next(iter(self._queues))
        queue = self._queues.pop(name)
        batch: list[_Unsent] = []
        size = 0
        while queue and len(batch) < BATCH_ITEMS_MAX:
            size += len(queue[0][0]) + 1
            if size > BATCH_BYTES_MAX and batch:
                size -= len(queue[0][0]) + 1
                break
            batch.append(queue.popleft())
        if queue:
            self._queues[name] = queue  # behind the other functions
        self._items -= len(batch)
        self._bytes -= sum(len(payload) for payload, _ in batch)
        return name, batch

    def _send_batch(self, name: str, batch: list[_Unsent]) -> None:
        batch = [item for item in batch if item[1].sending(self._gatherer.keep)]
        if not batch:
            return
        try:
            ids = self._calls.accept_many(name, [payload for payload, _ in batch])
            if len(ids) != len(batch):
                raise HeadraceError(
                    f"the node answered {len(ids)} ids for {len(batch)} invocations of {name}"
                )
        except Exception as error:  # the outermost loop of this piece of work: the futures tell it
            for _, future in batch:
                future.failed(error)
            return
        accepted = [(id, future) for id, (_, future) in zip(ids, batch, strict=True)]
        for id, future in accepted:
            future.accepted(id)
        self._gatherer.add(accepted)


class _Gatherer:
    """The thread that asks the node which invocations have ended."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.Condition()
        self._open: dict[str, weakref.ref[InvocationFuture]] = {}
        self._strong: dict[int, InvocationFuture] = {}
        self._thread: threading.Thread | None = None
        self._polling = False
        self._closing = False

    def keep(self, future: InvocationFuture) -> None:
        """Hold the future until it ends."""
        self._strong[id(future)] = future

    def add(self, accepted: Sequence[tuple[str, InvocationFuture]]) -> None:
        with self._lock:
            if self._closing:
                return
            self._open.update((id, weakref.ref(future)) for id, future in accepted)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headrace-gather", daemon=True)
                self._thread.start()
            interrupt = self._polling
            self._polling = False
            self._lock.notify_all()
        if interrupt:
            self._calls.interrupt()  # so that these are asked about too

    def close(self) -> None:
        with self._lock:
            self._closing = True
            thread = self._thread
            self._lock.notify_all()
        if thread is not None and thread is not threading.current_thread():
            self._calls.interrupt()
            thread.join(POLL_S)
        for future in [ref() for ref in self._open.values()]:
            if future is not None:
                future.failed(ClientClosed(f"the client was closed before {future.function} had ended"))
        self._open.clear()
        self._strong.clear()

    def _run(self) -> None:
        pause_s = 0.0
        failures = 0
        while True:
            with self._lock:
                # A pause bounds how often thousands of ids are sent again; with few, or none ended, there is
                # none.
                if pause_s:
                    self._lock.wait_for(lambda: self._closing, pause_s)
                self._forget_dropped()
                while not self._open and not self._closing:
                    self._lock.wait()
                if self._closing:
                    return
                ids = self._next_ids()
                everything = len(ids) == len(self._open)
                self._polling = True
            try:
                gathered = self._calls.gather(ids, POLL_S if everything else 0.5)
                failures = 0
            except Retryable as error:
                failures += 1
                pause_s = min(0.1 * 2**failures, 5.0)
                if failures >= 8:  # about 20 seconds: a restart of the node is waited out
                    self._fail_all(error)
                    failures, pause_s = 0, 0.0
                continue
            except Exception as error:  # the outermost loop of this thread: the futures tell it
                self._fail_all(error)
                continue
            finally:
                with self._lock:
                    self._polling = False
            if not everything:
                self._put_last(ids)
            if gathered is not None:
                self._report(ids, gathered)
            # Thousands of ids cost the node some milliseconds each time they are asked about.
            pause_s = min(0.1, len(self._open) / 100_000)
            pause_s = pause_s if pause_s > 0.0005 else 0.0

    def _next_ids(self) -> list[str]:
        if len(self._open) <= POLL_IDS_MAX:
            return list(self._open)
        ids = []
        for id in self._open:
            ids.append(id)
            if len(ids) == POLL_IDS_MAX:
                break
        return ids

    def _put_last(self, ids: Sequence[str]) -> None:
        """Let the others be asked about before these."""
        with self._lock:
            for id in ids:
                if id in self._open:
                    self._open[id] = self._open.pop(id)

    def _forget_dropped(self) -> None:
        dropped = [id for id, ref in self._open.items() if ref() is None]
        for id in dropped:
            del self._open[id]

    def _report(self, ids: Sequence[str], gathered: Gathered) -> None:
        for record in gathered.ended:
            self._end(record)
        if len(gathered.ended) + len(gathered.pending) < len(ids):
            known = {record.invocation_id for record in gathered.ended}.union(gathered.pending)
            for id in ids:
                if id not in known:
                    self._fail(id, UnknownInvocation(id))

    def _end(self, record: Ended) -> None:
        if record.status == "succeeded":
            try:
                if record.result_ref is not None:
                    record = self._calls.record(record.invocation_id)
                future = self._pop(record.invocation_id)
                if future is not None:
                    future.succeeded(bytes(record.result))
            except HeadraceError as error:
                self._fail(record.invocation_id, error)
        elif record.status in ("dead", "cancelled"):
            default: dict[str, object] = {"code": "cancelled", "message": "it was cancelled"}
            if record.status == "dead":
                default = {"code": "function_error", "message": "it failed, and no error was recorded"}
            self._fail(record.invocation_id, recorded_error(record.error or default))

    def _fail(self, id: str, error: BaseException) -> None:
        future = self._pop(id)
        if future is not None:
            future.failed(error)

    def _fail_all(self, error: BaseException) -> None:
        for id in list(self._open):
            self._fail(id, error)

    def _pop(self, invocation_id: str) -> InvocationFuture | None:
        with self._lock:
            ref = self._open.pop(invocation_id, None)
        future = ref() if ref is not None else None
        if future is not None:
            self._strong.pop(id(future), None)
        return future


def at_exit(submitter: Submitter, timeout_s: float) -> Callable[[], None]:
    """What sends the unsent when the interpreter ends, without keeping the submitter alive until then."""
    ref = weakref.ref(submitter)

    def flush() -> None:
        live = ref()
        if live is not None:
            live.close(timeout_s)

    return flush
