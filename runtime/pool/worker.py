"""The worker: a process that runs one item after another until its socket closes.

Imports the floor and this room. It never returns into the code that made it, and holds nothing that killing
it could damage: what it has finished is in its socket or in the shared page, what it has printed is in its
capture.
"""

import asyncio
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any, NoReturn

import msgspec

from headrace.runtime.errors import FunctionTimeout, HeadraceError, InvalidPayload, Retryable, RetryAfter
from headrace.runtime.fault import armed, reach
from headrace.runtime.model.ids import show_id
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.trail import EVENT, follow_trail, leave_trail
from headrace.runtime.pool import capture, limits, process
from headrace.runtime.pool.code import Entry, Setup, plain_streams, show_log_records
from headrace.runtime.pool.context import Context, Toolbox, WorkerConfig
from headrace.runtime.pool.failure import describe
from headrace.runtime.pool.frame import FRAME_BYTES_MAX, FrameReader, encode, pack, wrap
from headrace.runtime.pool.page import (
    BASE_ANON,
    BEGUN,
    DOOMED,
    GENERATION,
    PUBLISHED,
    RESULTS_BYTES,
    REVOKE,
    STARTED,
    Page,
    fence,
)
from headrace.runtime.pool.pump import STREAMS, Pump, pieces_of
from headrace.runtime.pool.result import encode_result

FLUSH_AFTER_S = 0.001
RESULT_BYTES_INLINE = 256 << 10
RESULT_BYTES_MAX = FRAME_BYTES_MAX - (4 << 20)
_RECEIVE_BYTES = 128 << 10
_STORAGE_PAUSE_S = 5.0

# An array of msgpack whose length is the four bytes that follow: results are encoded one by one and sent as
# one array.
_ARRAY32 = b"\xdd"

_decode_payload = msgspec.json.Decoder().decode

_NOT_YET = STREAMS | {CoroutineType}
"""What a function may return that is not its result yet."""


class TimedOut(BaseException):
    """Raised inside a function whose time is over, so that its `finally` blocks run before the process is
    ended."""


LOOK_S = 0.00025
"""How long a worker looks for the next item before it sleeps, see `Worker._next`."""

_MAY_LOOK = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


class _StorageAway(RetryAfter):
    """What an item needs of the object store, for its payload or its result, is not to be had just now. That
    is nobody's failure: the function waits a little and no attempt is spent.
    """

    def __init__(self, why: str) -> None:
        super().__init__(_STORAGE_PAUSE_S)
        self.args = (why,)

    def __str__(self) -> str:
        return str(self.args[0])


class Worker:
    """The loop of one worker process.

    Args:
        wire: the stream to the node, blocking.
        page: shared with the node.
        output: the capture that descriptors 1 and 2 are.
        entries: by function name, what runs it.
        config, folder: for the contexts; the folder is this worker's own.
    """

    def __init__(
        self,
        wire: socket.socket,
        page: Page,
        *,
        output: int,
        entries: Mapping[str, Entry],
        config: WorkerConfig,
        folder: Path,
    ) -> None:
        self._wire = wire
        self._page = page
        self._output = output
        self._entries = entries
        self._tools = Toolbox(config, folder, self._send_message)
        self._sending = threading.Lock()
        self._in_send = False
        self._deferred = False
        self._forked: list[bool] = []  # true once this is a child that user code forked
        self._limited_to = -1
        self._used = 0
        self._count = 0
        self._flushed_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = FrameReader()
        self._heard: deque[list[Any]] = deque()  # what the node has sent and is still to be run
        self._pump: Pump | None = None
        self._brisk = False

    def run(self) -> NoReturn:
        """Serve until the node closes the socket, then end the process."""
        signal.signal(signal.SIGTERM, self._on_term)
        os.register_at_fork(after_in_child=self._in_forked_child)
        self._page.words[BASE_ANON] = limits.anonymous_bytes(os.getpid())
        heard = self._heard
        while True:
            self._hear(True)
            while heard:
                reach("start")
                self._flushed_at = time.monotonic()
                groups = heard.popleft()
                for function, timeout_s, memory_bytes, credit, items in groups:
                    self._run_group(function, timeout_s, memory_bytes, credit, items)
                if self._brisk and (len(groups) > 1 or len(groups[0][4]) > 1):
                    self._brisk = False  # more than one caller: what is next waits already
                if self._count:
                    self._flush()

    def _hear(self, wait: bool) -> None:
        """Take in what the node has sent: work, which is run in its turn, or credit for what streams now."""
        try:
            data = self._next() if wait else self._wire.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            os._exit(0)
        for message in self._reader.feed(data):
            if message.__class__ is list:
                self._heard.append(message)
            elif self._pump is not None and message["seq"] == self._page.words[BEGUN]:
                self._pump.credit += message["credit"]

    def _next(self) -> bytes:
        """What comes next, however long that takes.

        While items come one by one and quickly, from a caller who waits for each, it is looked for before
        this process sleeps: to be woken takes longer than all else on the way.
        """
        receive, monotonic = self._wire.recv, time.monotonic
        began = monotonic()
        if self._brisk:
            while monotonic() - began < LOOK_S:
                try:
                    return receive(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    os.sched_yield()
        data = receive(_RECEIVE_BYTES)
        self._brisk = _MAY_LOOK and monotonic() - began < 2 * LOOK_S
        return data

    def _run_group(
        self, function: str, timeout_s: float, memory_bytes: int, credit: int, items: list[Any]
    ) -> None:
        """Run items of one function, in order. The cost of a call that does nothing is the cost of this
        loop."""
        entry = self._entries.get(function)
        if entry is None:
            entry = _missing(function)
        if memory_bytes != self._limited_to:
            self._limited_to = memory_bytes
            limits.limit_growth(memory_bytes)
        words, reals, tools, forked = self._page.words, self._page.reals, self._tools, self._forked
        monotonic, seek, output = time.monotonic, os.lseek, self._output
        flush_out, flush_err = sys.__stdout__.flush, sys.__stderr__.flush  # type: ignore[union-attr]
        for seq, invocation_id, attempt, payload, payload_ref in items:
            words[BEGUN] = seq
            fence()
            if seq >= words[REVOKE]:
                self._add((seq, 0.0, 0.0, b"", "skipped", None, None, b"", 0))
                continue
            started = monotonic()
            context = Context(tools, seq, invocation_id, function, attempt, started + timeout_s)
            kind, ref, failure = "ok", None, None
            try:
                try:
                    reals[STARTED] = started  # from here on SIGTERM may raise TimedOut
                    if payload_ref is not None:
                        payload = self._fetch(payload_ref)
                    if armed:
                        reach("run.before")
                    event = _decode(payload)
                    if event.__class__ is dict and ("Records" in event or EVENT in event):
                        follow_trail(event, function)
                    value = entry(event, context)
                    if value.__class__ in _NOT_YET:
                        value = self._finish(value, seq, credit)
                    if forked:
                        os._exit(0)
                    if armed:
                        reach("run.after")
                    data = encode_result(value)
                    if len(data) > RESULT_BYTES_INLINE:
                        data, ref = self._store_result(data, invocation_id, attempt)
                except TimedOut:
                    raise
                except (
                    BaseException
                ) as error:  # the outermost loop of user code: everything it raises is an outcome
                    if forked:
                        os._exit(1)
                    data = b""
                    kind, failure = describe(error)
                finally:
                    reals[STARTED] = 0.0
            except TimedOut:
                reals[STARTED] = 0.0
                data, ref = b"", None
                kind, failure = "timeout", {"code": FunctionTimeout.code, "message": "its time was over"}
            value = event = None
            leave_trail()
            ended = monotonic()
            try:
                flush_out()
                flush_err()
            except (ValueError, OSError):  # the function closed its streams, or the disk is full
                plain_streams()
                flush_out, flush_err = sys.__stdout__.flush, sys.__stderr__.flush  # type: ignore[union-attr]
            if context._scratch is not None:
                context.close()
            if kind == "ok" and ref is None and not seek(output, 0, 2):
                self._add((seq, started, ended - started, data))
            else:
                printed, printed_bytes = b"", 0
                if seek(output, 0, 2):
                    printed, printed_bytes = capture.head_and_tail(output)
                    capture.empty(output)
                self._add((seq, started, ended - started, data, kind, ref, failure, printed, printed_bytes))
                if kind == "retry_after":
                    # What waits behind it may be what it has just closed: the node decides, and lifts this.
                    words[REVOKE] = seq + 1
                    self._flush()
                if kind == "timeout":
                    # What user code left half done must not meet the next item; the node takes back what was
                    # behind.
                    self._flush()
                    os._exit(0)
            if ended - self._flushed_at > FLUSH_AFTER_S:
                self._flush()

    # ---- results and messages to the node ----

    def _add(self, result: tuple[Any, ...]) -> None:
        """Append one result to those that leave with the next flush."""
        data = encode(result)
        end = self._used + len(data)
        if end > RESULTS_BYTES:
            if self._count:
                self._flush()
            end = len(data)
            if end > RESULTS_BYTES:
                self._send(wrap(_ARRAY32 + b"\x00\x00\x00\x01" + data))
                return
        self._page.results[self._used : end] = data
        self._used = end
        self._count += 1
        self._page.words[PUBLISHED] = end | self._count << 32

    def _flush(self) -> None:
        if not self._count:
            return
        reach("result.send")
        page = self._page
        self._send(wrap(_ARRAY32 + self._count.to_bytes(4, "big") + bytes(page.results[: self._used])))
        self._used = self._count = 0
        page.words[PUBLISHED] = 0
        fence()
        page.words[GENERATION] += 1
        fence()
        self._flushed_at = time.monotonic()

    def _send_message(self, message: Any) -> None:
        self._send(pack(message))

    def _send(self, frame: bytes) -> None:
        """Send one whole frame, whichever thread asks: half of one would be the end of the stream."""
        if self._forked:
            return  # the socket belongs to the parent
        with self._sending:
            self._in_send = True
            try:
                self._wire.sendall(frame)
            except OSError:
                os._exit(0)  # the node is gone
            finally:
                self._in_send = False
        if self._deferred:
            self._deferred = False
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        """End the function that the node means, if it is still the one that runs."""
        if self._in_send:
            self._deferred = True
        elif self._page.reals[STARTED] and self._page.words[DOOMED] == self._page.words[BEGUN]:
            raise TimedOut

    def _in_forked_child(self) -> None:
        """User code forked: its child must neither speak for this worker nor take its signals."""
        self._forked.append(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # ---- what an item may need ----

    def _fetch(self, ref: str) -> bytes:
        from headrace.runtime.objects.url import parse_object_url

        bucket, key = parse_object_url(ref)
        try:
            return self._tools.objects.get(bucket, key)
        except Retryable as error:
            raise _StorageAway(str(error)) from error

    def _store_result(self, data: bytes, invocation_id: int, attempt: int) -> tuple[bytes, str | None]:
        """A large result's place: the object store where there is one, else the frame."""
        if self._tools.config.objects is None:
            if len(data) > RESULT_BYTES_MAX:
                raise ResultTooLarge(len(data), RESULT_BYTES_MAX)
            return data, None
        key = f"results/{show_id(invocation_id)}/{attempt}.json"
        try:
            self._tools.objects.put(SYSTEM_BUCKET, key, data)
        except Retryable as error:
            raise _StorageAway(str(error)) from error
        return b"", f"s3://{SYSTEM_BUCKET}/{key}"

    def _finish(self, value: Any, seq: int, credit: int) -> Any:
        """The result of what a function has only begun: a coroutine, or a stream, whose pieces go to the node
        when there is credit for them, and else are a list.
        """
        if value.__class__ is CoroutineType:
            value = self._await(value)
        if value.__class__ not in STREAMS:
            return value
        if not credit:
            value = pieces_of(value)
            return self._await(value) if value.__class__ is CoroutineType else value
        self._flush()  # what was done before must not wait for the end of the stream
        self._pump = pump = Pump(
            seq, credit, page=self._page, send=self._send, hear=self._hear, wire=self._wire.fileno()
        )
        try:
            rest = pump.run(value)
            if rest is not None:
                self._await(rest)
        finally:
            self._pump = None
            self._flushed_at = 0.0  # its end leaves at once, behind its last piece
        return None

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run an async function to its end on this worker's own event loop; what it left running is
        cancelled."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        loop = self._loop
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        finally:
            left = asyncio.all_tasks(loop)
            if left:
                for other in left:
                    other.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


class ResultTooLarge(HeadraceError):
    """A result is larger than a frame may be and there is no object store for it: (bytes, limit)."""

    code = "result_too_large"
    hint = "Configure an object store, or write the data there and return its address."

    def __str__(self) -> str:
        return f"the result is {self.args[0]:,} bytes; without an object store the limit is {self.args[1]:,}"


def _decode(payload: bytes) -> Any:
    try:
        return _decode_payload(payload) if payload else None
    except msgspec.DecodeError as error:
        raise InvalidPayload(str(error)) from None


def _missing(function: str) -> Entry:
    def entry(payload: Any, context: Context) -> Any:
        raise LookupError(f"this version of the code has no function {function!r}")

    return entry


def become_worker(parent: int, slot: int, output: int) -> None:
    """Turn a process that was just forked or started into a worker: its own session, dying with `parent`.

    `output` becomes descriptors 1 and 2. Signals that the parent had set up are as in a fresh process, but
    for SIGINT, which is
    ignored: a terminal's Ctrl-C is the node's to handle.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.die_with_parent(parent, signal.SIGKILL)
    process.tag(slot)
    os.dup2(output, 1)
    os.dup2(output, 2)
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def serve(
    wire: int, page: int, output: int, *, setup: Setup, entries: Mapping[str, Entry], number: int
) -> NoReturn:
    """Run a worker over the given descriptors, in a process that `become_worker` has prepared."""
    stream = socket.socket(fileno=wire)
    stream.setblocking(True)
    view = Page(page)
    os.close(page)
    folder = Path(setup.folder) / f"w{number}"
    Worker(stream, view, output=output, entries=entries, config=setup.config, folder=folder).run()


def main() -> None:
    """A spawned worker: `python -m headrace.runtime.pool.worker WIRE PAGE OUTPUT SETUP PARENT SLOT
    NUMBER`."""
    wire, page, output, setup_at, parent, slot, number = map(int, sys.argv[1:])
    plain_streams()
    become_worker(parent, slot, output)
    faulthandler.enable()
    for descriptor in (wire, page, output, setup_at):
        os.set_inheritable(descriptor, False)
    setup = Setup.read(setup_at)
    os.close(setup_at)
    loaded = setup.load()
    show_log_records()
    sys.stdout.flush()
    capture.empty(output)  # the zygote has shown what the import prints
    serve(wire, page, output, setup=setup, entries=loaded.entries, number=number)


if __name__ == "__main__":
    main()
