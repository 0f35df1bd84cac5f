"""Calls of functions: users' routes and `/v1/functions/NAME/invoke`, the paths that have to be fast.

Imports this room, the queue and the floor.
"""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import msgspec

from headrace.runtime.api.answers import (
    JSON_TYPE,
    REPEATED,
    REQUEST_ID,
    Receive,
    Scope,
    Send,
    check_json,
    header,
    headers_of,
    outcome_error,
    read_body,
    recorded_error,
    send,
    send_error,
    send_json,
)
from headrace.runtime.api.conditional import send_conditional
from headrace.runtime.api.media import check_coding, check_media_type
from headrace.runtime.api.recent import RecentEnds
from headrace.runtime.api.routing import Endpoint
from headrace.runtime.api.services import Services
from headrace.runtime.api.streaming import send_stream
from headrace.runtime.errors import (
    BadRequest,
    HeadraceError,
    InProgress,
    InvalidEvent,
    InvalidFunction,
    InvalidPayload,
    PayloadTooLarge,
    Throttled,
    UnknownInvocation,
)
from headrace.runtime.model.destination import DELIVER
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.model.invocation import Record, Status
from headrace.runtime.model.route import CALLBACK_HEADER
from headrace.runtime.model.spec import IDEMPOTENCY_TTL_S_MAX, IDEMPOTENCY_TTL_S_MIN, VALIDATE
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.url import parse_object_url
from headrace.runtime.pool.reading import CREDIT_BYTES
from headrace.runtime.queue.watchers import Ended
from headrace.runtime.trigger import HttpCall

INLINE_PAYLOAD_BYTES = 256 << 10
MANY_MAX = 10_000
GATHER_S = 10e-6
GATHER_MAX_S = 0.05
"""How long an answer is held for others to end, in seconds: for each id asked about, and at the most."""
WAIT_ANSWER_BYTES = 8 << 20
"""How much of results one answer to a wait holds, give or take one result."""
_INVOCATION_ID = b"headrace-invocation-id"
KEY_CHARS_MAX = 1_000
PLAIN = [("content-type", "application/json")]
"""The headers of an answer that is nothing but a result."""
STATUS_PATH = "/v1/calls/"
"""Where the caller of an asynchronous route asks for its invocation, by ticket."""
CALLBACK = CALLBACK_HEADER.encode()
_STATUS = {status: status.name.lower() for status in Status}


class Calls:
    """Runs functions for HTTP callers, now or durably."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.recent = RecentEnds()

    # ---- users' routes ----

    async def route(
        self, endpoint: Endpoint, parameters: dict[str, str], scope: Scope, receive: Receive, reply: Send
    ) -> None:
        """Answer a call of a user's route."""
        services = self._services
        route, rules = endpoint.route, endpoint.rules
        caller = ""
        if rules.scope is not None:
            key, login = header(scope, b"x-api-key"), header(scope, b"authorization")
            caller = services.access.check_key(key, login, rules.scope, endpoint.function).name
        limit = services.limits.async_body_bytes if route.asynchronous else services.limits.sync_body_bytes
        if rules.body_bytes is not None:
            limit = min(limit, rules.body_bytes)
        body = await read_body(receive, scope, limit)
        if body:
            check_media_type(endpoint, scope)
        client = scope.get("client")
        call = HttpCall(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]],
            body,
            parameters,
            client[0] if client else "",
            scope[REQUEST_ID].decode(),
            services.clock.now(),
            caller,
        )
        event = route.event(call)
        fields = headers_of(scope)
        once = _once(scope) if b"idempotency-key" in fields or b"idempotency-ttl" in fields else {}
        if endpoint.is_job:
            if once:
                raise BadRequest("a job has no idempotency key", "Leave out the header Idempotency-Key.")
            job = await services.coordinator.submit(endpoint.function, _route_input(body))
            await send_json(reply, {"job_id": job}, status=202)
            return
        if once and caller:  # callers with keys of their own do not share what they call once
            once["idempotency_key"] = f"{caller}/{once['idempotency_key']}"
        if not once and endpoint.idempotency_key is not None:
            key = endpoint.idempotency_key(call)
            if key is not None:
                once = {"idempotency_key": key}
        if route.asynchronous:
            if rules.callback:
                self._check_callback(scope)
            if endpoint.validates:
                await self._validate(endpoint.function, event)
            id, repeated = await self.enqueue(
                endpoint.function, event, source="http", fingerprint=_said(call), **once
            )
            status = f"{STATUS_PATH}{services.tickets.make(id)}"
            await _send_accepted(reply, id, repeated, status_url=status)
            return
        if once or services.dispatcher.only_queued(endpoint.function):
            id, repeated, found = await self._durably(
                endpoint.function, event, fingerprint=_said(call), **once
            )
        else:
            repeated = False
            outcome = await services.dispatcher.call(endpoint.function, event, credit=CREDIT_BYTES)
            if outcome.kind == "stream":
                await send_stream(services, outcome, endpoint.function, scope, receive, reply)
                return
            id = show_id(outcome.invocation_id)
            if outcome.kind == "ok":
                found = await self._value(outcome.value, outcome.result_ref)
            else:
                found = outcome_error(outcome, endpoint.function)
        if isinstance(found, HeadraceError):
            await send_error(reply, _without_stack(found), invocation_id=id, repeated=repeated)
            return
        answer = route.answer(found)
        if answer.headers == PLAIN:
            headers = [JSON_TYPE]
        else:
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        if repeated:
            headers.append(REPEATED)
        if scope["method"] not in ("GET", "HEAD"):
            await send(reply, answer.status, answer.body, headers)
        else:
            await send_conditional(reply, scope, answer.status, answer.body, headers, etag=rules.etag)

    async def _validate(self, function: str, event: bytes) -> None:
        """Compare an event with the function's types, in a worker, before it is accepted. Raises
        InvalidEvent.

        When no worker is free in time it is accepted all the same, and dead at once if it does not fit: that
        callers can be sure of their 202 is worth more.
        """
        dispatcher = self._services.dispatcher
        if VALIDATE not in dispatcher.functions:
            return
        asked = msgspec.json.encode({"function": function, "event": msgspec.Raw(event)})
        try:
            outcome = await dispatcher.call(VALIDATE, asked)
        except Throttled:
            return
        if outcome.kind == InvalidEvent.code:
            raise outcome_error(outcome, function)

    def _check_callback(self, scope: Scope) -> None:
        """Raises BadRequest or InvalidCallback when the URL that a caller names is not called back."""
        url = header(scope, CALLBACK)
        if url is None:
            return
        if self._services.callbacks is None:
            raise BadRequest("this node signs no callbacks", "Set callback_secret, or leave out the header.")
        self._services.callbacks.check(url)

    # ---- direct calls ----

    async def invoke(self, function: str, scope: Scope, receive: Receive, reply: Send) -> None:
        """`POST /v1/functions/{name}/invoke`: now, or with `?mode=async` durably."""
        services = self._services
        query = scope["query_string"]
        fields = headers_of(scope)
        if b"content-encoding" in fields:
            check_coding(scope)
        once = _once(scope) if b"idempotency-key" in fields or b"idempotency-ttl" in fields else {}
        credit = 0
        if query:
            options = _options(query)
            mode = options.pop("mode")
            ttl = options.pop("idempotency_ttl_s", None)
            if ttl is not None:
                if not once:
                    raise BadRequest("idempotency_ttl_s needs a key", "Send the header Idempotency-Key.")
                once["idempotency_ttl_s"] = ttl
            if mode != "async" and options:
                raise BadRequest(
                    f"{next(iter(options))} needs mode=async", "A call now is neither delayed nor queued."
                )
            if mode == "stream":
                if once:
                    raise BadRequest("a stream has no idempotency key", "It is made at most once as it is.")
                if services.dispatcher.only_queued(function):
                    raise BadRequest(
                        f"{function} has a limit over all nodes, which a stream cannot keep",
                        "Call it without mode=stream: its pieces are gathered into a list.",
                    )
                credit = CREDIT_BYTES
            if mode == "async":
                body = check_json(await read_body(receive, scope, services.limits.async_body_bytes))
                self._check_plain(function)
                options.setdefault("key", _key_header(scope))
                await _send_accepted(reply, *await self.enqueue(function, body, **once, **options))
                return
        body = check_json(await read_body(receive, scope, services.limits.sync_body_bytes))
        self._check_plain(function)
        if once or services.dispatcher.only_queued(function):
            id, repeated, found = await self._durably(function, body, key=_key_header(scope), **once)
            if isinstance(found, HeadraceError):
                await send_error(reply, found, invocation_id=id, repeated=repeated)
            else:
                shown = [JSON_TYPE, (_INVOCATION_ID, id.encode()), *([REPEATED] if repeated else [])]
                await send(reply, 200, found, shown)
            return
        outcome = await services.dispatcher.call(function, body, credit=credit)
        if outcome.kind == "stream":
            await send_stream(services, outcome, function, scope, receive, reply)
        elif outcome.kind == "ok":
            headers = [JSON_TYPE, (_INVOCATION_ID, show_id(outcome.invocation_id).encode())]
            await send(reply, 200, await self._value(outcome.value, outcome.result_ref), headers)
        else:
            await send_error(
                reply, outcome_error(outcome, function), invocation_id=show_id(outcome.invocation_id)
            )

    async def invoke_many(self, function: str, scope: Scope, receive: Receive, reply: Send) -> None:
        """`POST /v1/functions/{name}/invoke-many`: a JSON array or JSON lines; all or none."""
        services = self._services
        check_coding(scope)
        body = await read_body(receive, scope, 16 * services.limits.async_body_bytes)
        kind = header(scope, b"content-type") or "application/json"
        payloads = _events_of(body, kind)
        limit = services.limits.async_body_bytes
        for payload in payloads:
            if len(payload) > limit:
                raise PayloadTooLarge(len(payload), limit)
        self._check_plain(function)
        options = _options(scope["query_string"]) if scope["query_string"] else {"mode": ""}
        options.pop("mode")
        given_key = options.pop("key", None) or _key_header(scope)
        if "idempotency_ttl_s" in options:
            raise BadRequest("many invocations share no key", "Send them one by one, each with its own key.")
        dispatcher = services.dispatcher
        now = services.clock.now()
        puts = []
        for payload in payloads:
            ref = await self.offload(payload)
            key = given_key
            if ref and key is None:  # it is found here, since the payload is not handed on
                key = dispatcher.key_in(function, bytes(payload))
            data = b"" if ref else bytes(payload)
            puts.append(
                dispatcher.prepare(function, data, payload_ref=ref, now=now, concurrency_key=key, **options)
            )
        applied = await dispatcher.accept(puts) if puts else []
        ids = [show_id(answer.id or put.invocation.id) for put, answer in zip(puts, applied, strict=True)]
        await send_json(reply, {"accepted": len(ids), "invocation_ids": ids}, status=202)

    async def enqueue(self, function: str, payload: bytes, **options: Any) -> tuple[str, bool]:
        """Accept one invocation durably. Returns its id, the first one's for a repeated idempotency key, and
        whether it is a repeat.
        """
        ref = await self.offload(payload)
        options.setdefault("fingerprint", payload)
        key = options.pop("key", None)
        if ref and key is None:  # it is found here, since the payload is not handed on
            key = self._services.dispatcher.key_in(function, payload)
        put = self._services.dispatcher.prepare(
            function, b"" if ref else payload, payload_ref=ref, concurrency_key=key, **options
        )
        [applied] = await self._services.dispatcher.accept([put])
        if ref is not None and applied.repeated:  # the first one's payload is there already
            await self._services.in_thread(self._services.objects.delete, *parse_object_url(ref))
        return show_id(applied.id if applied.id is not None else put.invocation.id), applied.repeated

    async def wait(self, body: bytes) -> dict[str, Any]:
        """`POST /v1/invocations/wait`: those of the invocations that have ended; waits until one has."""
        asked = msgspec.json.decode(body, type=_Wait)
        if len(asked.ids) > MANY_MAX:
            raise BadRequest(
                f"{len(asked.ids):,} ids are asked for", f"Ask for at most {MANY_MAX:,} at once."
            )
        services, dispatcher = self._services, self._services.dispatcher
        numbers = {}
        for text in asked.ids:
            number = read_id(text)
            if number is None:
                raise BadRequest(f"{text!r} is no invocation id", "Ids are 16 hexadecimal digits.")
            numbers[number] = text
        if dispatcher.watchers.on_end is None:
            dispatcher.watchers.on_end = self.recent.add
        found = self.recent.find(numbers) or [
            _ended(record) for record in await services.store.ended(list(numbers))
        ]
        if not found and asked.wait_s > 0:
            woken = asyncio.Event()

            def ended(_: Ended) -> None:
                woken.set()

            for id in numbers:
                dispatcher.watchers.watch(id, ended)
            try:
                found = self.recent.find(numbers)  # one may have ended while the store was asked
                if not found:
                    async with asyncio.timeout(min(asked.wait_s, services.limits.wait_s)):
                        await woken.wait()
                        if len(numbers) > 1:
                            # More are about to end: one answer for all of them.
                            await services.clock.sleep(min(GATHER_S * len(numbers), GATHER_MAX_S))
            except TimeoutError:
                known = await services.store.known(list(numbers))
                return {"ended": [], "pending": [text for id, text in numbers.items() if id in known]}
            finally:
                for id in numbers:
                    dispatcher.watchers.unwatch(id, ended)
            found = self.recent.find(numbers)
        shown, size = [], 0
        for end in found:
            shown.append(_brief(end, numbers.pop(end.id)))
            size += len(end.result)
            if size > WAIT_ANSWER_BYTES:
                break  # the others have ended as well: the next call gets them at once
        return {"ended": shown, "pending": list(numbers.values())}

    async def wait_for(self, id: int, wait_s: float) -> Record | None:
        """An invocation, once it has ended or `wait_s` has passed; None when it is not known."""
        services = self._services
        woken = asyncio.Event()

        def ended(_: Ended) -> None:
            woken.set()

        services.dispatcher.watchers.watch(id, ended)
        try:
            record = await services.store.get(id)
            if record is None or record.status.ended or wait_s <= 0:
                return record
            try:
                async with asyncio.timeout(min(wait_s, services.limits.wait_s)):
                    await woken.wait()
            except TimeoutError:
                return record
            return await services.store.get(id)
        finally:
            services.dispatcher.watchers.unwatch(id, ended)

    # ---- inside ----

    async def _durably(
        self, function: str, payload: bytes, **options: Any
    ) -> tuple[str, bool, bytes | HeadraceError]:
        """A synchronous call with an idempotency key, or of a function whose limit all nodes share: accepted
        like any other, then waited for. Its id, whether it is a repeat, and the result or how it failed:
        InProgress when it has not ended in time, and UnknownInvocation when the first call ended so long ago
        that its outcome is not kept any more.
        """
        spec = self._services.dispatcher.spec(function)
        id, repeated = await self.enqueue(function, payload, **options)
        record = await self.wait_for(int(id, 16), min(spec.timeout_s + 1.0, self._services.limits.wait_s))
        if record is None:
            return id, repeated, UnknownInvocation(id)
        if not record.status.ended:
            return id, repeated, InProgress(id, repeated)
        if record.status is Status.SUCCEEDED:
            return id, repeated, await self._value(record.result or b"null", record.result_ref)
        return id, repeated, recorded_error(record.error or {"code": "cancelled"}, function)

    async def _value(self, value: bytes, ref: str | None) -> bytes:
        if ref is None:
            return value
        data: bytes = await self._services.in_thread(self._services.objects.get, *parse_object_url(ref))
        return data

    async def offload(self, payload: bytes | msgspec.Raw) -> str | None:
        """The address of a large payload that was written to the object store; None for a small one."""
        if len(payload) <= INLINE_PAYLOAD_BYTES:
            return None
        services = self._services
        key = f"payloads/{services.new_request_id()}.json"
        await services.in_thread(services.objects.put, SYSTEM_BUCKET, key, bytes(payload))
        return f"s3://{SYSTEM_BUCKET}/{key}"

    def _check_plain(self, function: str) -> None:
        spec = self._services.dispatcher.spec(function)
        if function == DELIVER:
            raise InvalidFunction(
                function, "is the node's own and cannot be invoked", "Name a destination: on_failure=…"
            )
        if spec.job is not None:
            raise InvalidFunction(function, "is a job and cannot be invoked", "Submit it: POST /v1/jobs.")


class _Wait(msgspec.Struct):
    ids: list[str]
    wait_s: float = 0.0


def _options(query: bytes) -> dict[str, Any]:
    """The options of an asynchronous call. Raises BadRequest for an unknown one or a wrong value."""
    out: dict[str, Any] = {"mode": ""}
    for name, values in parse_qs(query.decode("latin-1"), keep_blank_values=True).items():
        value = values[-1]
        try:
            if name == "mode":
                if value not in ("sync", "async", "stream"):
                    raise ValueError
                out["mode"] = value
            elif name == "delay_s":
                out["delay_s"] = float(value)
                if not 0 <= out["delay_s"] <= 366 * 86_400:
                    raise ValueError
            elif name == "priority":
                out["priority"] = int(value)
                if not -100 <= out["priority"] <= 100:
                    raise ValueError
            elif name == "tags":
                out["tags"] = value
            elif name == "key":
                out["key"] = value
            elif name == "idempotency_ttl_s":
                out[name] = _ttl(value)
            else:
                known = "Known: mode, delay_s, priority, tags, key, idempotency_ttl_s."
                raise BadRequest(f"there is no option {name!r}", known)
        except ValueError:
            raise BadRequest(
                f"{name} is {value!r}",
                "mode is sync, async or stream, delay_s 0 to a year, priority -100 to 100.",
            ) from None
    return out


def _key_header(scope: Scope) -> str | None:
    """The concurrency key that the caller gives in a header, in UTF-8."""
    given = header(scope, b"headrace-key")
    return given.encode("latin-1").decode("utf-8", "replace") if given else None


def _ttl(text: str) -> float:
    try:
        seconds = float(text)
        if not IDEMPOTENCY_TTL_S_MIN <= seconds <= IDEMPOTENCY_TTL_S_MAX:
            raise ValueError
        return seconds
    except ValueError:
        span = f"{IDEMPOTENCY_TTL_S_MIN:g} to {IDEMPOTENCY_TTL_S_MAX:.0f} (30 days)"
        raise BadRequest(f"the time of an idempotency key is {text!r}", f"Give {span} seconds.") from None


def _once(scope: Scope) -> dict[str, Any]:
    """What a call says of its idempotency key. Empty without one. Raises BadRequest."""
    key, ttl = header(scope, b"idempotency-key"), header(scope, b"idempotency-ttl")
    if key is None:
        if ttl is not None:
            raise BadRequest("Idempotency-Ttl needs a key", "Send the header Idempotency-Key.")
        return {}
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise BadRequest(
            f"an idempotency key of {len(key)} characters", f"It must have 1 to {KEY_CHARS_MAX}."
        )
    return {"idempotency_key": key, **({"idempotency_ttl_s": _ttl(ttl)} if ttl is not None else {})}


async def _send_accepted(reply: Send, id: str, repeated: bool, *, status_url: str | None = None) -> None:
    headers = [(_INVOCATION_ID, id.encode()), *([REPEATED] if repeated else [])]
    shown = {"invocation_id": id}
    if status_url is not None:
        shown["status_url"] = status_url
        headers.append((b"location", status_url.encode()))
    await send_json(reply, shown, status=202, headers=headers)


def _events_of(body: bytes, kind: str) -> list[msgspec.Raw]:
    try:
        if "ndjson" in kind or "jsonl" in kind or "json-lines" in kind:
            return [msgspec.json.decode(line, type=msgspec.Raw) for line in body.splitlines() if line.strip()]
        return msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPayload(f"a JSON array or JSON lines are expected: {error}") from None


def _said(call: HttpCall) -> bytes:
    """What the caller of a route has said, without what differs between two calls that mean the same."""
    return f"{call.method} {call.path}?{call.query}\n".encode() + call.body


def _without_stack(error: HeadraceError) -> HeadraceError:
    """The error without what only the function's owner may see."""
    detail = getattr(error, "detail", None)
    if isinstance(detail, dict):
        detail.pop("stack", None)
    return error


def _ended(record: Record) -> Ended:
    return Ended(
        record.invocation.id,
        record.status,
        record.result or b"",
        record.result_ref,
        record.error,
        record.attempts,
    )


def _brief(ended: Ended, id: str) -> dict[str, Any]:
    """An ended invocation, as little of it as a waiting caller needs."""
    shown: dict[str, Any] = {
        "invocation_id": id,
        "status": _STATUS[ended.status],
        "attempts": ended.attempts,
        "result": msgspec.Raw(ended.result) if ended.result else None,
    }
    if ended.result_ref is not None:
        shown["result_ref"] = ended.result_ref
    if ended.error is not None:
        shown["error"] = ended.error
    return shown


def job_input(value: Any) -> dict[str, Any]:
    """A job's input as the API takes it: an address, a list of items, or an object of either."""
    if isinstance(value, str):
        return {"object": value}
    if isinstance(value, list):
        return {"items": value}
    if isinstance(value, dict) and ("object" in value or "items" in value):
        return value
    raise BadRequest("the job's input is missing", 'Send {"input": "s3://BUCKET/KEY"} or {"input": [items]}.')


def _route_input(body: bytes) -> dict[str, Any]:
    given = msgspec.json.decode(check_json(body))
    return job_input(given["input"] if isinstance(given, dict) and "input" in given else given)
