"""Publishing: a job's result, written with the manifest that names the chunks' own results.

Imports the floor, the store's protocol and the object store's.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from headrace.runtime.errors import NoSuchBucket
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.job import Job
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.store.protocol import Store

INLINE_RESULT_BYTES = 256 << 10


class _Answer(msgspec.Struct):
    """What a worker left of one step."""

    value: msgspec.Raw = msgspec.Raw(b"")
    object: str | None = None
    short_rows: int = 0
    long_rows: int = 0
    irregular: dict[str, int] | None = None


class Published(msgspec.Struct):
    """Where a job's result is: in hand when it is small, else at an address; and what users should know."""

    result: bytes | None
    result_ref: str | None
    warnings: list[str]


class Publisher:
    """Gathers what the chunks left, and writes what the job leaves."""

    def __init__(self, store: Store, objects: ObjectStore, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._objects = objects
        self._in_thread = in_thread

    async def list_parts(self, job: Job) -> str:
        """Write the list of the chunks' results, in order, one line a chunk, and return its address."""
        bucket, _, prefix = f"{job.spec.output or SYSTEM_BUCKET + '/jobs'}/".partition("/")
        key = f"{prefix}{show_id(job.id)}/parts-{secrets.token_hex(4)}.jsonl"
        lines: list[bytes] = []
        after = -1
        while page := await self._store.job_parts(
            job.id, stage=0, after=after, limit=1000, status=Status.SUCCEEDED
        ):
            lines.extend((part.result or b"null") + b"\n" for part in page)
            after = page[-1].invocation.index
        await self._in_thread(self._objects.put, bucket, key, b"".join(lines))
        return f"s3://{bucket}/{key}"

    async def publish(self, job: Job, root: Record | None) -> Published:
        """Write the result, which the last step `root` holds when there was one, then the manifest."""
        if root is not None:
            answer = msgspec.json.decode(root.result or b"{}", type=_Answer)
        elif job.chunks == 1 and job.spec.reduce is not None:
            done = await self._store.job_parts(job.id, stage=0, limit=1, status=Status.SUCCEEDED)
            initial = {"value": job.spec.initial}  # it failed, as tolerated_failures allows
            data = done[0].result if done and done[0].result else msgspec.json.encode(initial)
            answer = msgspec.json.decode(data, type=_Answer)
        elif job.spec.reduce is not None or job.chunks == 0:
            answer = _Answer(value=msgspec.Raw(msgspec.json.encode(job.spec.initial)))
        else:
            answer = _Answer(value=msgspec.Raw(b"null"))
        ref: str | None = None
        if answer.value:
            value = bytes(answer.value)
        else:
            value = await self._in_thread(self._objects.get, *parse_object_url(answer.object or ""))
            ref = answer.object
        warnings, parts = await self._summary(job)
        if job.spec.output:
            bucket, _, prefix = f"{job.spec.output}/".partition("/")
            folder = f"{prefix}{show_id(job.id)}/"
            try:
                await self._write_output(job, bucket, folder, value, parts, warnings)
            except NoSuchBucket:
                await self._in_thread(self._objects.make_bucket, bucket)
                await self._write_output(job, bucket, folder, value, parts, warnings)
            ref = f"s3://{bucket}/{folder}result.json" if len(value) > INLINE_RESULT_BYTES else None
        inline = value if len(value) <= INLINE_RESULT_BYTES else None
        return Published(inline, ref, warnings)

    async def _write_output(
        self,
        job: Job,
        bucket: str,
        folder: str,
        value: bytes,
        parts: list[dict[str, Any]],
        warnings: list[str],
    ) -> None:
        put = self._objects.put
        await self._in_thread(put, bucket, f"{folder}result.json", value, content_type="application/json")
        manifest = {
            "job": show_id(job.id),
            "function": job.function,
            "input": shown_input(job.input),
            "result": f"s3://{bucket}/{folder}result.json",
            "chunks": parts,
            "warnings": warnings,
        }
        await self._in_thread(
            put,
            bucket,
            f"{folder}manifest.json",
            msgspec.json.encode(manifest),
            content_type="application/json",
        )

    async def _summary(self, job: Job) -> tuple[list[str], list[dict[str, Any]]]:
        """What users should know of the chunks: failed ones, irregular rows; and where each result is."""
        parts: list[dict[str, Any]] = []
        short = long = failed = 0
        place = ""
        after = -1
        while page := await self._store.job_parts(job.id, stage=0, after=after, limit=1000):
            after = page[-1].invocation.index
            for part in page:
                item: dict[str, Any] = {"index": part.invocation.index, "status": part.status.name.lower()}
                if part.status is Status.SUCCEEDED and part.result:
                    answer = msgspec.json.decode(part.result, type=_Answer)
                    short, long = short + answer.short_rows, long + answer.long_rows
                    if answer.irregular and not place:
                        found = answer.irregular
                        place = (
                            f"; the first is at byte {found['offset']:,}: {found['columns']} columns, not "
                            f"{found['expected']}"
                        )
                    if answer.object:
                        item["object"] = answer.object
                else:
                    failed += 1
                    item["error"] = part.error
                parts.append(item)
        warnings = []
        if short:
            warnings.append(f"{_rows(short)} too few columns (None where one is missing){place}")
        if long:
            warnings.append(
                f"{_rows(long)} too many columns (kept under the key None){place if not short else ''}"
            )
        if failed:
            warnings.append(
                f"{failed:,} of {job.chunks:,} chunks failed and are left out, as tolerated_failures allows"
            )
        if job.plan.get("sequential"):
            warnings.append(
                "the file's quotes are irregular, so it was cut by one sequential pass (slower to plan)"
            )
        return warnings, parts


def shown_input(given: Mapping[str, Any]) -> dict[str, Any]:
    """A job's input as people are shown it: how many there are of a list."""
    return {name: len(value) if isinstance(value, list) else value for name, value in given.items()}


def _rows(count: int) -> str:
    return "1 row has" if count == 1 else f"{count:,} rows have"
