"""Links: the node's end of one worker, with what it holds.

Imports the floor and this room. A link sends and receives; which attempt goes where, and what an outcome
means, is its pool's.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace.runtime.fault import reach
from headrace.runtime.model.attempt import Attempt
from headrace.runtime.pool import capture
from headrace.runtime.pool.frame import FrameReader, decode, pack
from headrace.runtime.pool.page import BASE_ANON, BEGUN, Page
from headrace.runtime.pool.reading import Reading

ITEMS_MAX = 512
BYTES_MAX = 4 << 20
_RECEIVE_BYTES = 256 << 10
_RECEIVES_PER_TURN = 16
_SOCKET_BUFFER_BYTES = 1 << 20


class Doom(msgspec.Struct):
    """Why the item `seq` is being ended: the outcome's kind and error.

    `means` are the names of what will be done to its process, one after another, the next at `next_at`
    (monotonic seconds).
    """

    seq: int
    kind: str
    error: dict[str, Any]
    means: list[str] = msgspec.field(
        default_factory=lambda: ["TERMINATE", "KILL", "KILL_DIRECTLY", "KILL_ZYGOTE"]
    )
    next_at: float = 0.0


class Link:
    """One worker, from before it is forked until it is gone. The worker's three descriptors are `handed`,
    until `give_away`.

    Attributes:
        held: what was placed here and not reported, by number. Numbers grow.
        condemned: items that are to be ended as soon as they are seen to run.
        load_s: the sum of those estimates.
        pid: None until the zygote has told.
        done: items that were reported as run.
        closing: nothing more may be placed here; `retired`: its pool counts it no more, and only waits for
            its end.
        reading: the last stream that the worker has begun, whether or not it has ended.
        damaged: user code has written into the stream or the page, and neither says anything any more.
        revoked: what was not begun has been taken back; nothing may be placed until `drained`.
    """

    def __init__(self, number: int, slot: int, *, burst: bool, folder: Path, born_at: float) -> None:
        self.number = number
        self.slot = slot
        self.burst = burst
        self.scratch = folder / f"w{number}"
        self.pid: int | None = None
        self.held: dict[int, Attempt] = {}
        self.held_bytes = 0
        self.load_s = 0.0
        self.done = 0
        self.closing = False
        self.retired = False
        self.damaged = False
        self.revoked = False
        self.dirty = False
        self.condemned: set[int] = set()
        self.doom: Doom | None = None
        self.reading: Reading | None = None
        self.last_sign = (0, 0)
        self.last_sign_at = born_at
        self.idle_since = born_at
        self.punched = 0
        self.measured_at_done = 0
        self._next_seq = 1
        self._seen_seq = 0
        self._groups: list[tuple[str, float, int, int, list[Any]]] = []
        self._unsent = bytearray()
        self._reader = FrameReader()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching_writes = False
        self._wire, worker_wire = socket.socketpair()
        self._wire.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._wire.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        worker_wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self.page, page_at = Page.make(folder)
        self.output = capture.open_capture(folder)
        self.handed: tuple[int, ...] = (worker_wire.detach(), page_at, self.output)

    def watch(self, loop: asyncio.AbstractEventLoop, readable: Callable[["Link"], None]) -> None:
        """Call `readable` with this link when there may be something to `receive`."""
        self._loop = loop
        loop.add_reader(self._wire.fileno(), readable, self)

    def give_away(self) -> None:
        """Close this process's copies of what the worker alone uses."""
        for descriptor in self.handed[:2]:
            os.close(descriptor)
        self.handed = ()

    # ---- placing ----

    @property
    def open(self) -> bool:
        """Whether anything may be placed here at all."""
        return not self.closing and not self.revoked

    @property
    def drained(self) -> bool:
        """Whether the worker has reported on everything it was ever sent, run or skipped."""
        return self._seen_seq == self._next_seq - 1

    def put(self, attempt: Attempt, estimate_s: float) -> None:
        """Hold the attempt; it leaves with the next `flush`."""
        seq = self._next_seq
        self._next_seq = seq + 1
        self.held[seq] = attempt
        attempt.estimate_s = estimate_s
        self.load_s += estimate_s
        self.held_bytes += len(attempt.payload)
        item = (seq, attempt.invocation_id, attempt.attempt, attempt.payload, attempt.payload_ref)
        groups = self._groups
        if groups:
            function, timeout_s, memory_bytes, credit, items = groups[-1]
            if (
                function == attempt.function
                and timeout_s == attempt.timeout_s
                and memory_bytes == attempt.memory_bytes
                and credit == attempt.credit
            ):
                items.append(item)
                return
        groups.append((attempt.function, attempt.timeout_s, attempt.memory_bytes, attempt.credit, [item]))

    def take(self, seq: int) -> Attempt | None:
        """Let go of an item that has been reported on; None when it is not held (any more)."""
        if seq > self._seen_seq:
            self._seen_seq = seq
        attempt = self.held.pop(seq, None)
        if attempt is None:
            return None
        if self.condemned:
            self.condemned.discard(seq)
        self.held_bytes -= len(attempt.payload)
        self.load_s = self.load_s - attempt.estimate_s if self.held else 0.0
        return attempt

    def steal(self) -> list[Attempt]:
        """Take back everything that has not begun and never will; see `page` for why. What may have begun
        stays held."""
        self.flush()
        self.revoked = True
        begun = self.page.revoke_after_begun()
        stolen = []
        for seq in [seq for seq in self.held if seq > begun]:
            attempt = self.held.pop(seq)
            self.held_bytes -= len(attempt.payload)
            self.load_s -= attempt.estimate_s
            stolen.append(attempt)
        return stolen

    def reopen(self) -> None:
        """Lift a revocation, once `drained`."""
        self.page.lift()
        self.revoked = False

    # ---- the stream ----

    def flush(self) -> None:
        """Send what was put."""
        if not self._groups:
            return
        frame = pack(self._groups)
        self._groups = []
        self._write(frame)

    def open_stream(self, seq: int, head: Any) -> Reading:
        """The worker begins to stream the result of an item."""
        self.reading = Reading(seq, head, say=self._say, close=self._close_stream)
        return self.reading

    def _say(self, message: Any) -> None:
        self._write(pack(message))

    def _close_stream(self, seq: int) -> None:
        self.page.close_stream(seq)
        self._say({"seq": seq, "credit": 0})  # wakes a worker that waits for credit, or whose function waits

    def _write(self, frame: bytes) -> None:
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._wire.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # the worker is gone; its end is reported by the zygote
        reach("send")
        if sent < len(frame):
            if self._loop is None:
                return  # nothing that it says is listened to any more
            self._unsent += memoryview(frame)[sent:]
            self._loop.add_writer(self._wire.fileno(), self._send_rest)
            self._watching_writes = True

    def _send_rest(self) -> None:
        try:
            sent = self._wire.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            assert self._loop is not None
            self._loop.remove_writer(self._wire.fileno())
            self._watching_writes = False

    def receive(self, *, all_of_it: bool = False) -> list[Any]:
        """The messages that have arrived, at most some megabytes of them unless `all_of_it`.

        Raises: FrameTooLarge, msgspec.DecodeError when user code has written into the worker's socket.
        """
        messages: list[Any] = []
        turns = 0
        while all_of_it or turns < _RECEIVES_PER_TURN:
            turns += 1
            try:
                data = self._wire.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self.unwatch()
                break
            messages += self._reader.feed(data)
            if len(data) < _RECEIVE_BYTES and not all_of_it:
                break
        return messages

    def unsent_results(self, *, dead: bool) -> list[Any]:
        """Finished results that the worker has not sent; the stream may bring the same ones again."""
        count, data = self.page.published(dead=dead)
        return list(decode(b"\xdd" + count.to_bytes(4, "big") + data)) if count else []

    @property
    def sign_of_life(self) -> tuple[int, int]:
        """Changes whenever the worker begins or reports anything."""
        return self.page.words[BEGUN], self._seen_seq

    @property
    def base_anonymous_bytes(self) -> int:
        """The worker's anonymous memory when it began; 0 until then."""
        return self.page.words[BASE_ANON]

    # ---- ending ----

    def unwatch(self) -> None:
        """Stop listening."""
        if self._loop is not None:
            self._loop.remove_reader(self._wire.fileno())
            if self._watching_writes:
                self._loop.remove_writer(self._wire.fileno())
            self._loop = None

    def retire(self) -> None:
        """Let the worker end by itself once it has done all that it was sent."""
        self.closing = True
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Release everything of this side."""
        self.unwatch()
        self._wire.close()
        self.page.close()
        for descriptor in self.handed[:2]:
            os.close(descriptor)
        os.close(self.output)
