"""Map: a function over many items, the results as they come.

Imports the client's own values and `jobs.call`. A window bounds what is under way, so that items may be
endless and results are held only while the caller has not taken them.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import CancelledError, wait
from contextlib import closing
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from headrace.runtime.client.future import InvocationFuture
from headrace.runtime.client.payload import encode_payload
from headrace.runtime.errors import BadRequest, HeadraceError, Throttled
from headrace.runtime.jobs.call import FUNCTION, SentFunction, read_answer

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client

WINDOW_INVOCATIONS = 1_000
WINDOW_BYTES = 64 << 20

Progress = Callable[[int, int | None], None]


def run_map(
    client: "Client",
    function: str | Callable[[Any], Any],
    items: Iterable[Any],
    *,
    ordered: bool,
    return_exceptions: bool,
    batch: int | None,
    progress: bool | Progress | None,
) -> Iterator[Any]:
    """See `Client.map`. Raises BadRequest for arguments that do not go together, Unpicklable; the rest while
    iterated.
    """
    if batch is not None and batch < 1:
        raise BadRequest(f"batch is {batch}; it must be at least 1")
    if isinstance(function, str):
        if batch not in (None, 1):
            raise BadRequest(
                f"{function} takes one event at a time, so its items cannot be sent in batches",
                "Leave batch out, or map a callable.",
            )
        work = _Work(client, function, None, 1)
    elif callable(function):
        work = _Work(client, FUNCTION, SentFunction(function), batch or 1)
    else:
        raise BadRequest(f"{function!r} is neither a function's name nor a callable")
    total = len(items) if isinstance(items, Sized) else None
    return _deliver(work.outcomes(iter(items), ordered=ordered), _shown(progress), total, return_exceptions)


Outcome = tuple[Any, BaseException | None]
"""A value and None, or None and the error."""


class _Piece:
    """What one invocation of a map runs, and its future."""

    __slots__ = ("count", "ended_at", "future", "number", "payload")

    def __init__(self, number: int, payload: bytes, count: int) -> None:
        self.number, self.payload, self.count = number, payload, count
        self.future: InvocationFuture
        self.ended_at = 0.0


class _Work:
    """The invocations of one map."""

    def __init__(self, client: "Client", name: str, sent: SentFunction | None, batch: int) -> None:
        self._client, self._name, self._sent, self._batch = client, name, sent, batch
        self._now = client.clock.monotonic
        self._bytes = 0
        self._resumed_at = float("-inf")
        self._ended: SimpleQueue[_Piece] = SimpleQueue()  # bounded by the window

    def outcomes(self, items: Iterator[Any], *, ordered: bool) -> Generator[Outcome, None, None]:
        """The outcome of each item; what is under way is cancelled when the caller goes away."""
        pieces: dict[int, _Piece] = {}
        first = last = 0
        try:
            while True:
                while len(pieces) < WINDOW_INVOCATIONS and self._bytes < WINDOW_BYTES:
                    several = list(islice(items, self._batch))
                    if not several:
                        break
                    pieces[last] = self._begin(last, several)
                    last += 1
                if not pieces:
                    return
                if ordered:
                    number, piece = first, pieces[first]
                    first += 1
                    wait([piece.future])
                else:
                    piece = self._ended.get()
                    number = piece.number
                if self._throttled(piece):
                    first -= ordered
                    self._again(piece)
                    continue
                del pieces[number]
                self._bytes -= len(piece.payload)
                yield from self._read(piece)
        finally:
            for piece in pieces.values():
                piece.future.cancel()

    def _begin(self, number: int, items: list[Any]) -> _Piece:
        event = self._sent.payload(items) if self._sent is not None else items[0]
        piece = _Piece(number, encode_payload(event), len(items))
        self._bytes += len(piece.payload)
        self._submit(piece)
        return piece

    def _submit(self, piece: _Piece) -> None:
        piece.future = self._client.submit_encoded(self._name, piece.payload)
        piece.future.add_done_callback(lambda _: self._note(piece))

    def _note(self, piece: _Piece) -> None:
        piece.ended_at = self._now()
        self._ended.put(piece)

    def _throttled(self, piece: _Piece) -> bool:
        return not piece.future.cancelled() and isinstance(piece.future.exception(), Throttled)

    def _again(self, piece: _Piece) -> None:
        """Submit what was throttled, and hence not accepted, when the node asks for it; a whole batch waits
        once.
        """
        if piece.ended_at >= self._resumed_at:
            self._client.pause_s(getattr(piece.future.exception(), "retry_after_s", 1.0))
            self._resumed_at = self._now()
        self._submit(piece)

    def _read(self, piece: _Piece) -> list[Outcome]:
        try:
            value = piece.future.result()
            return [(value, None)] if self._sent is None else [*read_answer(value)]
        except (HeadraceError, CancelledError) as error:
            return [(None, error)] * piece.count


def _deliver(
    outcomes: Generator[Outcome, None, None], show: "_Shown", total: int | None, return_exceptions: bool
) -> Iterator[Any]:
    done = 0
    with show, closing(outcomes):
        show.moved(0, total)
        for value, error in outcomes:
            done += 1
            show.moved(done, total)
            if error is not None and not return_exceptions:
                raise error
            yield value if error is None else error


class _Shown:
    """Where a map's progress goes: nowhere, to a callable, or to a bar."""

    def __init__(self, to: Progress | None) -> None:
        self.moved: Progress = to or (lambda done, total: None)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _Bar(_Shown):
    """A bar on the error stream, or in a notebook's output; removed from neither when it is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        self._bar = RichProgress(
            TextColumn("map"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=not _notebook()),
        )  # fmt: skip
        self._task = self._bar.add_task("map", total=None)
        super().__init__(lambda done, total: self._bar.update(self._task, completed=done, total=total))

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _shown(progress: bool | Progress | None) -> _Shown:
    if callable(progress):
        return _Shown(progress)
    if progress or (progress is None and (sys.stderr.isatty() or _notebook())):
        return _Bar()
    return _Shown(None)


def _notebook() -> bool:
    """Whether this is a kernel with rich output: looked up, never imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
