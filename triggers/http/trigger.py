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

from headrace.runtime.errors import FunctionError, InvalidFunction, InvalidSettings
from headrace.runtime.model.route import CALLBACK_HEADER, Cors, RouteRules
from headrace.runtime.model.size import read_size
from headrace.runtime.trigger import HttpAnswer, HttpCall, Options, Source, TriggerContext
from headrace.triggers.http.webhook import Webhook

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_SCOPE = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_MEDIA = re.compile(r"[a-z0-9!#$&^_.+-]+/([a-z0-9!#$&^_.+-]+|\*)|\*/\*")
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
        asynchronous: answer 202 with an invocation id and a URL for its status once the call is recorded,
            instead of waiting for the result.
        cors: which web pages of other sites may call.
        key: True to ask for a key that may call this function; or a scope of your own, which holds a dot
            (`"orders.write"`), to ask for a key with that scope.
        accepts: the media types that are taken, another one is answered 415; by default what the
            function's `body` can be made from.
        max_body: bytes of the body, or a text such as "64 KiB"; by default, and at the most, the node's
            `body_bytes_sync` or `body_bytes_async`.
        etag: answers to GET have an ETag made from their body, and If-None-Match is answered 304.
        callback: an asynchronous call may name a URL in a header `Headrace-Callback`, which is told of the
            end, signed.
        webhook: the service whose signature each call must have.

    What is not given is the App's, where it has such a setting. Raises: InvalidFunction for another method,
    or a path or a setting that cannot be used.
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

    def __init__(
        self,
        method: str,
        path: str,
        *,
        asynchronous: bool = False,
        cors: Cors | None = None,
        key: bool | str | None = None,
        accepts: str | Sequence[str] | None = None,
        max_body: int | str | None = None,
        etag: bool | None = None,
        callback: bool = False,
        webhook: Webhook | None = None,
    ) -> None:
        self.method = method.upper()
        self.path = path
        self.asynchronous = asynchronous
        self.webhook = webhook
        self._secrets: list[str] = []
        self._key, self._etag = key, etag
        if self.method not in METHODS:
            raise self._refused(f"{method!r} is not an HTTP method", f"Use one of {', '.join(METHODS)}.")
        _check_path(self)
        if callback and not asynchronous:
            raise self._refused("only an asynchronous route calls back", "Add asynchronous=True.")
        if cors is not None and not isinstance(cors, Cors):
            raise self._refused(f"cors is {cors!r}", 'Give Cors("https://shop.example").')
        if webhook is not None and not isinstance(webhook, Webhook):
            raise self._refused(f"webhook is {webhook!r}", 'Give Webhook.github("VARIABLE") or another.')
        self.rules = RouteRules(
            cors=cors,
            scope=self._scope(key),
            accepts=self._media(accepts),
            body_bytes=self._size(max_body),
            etag=bool(etag),
            callback=callback,
        )
        self._route_key = f"{self.method} {path}"

    def _refused(self, why: str, hint: str) -> InvalidFunction:
        return InvalidFunction(f"Http({self.method!r}, {self.path!r})", why, hint)

    def _scope(self, key: bool | str | None) -> str | None:
        if key is None or key is False:
            return None
        if key is True:
            return "invoke"
        if not isinstance(key, str) or not _SCOPE.fullmatch(key):
            raise self._refused(f"key is {key!r}", 'Give True, or a scope that holds a dot: "orders.write".')
        return key

    def _media(self, accepts: str | Sequence[str] | None) -> tuple[str, ...] | None:
        if accepts is None:
            return None
        given = tuple(item.lower() for item in ((accepts,) if isinstance(accepts, str) else accepts))
        for item in given:
            if not _MEDIA.fullmatch(item):
                raise self._refused(
                    f"accepts has {item!r}", 'Name media types: "application/json", "image/*".'
                )
        return given

    def _size(self, max_body: int | str | None) -> int | None:
        if max_body is None:
            return None
        try:
            size = read_size(max_body, field="max_body")
        except InvalidSettings as error:
            raise self._refused(str(error), error.hint) from None
        return size

    def under(self, settings: Mapping[str, Any]) -> "Http":
        """This trigger with an App's settings (`cors`, `key`, `max_body`, `etag`) where it has none."""
        fields = self.fields()
        own = {
            "cors": self.rules.cors,
            "key": self._key,
            "max_body": self.rules.body_bytes,
            "etag": self._etag,
        }
        taken = {name: value for name, value in settings.items() if value is not None and own[name] is None}
        if not taken:
            return self
        if "cors" in taken:
            taken["cors"] = msgspec.to_builtins(taken["cors"])
        return Http.from_fields({**fields, **taken})

    def __repr__(self) -> str:
        return f"Http({self.method!r}, {self.path!r})"

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return [name for name, _ in _PARAMETER.findall(self.path)]

    def fields(self) -> dict[str, Any]:
        rules = self.rules
        fields: dict[str, Any] = {
            "method": self.method,
            "path": self.path,
            "asynchronous": self.asynchronous,
        }
        given = {
            "cors": msgspec.to_builtins(rules.cors) if rules.cors is not None else None,
            "key": self._key,
            "accepts": list(rules.accepts) if rules.accepts is not None else None,
            "max_body": rules.body_bytes,
            "etag": self._etag,
            "callback": rules.callback or None,
            "webhook": msgspec.to_builtins(self.webhook) if self.webhook is not None else None,
        }
        return {**fields, **{name: value for name, value in given.items() if value is not None}}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        settings = {name: value for name, value in fields.items() if name not in ("method", "path")}
        if settings.get("cors") is not None:
            settings["cors"] = Cors(**settings["cors"])
        if settings.get("webhook") is not None:
            settings["webhook"] = msgspec.convert(settings["webhook"], Webhook)
        return cls(fields["method"], fields["path"], **settings)

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
        """Raises InvalidFunction when the environment lacks the secret of its webhook."""
        if self.webhook is not None:
            self._secrets = self.webhook.secrets()
        return (self,)

    def event(self, call: HttpCall) -> bytes:
        """The call as an event, in API Gateway's payload format 2.0. Raises Unauthorized when the signature
        of a webhook is wrong.
        """
        if self.webhook is not None:
            self.webhook.check(call, self._secrets)
        headers: dict[str, str] = {}
        cookies: list[str] = []
        for name, value in call.headers:
            if name in headers:
                headers[name] = f"{headers[name]},{value}"
            elif name == "cookie":
                cookies.extend(part.strip() for part in value.split(";"))
            else:
                headers[name] = value
        if not self.rules.callback:
            headers.pop(CALLBACK_HEADER, None)
        if call.caller:  # the key itself is nobody's business any more
            headers.pop("x-api-key", None)
            headers.pop("authorization", None)
        about: dict[str, Any] = {
            "http": {
                "method": call.method,
                "path": call.path,
                "protocol": "HTTP/1.1",
                "sourceIp": call.client_ip,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": call.request_id,
            "routeKey": self._route_key,
            "time": _log_time(int(call.received_at)),
            "timeEpoch": int(call.received_at * 1000),
        }
        if call.caller:
            about["authorizer"] = {"key": call.caller}
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": self._route_key,
            "rawPath": call.path,
            "rawQueryString": call.query,
            "headers": headers,
            "requestContext": about,
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

    def idempotency_key(self, call: HttpCall) -> str | None:
        """What makes a service's repeat of a call the same call."""
        return self.webhook.delivery_id(call) if self.webhook is not None else None

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


def _check_path(trigger: Http) -> None:
    path = trigger.path
    if not path.startswith("/"):
        raise trigger._refused("the path must begin with /", f'Write "/{path}".')
    if path.split("/")[1] in ("v1", "console"):
        raise trigger._refused("/v1 and /console are reserved", "Choose another path.")
    rest = _PARAMETER.sub("", path)
    if "{" in rest or "}" in rest:
        raise trigger._refused(
            "a path parameter is not of the form {name}", "Write for example /products/{id}."
        )
    names = trigger.parameters
    if len(set(names)) != len(names):
        raise trigger._refused("a path parameter occurs twice", "Give each its own name.")


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
