"""The application: one ASGI callable that sends each call to its place.

Imports this room. The order of checks is that of their cost: host, then the fast paths, then everything else.
"""

from typing import Any
from urllib.parse import unquote

from headrace.runtime.api.answers import Receive, Scope, Send, header, send, send_error, send_json
from headrace.runtime.api.calls import Calls
from headrace.runtime.api.openapi import describe
from headrace.runtime.api.receiver import PATH as RECEIVER
from headrace.runtime.api.receiver import Receiver
from headrace.runtime.api.services import Services
from headrace.runtime.api.v1 import Api
from headrace.runtime.errors import BadRequest, HeadraceError

_FUNCTIONS = "/v1/functions/"


class Application:
    """What uvicorn serves."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._calls = Calls(services)
        self._receiver = Receiver(services)
        self.api = Api(services, self._calls)
        self._v1 = self.api.app()

    async def __call__(self, scope: Scope, receive: Receive, send_message: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send_message({"type": "websocket.close", "code": 1003})
            return
        began = False

        async def reply(message: Any) -> None:
            nonlocal began
            began = True
            await send_message(message)

        try:
            await self._serve(scope, receive, reply)
        except HeadraceError as error:
            if not began:
                await send_error(reply, error)
        except Exception as error:  # the outermost loop of a request: recorded, and answered without a stack
            self._services.report(
                "a request failed", {"path": scope["path"], "error": f"{type(error).__name__}: {error}"}
            )
            if not began:
                failed = HeadraceError("the node failed to answer; its log says why")
                await send_error(reply, failed)

    async def _serve(self, scope: Scope, receive: Receive, reply: Send) -> None:
        services = self._services
        path: str = scope["path"]
        host = header(scope, b"host") or ""
        services.access.check_host(host)
        if path == "/v1" or path.startswith("/v1/"):
            origin = header(scope, b"origin")
            if origin is not None:
                services.access.check_origin(origin, host)
            if path.startswith(_FUNCTIONS) and scope["method"] == "POST":
                name, _, action = path[len(_FUNCTIONS) :].rpartition("/")
                if action in ("invoke", "invoke-many"):
                    kind = header(scope, b"content-type")
                    if kind is not None and "json" not in kind:
                        raise BadRequest(
                            "the content type is not JSON", "Send content-type: application/json."
                        )
                    token = services.access.check(header(scope, b"authorization"), "invoke")
                    if name == "headrace.call" and "admin" not in token.scopes:
                        services.access.check(header(scope, b"authorization"), "code")
                    if action == "invoke":
                        await self._calls.invoke(unquote(name), scope, receive, reply)
                    else:
                        await self._calls.invoke_many(unquote(name), scope, receive, reply)
                    return
            if path == RECEIVER and scope["method"] == "POST":
                await self._receiver.receive(scope, receive, reply)
                return
            await self._v1(scope, receive, reply)
            return
        raw = scope.get("raw_path")
        raw_path = raw.decode("latin-1").partition("?")[0] if raw else path
        endpoint, parameters, allowed = services.routes.find(scope["method"], path, raw_path)
        if endpoint is not None:
            await self._calls.route(endpoint, parameters, scope, receive, reply)
        elif path == "/healthz":
            await send_json(reply, {"status": "ok"})
        elif path == "/readyz":
            why = services.ready()
            shown = {"status": "ready"} if why is None else {"status": "not ready", "reason": why}
            await send_json(reply, shown, status=200 if why is None else 503)
        elif path == "/openapi.json":
            await send_json(reply, describe(services.manifest, services.routes))
        elif path == "/metrics":
            from headrace.runtime.api.metrics import metrics

            services.access.check(header(scope, b"authorization"), "read")
            body, kind = await metrics(services, self.api)
            await send(reply, 200, body, [(b"content-type", kind.encode())])
        elif allowed:
            error = {
                "code": "method_not_allowed",
                "message": f"{scope['method']} is not allowed for {path}",
                "hint": f"Allowed: {', '.join(sorted(allowed))}.",
            }
            headers = [(b"allow", ", ".join(sorted(allowed)).encode())]
            await send_json(reply, {"error": error}, status=405, headers=headers)
        else:
            error = {
                "code": "not_found",
                "message": f"no function answers at {path}",
                "hint": "`headrace functions` lists the routes.",
            }
            await send_json(reply, {"error": error}, status=404)
