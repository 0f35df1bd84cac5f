"""The coordinator: moves jobs from their submission to their end, whatever node runs what.

Imports the floor, the store's protocols, the queue and the object store's protocol. It is level-triggered:
`advance` looks at what the store holds of a job and does the next step, so that a restart, another node, or a
repeated word changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.runtime.clock import Clock
from headrace.runtime.errors import (
    Duplicate,
    HeadraceError,
    InvalidFunction,
    Retryable,
    UnknownFunction,
    UnknownJob,
    WrongState,
)
from headrace.runtime.fault import reach
from headrace.runtime.jobs.inputs import Inputs
from headrace.runtime.jobs.publishing import Publisher, shown_input
from headrace.runtime.jobs.stages import JOB_AGE_S, PLAN_STAGE, Place, Stages, flow_of_job
from headrace.runtime.model.ids import Ids, read_id, show_id
from headrace.runtime.model.invocation import Outcome, Record, Status
from headrace.runtime.model.job import ENDED, FAN_IN, LIVE, Job, JobCounts, reduce_levels
from headrace.runtime.model.write import (
    Applied,
    ChunkDone,
    JobMoved,
    JobPlanned,
    JobPut,
    JobRedriven,
    Put,
    Settle,
    Write,
)
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.queue.dispatcher import Dispatcher
from headrace.runtime.queue.matching import tagged
from headrace.runtime.store.protocol import Store

RETRY_S = 1.0


class Coordinator:
    """Submits jobs, follows their invocations, and publishes their results.

    `in_thread` runs a blocking call in the node's bounded thread pool.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        *,
        objects: ObjectStore,
        ids: Ids,
        clock: Clock,
        in_thread: Callable[..., Awaitable[Any]],
        on_error: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._objects = objects
        self._ids = ids
        self._clock = clock
        self._in_thread = in_thread
        self._publisher = Publisher(store, objects, in_thread)
        self._inputs = Inputs(objects, in_thread)
        self._on_error = on_error
        self._stages = Stages(ids)
        self._busy: set[int] = set()
        self._again: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: dict[int, asyncio.Event] = {}
        self._suspect: set[int] = set()
        self._stopping = False

    # ---- life ----

    async def start(self) -> None:
        """Go on with every job that has not ended."""
        before: int | None = None
        while page := await self._store.jobs(status=LIVE, before=before, limit=500):
            for job in page:
                self._dispatcher.adopt(flow_of_job(job.id), job.function, limit=job.spec.max_concurrency)
                self.advance(job.id)
            before = page[-1].id

    def heard(self, id: int | None) -> None:
        """Another node planned, moved or redrove a job, or left one behind (None: any job)."""
        task = asyncio.get_running_loop().create_task(self._hear(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hear(self, id: int | None) -> None:
        try:
            if id is None:
                await self.start()
                for waited in list(self._ended):
                    self.advance(waited)
                return
            job = await self._store.job(id)
            if job is not None and job.status in LIVE:
                self._dispatcher.adopt(flow_of_job(id), job.function, limit=job.spec.max_concurrency)
            self.advance(id)
        except HeadraceError as error:
            self._on_error("a job could not be read", {"error": str(error)})

    async def stop(self) -> None:
        """Leave what is under way; the next start goes on."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- what users ask ----

    async def submit(
        self,
        function: str,
        given: Mapping[str, Any],
        *,
        tags: str | None = None,
        before: Sequence[Write] = (),
        version: str = "",
        id: int | None = None,
    ) -> str:
        """Accept a job durably and return its id: `id`, or a new one.

        `given` is `{"object": "s3://BUCKET/KEY"}` or `{"items": […]}`. `before` are writes of the trigger
        that submits it, recorded in the same step. Raises UnknownFunction, InvalidFunction, NoSuchObject,
        NoSuchBucket, or what refused a write.
        """
        ids = [self._ids.next() if id is None else id]
        [shown] = await self.submit_all(function, [given], ids=ids, tags=tags, before=before, version=version)
        return shown

    async def submit_all(
        self,
        function: str,
        inputs: Sequence[Mapping[str, Any]],
        *,
        ids: Sequence[int],
        tags: str | None = None,
        before: Sequence[Write] = (),
        version: str = "",
    ) -> list[str]:
        """`submit` a job for each of the inputs, under these ids: all of them, or none."""
        spec = self._dispatcher.spec(function)
        if spec.job is None:
            raise InvalidFunction(function, "is not a job", "Invoke it: `headrace invoke`.")
        checked = [await self._inputs.checked(function, spec, given) for given in inputs]
        now = self._clock.now()
        firsts: list[Put] = []
        puts: list[JobPut] = []
        for id, given in zip(ids, checked, strict=True):
            firsts.append(self._stages.plan(id, function, spec, given, now=now))
            puts.append(JobPut(id, function, spec.job, dict(given), now, tags, version))
            self._dispatcher.adopt(flow_of_job(id), function, limit=spec.job.max_concurrency)
        await self._dispatcher.accept(firsts, before=[*before, *puts])
        return [show_id(put.id) for put in puts]

    async def submit_failed(
        self,
        function: str,
        given: Mapping[str, Any],
        *,
        error: Mapping[str, Any],
        before: Sequence[Write] = (),
        version: str = "",
    ) -> str:
        """Record a job that failed before it could begin, in one step with `before`, and return its id.

        `error` is `{"code", "message", …}`. Raises UnknownFunction, or what refused a write.
        """
        spec = self._dispatcher.spec(function)
        assert spec.job is not None
        id, now = self._ids.next(), self._clock.now()
        put = JobPut(id, function, spec.job, dict(given), now, None, version)
        moved = JobMoved(id, "failed", LIVE, now, error=dict(error))
        for applied in await self._store.apply([*before, put, moved], now=now):
            if applied.refused is not None:
                raise applied.refused
        return show_id(id)

    async def job(self, id: str) -> Job:
        """Raises UnknownJob."""
        number = read_id(id)
        job: Job | None = await self._store.job(number) if number is not None else None
        if job is None:
            raise UnknownJob(id)
        return job

    async def cancel(self, id: str) -> Job:
        """End a job; its running chunks are stopped. Raises UnknownJob, or WrongState when it has ended."""
        job = await self.job(id)
        if job.status in ENDED:
            raise WrongState(f"job {id}", job.status, "be cancelled")
        error = {"code": "cancelled", "message": "cancelled by request"}
        await self._end(job, "cancelled", error=error, expected=LIVE)
        return await self.job(id)

    async def cancel_counted(self, job: Job) -> tuple[int, int]:
        """`cancel`, with how many invocations ended while they waited, and how many running ones were told to
        stop on this node.
        """
        before: dict[int, JobCounts] = await self._store.job_counts(job.id)
        stopping = self._dispatcher.running_in(flow_of_job(job.id))
        await self.cancel(show_id(job.id))
        after: dict[int, JobCounts] = await self._store.job_counts(job.id)
        ended = sum(count.cancelled for count in after.values())
        return max(ended - sum(count.cancelled for count in before.values()), 0), stopping

    async def cancel_matching(
        self, *, function: str | None = None, tag: str | None = None
    ) -> tuple[int, int]:
        """End all jobs of a function, with a tag, or both, that have not ended. Returns what `cancel_counted`
        does, over all of them.
        """
        cancelled = stopping = 0
        before: int | None = None
        while page := await self._store.jobs(status=LIVE, function=function, before=before, limit=500):
            before = page[-1].id
            for job in page:
                if not tagged(job.tags, tag):
                    continue
                try:
                    ended, told = await self.cancel_counted(job)
                except WrongState:
                    continue  # it ended by itself meanwhile
                cancelled += ended
                stopping += told
        return cancelled, stopping

    async def redrive(self, id: str) -> Job:
        """Run again what failed, keeping what succeeded. Raises UnknownJob, or WrongState when nothing of it
        failed.
        """
        job = await self.job(id)
        counts = await self._store.job_counts(job.id)
        failed = sum(count.dead + count.cancelled for count in counts.values())
        if job.status not in ENDED or failed == 0:
            raise WrongState(f"job {id}", job.status, "be redriven: nothing of it has failed")
        self._dispatcher.spec(job.function)  # refused now rather than later
        now = self._clock.now()
        fan_in = FAN_IN if job.levels else 1 << 40  # without a tree, one closing step stands above all chunks
        [applied] = await self._store.apply(
            [JobRedriven(job.id, ENDED, now, now + JOB_AGE_S, fan_in)], now=now
        )
        if applied.refused is not None:
            raise applied.refused
        self._dispatcher.adopt(flow_of_job(job.id), job.function, limit=job.spec.max_concurrency)
        self.advance(job.id)
        return await self.job(id)

    async def describe(self, job: Job) -> dict[str, Any]:
        """The job as users see it: status, counts, rate and estimated end, result or error."""
        counts: dict[int, JobCounts] = await self._store.job_counts(job.id)
        chunks = counts.get(0, JobCounts())
        now = self._clock.now()
        # A short claim is not written: what the pool holds of the waiting ones is running.
        recorded = sum(count.running for count in counts.values())
        unwritten = min(max(self._dispatcher.running_in(flow_of_job(job.id)) - recorded, 0), chunks.waiting)
        begun = job.started_at if job.started_at is not None else job.accepted_at
        elapsed = max((job.ended_at or now) - begun, 1e-6)
        done = chunks.succeeded
        rate = done / elapsed
        left = job.chunks - done - chunks.dead - chunks.cancelled
        shown: dict[str, Any] = {
            "job_id": show_id(job.id),
            "function": job.function,
            "status": job.status,
            "input": shown_input(job.input),
            "accepted_at": job.accepted_at,
            "started_at": job.started_at,
            "ended_at": job.ended_at,
            "chunks": job.chunks,
            "done": done,
            "failed": chunks.dead,
            "running": chunks.running + unwritten,
            "waiting": chunks.waiting - unwritten,
            "rate": rate if job.status != "planning" else 0.0,
            "eta_s": left / rate if rate > 0 and job.status in LIVE and done >= 2 else None,
            "bytes": job.plan.get("size"),
            "result": msgspec.json.decode(job.result) if job.result else None,
            "result_ref": job.result_ref,
            "output": f"s3://{job.spec.output}/{show_id(job.id)}/"
            if job.spec.output and job.chunks
            else None,
            "error": job.error,
            "warnings": job.plan.get("warnings", []),
            "stages": {str(stage): msgspec.to_builtins(count) for stage, count in sorted(counts.items())},
        }
        if job.spec.output:
            shown["output"] = f"s3://{job.spec.output}/{show_id(job.id)}/"
        return shown

    async def wait(self, id: int, timeout_s: float) -> None:
        """Return when the job has ended on this node, or after `timeout_s`."""
        event = self._ended.setdefault(id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    # ---- the end of an invocation ----

    def settle(self, settle: Settle, outcome: Outcome) -> Sequence[Write]:
        """The writes that record the end of a job's invocation: with the last child of a group comes the
        reduce above it.
        """
        invocation = settle.claim.invocation
        if invocation.stage == PLAN_STAGE or settle.status is Status.CANCELLED:
            return [settle]
        if settle.status is Status.SUCCEEDED and settle.result.startswith(b'{"bad_cut":'):
            settle.status = Status.CANCELLED
            settle.error = {"code": "bad_cut", "message": "the cut after this chunk was wrong: planned again"}
            settle.error["start"] = msgspec.json.decode(settle.result)["bad_cut"]
            settle.result = b""
            return [settle]
        return [self._stages.done(settle, now=self._clock.now())]

    def settled(self, writes: Sequence[Write], applied: Sequence[Applied]) -> None:
        """The end is durable: dispatch what it made ready, and look whether the job's next step is due."""
        write, answer = writes[0], applied[0]
        settle = write.settle if isinstance(write, ChunkDone) else write
        if answer.refused is not None or not isinstance(settle, Settle):
            return
        invocation = settle.claim.invocation
        if answer.parent is not None:
            reach("reduce")
            self._dispatcher.wake(answer.parent.flow, answer.parent.function)
        assert invocation.job is not None
        place = msgspec.json.decode(invocation.payload, type=Place)
        last = invocation.stage == PLAN_STAGE or settle.status is not Status.SUCCEEDED
        if last or invocation.stage >= place.levels or invocation.job in self._suspect:
            self.advance(invocation.job)

    # ---- the steps ----

    def advance(self, id: int) -> None:
        """Do the job's next step, when one is due. Calls for one job never overlap."""
        if self._stopping:
            return
        if id in self._busy:
            self._again.add(id)
            return
        self._busy.add(id)
        task = asyncio.get_running_loop().create_task(self._advance(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _advance(self, id: int) -> None:
        outrun = False
        try:
            while True:
                self._again.discard(id)
                try:
                    await self._step(id)
                    outrun = False
                except (Retryable, Duplicate, UnknownFunction, WrongState) as error:
                    # A full disk, another node that was faster, code that is not here just now: look again.
                    if isinstance(error, Duplicate) and not outrun:
                        outrun = True  # the usual case among several nodes, and nobody's trouble
                        await self._clock.sleep(RETRY_S)
                        continue
                    told = {"job": show_id(id), "error": str(error)}
                    self._on_error("a job's step failed; trying again", told)
                    await self._clock.sleep(RETRY_S)
                    continue
                if id not in self._again:
                    return
        except Exception as error:  # the outermost loop of this task: the job must not hang for it
            self._on_error(
                "a job's step failed", {"job": show_id(id), "error": f"{type(error).__name__}: {error}"}
            )
            job = await self._store.job(id)
            if job is not None and job.status in LIVE:
                code = error.code if isinstance(error, HeadraceError) else "internal_error"
                detail = {"code": code, "message": f"{type(error).__name__}: {error}"}
                await self._end(job, "failed", error=detail, expected=LIVE)
        finally:
            self._busy.discard(id)

    async def _step(self, id: int) -> None:
        job: Job | None = await self._store.job(id)
        if job is None or job.status in ENDED:  # by another node, or its last attempt has ended just now
            if job is None or job.status != "succeeded":
                self._dispatcher.attempts.kill_job(id)
            self._over(id)
            return
        counts: dict[int, JobCounts] = await self._store.job_counts(id)
        plans = await self._store.job_parts(id, stage=PLAN_STAGE, limit=1000)
        newest: Record = plans[-1]
        if newest.status in (Status.DEAD, Status.CANCELLED):
            await self._end(job, "failed", error=newest.error, expected=LIVE)
            return
        if newest.invocation.index > job.generation and newest.status is Status.SUCCEEDED:
            await self._planned(job, newest)
            return
        if newest.status is not Status.SUCCEEDED:
            return
        chunks = counts.get(0, JobCounts())
        if chunks.cancelled and await self._replan(job):
            return
        tolerated = job.spec.tolerated_failures
        allowed = tolerated if tolerated >= 1 or tolerated == 0 else tolerated * job.chunks
        broken = any(count.dead + count.cancelled for stage, count in counts.items() if stage > 0)
        if chunks.dead > allowed or chunks.cancelled or broken:
            if await self._unproven(job):
                self._suspect.add(id)
                return
            await self._end(job, "failed", error=await self._why(job, chunks.dead), expected=LIVE)
            return
        if chunks.succeeded + chunks.dead < job.chunks:
            return
        top = max(job.levels, 0)
        closing = job.levels == 0 and (
            job.spec.reduce == "all" or (job.spec.reduce is not None and job.chunks == 0) or job.spec.finish
        )
        if closing:
            top = 1
            if not counts.get(1):
                await self._close(job)
                return
        if top > 0:
            roots = await self._store.job_parts(id, stage=top, limit=1)
            if roots and roots[0].status is Status.SUCCEEDED:
                await self._succeed(job, roots[0])
        else:
            await self._succeed(job, None)

    async def _unproven(self, job: Job) -> bool:
        """Whether a chunk before the first failed one has not ended: the failed one may then have begun at a
        wrong cut.
        """
        failed = await self._store.job_parts(job.id, stage=0, status=Status.DEAD, limit=1)
        if not failed or job.plan.get("sequential"):
            return False
        for status in (Status.WAITING, Status.RUNNING):
            open_parts = await self._store.job_parts(job.id, stage=0, status=status, limit=1)
            if open_parts and open_parts[0].invocation.index < failed[0].invocation.index:
                return True
        return False

    async def _planned(self, job: Job, planned: Record) -> None:
        """Record the chunks that a planning step found."""
        data = planned.result or b"{}"
        if planned.result_ref is not None:
            data = await self._in_thread(self._objects.get, *parse_object_url(planned.result_ref))
        found = msgspec.json.decode(data)
        chunks = len(found["ranges"])
        levels = reduce_levels(chunks) if job.spec.reduce == "tree" else 0
        now = self._clock.now()
        spec = self._dispatcher.spec(job.function)
        name, flow = job.function, flow_of_job(job.id)
        invocations = self._stages.chunks(job, spec, found, levels=levels, now=now)
        plan = {"size": found.get("size"), "sequential": bool(found.get("sequential")), "chunks": chunks}
        write = JobPlanned(job.id, 0, invocations, levels, plan, planned.invocation.index)
        self._dispatcher.forget_flow(flow)
        reach("plan.before")
        [applied] = await self._store.apply([write], now=now)
        reach("plan.after")
        if applied.refused is not None:
            raise applied.refused
        self._dispatcher.adopt(flow, name, limit=job.spec.max_concurrency)
        self.advance(job.id)

    async def _replan(self, job: Job) -> bool:
        """Plan the whole object again, by parsing, when a chunk found the cut at its end to be wrong.

        Nothing of the first plan has been published, and a tree's shape comes from one plan.
        """
        cancelled = await self._store.job_parts(job.id, stage=0, status=Status.CANCELLED, limit=1000)
        if not any((part.error or {}).get("code") == "bad_cut" for part in cancelled):
            return False
        spec = self._dispatcher.spec(job.function)
        put = self._stages.plan(
            job.id,
            job.function,
            spec,
            job.input,
            now=self._clock.now(),
            generation=job.generation + 1,
            sequential=True,
        )
        await self._dispatcher.accept([put])
        return True

    async def _close(self, job: Job) -> None:
        """Accept the closing step of a job without a tree."""
        now = self._clock.now()
        spec = self._dispatcher.spec(job.function)
        payload: dict[str, Any] = {
            "stage": "finish",
            "job": show_id(job.id),
            "chunks": job.chunks,
            "levels": 0,
            "output": job.spec.output,
            "children": [],
        }
        if job.spec.reduce == "all":
            payload["parts"] = await self._publisher.list_parts(job)
        else:
            parts = await self._store.job_parts(job.id, stage=0, limit=2, status=Status.SUCCEEDED)
            payload["children"] = [msgspec.json.decode(part.result or b"null") for part in parts]
        put = self._stages.finish(job, spec, payload, now=now)
        await self._dispatcher.accept([put])

    async def _succeed(self, job: Job, root: Record | None) -> None:
        found = await self._publisher.publish(job, root)
        await self._end(
            job,
            "succeeded",
            result=found.result,
            result_ref=found.result_ref,
            expected=LIVE,
            notes={"warnings": found.warnings} if found.warnings else None,
        )

    async def _why(self, job: Job, dead: int) -> dict[str, Any]:
        """The error of a failed job: the first failed invocation's, with how many there are."""
        for stage in (0, 1, 2, 3, 4, 5):
            parts: list[Record] = []
            for status in (Status.DEAD, Status.CANCELLED):
                parts = parts or await self._store.job_parts(job.id, stage=stage, status=status, limit=1)
            if parts:
                first = parts[0]
                error = dict(first.error or {})
                error["invocation_id"] = show_id(first.invocation.id)
                error["chunk"] = first.invocation.index if stage == 0 else None
                error["failed_chunks"] = dead
                return error
        return {"code": "job_failed", "message": "an invocation of the job failed"}

    async def _end(
        self,
        job: Job,
        status: str,
        *,
        expected: tuple[str, ...],
        result: bytes | None = None,
        result_ref: str | None = None,
        error: dict[str, Any] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        now = self._clock.now()
        flow = flow_of_job(job.id)
        if status != "succeeded":
            await self._dispatcher.hand_back(flow)
        moved = JobMoved(job.id, status, expected, now, result, result_ref, error, notes)
        try:
            reach("final.before")
            [applied] = await self._store.apply([moved], now=now)
            reach("final.after")
        except HeadraceError:
            self._dispatcher.adopt(flow, job.function, limit=job.spec.max_concurrency)  # it still is live
            raise
        if applied.refused is not None:
            if isinstance(applied.refused, WrongState):
                return  # somebody else ended it first
            raise applied.refused
        if status != "succeeded":
            self._dispatcher.attempts.kill_job(job.id)
        self._over(job.id)

    def _over(self, id: int) -> None:
        """The job has ended: forget it, and tell those who wait for it."""
        self._dispatcher.drop_flow(flow_of_job(id))
        self._suspect.discard(id)
        event = self._ended.pop(id, None)
        if event is not None:
            event.set()

    # ---- inside ----
