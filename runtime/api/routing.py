"""Routes of users: which function answers a method and a path.

Imports the trigger protocol. Exact paths are one dictionary look-up; paths with parameters are tried in
order, the ones with more fixed text first.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.trigger import Route

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_SLASH = "\udc2f"
"""Stands for a slash inside a parameter: no decoded text can hold a lone surrogate."""


class Endpoint:
    """A route and the function behind it."""

    __slots__ = ("function", "is_job", "names", "pattern", "route")

    def __init__(self, route: Route, function: str, *, is_job: bool = False) -> None:
        self.route = route
        self.function = function
        self.is_job = is_job
        self.names = [name for name, _ in _PARAMETER.findall(route.path)]
        parts, at = [], 0
        for found in _PARAMETER.finditer(route.path):
            parts.append(re.escape(route.path[at : found.start()]))
            parts.append(f"(?P<{found[1]}>.+)" if found[2] else f"(?P<{found[1]}>[^/]+)")
            at = found.end()
        parts.append(re.escape(route.path[at:]))
        self.pattern = re.compile("".join(parts), re.DOTALL)


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
