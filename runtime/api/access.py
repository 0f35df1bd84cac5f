"""Who may call: tokens with scopes, and the checks of Host and Origin that keep web pages out.

Imports the floor only. Tokens are compared by their SHA-256, so that the comparison takes the same time
whatever was sent.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from headrace.runtime.errors import Forbidden, Unauthorized

SCOPES = ("invoke", "read", "write", "code", "events", "admin")


_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_KNOWN_MAX = 1000


class Token:
    """A named token: its hash and its scopes. `secret` is the secret itself, or `sha256:` and its hash in
    hexadecimal digits; the scope `invoke@PATTERN` is `invoke` for the functions of that pattern.
    """

    __slots__ = ("digest", "functions", "name", "scopes")

    def __init__(self, name: str, secret: str, scopes: Iterable[str]) -> None:
        self.name = name
        hashed = _HASHED.fullmatch(secret)
        self.digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(secret.encode()).digest()
        self.scopes = frozenset(scopes)
        self.functions = tuple(scope[7:] for scope in self.scopes if scope.startswith("invoke@"))

    def has(self, scope: str, function: str | None = None) -> bool:
        """Whether it may do what needs this scope, to this function where one is named."""
        if scope in self.scopes or "admin" in self.scopes:
            return True
        if scope != "invoke" or function is None:
            return False
        return any(fnmatchcase(function, pattern) for pattern in self.functions)


class Access:
    """The configured tokens. `hosts` are the names under which the node may be called; empty allows any."""

    def __init__(self, tokens: Iterable[Token], *, hosts: Iterable[str] = ()) -> None:
        self._tokens = list(tokens)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, Token] = {}
        self._accepted: set[str] = set()

    def check(self, authorization: str | None, scope: str, function: str | None = None) -> Token:
        """The caller's token. `function` is what is called, where that may matter.

        Raises Unauthorized without a valid one, Forbidden when it lacks the scope.
        """
        if not authorization:
            raise Unauthorized("a token is needed")
        token = self._known.get(authorization)
        if token is None:
            kind, _, secret = authorization.partition(" ")
            if kind.lower() != "bearer" or not secret:
                raise Unauthorized("the Authorization header is not of the form `Bearer TOKEN`")
            token = self._find(secret.strip())
            if token is None:
                raise Unauthorized("the token is not known")
            if len(self._known) < _KNOWN_MAX:
                self._known[authorization] = token
        if scope not in token.scopes and not token.has(scope, function):
            raise Forbidden(f"the token {token.name!r} lacks the scope {scope!r}")
        return token

    def check_key(self, key: str | None, authorization: str | None, scope: str, function: str) -> Token:
        """The token that came as `X-Api-Key`, else as a bearer token. Raises as `check` does."""
        return self.check(f"Bearer {key}" if key else authorization, scope, function)

    def _find(self, secret: str) -> Token | None:
        """The token of a secret. All are compared, so that the time does not tell how far a guess got."""
        digest = hashlib.sha256(secret.encode()).digest()
        found = None
        for candidate in self._tokens:
            if hmac.compare_digest(candidate.digest, digest):
                found = candidate
        return found

    def check_host(self, host: str) -> None:
        """Raises Forbidden for a name under which the node is not served (a rebound DNS name, for one)."""
        if not self._hosts or host in self._accepted:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name not in self._hosts and not is_loopback(name):
            raise Forbidden(f"the node is not served under the name {host!r}")
        if len(self._accepted) < 100:
            self._accepted.add(host)

    def check_origin(self, origin: str, host: str) -> None:
        """Raises Forbidden for a web page of another site."""
        if urlsplit(origin).netloc.lower() != host.lower():
            raise Forbidden(f"pages of {origin!r} may not call this API")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
