"""LocalPool: the Pool of this machine, a zygote and its workers.

Imports the floor and this room. Everything happens on the event loop's thread. Three things call in: the
dispatcher (`offer`, `kill`), workers' sockets, and `step`, which looks at the shared pages while anything
runs. An attempt that was offered is reported exactly once, whichever process dies.
"""

import asyncio
import itertools
import shutil
import signal
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from headrace.runtime.clock import Clock
from headrace.runtime.errors import PayloadTooLarge, WorkerCrashed
from headrace.runtime.fault import reach
from headrace.runtime.model.attempt import Attempt, Report
from headrace.runtime.model.invocation import Outcome
from headrace.runtime.model.spec import LoadError, Manifest
from headrace.runtime.pool import capture, process
from headrace.runtime.pool.code import ARGUMENT_BYTES_MAX, Setup
from headrace.runtime.pool.context import WorkerConfig
from headrace.runtime.pool.control import MARK_NAME, Control, worker_environment
from headrace.runtime.pool.frame import FRAME_BYTES_MAX, FrameTooLarge
from headrace.runtime.pool.link import Link
from headrace.runtime.pool.placement import Placement
from headrace.runtime.pool.protocol import PoolEvents
from headrace.runtime.pool.watch import Means, Watch, cancelled, doom_by_wish, how_it_ended

TICK_S = 0.01
MEASURE_EVERY_TICKS = 5
LOAD_TIME_MAX_S = 60.0
BURST_IDLE_S = 5.0
STOP_ZYGOTE_S = 8.0

RESPAWN_FIRST_S, RESPAWN_MAX_S = 0.1, 5.0
ZYGOTE_SETTLED_S = 10.0
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX - (1 << 20)

_log = structlog.get_logger(__name__)


class LocalPool:
    """Worker processes on this machine, forked from a zygote that has imported the code.

    Args:
        loader: `module:function`; called with `argument` in the zygote, it returns a `code.Loaded`.
        argument: opaque, at most 64 MiB.
        events: what is told of outcomes, room and progress.
        workers: how many attempts run at once, at least 1; `burst_workers` more are made for urgent ones.
        scratch_root: an existing folder; the pool makes one of its own in it, and removes that when it stops.
        clock: the machine's own, since workers tell with CLOCK_MONOTONIC when an item began.
        config: what workers may reach.
        env: added to the scrubbed environment that user code gets.
        kill_grace_s: between SIGTERM and SIGKILL.
        recycle_after: a worker is replaced after so many invocations, or once its anonymous memory has grown
            by `recycle_growth_bytes`; always between two invocations.
        hold_fds: descriptors that the zygote keeps open until no process of the pool is left.
    """

    def __init__(
        self,
        loader: str,
        argument: bytes,
        *,
        events: PoolEvents,
        workers: int,
        scratch_root: Path,
        clock: Clock,
        burst_workers: int = 8,
        config: WorkerConfig | None = None,
        env: Mapping[str, str] | None = None,
        kill_grace_s: float = 1.0,
        recycle_after: int = 100_000,
        recycle_growth_bytes: int = 1 << 30,
        hold_fds: Sequence[int] = (),
    ) -> None:
        if len(argument) > ARGUMENT_BYTES_MAX:
            raise ValueError(
                f"the loader's argument is {len(argument):,} bytes; the limit is {ARGUMENT_BYTES_MAX:,}"
            )
        if workers < 1 or workers + burst_workers > process.SLOTS_MAX // 2:
            raise ValueError(
                f"workers must be at least 1, and with burst workers at most {process.SLOTS_MAX // 2}"
            )
        self.manifest = Manifest(version="")
        self.load_output = ""
        self._loader, self._argument = loader, argument
        self._events = events
        self._workers, self._burst_workers = workers, burst_workers
        self._scratch_root = scratch_root
        self._clock = clock
        self._config = config or WorkerConfig()
        self._env = dict(env or {})
        self._recycle_after = recycle_after
        self._hold_fds = tuple(hold_fds)

        self._folder: Path | None = None
        self._control: Control | None = None
        self._control_gone = asyncio.Event()
        self._manifest_told: asyncio.Future[Manifest | None] | None = None
        self._links: dict[int, Link] = {}
        self._placement = Placement()
        self._watch = Watch(kill_grace_s=kill_grace_s, recycle_growth_bytes=recycle_growth_bytes)
        self._dirty: list[Link] = []
        self._numbers = itertools.count(1)
        self._refused = False
        self._suspects: set[int] = set()
        self._ticks = 0
        self._ticking = False
        self._wake = asyncio.Event()
        self._quiet = asyncio.Event()
        self._respawn_wait = 0.0
        self._respawn_at = 0.0
        self._served_at = 0.0
        self._restart_wait = 0.0
        self._serving = False
        self._stopping = False
        self._stop: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None

    # ---- starting ----

    async def start(self) -> Manifest:
        """Load the code and start the workers.

        Returns: the manifest, within LOAD_TIME_MAX_S; when the code could not be loaded at all it has errors
        only, and the pool takes no attempts.
        """
        self._loop = asyncio.get_running_loop()
        self._folder = Path(tempfile.mkdtemp(prefix="pool-", dir=self._scratch_root))
        self.manifest = await self._load()
        if self.manifest.version and not self._stopping:
            self._ticker = asyncio.create_task(self._tick(), name="headrace-pool")
            self._serve()
        return self.manifest

    async def _load(self) -> Manifest:
        """Start a zygote and wait for its manifest; a failure to give one is a manifest that says so."""
        assert self._folder is not None
        self._manifest_told = told = self._loop.create_future()
        self._control_gone.clear()
        setup = Setup(
            loader=self._loader, argument=self._argument, config=self._config, folder=str(self._folder),
            held=self._hold_fds,
        )  # fmt: skip
        self._control = control = Control(
            setup,
            environment=worker_environment(self._env, mark=str(self._folder)),
            folder=self._folder,
            clock=self._clock,
            on_message=self._on_message,
            on_gone=self._on_gone,
        )
        await self._either(told, LOAD_TIME_MAX_S)
        manifest = told.result() if told.done() else None
        if manifest is None:
            if told.done():
                code = await control.wait_ended()
                why = f"importing the code ended its process ({how_it_ended(code)})"
            else:
                control.kill()
                await control.wait_ended()
                why = f"importing the code took longer than {LOAD_TIME_MAX_S:g} s"
            self.load_output = control.take_output()
            hint = self.load_output.strip().rpartition("\n")[2][:500]
            error = LoadError(file=self._loader.partition(":")[0], line=0, message=why, hint=hint)
            manifest = Manifest(version="", errors=(error,))
        else:
            self.load_output = control.take_output()
        return manifest

    def _serve(self) -> None:
        self._serving = True
        self._served_at = self._clock.monotonic()
        self._fill_up()

    def _add_worker(self, *, burst: bool) -> Link:
        assert self._control is not None
        assert self._folder is not None
        taken = {link.slot for link in self._links.values()}
        slot = next(slot for slot in range(process.SLOTS_MAX) if slot not in taken)
        link = Link(
            next(self._numbers), slot, burst=burst, folder=self._folder, born_at=self._clock.monotonic()
        )
        self._links[link.number] = link
        self._placement.add(link)
        link.watch(self._loop, self._readable)
        self._control.fork(link.number, slot, link.handed)
        link.give_away()
        self._wake.set()
        return link

    # ---- placing ----

    def offer(self, attempt: Attempt) -> bool:
        """See Pool. Costs about a microsecond; frames leave when this turn of the loop ends.

        Raises: PayloadTooLarge above PAYLOAD_BYTES_MAX, which no frame can hold.
        """
        placement = self._placement
        estimate = placement.estimate(attempt.function)
        link = placement.choose(attempt, estimate) if self._serving else None
        if link is None:
            if not attempt.urgent or not self._serving or len(placement.burst) >= self._burst_workers:
                self._refused = True
                return False
            link = self._add_worker(burst=True)
        if len(attempt.payload) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLarge(len(attempt.payload), PAYLOAD_BYTES_MAX)
        if not link.held:
            placement.stir(link)
            link.last_sign_at = self._clock.monotonic()
        if not link.dirty:
            link.dirty = True
            if not self._dirty:
                self._loop.call_soon(self._flush)
                if not self._ticking:
                    self._wake.set()
            self._dirty.append(link)
        link.put(attempt, estimate)
        return True

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.dirty = False
            link.flush()

    # ---- outcomes ----

    def _readable(self, link: Link) -> None:
        reports: list[Report] = []
        self._receive(link, reports)
        if reports:
            self._report(reports)
        else:
            self._tell_room()  # a worker that had only skipped what was taken back is open again

    def _receive(self, link: Link, reports: list[Report], *, all_of_it: bool = False) -> None:
        try:
            for message in link.receive(all_of_it=all_of_it):
                if type(message) is list:
                    self._settle(link, message, reports)
                else:
                    self._hear(link, message)
        except (FrameTooLarge, msgspec.DecodeError, KeyError, TypeError, IndexError, ValueError):
            # Only user code that writes into descriptors it does not own can do this. What was running pays.
            _log.error("a worker's stream is damaged; the worker is ended", worker=link.number)
            link.damaged = link.closing = True
            self._placement.stir(link)
            link.unwatch()
            self._end_worker(link, Means.KILL)
        if not link.held:
            self._emptied(link)

    def _hear(self, link: Link, message: dict[str, Any]) -> None:
        """What a worker says of the item that it runs: a piece of its stream, or how far it is."""
        seq = message["seq"]
        held = link.held.get(seq)
        if held is None:
            return
        if "piece" in message:
            if link.reading is not None and link.reading.seq == seq:
                link.reading.feed(message["piece"])
        elif "head" in message:
            self._events.stream(held.token, link.open_stream(seq, message["head"]))
        else:
            self._events.progress(held.token, message["progress"])

    def _settle_unsent(self, link: Link, reports: list[Report], *, dead: bool = True) -> None:
        """Save the results that a worker, dead or busy with a long item, has finished and not sent."""
        try:
            self._settle(link, link.unsent_results(dead=dead), reports)
        except (msgspec.DecodeError, TypeError, IndexError, ValueError):
            link.damaged = True

    def _settle(self, link: Link, results: list[list[Any]], reports: list[Report]) -> None:
        """Turn results into reports; the second time a result is seen it is nobody's."""
        since_epoch = self._clock.now() - self._clock.monotonic()
        learn = self._placement.learn
        for result in results:
            seq = result[0]
            condemned = seq in link.condemned
            attempt = link.take(seq)
            if attempt is None:
                continue
            duration = result[2]
            if len(result) == 4:
                outcome = Outcome("ok", result[3], None, None, b"", 0, duration, result[1] + since_epoch)
            else:
                outcome = self._outcome(link, result, since_epoch)
                if outcome.kind == "returned":
                    if condemned:
                        outcome = Outcome("cancelled", error=cancelled())
                    reports.append(Report(attempt.token, outcome))
                    continue
            link.done += 1
            learn(attempt.function, duration)
            reports.append(Report(attempt.token, outcome))
            if outcome.kind == "retry_after":
                # The worker begins nothing behind it by itself, since that may be what was just closed.
                reports.extend(Report(stolen.token, Outcome("returned")) for stolen in link.steal())

    def _outcome(self, link: Link, result: list[Any], since_epoch: float) -> Outcome:
        """The outcome of a result that is more than a value."""
        seq, started, duration, value, kind, ref, failure, output, output_bytes = result
        if kind == "skipped":
            return Outcome("returned")
        doom = link.doom
        if doom is not None and doom.seq == seq:
            link.doom = None
            link.closing = True  # it was told to end, and whatever came of that, nothing else shall meet it
            if doom.kind != "timeout" or kind != "ok":
                kind, failure, value, ref = doom.kind, doom.error, b"", None
        return Outcome(
            kind,
            value,
            ref,
            failure,
            output,
            output_bytes,
            duration_s=duration,
            started_at=started + since_epoch,
        )

    def _report(self, reports: list[Report]) -> None:
        reach("result.receive")
        self._events.reports(reports)
        if self._stopping:
            if not any(link.held for link in self._links.values()):
                self._quiet.set()
        else:
            self._tell_room()

    def _tell_room(self) -> None:
        """There may be room again for what was refused."""
        if self._refused and not self._stopping:
            self._refused = False
            self._events.room()

    def _emptied(self, link: Link) -> None:
        """A worker holds nothing now: it rests, retires, or takes new work again."""
        if not link.drained or link.retired:
            return
        if link.doom is not None:  # its item ended just before it could be doomed
            link.doom = None
            link.closing = True
        if link.closing or link.done >= self._recycle_after:
            self._retire(link)
            return
        if link.revoked:
            link.reopen()
        link.idle_since = self._clock.monotonic()
        self._placement.rest(link)

    def _retire(self, link: Link) -> None:
        """Let an empty worker end, and start its successor at once."""
        link.retire()
        self._forget(link)
        if not link.burst and self._serving:
            self._add_worker(burst=False)

    def _forget(self, link: Link) -> None:
        """Nothing is placed on the worker any more."""
        link.closing = link.retired = True
        self._placement.remove(link)

    # ---- the zygote speaks ----

    def _on_message(self, message: list[Any]) -> None:
        what = message[0]
        if what == "manifest":
            if self._manifest_told is not None and not self._manifest_told.done():
                self._manifest_told.set_result(msgspec.msgpack.decode(message[1], type=Manifest))
            return
        link = self._links.get(message[1])
        if link is None:
            return
        if what == "forked":
            link.pid = message[2]
        elif what == "dead":
            self._bury(link, how_it_ended(message[2]), code=message[2])
        elif what == "failed":
            _log.error("a worker could not be started", why=message[2])
            self._bury(link, message[2], code=0)

    def _bury(self, link: Link, how: str, *, code: int) -> None:
        """A worker is dead, and everything it started: account for all that it held."""
        reports: list[Report] = []
        del self._links[link.number]
        retired, link.retired = link.retired, True
        self._receive(link, reports, all_of_it=True)
        self._settle_unsent(link, reports)
        executing = link.page.executing()
        if executing is None and link.page.begun() in link.held:
            # Its code had just ended, and what it did to the process came out after it: closed descriptors, a
            # broken heap. Were it free, such an item would end one worker after another for ever.
            executing = link.page.begun(), self._clock.monotonic()
        if link.held and (link.damaged or (executing is not None and executing[0] not in link.held)):
            # The page cannot be trusted. Items are run and reported in order: the first not reported is the
            # culprit.
            executing = min(link.held), self._clock.monotonic()
        if executing is not None and executing[0] in link.held:
            seq, started = executing
            charged = link.take(seq)
            if charged is not None and not self._stopping:
                link.done += 1
                reports.append(Report(charged.token, self._end_of(link, seq, started, how, code)))
            elif charged is not None:
                reports.append(Report(charged.token, Outcome("returned")))
        for attempt in link.held.values():
            reports.append(Report(attempt.token, Outcome("returned")))
        link.held.clear()
        early = not link.done and not retired and executing is None
        last_words = capture.tail(link.output)[-2000:].decode("utf-8", "replace") if early else ""
        self._forget(link)
        self._drop(link)
        if self._serving:
            if early:
                _log.error("a worker ended before its first invocation", how=how, output=last_words)
                self._respawn_wait = _longer(self._respawn_wait)
                self._respawn_at = self._clock.monotonic() + self._respawn_wait
                self._wake.set()
            else:
                self._respawn_wait = 0.0
                self._fill_up()
        self._report(reports)

    def _end_of(self, link: Link, seq: int, started: float, how: str, code: int) -> Outcome:
        """The outcome of the item that a worker died of."""
        doom = link.doom
        if doom is not None and doom.seq == seq:
            kind, error = doom.kind, doom.error
        else:
            kind = "crashed"
            error = {"code": WorkerCrashed.code, "message": f"the worker process ended: {how}"}
            error.update({"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code})
            if code == -signal.SIGKILL:
                error["message"] += ", sent from outside, perhaps by the kernel for lack of memory"
        output, output_bytes = capture.head_and_tail(link.output)
        now = self._clock.monotonic()
        return Outcome(
            kind, error=error, output=output, output_bytes=output_bytes, duration_s=max(0.0, now - started),
            started_at=self._clock.now() - now + started,
        )  # fmt: skip

    def _drop(self, link: Link) -> None:
        """Release a dead worker's link, and what it left on the disk."""
        link.close()
        if link.scratch.exists():
            self._loop.run_in_executor(None, lambda: shutil.rmtree(link.scratch, ignore_errors=True))

    def _fill_up(self) -> None:
        if self._clock.monotonic() >= self._respawn_at:
            for _ in range(self._workers - len(self._placement.regular)):
                self._add_worker(burst=False)

    def _on_gone(self) -> None:
        """The zygote is gone: by our wish, by its import, or by somebody's kill."""
        self._control_gone.set()
        if self._manifest_told is not None and not self._manifest_told.done():
            self._manifest_told.set_result(None)
        if not self._serving:
            return
        self._serving = False
        assert self._control is not None
        _log.error("the zygote ended; another is started", output=self._control.take_output()[-2000:])
        self._lose_all()
        lived = self._clock.monotonic() - self._served_at
        self._restart_wait = 0.0 if lived > ZYGOTE_SETTLED_S else _longer(self._restart_wait)
        if not self._stopping:
            self._restart = asyncio.create_task(self._start_over(), name="headrace-pool-restart")

    def _lose_all(self) -> None:
        """Kill every process there may be, keep the results that were finished, and report the rest as
        returned."""
        assert self._folder is not None
        for link in self._links.values():
            if link.pid is not None:
                process.kill_group(link.pid)
        self._kill_marked()
        reports: list[Report] = []
        suspects: set[int] = set()
        for link in list(self._links.values()):
            del self._links[link.number]
            link.retired = True
            self._receive(link, reports, all_of_it=True)
            self._settle_unsent(link, reports)
            self._suspect(link, suspects, reports)
            for attempt in link.held.values():
                reports.append(Report(attempt.token, Outcome("returned")))
            link.held.clear()
            self._forget(link)
            self._drop(link)
        self._suspects = suspects
        if reports:
            self._report(reports)

    def _suspect(self, link: Link, suspects: set[int], reports: list[Report]) -> None:
        """Note what a worker ran when the zygote ended; what ran at the loss before as well is charged.

        Nobody knows which of the running items ended the zygote, or whether any did, so once is free. An item
        that does it each time must not be free for ever.
        """
        executing = link.page.executing()
        if executing is None or executing[0] not in link.held or self._stopping:
            return
        seq, started = executing
        attempt = link.held[seq]
        suspects.add(attempt.invocation_id)
        if attempt.invocation_id in self._suspects:
            link.take(seq)
            how = "SIGKILL, for the second time while the process that workers are forked from ended"
            reports.append(Report(attempt.token, self._end_of(link, seq, started, how, -signal.SIGKILL)))

    def _kill_marked(self) -> int:
        """Kill whatever bears this pool's mark in its environment; returns how many did."""
        found = process.marked(f"{MARK_NAME}={self._folder}")
        for pid in found:
            process.kill_one(pid)
        return len(found)

    async def _start_over(self) -> None:
        while True:
            assert self._control is not None
            self._control.kill()
            await self._control.wait_ended()
            self._control.close()
            await self._clock.sleep(self._restart_wait)
            manifest = await self._load()
            if manifest.version == self.manifest.version:
                self._serve()
                self._events.room()
                return
            _log.error(
                "the code could not be loaded again as it was",
                errors=[error.message for error in manifest.errors],
                version=manifest.version,
            )
            self._restart_wait = _longer(self._restart_wait)

    # ---- limits ----

    async def _tick(self) -> None:
        while True:
            if not self._needs_ticks():
                self._wake.clear()
                await self._wake.wait()  # no deadline: it is set by whoever makes work
            self._ticking = True
            await self._clock.sleep(TICK_S)
            self._ticking = False
            try:
                self.step()
            except Exception:  # a pool that no longer looks would let everything hang
                _log.exception("a look at the workers failed")

    def _needs_ticks(self) -> bool:
        placement = self._placement
        return bool(placement.burst) or (self._serving and len(placement.regular) < self._workers) or any(
            link.held or link.done != link.measured_at_done for link in self._links.values()
        )  # fmt: skip

    def step(self) -> None:
        """Look once at every worker: whose time or memory is over, who blocks others, who may rest for
        good."""
        now = self._clock.monotonic()
        self._ticks += 1
        measure = self._ticks % MEASURE_EVERY_TICKS == 0
        if measure:
            self._watch.refresh()
        reports: list[Report] = []
        for link in list(self._links.values()):
            if link.held:
                self._check(link, now, reports, measure=measure)
            elif measure and link.done != link.measured_at_done:
                if self._watch.outgrown(link) and not link.retired:
                    self._retire(link)
        if self._serving:
            self._fill_up()
            for link in [
                link
                for link in self._placement.burst
                if not link.held and now - link.idle_since > BURST_IDLE_S
            ]:
                self._retire(link)
        if reports:
            self._report(reports)
        elif self._placement.resting:
            self._tell_room()  # a worker was replaced while nothing ended

    def _check(self, link: Link, now: float, reports: list[Report], *, measure: bool) -> None:
        means = self._watch.look(link, now, measure=measure)
        if link.done >= self._recycle_after:
            link.closing = True  # a worker that is never without work must be left to run dry
        if means is not None:
            self._end_worker(link, means)
        if not link.revoked and self._watch.overdue(link, now):
            # Finished results wait to be sent with that of an item that is slow for once, and others to
            # begin.
            self._settle_unsent(link, reports, dead=False)
            if len(link.held) > 1:
                reports.extend(Report(stolen.token, Outcome("returned")) for stolen in link.steal())

    def _end_worker(self, link: Link, means: Means) -> None:
        """End a worker's process; its pool hears of it when it is dead."""
        link.closing = True
        if self._control is None:
            return
        if means is Means.TERMINATE and link.doom is not None:
            link.page.doom(link.doom.seq)
            self._control.signal(link.number, signal.SIGTERM)
        elif means is Means.KILL_DIRECTLY and link.pid is not None:
            process.kill_group(link.pid)
        elif means is Means.KILL_ZYGOTE:
            self._control.kill()
        else:
            self._control.signal(link.number, signal.SIGKILL)

    # ---- asking ----

    def kill(self, token: int) -> bool:
        """See Pool. An attempt that has just ended by itself keeps its own outcome."""
        for link in self._links.values():
            for seq, attempt in link.held.items():
                if attempt.token == token:
                    self._kill(link, seq)
                    return True
        return False

    def _kill(self, link: Link, seq: int) -> None:
        executing = link.page.executing()
        if executing is None or executing[0] < seq:
            token = link.held[seq].token
            reports = []
            for attempt in link.steal():
                outcome = Outcome("returned")
                if attempt.token == token:
                    outcome = Outcome("cancelled", error=cancelled())
                reports.append(Report(attempt.token, outcome))
            if reports:
                # Not from inside the caller's call: what it does with a report may ask the pool for more.
                self._loop.call_soon(self._report, reports)
            if seq not in link.held:
                return
            executing = link.page.executing()
        link.condemned.add(seq)  # for the case that it begins just now
        if executing is not None and executing[0] == seq:
            link.doom = doom_by_wish(seq)
            self._end_worker(link, self._watch.next_means(link.doom, self._clock.monotonic()))

    def free(self) -> int:
        """See Pool."""
        return sum(1 for link in self._placement.regular if link.open and not link.held)

    def recall(self, tokens: Collection[int]) -> None:
        """See Pool. A worker is asked for all that it has not begun: it would begin what stays behind it."""
        wanted = set(tokens)
        reports = [
            Report(stolen.token, Outcome("returned"))
            for link in self._links.values()
            if any(attempt.token in wanted for attempt in link.held.values())
            for stolen in link.steal()
        ]
        if reports:
            self._loop.call_soon(self._report, reports)

    def running(self) -> list[tuple[int, float]]:
        """See Pool."""
        now = self._clock.monotonic()
        found = []
        for link in self._links.values():
            executing = link.page.executing() if link.held else None
            if executing is not None and executing[0] in link.held:
                found.append((link.held[executing[0]].token, max(0.0, now - executing[1])))
        return found

    def output(self, token: int) -> bytes:
        """See Pool."""
        for link in self._links.values():
            executing = link.page.executing() if link.held else None
            if executing is not None and executing[0] in link.held:
                if link.held[executing[0]].token == token:
                    return capture.tail(link.output)
        return b""

    def load(self) -> dict[str, int]:
        """See Pool."""
        return {
            "workers": len(self._placement.regular),
            "busy": sum(1 for link in self._links.values() if link.held),
            "burst": len(self._placement.burst),
            "held": sum(len(link.held) for link in self._links.values()),
        }

    # ---- stopping ----

    async def stop(self, *, grace_s: float) -> None:
        """See Pool."""
        if self._stop is None:
            self._stop = asyncio.create_task(self._end(grace_s), name="headrace-pool-stop")
        await asyncio.shield(self._stop)

    async def _end(self, grace_s: float) -> None:
        serving, self._serving, self._stopping = self._serving, False, True
        if self._folder is None:
            return
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        reports = [
            Report(attempt.token, Outcome("returned"))
            for link in self._links.values()
            if len(link.held) > 1 or (link.held and link.page.executing() is None)
            for attempt in link.steal()
        ]
        if reports:
            self._report(reports)
        if any(link.held for link in self._links.values()):
            await self._either(asyncio.ensure_future(self._quiet.wait()), grace_s)
        streams = [link.reading for link in self._links.values() if link.reading is not None and link.held]
        if streams:
            for reading in streams:  # their functions may clean up; harmless for what has ended
                reading.cut_off()
            await self._either(asyncio.ensure_future(self._quiet.wait()), self._watch.kill_grace_s)
        if self._control is not None:
            if serving and not self._control_gone.is_set():
                self._control.stop()
                await self._either(asyncio.ensure_future(self._control_gone.wait()), STOP_ZYGOTE_S)
            self._control.kill()
            await self._control.wait_ended()
        self._lose_all()
        for _ in range(100):
            if not self._kill_marked():
                break
            await self._clock.sleep(TICK_S)
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        if self._control is not None:
            self._control.close()
        if self._manifest_told is not None and not self._manifest_told.done():
            self._manifest_told.set_result(None)  # a start that still waits need not wait any longer
        await self._loop.run_in_executor(None, lambda: shutil.rmtree(str(self._folder), ignore_errors=True))

    async def _either(self, future: "asyncio.Future[Any]", seconds: float) -> None:
        """Return when the future is done, or after `seconds`; a task that is not done then is cancelled."""
        timer = asyncio.create_task(self._clock.sleep(seconds))
        try:
            await asyncio.wait({future, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            if isinstance(future, asyncio.Task):
                future.cancel()


def _longer(wait_s: float) -> float:
    """The pause after one of `wait_s`: at first RESPAWN_FIRST_S, then twice as long, up to a bound."""
    return min(max(RESPAWN_FIRST_S, 2 * wait_s), RESPAWN_MAX_S)
