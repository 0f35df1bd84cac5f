"""SetSource: finds out when sets are complete, and gets each told of once.

Imports the trigger protocol, the model, the upload trigger and its own room. The general upload source finds
the objects, each once and whole, whatever kind of bucket it is; here they are recorded without an event, and
the set that each belongs to is looked at. A look lists what is there of the set, judges it and decides;
nothing is counted in memory, so nothing can be miscounted by a crash, by a lost notice or by another node.
What was missed all the same is found by a scan of the ledger, at the start and every `sweep_s` seconds.
"""

import asyncio
import contextlib
import heapq
import zlib
from collections.abc import Sequence

import msgspec

from headrace.runtime.errors import (
    Duplicate,
    HeadraceError,
    LateFiles,
    NoSuchBucket,
    Retryable,
    SetIncomplete,
)
from headrace.runtime.fault import reach
from headrace.runtime.model.event import UploadSetEvent
from headrace.runtime.model.write import CursorMoved, Seen
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.objects.trail import EVENT, Trail, UploadLoop
from headrace.runtime.trigger import TriggerContext
from headrace.triggers.upload.arrival import Arrival, seen
from headrace.triggers.upload.open import open_source
from headrace.triggers.upload.report import Reports
from headrace.triggers.uploadset.condition import (
    FILES_MAX,
    Facts,
    Quiet,
    SetFile,
    Verdict,
)
from headrace.triggers.uploadset.decision import (
    Action,
    Decision,
    Incomplete,
    Late,
    SetMemory,
    decide,
    quiet_s,
)
from headrace.triggers.uploadset.event import Telling, described, event_of, fitting
from headrace.triggers.uploadset.listing import SetListing
from headrace.triggers.uploadset.look import Fingerprint, Look
from headrace.triggers.uploadset.memory import LIST_KEPT_S, Memories, Remembered
from headrace.triggers.uploadset.trigger import UploadSet

FILE_REST_S = 50e-6
"""How long a set rests after a look, for each file that it has beyond a page: about what the look took."""

PAGE = 1_000
FEW = 4
"""So many keys are asked of the ledger one by one; more of them are paged through."""

AT_ONCE = 16
SETS_PAGE = 100
WANTED_MAX = 16_384
JUDGED_MAX = 16_384
SCAN_SETS_MAX = 100_000
"""Sets that one pass of a scan compares; with more of them, several passes take a part each."""

TRAIL_FILES = 8
"""How many of a set's newest files are asked by whom they were written."""

SETTLED_S = 2.0
_CLEAN_S = 86_400.0
_HOLD_MAX_S = 30.0
_AGAIN_S = 30.0


class SetSource:
    """The source of one UploadSet trigger. Work in hand at `stop` is left: the next start's scan finds it."""

    def __init__(self, trigger: UploadSet, context: TriggerContext) -> None:
        self._trigger = trigger
        self._context = context
        self._bucket = trigger.bucket
        self._policy = trigger.policy
        self._quiet = [part.period_s for part in trigger.complete.parts() if isinstance(part, Quiet)]
        self._reports = Reports(context, trigger.bucket)
        self._memories = Memories(context, trigger.bucket)
        self._members = open_source(trigger.members, context, self)
        self._listing = SetListing(trigger, context.objects, self._members.wants)
        self._begun = False
        self._wanted: dict[str, float] = {}  # name: when to look at it (monotonic)
        self._order: list[tuple[float, str]] = []  # a heap of the same, with some that are out of date
        self._in_hand: set[str] = set()
        self._judged: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._scan_wanted = asyncio.Event()
        self._overflowed = False
        self._cleaned_at: float | None = None
        self._held: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.scanned = asyncio.Event()
        """Set once all sets have been compared with what is remembered of them, since the start."""

    async def start(self) -> None:
        """Return once the bucket is watched.

        At the trigger's first start ever, with `existing="skip"`, the sets that are complete are passed over.
        """
        if self._task is not None:
            return
        with self._reports.catching("the bucket cannot be read at the start; later scans try again"):
            await self._begin()
        await self._members.start()
        self._scan_wanted.set()
        self._task = asyncio.create_task(self._run(), name=f"uploadset {self._context.name}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        await self._members.stop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    @property
    def is_idle(self) -> bool:
        """Whether no set is being looked at, or due to be."""
        now = self._context.clock.monotonic()
        return not self._in_hand and not any(at <= now for at in self._wanted.values())

    async def record(self, arrival: Arrival) -> None:
        """What the general source does with an arrival: the ledger's row, and a look at its set."""
        reach("ledger.before")
        await self._context.accept([], [seen(self._context.name, arrival)])
        reach("ledger.after")
        place = self._trigger.place(arrival.info.key)
        if place is not None:
            self._want(place.name)

    # ---- the beginning ----

    async def _begin(self) -> None:
        """Pass over the sets that were complete before the trigger, if it says so.

        Until that is recorded whole the trigger has not begun, so a crash meanwhile begins it again.
        """
        context, definition = self._context, self._trigger.definition
        cursor = f"uploadset:{context.name}:begun"
        known = await context.state.cursor(cursor)
        if known == definition:
            self._begun = True
            return
        passed = 0
        if self._trigger.existing == "skip":
            passed = await self._pass_over()
        reach("cursor.before")
        await context.accept([], [CursorMoved(cursor, definition)])
        reach("cursor.after")
        self._begun = True
        if passed:
            self._reports.tell("sets that were complete before the trigger are skipped", count=passed)

    async def _pass_over(self) -> int:
        """Remember the sets that are complete, without an event; how many were not known before."""
        passed, found, rows = 0, self._listing.sets(), list[Seen]()
        while (one := await self._context.in_thread(next, found, None)) is not None:
            row = await self._closed(*one)
            if row is not None:
                rows.append(row)
            if len(rows) >= SETS_PAGE:
                passed += await self._record_closed(rows)
                rows.clear()
        return passed + await self._record_closed(rows)

    async def _closed(self, name: str, infos: Sequence[ObjectInfo]) -> Seen | None:
        """The memory of a set that is passed over; None if it is not."""
        now = self._context.clock.now()
        newest = max((info.modified_at for info in infos), default=now)
        if now - newest < SETTLED_S:
            return None  # somebody is at it
        facts = await self._context.in_thread(self._listing.facts, name, infos, now - newest)
        seen_now, remembered = _fingerprint(infos), Remembered(name)
        verdict = self._trigger.complete.judge(facts, self._trigger.marker_keys(name))
        decision = decide(None, seen_now, verdict, policy=self._policy, now=now, is_old=True)
        if decision.action is not Action.CLOSE:
            return None
        assert decision.memory is not None
        look = Look(remembered=remembered, facts=facts, fingerprint=seen_now)
        memory = await self._with_known(name, decision.memory, look)
        return self._memories.write(remembered, memory, len(facts.files))

    async def _record_closed(self, rows: Sequence[Seen]) -> int:
        if not rows:
            return 0
        try:
            await self._context.accept([], rows)
        except Duplicate:
            # One of them is remembered already, by this node or another, and that refused them all.
            half = len(rows) // 2
            return (
                await self._record_closed(rows[:half]) + await self._record_closed(rows[half:]) if half else 0
            )
        return len(rows)

    # ---- which sets to look at, and when ----

    def _want(self, name: str, at: float | None = None) -> None:
        """Look at a set at that moment (monotonic; None: now), or earlier if that is wanted already."""
        if at is None:
            at = self._context.clock.monotonic()
        known = self._wanted.get(name)
        if known is None and len(self._wanted) >= WANTED_MAX:
            self._overflowed = True  # the scan after this one's work finds it
            return
        if known is None or at < known:
            self._wanted[name] = at
            if name not in self._in_hand:
                heapq.heappush(self._order, (at, name))
            self._changed.set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick())
            group.create_task(self._scan_when_wanted())
            await self._look_when_wanted(group)

    async def _tick(self) -> None:
        while True:
            await self._context.clock.sleep(self._context.sweep_s)
            self._scan_wanted.set()

    async def _look_when_wanted(self, group: asyncio.TaskGroup) -> None:
        clock = self._context.clock
        while True:
            self._changed.clear()
            self._room.set()
            while len(self._in_hand) < AT_ONCE and (name := self._next(clock.monotonic())) is not None:
                del self._wanted[name]
                self._in_hand.add(name)
                group.create_task(self._look_at(name))
            if self._overflowed and not self._wanted:
                self._overflowed = False
                self._scan_wanted.set()
            if self._order and len(self._in_hand) < AT_ONCE:
                await self._wait_changed(self._order[0][0] - clock.monotonic())
            else:
                await self._changed.wait()

    def _next(self, now: float) -> str | None:
        """The set that is due longest."""
        while self._order:
            at, name = self._order[0]
            if self._wanted.get(name) != at or name in self._in_hand:
                heapq.heappop(self._order)  # out of date, or put back when it is let go
            elif at > now:
                return None
            else:
                heapq.heappop(self._order)
                return name
        return None

    async def _wait_changed(self, seconds: float) -> None:
        """Return after so many seconds, or when something changed."""
        sleep = asyncio.ensure_future(self._context.clock.sleep(seconds))
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((sleep, change), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleep, change):
                task.cancel()
            await asyncio.gather(sleep, change, return_exceptions=True)

    async def _look_at(self, name: str) -> None:
        """Look at one set, and let it rest as long as that may have taken: a large set that files stream into
        is not listed all the time.
        """
        clock, again_at, rest_s = self._context.clock, None, 0.0
        try:
            look = await self._look(name)
            rest_s = FILE_REST_S * max(len(look.facts.files) - PAGE, 0)
            again_at = await self._judge(name, look)
            self._held.pop(name, None)
        except Duplicate:
            again_at = clock.monotonic()  # another node was faster: look at what it left
        except Retryable as error:
            again_at = clock.monotonic() + self._hold(name, error)
        except NoSuchBucket:
            pass  # the general source says so
        except Exception as error:
            self._reports.tell("a set cannot be looked at; it is tried again", error=error, set=name)
            again_at = clock.monotonic() + _AGAIN_S
        finally:
            self._in_hand.discard(name)
            self._changed.set()
        wanted_at = self._wanted.pop(name, None)
        moments = [at for at in (again_at, wanted_at) if at is not None]
        if moments:
            self._want(name, max(min(moments), clock.monotonic() + rest_s))

    def _hold(self, name: str, error: HeadraceError) -> float:
        """How long to wait before a set that could not be accepted is offered again."""
        attempt = self._held.get(name, 0)
        if not self._held:
            self._reports.tell("sets are held back until they can be accepted", error=error, set=name)
        if len(self._held) < WANTED_MAX:
            self._held[name] = attempt + 1
        most = min(0.5 * 2.0 ** min(attempt, 10), _HOLD_MAX_S)
        return most * (0.5 + self._context.chance.random() / 2)

    # ---- one set ----

    async def _judge(self, name: str, look: Look) -> float | None:
        """Do what is due of a set that looks like this. When to look again (monotonic); None if only when
        something changes.
        """
        context, remembered = self._context, look.remembered
        if not self._begun:
            return None  # the scan that begins it looks at all sets
        memory = remembered.memory
        now, moment = context.clock.now(), context.clock.monotonic()
        if look.is_empty:
            self._judged.pop(name, None)
            if memory is not None:
                await self._forget(remembered, now)
            return None
        if memory is not None and memory.is_gone:
            memory = None
        verdict = self._verdict(name, look)
        decision = decide(memory, look.fingerprint, verdict, policy=self._policy, now=now)
        if decision.action is not Action.NOTHING:
            await self._act(remembered, look, verdict, decision)
        if self._judged.pop(name, None) != look.fingerprint:
            for key, why in look.facts.unread.items():
                self._reports.tell("a manifest cannot be used; its set waits", key=key, why=why, set=name)
        self._judged[name] = look.fingerprint
        if len(self._judged) > JUDGED_MAX:
            del self._judged[next(iter(self._judged))]
        if decision.wait_s is None or decision.wait_s > 2 * context.sweep_s:
            return None  # a scan brings it up again in time
        return moment + max(decision.wait_s, 0.001)

    async def _forget(self, remembered: Remembered, now: float) -> None:
        """Nothing of the set is there any more: what comes from now on is a new set of that name. Its row
        goes later, when nobody can be just about to change it.
        """
        context, memory = self._context, remembered.memory
        assert memory is not None
        if not memory.is_gone:
            gone = SetMemory(seen="", first_at=now, changed_at=now)
            await context.accept([], [self._memories.write(remembered, gone, 0)])
            await context.in_thread(self._memories.drop_known, memory)
        elif now - memory.changed_at > 2 * context.sweep_s:
            await context.accept([], [self._memories.forget([remembered.name])])

    def _verdict(self, name: str, look: Look) -> Verdict:
        if look.too_many:
            why = f"it has more than {FILES_MAX:,} files, the most that a set may have"
            return Verdict(complete=False, why=why, files=look.facts.files)
        if look.arriving:
            count = len(look.arriving)
            why = f"{count:,} {'object is' if count == 1 else 'objects are'} still arriving"
            return Verdict(complete=False, why=why, files=look.facts.files)
        return self._trigger.complete.judge(look.facts, self._trigger.marker_keys(name))

    async def _act(self, remembered: Remembered, look: Look, verdict: Verdict, decision: Decision) -> None:
        """Do what was decided, in one step with its memory."""
        context, name, memory = self._context, remembered.name, decision.memory
        assert memory is not None
        if decision.action is Action.NOTE:
            await context.accept([], [self._memories.write(remembered, memory, len(look.facts.files))])
            return
        files, kind = verdict.files, UploadSetEvent.COMPLETE
        if decision.action is Action.INCOMPLETE:
            kind = UploadSetEvent.INCOMPLETE
        elif decision.action is Action.LATE:
            late = await self._late(remembered, look)
            if not late:  # something went, or only a marker was put again
                assert remembered.memory is not None
                told, closed = remembered.memory.told, remembered.memory.closed
                settled = msgspec.structs.replace(memory, told=told, closed=closed)
                await context.accept([], [self._memories.write(remembered, settled, len(look.facts.files))])
                return
            if self._policy.late is not Late.AGAIN:
                files, kind = late, UploadSetEvent.LATE
        memory = await self._with_known(name, memory, look)
        event = await self._event(name, memory, kind, files, verdict)
        trail: Trail = await context.in_thread(self._listing.trail, look.newest)
        event[EVENT] = {"hops": trail.hops, "functions": trail.functions}
        writes = [self._memories.write(remembered, memory, len(look.facts.files))]
        reach("set.before")
        if trail.hops > self._trigger.max_hops:
            loop = UploadLoop(f"the set {name!r}", trail.hops, trail.then(context.function.name).functions)
            error = {"code": loop.code, "message": str(loop), "hint": loop.hint, "final": True}
            await context.bury(event, error, writes)
        elif kind == UploadSetEvent.INCOMPLETE and self._policy.incomplete is Incomplete.DEAD:
            message = f"the set {name!r} of {self._bucket} was not complete in time: {verdict.why}"
            await context.bury(event, {"code": SetIncomplete.code, "message": message}, writes)
        elif kind == UploadSetEvent.LATE and self._policy.late is Late.DEAD:
            message = f"{len(files):,} files of {self._bucket} came after their set {name!r} had fired"
            await context.bury(event, {"code": LateFiles.code, "message": message}, writes)
        else:
            await context.accept([event], writes)
        reach("set.after")
        if remembered.memory is not None and remembered.memory.known != memory.known:
            await context.in_thread(self._memories.drop_known, remembered.memory)

    async def _late(self, remembered: Remembered, look: Look) -> list[SetFile]:
        """The files that are there now and were not, in this state, when the set was last told of."""
        assert remembered.memory is not None
        known = await self._context.in_thread(self._memories.read_known, remembered.memory)
        if known is None:
            self._reports.tell(
                "which files of the set were there is not known any more; none counts as late",
                set=remembered.name,
            )
            return []
        return [file for file in look.facts.files if (file.key, file.etag) not in known]

    async def _with_known(self, name: str, memory: SetMemory, look: Look) -> SetMemory:
        if self._policy.late is Late.IGNORE:
            return msgspec.structs.replace(memory, known=None)
        known = await self._context.in_thread(self._memories.put_known, name, memory, look.facts.files)
        return msgspec.structs.replace(memory, known=known)

    async def _event(
        self, name: str, memory: SetMemory, kind: str, files: Sequence[SetFile], verdict: Verdict
    ) -> UploadSetEvent:
        context, files_of = self._context, described(self._bucket, files)
        held = fitting(files_of)
        url: str | None = None
        if len(held) < len(files_of):
            url = await context.in_thread(self._memories.put_files, name, memory, files_of)
        telling = Telling(
            trigger=context.name, name=name, kind=kind, files=files, verdict=verdict, number=memory.told,
            first_at=memory.first_at, at=context.clock.now(), id=context.new_id(),
        )  # fmt: skip
        return event_of(self._trigger, telling, held=held, list_url=url)

    # ---- looks ----

    async def _look(self, name: str) -> Look:
        """What is remembered of a set, then what is there of it and recorded as whole; what is not recorded
        yet is offered.
        """
        context = self._context
        remembered = await self._memories.read(name)
        infos, too_many = await context.in_thread(self._listing.of, name)
        if not infos:
            return Look(remembered=remembered, facts=Facts(), fingerprint="")
        recorded = await self._recorded(infos)
        others = [info for info in infos if recorded.get(info.key) != (info.etag, info.size)]
        if others:
            await self._members.take(others)
            recorded.update(await self._recorded(others))
        whole = [info for info in infos if recorded.get(info.key) == (info.etag, info.size)]
        arriving = [info for info in infos if recorded.get(info.key) != (info.etag, info.size)]
        fingerprint = _fingerprint(whole)
        quiet = quiet_s(remembered.memory, fingerprint, context.clock.now())
        facts = await context.in_thread(self._listing.facts, name, whole, quiet)
        newest = heapq.nlargest(TRAIL_FILES, whole, key=lambda info: info.modified_at)
        return Look(remembered=remembered, facts=facts, fingerprint=fingerprint, arriving=arriving,
                    newest=newest, too_many=too_many)  # fmt: skip

    async def _recorded(self, infos: Sequence[ObjectInfo]) -> dict[str, tuple[str, int]]:
        """ETag and size of the ledger's rows for these keys, which ascend."""
        context, wanted = self._context, {info.key for info in infos}
        found: dict[str, tuple[str, int]] = {}
        if len(infos) <= FEW:
            for info in infos:
                row = await context.state.ledger_entry(context.name, self._bucket, info.key)
                if row is not None:
                    found[row.key] = (row.etag, row.size)
            return found
        first, last = infos[0].key, infos[-1].key
        row = await context.state.ledger_entry(context.name, self._bucket, first)
        if row is not None:
            found[first] = (row.etag, row.size)
        after = first
        while after < last:
            rows = await context.state.ledger(context.name, self._bucket, after=after, limit=PAGE)
            found.update((row.key, (row.etag, row.size)) for row in rows if row.key in wanted)
            if len(rows) < PAGE:
                break
            after = rows[-1].key
        return found

    # ---- scans ----

    async def _scan_when_wanted(self) -> None:
        clock = self._context.clock
        while True:
            await self._scan_wanted.wait()
            self._scan_wanted.clear()
            began, complete = clock.monotonic(), False
            with self._reports.catching("the sets cannot be scanned"):
                await self._scan()
                complete = True
                await self._clean()
            if complete:
                self.scanned.set()
                await clock.sleep(min(clock.monotonic() - began, self._context.sweep_s))
            else:
                await clock.sleep(min(_AGAIN_S, self._context.sweep_s))
                self._scan_wanted.set()

    async def _scan(self) -> None:
        """Look at each set that is not as it is remembered, or whose time may come before the next scan."""
        if not self._begun:
            await self._begin()
        passes, number = 1, 0
        while number < passes:
            there = await self._sum_up(number, passes)
            if there is None:
                passes, number = 2 * passes, 0  # looking twice at a set is harmless
                continue
            await self._compare(there, number, passes)
            number += 1

    async def _sum_up(self, number: int, passes: int) -> dict[str, Fingerprint] | None:
        """The fingerprints of the sets of one pass, as the ledger has them; None if there are too many."""
        context, there, after = self._context, dict[str, Fingerprint](), ""
        while True:
            rows = await context.state.ledger(context.name, self._bucket, after=after, limit=PAGE)
            for row in rows:
                place = self._trigger.place(row.key)
                if place is None or zlib.crc32(place.name.encode()) % passes != number:
                    continue
                if place.name not in there:
                    there[place.name] = Fingerprint()
                there[place.name].add(row.key, row.etag, row.size)
            if len(there) > SCAN_SETS_MAX:
                return None
            if len(rows) < PAGE:
                return there
            after = rows[-1].key

    async def _compare(self, there: dict[str, Fingerprint], number: int, passes: int) -> None:
        after = ""
        while True:
            page = await self._memories.page(after, PAGE)
            for one in page:
                if zlib.crc32(one.name.encode()) % passes != number:
                    continue
                fingerprint = there.pop(one.name, None)
                assert one.memory is not None
                if str(fingerprint) != one.memory.seen or self._is_due(one.memory):
                    await self._want_patiently(one.name)
            if len(page) < PAGE:
                break
            after = page[-1].name
        for name, fingerprint in there.items():
            # Open ones of which nothing is remembered: those that were judged as they are need no new look.
            if self._judged.get(name) != str(fingerprint):
                await self._want_patiently(name)

    def _is_due(self, memory: SetMemory) -> bool:
        """Whether time alone may decide something of the set before the scan after the next."""
        now, policy = self._context.clock.now(), self._policy
        soon = now + 2 * self._context.sweep_s
        if memory.told or memory.closed:
            return memory.seen != memory.settled and memory.changed_at + policy.gather_s <= soon
        moments = [memory.changed_at + period for period in self._quiet]
        if policy.timeout_s is not None:
            moments.append(memory.first_at + policy.timeout_s)
        return any(moment <= soon for moment in moments)

    async def _want_patiently(self, name: str) -> None:
        while len(self._wanted) >= WANTED_MAX // 2 and name not in self._wanted:
            self._room.clear()
            await self._room.wait()
        self._want(name)

    async def _clean(self) -> None:
        """Once a day, remove the lists of old events, and those that a crash left without a memory."""
        context, now = self._context, self._context.clock.now()
        if self._cleaned_at is not None and now - self._cleaned_at < _CLEAN_S:
            return
        after, more = "", True
        while more:
            found, after = await context.in_thread(self._memories.old_lists, now - LIST_KEPT_S, after, PAGE)
            for key, name in found:
                memory = None if name is None else (await self._memories.read(name)).memory
                if memory is None or memory.known != key:
                    await context.in_thread(self._memories.drop_list, key)
            more = bool(after)
        self._cleaned_at = now


def _fingerprint(infos: Sequence[ObjectInfo]) -> str:
    found = Fingerprint()
    for info in infos:
        found.add(info.key, info.etag, info.size)
    return str(found)
