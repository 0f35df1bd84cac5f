"""Routes of users: which function answers a method and a path.

Imports the trigger protocol. Exact paths are one dictionary look-up; paths with parameters are tried in
order, the ones with more fixed text first.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.route import RouteRules
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.trigger import HttpCall, Route

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_SLASH = "\udc2f"
"""Stands for a slash inside a parameter: no decoded text can hold a lone surrogate."""


_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_JSON = "application/json"
_DEPTH_MAX = 20


class Endpoint:
    """A route and the function behind it; without `spec` nothing is known of what the function takes.

    `accepts` are the media types of bodies, None for any; with `validates` an asynchronous call is compared
    with the function's types before it is accepted.
    """

    __slots__ = (
        "accepts",
        "function",
        "idempotency_key",
        "is_job",
        "names",
        "pattern",
        "route",
        "rules",
        "validates",
    )

    def __init__(
        self, route: Route, function: str, *, is_job: bool = False, spec: FunctionSpec | None = None
    ) -> None:
        self.route = route
        self.function = function
        self.is_job = is_job
        self.rules: RouteRules = getattr(route, "rules", None) or RouteRules()
        self.idempotency_key: Callable[[HttpCall], str | None] | None = getattr(
            route, "idempotency_key", None
        )
        self.validates = route.asynchronous and spec is not None and spec.typed
        self.accepts = self.rules.accepts
        if self.accepts is None and is_job:
            self.accepts = (_JSON,)
        elif self.accepts is None and spec is not None:
            self.accepts = _media_types(body_schema(spec, self))
        self.names = path_names(route.path)
        parts, at = [], 0
        for found in _PARAMETER.finditer(route.path):
            parts.append(re.escape(route.path[at : found.start()]))
            parts.append(f"(?P<{found[1]}>.+)" if found[2] else f"(?P<{found[1]}>[^/]+)")
            at = found.end()
        parts.append(re.escape(route.path[at:]))
        self.pattern = re.compile("".join(parts), re.DOTALL)

    def takes(self, kind: str) -> bool:
        """Whether a body of this content type is taken."""
        if self.accepts is None:
            return True
        kind = kind.partition(";")[0].strip().lower()
        for known in self.accepts:
            if known in (kind, "*/*") or (known.endswith("/*") and kind.startswith(known[:-1])):
                return True
        return kind.endswith("+json") and _JSON in self.accepts


def body_schema(spec: FunctionSpec, endpoint: Endpoint) -> dict[str, Any] | None:
    """The schema of what the function makes of a call's body; None when it looks at the event, or at none."""
    for name, item in spec.parameters.items():
        if item.get("whole") or (name == "body" and name not in path_names(endpoint.route.path)):
            schema: dict[str, Any] = item["schema"]
            return None if item.get("event") else schema
    return None


def path_names(path: str) -> list[str]:
    """The names of a path's parameters."""
    return [name for name, _ in _PARAMETER.findall(path)]


def _media_types(schema: dict[str, Any] | None) -> tuple[str, ...] | None:
    """What a body may be to become a value of this schema; None when it may be anything."""
    if not schema:
        return None
    if any("contentMediaType" in item for item in schema.get("properties", {}).values()):
        return (_FORMS[1],)  # only a form has files
    kinds = _kinds(schema, schema.get("$defs", {}), 0)
    if kinds & {"any", "string"}:
        return None
    return (_JSON, *_FORMS) if "object" in kinds else (_JSON,)


def _kinds(schema: Any, definitions: dict[str, Any], depth: int) -> set[str]:
    """The JSON types that a schema takes at its top."""
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return {"any"}
    if "$ref" in schema:
        return _kinds(definitions.get(schema["$ref"].rpartition("/")[2]), definitions, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return set().union(*(_kinds(one, definitions, depth + 1) for one in schema[several]))
    kind = schema.get("type")
    if kind is None and ("enum" in schema or "const" in schema):
        values = schema.get("enum", [schema.get("const")])
        return {"string"} if any(isinstance(value, str) for value in values) else {"number"}
    if kind is None:
        return {"object"} if "properties" in schema else {"any"}
    return {kind} if isinstance(kind, str) else set(kind)


class RouteTable:
    """All routes of the loaded code. Immutable: a reload makes a new one."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._patterns: list[Endpoint] = []
        shapes: dict[tuple[str, str], Endpoint] = {}
        for endpoint in endpoints:
            shape = (endpoint.route.method, _PARAMETER.sub(r"{\2}", endpoint.route.path))
            if shape in shapes:
                other = shapes[shape].function
                raise InvalidFunction(
                    endpoint.function,
                    f"{endpoint.route.method} {endpoint.route.path} is already served by {other}",
                    "Give one of them another path.",
                )
            shapes[shape] = endpoint
            if endpoint.names:
                self._patterns.append(endpoint)
            else:
                self._exact.setdefault(endpoint.route.path, {})[endpoint.route.method] = endpoint
        self._patterns.sort(key=_order)
        self.endpoints = list(shapes.values())

    def exact(self, method: str, path: str) -> Endpoint | None:
        """The endpoint of a path without parameters: what most calls mean, found at the least cost."""
        found = self._exact.get(path)
        return found.get(method) if found is not None else None

    def has(self, path: str) -> bool:
        """Whether a function has this very path."""
        return path in self._exact

    def methods(self, path: str, raw_path: str) -> dict[str, Endpoint]:
        """The endpoints that answer at a path, by method."""
        found = dict(self._exact.get(path, {}))
        if self._patterns:
            raw_path = unquote(_ENCODED_SLASH.sub(_SLASH, raw_path))
            for endpoint in self._patterns:
                if endpoint.route.method not in found and endpoint.pattern.fullmatch(raw_path):
                    found[endpoint.route.method] = endpoint
        return found

    def find(self, method: str, path: str, raw_path: str) -> tuple[Endpoint | None, dict[str, str], set[str]]:
        """The endpoint, its path's parameters, and the methods that the path would take where the method does
        not fit.

        `raw_path` is the path as it was sent, percent-encoded: a parameter's value may hold an encoded slash.
        """
        exact = self._exact.get(path)
        allowed: set[str] = set()
        if exact is not None:
            endpoint = exact.get(method) or (exact.get("GET") if method == "HEAD" else None)
            if endpoint is not None:
                return endpoint, {}, allowed
            allowed.update(exact)
        if self._patterns:
            raw_path = unquote(_ENCODED_SLASH.sub(_SLASH, raw_path))
        for endpoint in self._patterns:
            found = endpoint.pattern.fullmatch(raw_path)
            if found is None:
                continue
            wanted = endpoint.route.method
            if wanted == method or (method == "HEAD" and wanted == "GET"):
                return endpoint, {k: v.replace(_SLASH, "/") for k, v in found.groupdict().items()}, set()
            allowed.add(wanted)
        return None, {}, allowed


def _order(endpoint: Endpoint) -> tuple[int, int, str]:
    """More fixed text first; then what matches one segment before what matches the rest."""
    path = endpoint.route.path
    return -len(_PARAMETER.sub("", path)), path.count(":path}"), path
