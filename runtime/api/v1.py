"""`/v1`: the table of everything else that clients ask, on Starlette's routing.

Imports this room and the rooms below.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from headrace.runtime.api.calls import Calls
from headrace.runtime.api.connecting import Connecting
from headrace.runtime.api.dead_letters import DeadLetters
from headrace.runtime.api.endpoint import Endpoint, answer, error_answer
from headrace.runtime.api.facts import Facts
from headrace.runtime.api.functions import Functions
from headrace.runtime.api.invocations import Invocations
from headrace.runtime.api.jobs import Jobs
from headrace.runtime.api.objects import Objects
from headrace.runtime.api.records import Records
from headrace.runtime.api.schedules import Schedules
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, HeadraceError, UnknownVersion
from headrace.runtime.store.verify import NAMED_MAX, Verifier

NAMED_LIMIT_MAX = 10_000


class Api:
    """The endpoints of `/v1` but the calls of functions."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._services = services
        self._verifier: Verifier | None = None
        self._facts = Facts(services)
        self.functions = Functions(services)
        records = Records(services)
        self._groups = (
            Invocations(services, calls, records),
            self.functions,
            DeadLetters(services, calls, records),
            Jobs(services, records),
            Objects(services),
            Connecting(services),
            Schedules(services),
            self,
        )

    @property
    def verifier(self) -> Verifier:
        """What verifies the node's store and objects, and remembers the last verdict."""
        if self._verifier is None:
            of = self._services
            self._verifier = Verifier(of.store, of.objects, clock=of.clock, in_thread=of.in_thread)
        return self._verifier

    def app(self) -> Starlette:
        """All of them as one application."""
        return Starlette(
            routes=[self._route(endpoint) for endpoint in self.table()],
            exception_handlers={HTTPException: _http_error, Exception: _failed},
        )

    def table(self) -> list[Endpoint]:
        """All lines of the table."""
        return [endpoint for group in self._groups for endpoint in group.endpoints()]

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/verify", self.verify, "read"),
            Endpoint("GET", "/v1/why/{id:path}", self.why, "read"),
            Endpoint("GET", "/v1/code/{version}", self.code, "code"),
            Endpoint("GET", "/v1/node", self.node, "read"),
        ]

    def _route(self, endpoint: Endpoint) -> Route:
        access = self._services.access

        async def checked(request: Request) -> Response:
            try:
                if endpoint.scope:
                    access.check(request.headers.get("authorization"), endpoint.scope)
                if endpoint.takes_json and "json" not in request.headers.get("content-type", ""):
                    raise BadRequest("the content type is not JSON", "Send content-type: application/json.")
                return await endpoint.handler(request)
            except HeadraceError as error:
                return error_answer(error)

        return Route(endpoint.path, checked, methods=[endpoint.method])

    async def verify(self, request: Request) -> Response:
        query = request.query_params
        objects = query.get("objects") or "true"
        if objects not in ("true", "false"):
            raise BadRequest(f"objects is {objects!r}", "It is true or false.")
        text = query.get("limit") or str(NAMED_MAX)
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= NAMED_LIMIT_MAX:
            raise BadRequest(f"limit is {text!r}", f"It must be a whole number, 1 to {NAMED_LIMIT_MAX:,}.")
        verdict = await self.verifier.verify(
            function=query.get("function"), objects=objects == "true", limit=int(text)
        )
        return answer(verdict.document())

    async def why(self, request: Request) -> Response:
        return answer(await self._facts.why(request.path_params["id"]))

    async def code(self, request: Request) -> Response:
        version = request.path_params["version"]
        about = await self._services.versions.about(version)
        if about is None or not about.kept:
            raise UnknownVersion(version, about.note if about is not None else "")
        data = await self._services.versions.zipped(version)
        headers = {"content-disposition": f'attachment; filename="{about.version}.zip"'}
        return Response(data, media_type="application/zip", headers=headers)

    async def node(self, request: Request) -> Response:
        return answer({**self._services.health(), "store": await self._services.store.health()})


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody expected, in the form of every other error; the application records it."""
    return error_answer(HeadraceError("the node failed to answer; its log says why"))


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    hint = "docs/guide/api.md lists the paths."
    if status == 405:
        allowed = ", ".join(sorted(_allowed(request)))
        body = {
            "code": "method_not_allowed",
            "message": f"{request.method} is not allowed here",
            "hint": f"Allowed: {allowed}.",
        }
        answered = answer({"error": body}, status)
        answered.headers["allow"] = allowed
        return answered
    body = {"code": "not_found", "message": f"there is nothing at {request.url.path}", "hint": hint}
    return answer({"error": body}, status)


def _allowed(request: Request) -> set[str]:
    """The methods that the table has for a path: those of the first line that means it, and of its like."""
    meant = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return set().union(*(route.methods for route in meant if route.path == meant[0].path))
