"""`Http(...)`: turns a matching HTTP call into an event of API Gateway's shape, and a result into an answer.

Imports the trigger protocol and the model. Source of the event's shape: "Create AWS Lambda proxy integrations
for HTTP APIs in API Gateway", payload format version 2.0.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl

import msgspec

from headrace.runtime.errors import FunctionError, InvalidFunction
from headrace.runtime.trigger import HttpAnswer, HttpCall, Options, Source, TriggerContext

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SERVERS = ("connection", "content-length", "transfer-encoding")
"""Headers that only the server knows."""
# What would end a header, and so let a caller's input write others, is refused. Source: RFC 9110, 5.5.
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_encode = msgspec.json.encode
_decode = msgspec.json.decode
_JSON = [("content-type", "application/json")]


class Http:
    """Call the function when an HTTP request matches.

    Args:
        method: GET, POST, PUT, PATCH, DELETE, HEAD or OPTIONS.
        path: begins with `/`; `{name}` matches one segment, `{name:path}` the rest. `/v1` and `/console`
            are reserved.
        asynchronous: answer 202 with an invocation id once the call is recorded, instead of waiting for
            the result.

    Raises: InvalidFunction for another method, or a path that cannot be served.
    """

    kind: ClassVar[str] = "http"
    sample_options: ClassVar[Mapping[str, str]] = {
        "method": "GET, POST and so on",
        "path": "the path, with a query behind ? where there is one",
        "query": "the query, instead of the path's",
        "header": "NAME: VALUE; may be given several times",
        "body": "the body's text",
        "ip": "the caller's address",
        "request-id": "the call's own id",
    }

    def __init__(self, method: str, path: str, *, asynchronous: bool = False) -> None:
        self.method = method.upper()
        self.path = path
        self.asynchronous = asynchronous
        if self.method not in METHODS:
            raise InvalidFunction(
                f"Http({method!r}, {path!r})",
                f"{method!r} is not an HTTP method",
                f"Use one of {', '.join(METHODS)}.",
            )
        if not path.startswith("/"):
            raise InvalidFunction(
                f"Http({method!r}, {path!r})", "the path must begin with /", f'Write "/{path}".'
            )
        if path.split("/")[1] in ("v1", "console"):
            raise InvalidFunction(
                f"Http({method!r}, {path!r})", "/v1 and /console are reserved", "Choose another path."
            )
        rest = _PARAMETER.sub("", path)
        if "{" in rest or "}" in rest:
            raise InvalidFunction(
                f"Http({method!r}, {path!r})",
                "a path parameter is not of the form {name}",
                "Write for example /products/{id}.",
            )
        names = [name for name, _ in _PARAMETER.findall(path)]
        if len(set(names)) != len(names):
            raise InvalidFunction(
                f"Http({method!r}, {path!r})", "a path parameter occurs twice", "Give each its own name."
            )

    def __repr__(self) -> str:
        return f"Http({self.method!r}, {self.path!r})"

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return [name for name, _ in _PARAMETER.findall(self.path)]

    def fields(self) -> dict[str, Any]:
        return {"method": self.method, "path": self.path, "asynchronous": self.asynchronous}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(fields["method"], fields["path"], asynchronous=fields.get("asynchronous", False))

    @classmethod
    def sample(
        cls, options: Options, *, like: Self | None, name: str, moment: float, id: str
    ) -> Mapping[str, Any]:
        """See Sampled."""
        from headrace.triggers.http.sample import sample_call

        return sample_call(options, like, moment, id)

    def source(self, context: TriggerContext) -> Source | None:
        return None

    def routes(self) -> Sequence["Http"]:
        return (self,)

    def event(self, call: HttpCall) -> bytes:
        """The call as an event, in API Gateway's payload format 2.0."""
        headers: dict[str, str] = {}
        cookies: list[str] = []
        for name, value in call.headers:
            if name == "cookie":
                cookies.extend(part.strip() for part in value.split(";"))
            else:
                headers[name] = f"{headers[name]},{value}" if name in headers else value
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": f"{self.method} {self.path}",
            "rawPath": call.path,
            "rawQueryString": call.query,
            "headers": headers,
            "requestContext": {
                "http": {
                    "method": call.method,
                    "path": call.path,
                    "protocol": "HTTP/1.1",
                    "sourceIp": call.client_ip,
                    "userAgent": headers.get("user-agent", ""),
                },
                "requestId": call.request_id,
                "routeKey": f"{self.method} {self.path}",
                "time": _log_time(int(call.received_at)),
                "timeEpoch": int(call.received_at * 1000),
            },
            "isBase64Encoded": False,
        }
        if cookies:
            event["cookies"] = cookies
        if call.query:
            query: dict[str, str] = {}
            for name, value in parse_qsl(call.query, keep_blank_values=True):
                query[name] = f"{query[name]},{value}" if name in query else value
            event["queryStringParameters"] = query
        if call.path_parameters:
            event["pathParameters"] = call.path_parameters
        if call.body:
            try:
                event["body"] = call.body.decode()
            except UnicodeDecodeError:
                event["body"] = base64.b64encode(call.body).decode()
                event["isBase64Encoded"] = True
        return _encode(event)

    def answer(self, result: bytes) -> HttpAnswer:
        """The function's result as JSON with status 200, or as it says itself when it is an object with
        `statusCode`.
        """
        if b'"statusCode"' not in result:
            return HttpAnswer(200, _JSON, result)
        shaped = _decode(result)
        if not isinstance(shaped, dict) or not isinstance(shaped.get("statusCode"), int):
            return HttpAnswer(200, _JSON, result)
        try:
            return _shaped(shaped)
        except (TypeError, ValueError, AttributeError) as error:
            detail: dict[str, object] = {"code": FunctionError.code, "type": type(error).__name__}
            raise FunctionError(f"the function's answer cannot be sent: {error}", detail) from None


def _shaped(shaped: dict[str, Any]) -> HttpAnswer:
    """What a result with `statusCode` says. Raises TypeError, ValueError or AttributeError where HTTP has no
    place for it.
    """
    status = shaped["statusCode"]
    if isinstance(status, bool) or not 200 <= status <= 599:
        raise ValueError(f"statusCode is {status!r}; it must be from 200 to 599")
    headers = [(str(name).lower(), str(value)) for name, value in (shaped.get("headers") or {}).items()]
    headers = [item for item in headers if item[0] not in _SERVERS]
    headers.extend(("set-cookie", str(cookie)) for cookie in shaped.get("cookies") or ())
    body = shaped.get("body")
    if body is None:
        data = b""
    elif shaped.get("isBase64Encoded"):
        data = base64.b64decode(body, validate=True)
    elif isinstance(body, str):
        data = body.encode()
    else:
        data = _encode(body)
    if data and not any(name == "content-type" for name, _ in headers):
        headers.append(
            ("content-type", "text/plain; charset=utf-8" if isinstance(body, str) else "application/json")
        )
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the header {name!r} is {value!r}")
    return HttpAnswer(status, headers, data)


@lru_cache(maxsize=8)
def _log_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
