"""Who may call: tokens with scopes, and the checks of Host and Origin that keep web pages out.

Imports the floor only. Tokens are compared by their SHA-256, so that the comparison takes the same time
whatever was sent.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from headrace.runtime.errors import Forbidden, Unauthorized

SCOPES = ("invoke", "read", "write", "code", "events", "admin")


class Token:
    """A named token: its hash and its scopes."""

    __slots__ = ("digest", "name", "scopes")

    def __init__(self, name: str, secret: str, scopes: Iterable[str]) -> None:
        self.name = name
        self.digest = hashlib.sha256(secret.encode()).digest()
        self.scopes = frozenset(scopes)


class Access:
    """The configured tokens. `hosts` are the names under which the node may be called; empty allows any."""

    def __init__(self, tokens: Iterable[Token], *, hosts: Iterable[str] = ()) -> None:
        self._tokens = list(tokens)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, Token] = {}
        self._accepted: set[str] = set()

    def check(self, authorization: str | None, scope: str) -> Token:
        """The caller's token. Raises Unauthorized without a valid one, Forbidden when it lacks the scope."""
        if not authorization:
            raise Unauthorized("a token is needed")
        token = self._known.get(authorization)
        if token is None:
            kind, _, secret = authorization.partition(" ")
            if kind.lower() != "bearer" or not secret:
                raise Unauthorized("the Authorization header is not of the form `Bearer TOKEN`")
            digest = hashlib.sha256(secret.strip().encode()).digest()
            for candidate in self._tokens:
                if hmac.compare_digest(candidate.digest, digest):
                    token = candidate
            if token is None:
                raise Unauthorized("the token is not known")
            if len(self._known) < 1000:
                self._known[authorization] = token
        if scope not in token.scopes and "admin" not in token.scopes:
            raise Forbidden(f"the token {token.name!r} lacks the scope {scope!r}")
        return token

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
