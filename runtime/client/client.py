"""The client: every call of the HTTP API that Python code makes, over HTTP or within one process.

Imports the rooms below only, and what a first call does not need, when it is needed: a command that makes one
call starts fast.
"""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote

from headrace.runtime.client.answer import WaitTimeout, raise_for, refuse, segment
from headrace.runtime.client.backend import MANY_MAX, PLAIN, Answer, Backend, SubmitOptions
from headrace.runtime.client.payload import encode_payload
from headrace.runtime.client.schedules import Schedules
from headrace.runtime.errors import BadRequest, InvalidObjectUrl, PayloadTooLarge, WrongState

if TYPE_CHECKING:
    from headrace.runtime.client.future import InvocationFuture
    from headrace.runtime.client.job import JobHandle
    from headrace.runtime.client.map import Progress
    from headrace.runtime.client.streamed import Streamed
    from headrace.runtime.clock import Clock

PAGE = 200
POLL_S = 20.0
CANCEL_S = 3600.0  # a backlog of millions is cancelled in one call
VERIFY_S = 86_400.0  # every row is read; a peer that is gone is found by the system's probes
READ_BYTES = 1 << 20
OBJECT_BYTES_MAX = 1 << 30  # in memory; larger ones are read into a file

Json = dict[str, Any]

UNCHANGED: Any = object()
"""Stands for a payload that is not given, since None is one."""


@cache
def _future_class() -> "type[InvocationFuture]":
    from headrace.runtime.client.future import InvocationFuture

    return InvocationFuture


class Client:
    """A node, as Python code sees it. Threads may share one; `close` it, or use it in a `with` statement.

    Args:
        url: `http://HOST:PORT`; found by HEADRACE_URL, DATA/node.json, then 127.0.0.1:8080 when None.
        token: the bearer token; found by HEADRACE_TOKEN, then DATA/token when None.
        timeout_s: the most seconds that any one answer is waited for, except where a method says otherwise.
        backend: how to reach the node instead, when it is in this process; then `url` and `token` are not
            used.
        clock: where deadlines are read; the system's by default.

    Every method raises what the node answers, as the classes of `headrace.runtime.errors`, and Unreachable
    when it does not.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        backend: Backend | None = None,
        clock: "Clock | None" = None,
    ) -> None:
        if backend is None:
            from headrace.runtime.client.find import find_node
            from headrace.runtime.client.http import HttpBackend

            found = find_node(url, token=token)
            backend = HttpBackend(found.url, token=found.token, timeout_s=timeout_s)
        self.backend: Backend = backend
        self.timeout_s = timeout_s
        self._clock_given = clock
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        """Where the node is."""
        return self.backend.url

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send what was submitted, then let go of threads and connections; futures that have not ended
        fail.
        """
        self._closed.set()
        self.backend.close()

    # ---- functions ----

    def invoke(self, name: str, payload: object = None, *, timeout_s: float | None = None) -> Any:
        """Run a function on a payload and return its result.

        `timeout_s` bounds the wait; None waits for as long as the function's own timeout lets it run. Raises
        InvocationFailed and its kinds for the function's own failure, InvalidEvent, UnknownFunction,
        Throttled, and WaitTimeout.
        """
        return json.loads(self.backend.invoke(name, encode_payload(payload), wait=timeout_s))

    def stream(self, name: str, payload: object = None) -> "Streamed":
        """Run a function and read its answer as it comes: `with client.stream("app.name") as answer: …`.

        `timeout_s` of the client bounds the wait for the beginning and between two pieces. Raises as `invoke`
        does until the answer has begun, and StreamBroken, while it is read, when it breaks off.
        """
        from headrace.runtime.client.streamed import Streamed

        path = f"/v1/functions/{segment(name)}/invoke"
        found = self.backend.stream(
            "POST", path, query={"mode": "stream"}, body=encode_payload(payload),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        answer = Streamed(found)
        if found.status >= 400 and found.headers.get("content-type") == "application/json":
            with answer:
                body = b"".join(answer)
            refuse(found.status, found.headers, body)
        return answer

    def submit(
        self,
        name: str,
        payload: object = None,
        *,
        delay_s: float = 0.0,
        priority: int | None = None,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
        key: str | None = None,
        idempotency_ttl_s: float | None = None,
    ) -> "InvocationFuture":
        """Have an invocation accepted and return the future of its result at once.

        It is sent in the background, many in one call; `future.invocation_id` waits until the node has
        committed it. `delay_s` is when it may begin, from its acceptance; `key` its concurrency key, instead
        of the one that the function finds in the event; `idempotency_ttl_s` how long the idempotency key is
        remembered, 1 s to 30 days, None for as long as the function says. Blocks only while 20,000 or 64 MiB
        are unsent. A refusal is raised by the future. Raises BadRequest for a time that is out of range or
        has no key.
        """
        if idempotency_ttl_s is not None:
            if idempotency_key is None:
                raise BadRequest("idempotency_ttl_s needs a key", "Give idempotency_key=… as well.")
            from headrace.runtime.model.spec import IDEMPOTENCY_TTL_S_MAX, IDEMPOTENCY_TTL_S_MIN

            if not IDEMPOTENCY_TTL_S_MIN <= idempotency_ttl_s <= IDEMPOTENCY_TTL_S_MAX:
                raise BadRequest(f"idempotency_ttl_s is {idempotency_ttl_s!r}", "It must be 1 s to 30 days.")
        future = _future_class()(name, self._cancel)
        options = PLAIN
        if delay_s or priority is not None or tags or idempotency_key is not None or key is not None:
            if isinstance(tags, str):
                tags = (tags,)
            options = SubmitOptions(delay_s, priority, tuple(tags), idempotency_key, key, idempotency_ttl_s)
        self.backend.submit(name, encode_payload(payload), options=options, future=future)
        return future

    def submit_encoded(self, name: str, payload: bytes) -> "InvocationFuture":
        """`submit` of a payload that is JSON already."""
        future = _future_class()(name, self._cancel)
        self.backend.submit(name, payload, options=PLAIN, future=future)
        return future

    def submit_many(self, name: str, payloads: Iterable[object]) -> "list[InvocationFuture]":
        """Submit one invocation per payload; the futures in order."""
        futures: list[InvocationFuture] = []
        make, cancel = _future_class(), self._cancel
        items = iter(payloads)
        while encoded := [encode_payload(payload) for payload in islice(items, MANY_MAX)]:
            made = [make(name, cancel) for _ in encoded]
            self.backend.submit_many(name, encoded, futures=made)
            futures += made
        return futures

    def map(
        self,
        function: str | Callable[[Any], Any],
        items: Iterable[Any],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        batch: int | None = None,
        progress: "bool | Progress | None" = None,
    ) -> Iterator[Any]:
        """Run a function on each item, on the node's workers, and yield the results.

        Args:
            function: the name of a function, whose events the items are; or a callable of this program, which
                is sent along (for callers whose token has the `code` scope). Its arguments and results may be
                any objects that pickle.
            items: consumed as results are taken: at most 1,000 invocations or 64 MiB are under way at once.
            ordered: yield in the order of the items, else as they end.
            return_exceptions: yield an item's error in its place instead of raising it.
            batch: how many items one invocation runs; for callables only, 1 by default.
            progress: a bar, on a terminal or in a notebook when None; or a callable that is given (done,
                total or None).

        Raises, while it is iterated: InvocationFailed when an item's function fails, VersionMismatch when the
        workers run another Python. What has not begun by then is cancelled.
        """
        from headrace.runtime.client.map import run_map

        return run_map(
            self,
            function,
            items,
            ordered=ordered,
            return_exceptions=return_exceptions,
            batch=batch,
            progress=progress,
        )

    def functions(self) -> list[Json]:
        """What the node has loaded: each function's settings, triggers and version."""
        found: list[Json] = self.loaded()["functions"]
        return found

    def loaded(self) -> Json:
        """What `functions` gives, with the code's version and what could not be loaded: `functions, version,
        errors`.
        """
        return self._get("/v1/functions")

    def function(self, name: str) -> Json:
        """One function. Raises UnknownFunction."""
        return self._get(f"/v1/functions/{segment(name)}")

    def pause(self, name: str) -> Json:
        """Start no more attempts of a function; what is accepted waits."""
        return self._post(f"/v1/functions/{segment(name)}/pause")

    def resume(self, name: str) -> Json:
        """Undo `pause`."""
        return self._post(f"/v1/functions/{segment(name)}/resume")

    def closures(self) -> list[Json]:
        """The functions (`function:NAME`) and keys (`key:KEY`) that are closed: `name, until_at, reason`."""
        found: list[Json] = self._get("/v1/closures")["items"]
        return found

    def open(self, name: str) -> Json:
        """End a closure now: `function:NAME` or `key:KEY`."""
        return self._post(f"/v1/closures/{segment(name)}/open")

    def stats(self) -> Json:
        """Counters: `{"total": {…}, "functions": {name: {…}}}`."""
        return self._get("/v1/stats")

    def verify(self, *, objects: bool = True, function: str | None = None, limit: int = 100) -> Json:
        """Whether nothing that was accepted is unaccounted for: `{"balanced", "total", "functions",
        "problems", "found", "objects", "checked_rows", "at", "seconds"}`.

        Reads every row, which takes a few seconds for each million.

        Args:
            objects: also ask for every object that a row names.
            function: only this function's books and rows, and no objects.
            limit: how many problems of each kind are named; all are counted in `found`.
        """
        query = {"objects": str(objects).lower(), "function": function, "limit": str(limit)}
        asked = {name: value for name, value in query.items() if value is not None}
        document: Json = json.loads(self._ok("GET", "/v1/verify", query=asked, timeout_s=VERIFY_S).body)
        return document

    # ---- invocations ----

    def invocation(self, id: str, *, wait_s: float = 0.0) -> Json:
        """One invocation's record; with `wait_s` once it has ended, or as it is after that many seconds.

        Raises UnknownInvocation.
        """
        path = f"/v1/invocations/{segment(id)}"
        deadline = self.clock.monotonic() + wait_s if wait_s > 0 else 0.0
        while True:
            left = deadline - self.clock.monotonic() if deadline else 0.0
            query = {"wait_s": f"{min(left, POLL_S):.3f}"} if left > 0 else {}
            record = self._get(path, query)
            if left <= POLL_S or record.get("status") not in ("waiting", "running"):
                return record

    def invocations(
        self,
        *,
        function: str | None = None,
        status: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Json]:
        """The records of invocations, newest first; pages are asked for as they are needed. `limit` is the
        most to yield.
        """
        return self._pages("/v1/invocations", {"function": function, "status": status, "tag": tag}, limit)

    @property
    def schedules(self) -> Schedules:
        """What can be done with schedules: list, pause, resume, run, backfill."""
        return Schedules(self)

    def why(self, name: str) -> Json:
        """What holds an invocation, a job, a schedule or a function, and until when.

        `name` is an id or a name. Raises UnknownSubject.
        """
        return self._get(f"/v1/why/{'/'.join(map(segment, name.split('/')))}")

    def payload(self, id: str) -> bytes:
        """An invocation's event as it was recorded. Raises UnknownInvocation."""
        return self._ok("GET", f"/v1/invocations/{segment(id)}/payload").body

    def code_of(self, id: str) -> Json:
        """Which version of the code ran an invocation's last attempt, and whether it is kept."""
        return self._get(f"/v1/invocations/{segment(id)}/code")

    def code(self, version: str) -> bytes:
        """A version of the code, as a zip file. Raises UnknownVersion; needs the scope `code`."""
        return self._ok("GET", f"/v1/code/{segment(version)}").body

    def cancel(
        self,
        id: str | None = None,
        *,
        function: str | None = None,
        tag: str | None = None,
        job: str | None = None,
    ) -> Json:
        """Cancel an invocation: waiting, it never runs; running, its process is ended.

        Without an id all of a function, with a tag, of a job, or of what is given of these at once, as far
        as they were accepted before the call: `{"cancelled": n, "stopping": m}`, those that waited and those
        that ran.

        Raises WrongState when the invocation, or the job, has ended; UnknownInvocation, UnknownFunction,
        UnknownJob; BadRequest when nothing is given, or an id with more.
        """
        matching = {"function": function, "tag": tag, "job": job}
        given = {name: value for name, value in matching.items() if value is not None}
        if (id is None) == (not given):
            raise BadRequest("cancel takes an id or a filter", "Give an id, or function=, tag= or job=.")
        if id is not None:
            return self._post(f"/v1/invocations/{segment(id)}/cancel")
        answer = self._ok(
            "POST",
            "/v1/invocations/cancel",
            body=encode_payload(given),
            headers={"Content-Type": "application/json"},
            timeout_s=max(self.timeout_s, CANCEL_S),
        )
        document: Json = json.loads(answer.body)
        return document

    def logs(self, id: str) -> list[Json]:
        """What the attempts of an invocation printed: `attempt, at, outcome, text, bytes` of each."""
        entries: list[Json] = self._get(f"/v1/invocations/{segment(id)}/logs")["entries"]
        return entries

    def follow_logs(
        self, *, function: str | None = None, after: str | None = None, follow: bool = False, limit: int = 100
    ) -> Iterator[Json]:
        """What invocations printed, oldest first, from the cursor `after`; with `follow` for ever, as it
        comes.

        Without `follow` and `after`, the last `limit` entries.
        """
        cursor = after
        while True:
            query = {
                "function": function,
                "after": cursor,
                "limit": str(limit),
                "wait_s": str(POLL_S) if follow else None,
            }
            page = self._get("/v1/logs", query)
            yield from page["entries"]
            cursor = page.get("next") or cursor
            if not follow and (after is None or not page["entries"] or not page.get("next")):
                return

    # ---- dead letters ----

    def dead_letters(
        self,
        *,
        function: str | None = None,
        code: str | None = None,
        tag: str | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> Iterator[Json]:
        """The records of dead invocations with their payloads, newest first: of a function, with an error
        code, with a tag, that died at `since` (UTC epoch seconds) or later.
        """
        query = {
            "function": function,
            "code": code,
            "tag": tag,
            "since": None if since is None else str(since),
        }
        return self._pages("/v1/dead-letters", query, limit)

    def dead_letter(self, id: str) -> Json:
        """One dead invocation's record, with its payload. Raises UnknownInvocation, WrongState when it is not
        dead.
        """
        return self._get(f"/v1/dead-letters/{segment(id)}")

    def redrive(self, id: str | None = None, *, payload: object = UNCHANGED, **matching: Any) -> Json:
        """Put a dead invocation back to waiting, under the same id, with another payload when one is given;
        or all that match `function`, `code`, `tag`, `since`, `ids` and `limit`, such as
        `function="app.name"`.

        Raises UnknownInvocation, WrongState; BadRequest when neither an id nor a filter is given, or a
        payload with a filter.
        """
        if id is not None and not matching:
            body = {} if payload is UNCHANGED else {"payload": payload}
            return self._post(f"/v1/dead-letters/{segment(id)}/redrive", body)
        if id is not None or not matching:
            raise BadRequest("redrive takes an id or a filter", "For all of a function give function=NAME.")
        if payload is not UNCHANGED:
            raise BadRequest("a payload is given for many", "Redrive them one by one, each by its id.")
        return self._post("/v1/dead-letters/redrive", matching)

    def discard(self, id: str) -> Json:
        """Give a dead invocation up: it becomes `cancelled`, and is kept as such. Raises UnknownInvocation,
        WrongState.
        """
        return self._post(f"/v1/dead-letters/{segment(id)}/discard")

    # ---- jobs ----

    def submit_job(
        self, name: str, input: object, *, wait: bool = False, tags: Sequence[str] = ()
    ) -> "JobHandle":
        """Submit a job on an input, `s3://BUCKET/KEY` or what its split takes; with `wait` return when it has
        ended.

        Raises UnknownFunction, NoSuchObject; with `wait` also JobFailed.
        """
        from headrace.runtime.client.job import JobHandle

        body: Json = {"function": name, "input": input}
        if tags:
            body["tags"] = [tags] if isinstance(tags, str) else list(tags)
        handle = JobHandle(self, str(self._post("/v1/jobs", body)["job_id"]))
        if wait:
            handle.result()
        return handle

    def job(self, id: str) -> "JobHandle":
        """A handle of a job that was submitted before; raises UnknownJob when it is first asked."""
        from headrace.runtime.client.job import JobHandle

        return JobHandle(self, id)

    def jobs(
        self, *, function: str | None = None, status: str | None = None, limit: int | None = None
    ) -> Iterator[Json]:
        """The jobs that are kept, newest first."""
        return self._pages("/v1/jobs", {"function": function, "status": status}, limit)

    # ---- objects ----

    def buckets(self) -> list[str]:
        """The names of the buckets of the node's object store."""
        found: list[str] = self._get("/v1/buckets")["buckets"]
        return found

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket; one that is there already is left as it is."""
        self._ok("PUT", f"/v1/buckets/{quote(bucket, safe='')}")

    def connect_bucket(
        self,
        bucket: str,
        *,
        node_url: str = "",
        targets: Sequence[str] = (),
        removals: bool = False,
        wait_s: float = 10.0,
    ) -> Json:
        """Have the node's S3 server tell the node of a bucket, and prove it with a probe object.

        Args:
            node_url: the node as the server reaches it; by default as it knows itself.
            targets: the names of the server's two webhook targets, at once and kept.
            removals: deletions as well; they are told in any case when a trigger of the bucket asks for them.
            wait_s: seconds to wait for the probe's deliveries, 0 to 60.

        Returns: `connected`, `targets` with what each delivered, and in `server_environment` the lines that
            the server's environment lacks.
        """
        body: dict[str, object] = {"url": node_url, "removals": removals, "wait_s": wait_s}
        if targets:
            body["targets"] = list(targets)
        path = f"/v1/buckets/{quote(bucket, safe='')}/connect"
        answer = self._ok(
            "POST",
            path,
            body=encode_payload(body),
            headers={"Content-Type": "application/json"},
            timeout_s=wait_s + self.timeout_s,
        )
        found: Json = json.loads(answer.body)
        return found

    def disconnect_bucket(self, bucket: str) -> None:
        """Have the S3 server tell the node no more of a bucket; rules that others made stay."""
        self._ok("DELETE", f"/v1/buckets/{quote(bucket, safe='')}/connect")

    def put_object(self, url: str, data: bytes | BinaryIO | Path) -> Json:
        """Write an object, `s3://BUCKET/KEY`, from bytes, an open file or a path; what the node answers (its
        ETag).
        """
        if isinstance(data, Path):
            with data.open("rb") as file:
                return self.put_object(url, file)
        size = len(data) if isinstance(data, bytes) else _rest_of(data)
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        # A megabyte a second is a slow network that is still at work.
        timeout_s = max(self.timeout_s, (size or 0) / (1 << 20))
        answer = self._ok("PUT", _object_path(url), body=data, headers=headers, timeout_s=timeout_s)
        document: Json = json.loads(answer.body) if answer.body else {}
        return document

    def get_object(self, url: str) -> bytes:
        """Read an object of at most 1 GiB whole. Raises NoSuchObject; PayloadTooLarge for a larger one (see
        `read_object`).
        """
        pieces, size = [], 0
        for piece in self.read_object(url):
            size += len(piece)
            if size > OBJECT_BYTES_MAX:
                raise PayloadTooLarge(-1, OBJECT_BYTES_MAX)
            pieces.append(piece)
        return b"".join(pieces)

    def read_object(self, url: str, *, version_id: str | None = None) -> Iterator[bytes]:
        """Read an object, or an older version of it, in pieces of at most 1 MiB. Raises NoSuchObject at the
        first.
        """
        query = None if version_id is None else {"version_id": version_id}
        with closing(self.backend.stream("GET", _object_path(url), query=query)) as stream:
            if stream.status >= 400:
                refuse(stream.status, stream.headers, stream.read(READ_BYTES))
            while piece := stream.read(READ_BYTES):
                yield piece

    def link_object(self, url: str, *, method: Literal["GET", "PUT"] = "GET", expires_s: int = 3600) -> str:
        """A URL of the object server itself, with which anybody may read an object, or with `PUT` write it,
        for 1 second to 7 days. Raises BadRequest where objects are kept in a folder.
        """
        answer = self._ok(method, _object_path(url), query={"link": str(expires_s)})
        link: str = json.loads(answer.body)["url"]
        return link

    def object_versions(self, url: str) -> list[Json]:
        """The states of one object that a versioned bucket still has, newest first: `version_id, size, etag,
        modified_at` of each. Raises BadRequest where objects are kept in a folder.
        """
        answer = self._ok("GET", _object_path(url), query={"versions": "true"})
        found: list[Json] = json.loads(answer.body)["items"]
        return found

    def list_objects(self, url: str, *, limit: int | None = None) -> Iterator[Json]:
        """The objects under `s3://BUCKET/PREFIX`: `key, size, etag, modified_at` of each."""
        bucket, prefix = _read_url(url)
        return self._pages(f"/v1/objects/{quote(bucket, safe='')}", {"prefix": prefix or None}, limit)

    # ---- how calls are made ----

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: object = None,
    ) -> Any:
        """Any call of the HTTP API: `body` is sent as JSON when it is not None; the answer's JSON, None when
        it is empty.
        """
        sent = (
            None
            if body is None and method in ("GET", "HEAD", "DELETE")
            else encode_payload({} if body is None else body)
        )
        headers = {"Content-Type": "application/json"} if sent is not None else None
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        answer = self._ok(method, path, query=asked, body=sent, headers=headers)
        return json.loads(answer.body) if answer.body else None

    def _ok(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        answer = self.backend.request(
            method, path, query=query, body=body, headers=headers, timeout_s=timeout_s
        )
        raise_for(*answer)
        return answer

    def _get(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        document: Json = self.call("GET", path, query=query)
        return document

    def _post(self, path: str, body: object = None) -> Json:
        document: Json = self.call("POST", path, body=body) or {}
        return document

    def _pages(self, path: str, query: Mapping[str, str | None], limit: int | None) -> Iterator[Json]:
        left = limit if limit is not None else -1
        cursor: str | None = None
        while left:
            size = str(min(PAGE, left) if left > 0 else PAGE)
            page = self._get(path, {**query, "limit": size, "cursor": cursor})
            items: list[Json] = page["items"]
            for item in items[: left if left > 0 else None]:
                yield item
                left -= 1
            cursor = page.get("next_cursor")
            if not cursor or left == 0:
                return
            left = max(left, -1)

    def _cancel(self, id: str) -> bool:
        try:
            self.cancel(id)
        except WrongState:
            return False
        return True

    @property
    def clock(self) -> "Clock":
        """Where deadlines are read."""
        if self._clock_given is None:
            from headrace.runtime.clock import SystemClock

            self._clock_given = SystemClock()
        return self._clock_given

    def pause_s(self, seconds: float) -> None:
        """Wait, or until the client is closed. Between two questions of a poll."""
        self._closed.wait(seconds)

    def deadline(self, timeout_s: float | None, what: str) -> Callable[[], float]:
        """A function that gives the seconds that are left, and raises WaitTimeout when there are none."""
        if timeout_s is None:
            return lambda: POLL_S
        end = self.clock.monotonic() + timeout_s

        def left() -> float:
            seconds = end - self.clock.monotonic()
            if seconds <= 0:
                raise WaitTimeout(what, timeout_s)
            return seconds

        return left


def worker_client(url: str, token: str) -> Client:
    """The client that a worker gives to functions as `context.client`."""
    return Client(url, token)


def _read_url(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not separator or not bucket:
        raise InvalidObjectUrl(url, "it does not begin with s3://BUCKET/")
    return bucket, key


def _object_path(url: str) -> str:
    bucket, key = _read_url(url)
    if not key:
        raise InvalidObjectUrl(url, "it has no key")
    return f"/v1/objects/{quote(bucket, safe='')}/{quote(key)}"


def _rest_of(file: BinaryIO) -> int | None:
    """Bytes from the file's position to its end; None for what is no plain file, such as a pipe."""
    try:
        known = os.fstat(file.fileno())
        return max(0, known.st_size - file.tell()) if stat.S_ISREG(known.st_mode) else None
    except (OSError, AttributeError):
        return None
