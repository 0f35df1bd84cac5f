"""The application: one ASGI callable that sends each call to its place.

Imports this room. The order of checks is that of their cost: host, then the fast paths, then everything else.
"""

import re
from typing import Any

from headrace.runtime.api.answers import (
    MORE_HEADERS,
    REQUEST_ID,
    Receive,
    Scope,
    Send,
    encode,
    header,
    headers_of,
    send,
    send_error,
    send_json,
)
from headrace.runtime.api.calls import STATUS_PATH, Calls
from headrace.runtime.api.openapi import describe
from headrace.runtime.api.pages import docs_page
from headrace.runtime.api.receiver import PATH as RECEIVER
from headrace.runtime.api.receiver import Receiver
from headrace.runtime.api.routing import RouteTable
from headrace.runtime.api.services import Services
from headrace.runtime.api.v1 import Api
from headrace.runtime.errors import BadRequest, HeadraceError

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
_FUNCTIONS = "/v1/functions/"
_BROKEN: dict[str, Any] = {"type": "headrace.broken"}
"""Tells the access log of an answer that ends without its end."""
_OWN = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs", "/metrics"})
"""What the node serves beside `/v1`, unless a function has this very path."""


class Application:
    """What uvicorn serves."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._calls = Calls(services)
        self._receiver = Receiver(services)
        self.api = Api(services, self._calls)
        self._v1 = self.api.app()
        self._document: tuple[RouteTable, bytes] | None = None
        self._requests = 0
        self._requests_prefix = f"{services.new_request_id()}-".encode()

    async def __call__(self, scope: Scope, receive: Receive, send_message: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send_message({"type": "websocket.close", "code": 1003})
            return
        services = self._services
        given = headers_of(scope).get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            request_id = given
        else:
            self._requests += 1
            request_id = b"%s%x" % (self._requests_prefix, self._requests)
        scope[REQUEST_ID] = request_id
        if services.log_request is not None:
            send_message = self._logged(scope, send_message)
        began = False

        async def reply(message: Any) -> None:
            nonlocal began
            if not began:
                began = True
                headers = message["headers"]
                headers.append((b"x-request-id", request_id))
                if MORE_HEADERS in scope:
                    headers.extend(scope[MORE_HEADERS])
                if services.draining:
                    headers.append((b"connection", b"close"))
            await send_message(message)

        try:
            await self._serve(scope, receive, reply)
        except HeadraceError as error:
            if not began:
                await send_error(reply, error)
            elif services.log_request is not None:
                await send_message(_BROKEN)
        except Exception as error:  # the outermost loop of a request: recorded, and answered without a stack
            self._services.report(
                "a request failed", {"path": scope["path"], "error": f"{type(error).__name__}: {error}"}
            )
            if not began:
                failed = HeadraceError("the node failed to answer; its log says why")
                await send_error(reply, failed)
            elif services.log_request is not None:
                await send_message(_BROKEN)

    async def _serve(self, scope: Scope, receive: Receive, reply: Send) -> None:
        services = self._services
        path: str = scope["path"]
        fields = headers_of(scope)
        host = fields.get(b"host", b"").decode("latin-1")
        services.access.check_host(host)
        if path[:4] != "/v1/":
            endpoint = services.routes.exact(scope["method"], path)
            if endpoint is not None and endpoint.rules.cors is None:
                await self._calls.route(endpoint, {}, scope, receive, reply)
                return
        else:
            origin = header(scope, b"origin") if b"origin" in fields else None
            if path.startswith(STATUS_PATH):  # a page of any site may ask: the ticket is what lets it
                scope[MORE_HEADERS] = [(b"access-control-allow-origin", b"*")]
            elif origin is not None:
                services.access.check_origin(origin, host)
            if path.startswith(_FUNCTIONS) and scope["method"] == "POST":
                name, _, action = path[len(_FUNCTIONS) :].rpartition("/")
                if action in ("invoke", "invoke-many"):
                    if b"json" not in fields.get(b"content-type", b"json"):
                        raise BadRequest(
                            "the content type is not JSON", "Send content-type: application/json."
                        )
                    login = fields.get(b"authorization", b"").decode("latin-1")
                    token = services.access.check(login, "invoke", name)
                    if name == "headrace.call" and "admin" not in token.scopes:
                        services.access.check(login, "code")
                    if action == "invoke":
                        await self._calls.invoke(name, scope, receive, reply)
                    else:
                        await self._calls.invoke_many(name, scope, receive, reply)
                    return
            if path == RECEIVER and scope["method"] == "POST":
                await self._receiver.receive(scope, receive, reply)
                return
            await self._v1(scope, receive, reply)
            return
        if path in _OWN and not services.routes.has(path):
            if scope["method"] in ("GET", "HEAD"):
                await self._own(path, scope, reply)
            else:
                await self._not_allowed(scope, reply, {"GET"})
            return
        raw_path = _raw_path(scope)
        endpoint, parameters, allowed = services.routes.find(scope["method"], path, raw_path)
        if endpoint is not None:
            if endpoint.rules.cors is not None:
                scope[MORE_HEADERS] = endpoint.rules.cors.answer_headers(header(scope, b"origin"))
            await self._calls.route(endpoint, parameters, scope, receive, reply)
        elif allowed and scope["method"] == "OPTIONS":
            await self._options(path, raw_path, scope, reply)
        elif allowed:
            await self._not_allowed(scope, reply, allowed)
        else:
            error = {
                "code": "not_found",
                "message": f"no function answers at {path}",
                "hint": "`headrace functions` lists the routes.",
            }
            await send_json(reply, {"error": error}, status=404)

    async def _options(self, path: str, raw_path: str, scope: Scope, reply: Send) -> None:
        """Say which methods a path takes, and to a browser, whether a page of another site may call it."""
        found = self._services.routes.methods(path, raw_path)
        origin, asked = header(scope, b"origin"), header(scope, b"access-control-request-method")
        headers = [(b"allow", _shown({*found, "OPTIONS"}).encode())]
        if origin is not None and asked is not None:
            endpoint = found.get("GET" if asked == "HEAD" and "HEAD" not in found else asked)
            if endpoint is not None and endpoint.rules.cors is not None:
                cors = endpoint.rules.cors
                methods = sorted(name for name, one in found.items() if one.rules.cors == cors)
                headers += cors.preflight_headers(origin, methods)
            else:
                headers.append((b"vary", b"origin"))
        await reply({"type": "http.response.start", "status": 204, "headers": headers})
        await reply({"type": "http.response.body", "body": b""})

    def _logged(self, scope: Scope, send_message: Send) -> Send:
        """Passes answers on, and writes a line into the access log when one has ended. The query is left out,
        since it may hold secrets.
        """
        services = self._services
        begun = services.clock.monotonic()
        status = sent = 0

        async def send_logged(message: Any) -> None:
            nonlocal status, sent
            if message is not _BROKEN:
                await send_message(message)
            if message["type"] == "http.response.start":
                status = message["status"]
                return
            sent += len(message.get("body", b""))
            if not message.get("more_body") and services.log_request is not None:
                client = scope.get("client")
                services.log_request(
                    {
                        "method": scope["method"],
                        "path": _raw_path(scope).encode("ascii", "backslashreplace").decode(),
                        "status": status,
                        **({"broken": True} if message is _BROKEN else {}),
                        "bytes": sent,
                        "ms": round((services.clock.monotonic() - begun) * 1000, 2),
                        "client": client[0] if client else "",
                        "request_id": scope[REQUEST_ID].decode(),
                    }
                )

        return send_logged

    async def _own(self, path: str, scope: Scope, reply: Send) -> None:
        """Answer a GET of what the node serves beside `/v1`."""
        services = self._services
        if path == "/healthz":
            await send_json(reply, {"status": "ok"})
        elif path == "/readyz":
            why = services.ready()
            shown = {"status": "ready"} if why is None else {"status": "not ready", "reason": why}
            await send_json(reply, shown, status=200 if why is None else 503)
        elif path == "/openapi.json":
            await send(reply, 200, self._described())
        elif path == "/docs":
            await send(reply, 200, *docs_page())
        else:
            from headrace.runtime.api.metrics import metrics

            services.access.check(header(scope, b"authorization"), "read")
            body, kind = await metrics(services, self.api)
            await send(reply, 200, body, [(b"content-type", kind.encode())])

    def _described(self) -> bytes:
        """The OpenAPI document, made once for each version of the code."""
        routes = self._services.routes
        if self._document is None or self._document[0] is not routes:
            table = [(line.method, line.path, line.scope) for line in self.api.table()]
            self._document = routes, encode(describe(self._services.manifest, routes, table))
        return self._document[1]

    async def _not_allowed(self, scope: Scope, reply: Send, allowed: set[str]) -> None:
        shown = _shown(allowed)
        error = {
            "code": "method_not_allowed",
            "message": f"{scope['method']} is not allowed for {scope['path']}",
            "hint": f"Allowed: {shown}.",
        }
        await send_json(reply, {"error": error}, status=405, headers=[(b"allow", shown.encode())])


def _shown(methods: set[str]) -> str:
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _raw_path(scope: Scope) -> str:
    """The path as it was sent, percent-encoded, without the query."""
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"]
    return raw.decode("latin-1").partition("?")[0] if raw else path
