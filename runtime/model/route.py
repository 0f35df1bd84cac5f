"""Route rules: what holds for a route before its function is called, as plain values.

Imports `errors` only.
"""

import re
from collections.abc import Sequence

import msgspec

from headrace.runtime.errors import InvalidFunction

_ORIGIN = re.compile(
    r"https?://(\*\.)?[A-Za-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-fA-F:]+\](:[0-9]{1,5})?"
)
_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADERS = (
    "authorization",
    "content-type",
    "idempotency-key",
    "idempotency-ttl",
    "x-api-key",
    "x-request-id",
)
_EXPOSED = ("etag", "headrace-invocation-id", "headrace-repeated", "location", "retry-after", "x-request-id")
MAX_AGE_S_MAX = 86_400


class Cors(msgspec.Struct, frozen=True):
    """Which web pages of other sites may call a route, and see its answers.

    Args:
        origins: one, or several: `"https://shop.example"`, `"https://*.shop.example"` for all hosts below
            that one, or `"*"` for every page.
        headers: request headers beside those that are always allowed (content-type, authorization,
            x-api-key, x-request-id, idempotency-key, idempotency-ttl).
        expose: answer headers that pages may read beside Headrace's own.
        credentials: pages may send cookies and HTTP logins along; not with the origin `"*"`.
        max_age: seconds for which browsers remember this, 0 to 86,400.

    Raises: InvalidFunction for an origin of another form, and for `"*"` with credentials.
    Source: the Fetch standard, "CORS protocol".
    """

    origins: str | Sequence[str]
    headers: Sequence[str] = ()
    expose: Sequence[str] = ()
    credentials: bool = False
    max_age: int = 600

    def __post_init__(self) -> None:
        for name in ("origins", "headers", "expose"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(value, str) for value in values):
                raise InvalidFunction("Cors(…)", f"{name} is {given!r}", "Give texts.")
            msgspec.structs.force_setattr(self, name, values)
        if not self.origins:
            raise InvalidFunction("Cors(…)", "no origin is named", 'Give one: Cors("https://shop.example").')
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InvalidFunction(
                    "Cors(…)", f"{origin!r} is no origin", "Write scheme, host and port: https://shop.example"
                )
        if "*" in self.origins and self.credentials:
            raise InvalidFunction(
                "Cors(…)", '"*" would let every page use its visitors\' logins', "Name the origins."
            )
        for field in (*self.headers, *self.expose):
            if not _FIELD.fullmatch(field) or field == "*":
                raise InvalidFunction("Cors(…)", f"{field!r} is no header's name", "Name each header.")
        if not 0 <= self.max_age <= MAX_AGE_S_MAX:
            raise InvalidFunction("Cors(…)", f"max_age is {self.max_age!r}", "It must be 0 to 86,400 s.")

    @property
    def public(self) -> bool:
        """Whether every page may call."""
        return "*" in self.origins

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may call; `null`, which any page can make itself, only with `"*"`."""
        if self.public:
            return True
        given = origin.lower()
        for known in self.origins:
            known = known.lower()
            if given == known:
                return True
            scheme, star, parent = known.partition("://*.")
            if star and given.startswith(f"{scheme}://") and given.endswith(f".{parent}"):
                return _ORIGIN.fullmatch(given) is not None
        return False

    def answer_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """What the answer to a page's call holds; caches are told that it depends on the page."""
        if self.public:
            out = [(b"access-control-allow-origin", b"*")]
        elif origin is None or not self.allows(origin):
            return [(b"vary", b"origin")]
        else:
            out = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
            if self.credentials:
                out.append((b"access-control-allow-credentials", b"true"))
        exposed = ", ".join(sorted({*_EXPOSED, *(name.lower() for name in self.expose)}))
        out.append((b"access-control-expose-headers", exposed.encode()))
        return out

    def preflight_headers(self, origin: str, methods: Sequence[str]) -> list[tuple[bytes, bytes]]:
        """What the answer to a page's question holds whether it may call by these methods."""
        out = [item for item in self.answer_headers(origin) if item[0] != b"access-control-expose-headers"]
        if not self.allows(origin):
            return out
        headers = ", ".join(sorted({*_HEADERS, *(name.lower() for name in self.headers)}))
        return [
            *out,
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", headers.encode()),
            (b"access-control-max-age", str(self.max_age).encode()),
        ]


class RouteRules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a route before its function is called.

    `scope` is what a caller's key must have, None when anybody may call: `invoke`, or one of the user's own,
    which holds a dot. `accepts` are media types, None for what the function's types take. `body_bytes` is the
    body's limit, None for the node's. With `etag` answers to GET have one made from their body; with
    `callback` an asynchronous call may name a URL that is told of the end.
    """

    cors: Cors | None = None
    scope: str | None = None
    accepts: tuple[str, ...] | None = None
    body_bytes: int | None = None
    etag: bool = False
    callback: bool = False


CALLBACK_HEADER = "headrace-callback"
"""The header in which a caller names the URL that is told of the end."""
