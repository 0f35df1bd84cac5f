"""A sample event of an HTTP call, as the route makes it of one.

Imports the trigger protocol and its own room.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from headrace.runtime.errors import BadRequest
from headrace.runtime.trigger import HttpCall, Options, the_option
from headrace.triggers.http.trigger import METHODS, Http

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


def sample_call(options: Options, like: Http | None, moment: float, id: str) -> Mapping[str, Any]:
    """See Sampled. A path parameter that is not said has its own name as its value."""
    method = the_option(options, "method", like.method if like is not None else "GET").upper()
    given = the_option(options, "path", "")
    if method not in METHODS:
        raise BadRequest(f"method is {method!r}", f"Use one of {', '.join(METHODS)}.")
    if like is None:
        path, query = _parted(given or "/")
        if not path.startswith("/"):
            raise BadRequest(f"path is {path!r}", "It begins with /.")
        like = Http(method, re.sub(r"[{}]", "", path))
        parameters: dict[str, str] = {}
    else:
        path, query = _parted(given or _PARAMETER.sub(lambda found: found[1], like.path))
        parameters = _parameters(like, path)
        if method != like.method:
            raise BadRequest(f"{like!r} takes no {method}", f"Leave the method out, or say {like.method}.")
    query = the_option(options, "query", query)
    body = the_option(options, "body", "").encode()
    headers = {"host": "127.0.0.1:8080", "user-agent": "headrace", "accept": "*/*"}
    if body:
        headers["content-type"] = "application/json" if _is_json(body) else "text/plain"
        headers["content-length"] = str(len(body))
    sent = list(headers.items())
    for header in options.get("header", ()):
        field, mark, value = header.partition(":")
        if not mark or not field.strip():
            raise BadRequest(f"header is {header!r}", "Write it as NAME: VALUE.")
        field = field.strip().lower()
        sent = [item for item in sent if item[0] != field or item[0] not in headers]
        sent.append((field, value.strip()))
    call = HttpCall(
        method, unquote(path), query, sent, body, parameters,
        the_option(options, "ip", "127.0.0.1"), the_option(options, "request-id", id), moment,
    )  # fmt: skip
    made: Mapping[str, Any] = json.loads(like.event(call))
    return made


def _parted(text: str) -> tuple[str, str]:
    path, _, query = text.partition("?")
    return quote(unquote(path), safe="/:@!$&'()*+,;=~-._"), query


def _parameters(route: Http, path: str) -> dict[str, str]:
    pattern, end = "", 0
    for found in _PARAMETER.finditer(route.path):
        pattern += re.escape(route.path[end : found.start()])
        pattern += f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})"
        end = found.end()
    matched = re.fullmatch(pattern + re.escape(route.path[end:]), path)
    if matched is None:
        raise BadRequest(f"{path} is no path of {route!r}", f"Write one like {route.path}.")
    return {name: unquote(value) for name, value in matched.groupdict().items()}


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
