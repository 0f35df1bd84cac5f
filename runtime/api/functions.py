"""`/v1/functions`, their books, and what is closed for a time.

Imports this room and the rooms below.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.runtime.api.endpoint import Endpoint, answer
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest
from headrace.runtime.model.audit import ENDS
from headrace.runtime.model.destination import shown_destination
from headrace.runtime.model.spec import FunctionSpec


class Functions:
    """The endpoints of functions, their books and closures."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/stats", self.stats, "read"),
            Endpoint("GET", "/v1/functions", self.functions, "read"),
            Endpoint("GET", "/v1/functions/{name}", self.function, "read"),
            Endpoint("POST", "/v1/functions/{name}/pause", self.pause, "write"),
            Endpoint("POST", "/v1/functions/{name}/resume", self.resume, "write"),
            Endpoint("GET", "/v1/closures", self.closures, "read"),
            Endpoint("POST", "/v1/closures/{name:path}/open", self.open, "write"),
            Endpoint("DELETE", "/v1/closures/{name:path}", self.open, "write"),
        ]

    async def stats(self, request: Request) -> Response:
        return answer(await self.books())

    async def functions(self, request: Request) -> Response:
        manifest = self._services.manifest
        paused = self._services.dispatcher.paused
        return answer(
            {
                "version": manifest.version,
                "functions": [
                    _shown_spec(spec, paused)
                    for spec in manifest.functions
                    if not spec.name.startswith("headrace.")
                ],
                "errors": msgspec.to_builtins(manifest.errors),
            }
        )

    async def function(self, request: Request) -> Response:
        spec = self._services.dispatcher.spec(request.path_params["name"])
        paused = self._services.dispatcher.paused
        shown = _shown_spec(spec, paused)
        shown["parameters"] = spec.parameters
        shown["version"] = self._services.manifest.version
        return answer(shown)

    async def pause(self, request: Request) -> Response:
        await self._services.dispatcher.pause(request.path_params["name"], paused=True)
        return answer({"function": request.path_params["name"], "paused": True})

    async def resume(self, request: Request) -> Response:
        await self._services.dispatcher.pause(request.path_params["name"], paused=False)
        return answer({"function": request.path_params["name"], "paused": False})

    async def closures(self, request: Request) -> Response:
        services = self._services
        found = await services.store.closures(now=services.clock.now())
        return answer({"items": msgspec.to_builtins(found)})

    async def open(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name.startswith(("function:", "key:")):
            raise BadRequest(f"{name!r} is no closure's name", "Use function:NAME or key:KEY.")
        await self._services.dispatcher.open(name)
        return answer({"name": name, "open": True})

    async def books(self) -> dict[str, Any]:
        """The books of every function and in all, with the synchronous calls beside them."""
        services = self._services
        counters = await services.store.counters()
        running = services.dispatcher.attempts.by_function()
        now = services.clock.now()
        functions: dict[str, dict[str, Any]] = {}
        names = {*counters, *services.dispatcher.functions, *services.dispatcher.sync}
        for name in sorted(names):
            found = counters.get(name)
            entry = {
                key: getattr(found, key) if found is not None else 0
                for key in (
                    "accepted",
                    "waiting",
                    "running",
                    "succeeded",
                    "dead",
                    "cancelled",
                    "deduplicated",
                )
            }
            entry["removed"] = {
                end: getattr(found, f"removed_{end}") if found is not None else 0 for end in ENDS
            }
            # A short claim is not written: what the pool holds of the waiting ones is running.
            unwritten = min(max(running.get(name, 0) - entry["running"], 0), entry["waiting"])
            entry["waiting"] -= unwritten
            entry["running"] += unwritten
            entry["throttled"] = services.dispatcher.throttled.get(name, 0)
            oldest = found.oldest_accepted_at if found is not None else None
            entry["oldest_waiting_s"] = (
                max(now - oldest, 0.0) if oldest is not None and entry["waiting"] else 0.0
            )
            sync = services.dispatcher.sync.get(name)
            entry["sync"] = (
                msgspec.to_builtins(sync)
                if sync is not None
                else {
                    "invoked": 0,
                    "succeeded": 0,
                    "failed": 0,
                    "throttled": 0,
                }
            )
            functions[name] = entry
        total: dict[str, Any] = {}
        for entry in functions.values():
            for key, value in entry.items():
                if isinstance(value, dict):
                    at = total.setdefault(key, {})
                    for name, count in value.items():
                        at[name] = at.get(name, 0) + count
                elif key == "oldest_waiting_s":
                    total[key] = max(total.get(key, 0.0), value)
                else:
                    total[key] = total.get(key, 0) + value
        return {"total": total, "functions": functions}


def _shown_target(destination: str | None) -> str | None:
    return None if destination is None else shown_destination(destination)


def _shown_spec(spec: FunctionSpec, paused: set[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": spec.name,
        "kind": "job" if spec.job is not None else "function",
        "doc": spec.doc,
        "file": spec.file,
        "line": spec.line,
        "paused": spec.name in paused,
        "timeout_s": spec.timeout_s,
        "memory_bytes": spec.memory_bytes,
        "retries": spec.retry.retries,
        "max_age_s": spec.max_age_s,
        "memory_max_bytes": spec.memory_max_bytes,
        "reserved_concurrency": spec.reserved_concurrency,
        "rate": spec.rate,
        "rate_burst": spec.rate_burst if spec.rate is not None else None,
        "concurrency_key": ".".join(spec.concurrency_key) or None,
        "key_concurrency": spec.key_concurrency,
        "weight": spec.weight,
        "priority": spec.priority,
        "on_failure": _shown_target(spec.on_failure),
        "on_success": _shown_target(spec.on_success),
        "idempotency_ttl_s": spec.idempotency_ttl_s,
        "triggers": [{"kind": item.kind, **item.fields} for item in spec.triggers],
    }
    if spec.job is not None:
        shown["job"] = msgspec.to_builtins(spec.job)
    return shown
