"""Tickets: what lets the caller of an asynchronous route ask for its own invocation, and for no other.

Imports the floor and the object stores. A ticket is the invocation's id and a signature of it, so that
nothing is stored for it, and every node of a cluster, and every start, takes those of the others.
"""

import base64
import hashlib
import hmac
import secrets

from headrace.runtime.errors import NoSuchObject, PreconditionFailed
from headrace.runtime.model.ids import read_id, show_id
from headrace.runtime.objects.key import SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectStore

_KEY = "keys/tickets"
_KEY_BYTES = 32
_MARK_BYTES = 16


class Tickets:
    """Makes and reads tickets with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, id: str) -> str:
        """The ticket of an invocation, which is safe in a URL."""
        return f"{id}.{self._mark(id)}"

    def read(self, ticket: str) -> int | None:
        """The invocation whose ticket it is; None for one that was not made here."""
        id, _, mark = ticket.partition(".")
        number = read_id(id)
        if number is None or not hmac.compare_digest(mark.encode(), self._mark(show_id(number)).encode()):
            return None
        return number

    def _mark(self, id: str) -> str:
        digest = hmac.new(self._secret, id.encode(), hashlib.sha256).digest()[:_MARK_BYTES]
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def shared_secret(objects: ObjectStore) -> bytes:
    """The secret that all nodes of an object store share; the first one that asks makes it. Blocks."""
    try:
        return bytes(objects.get(SYSTEM_BUCKET, _KEY))
    except NoSuchObject:
        pass
    made = secrets.token_bytes(_KEY_BYTES)
    try:
        objects.put(SYSTEM_BUCKET, _KEY, made, if_none_match=True)
    except PreconditionFailed:  # another node was first: its secret is everybody's
        return bytes(objects.get(SYSTEM_BUCKET, _KEY))
    return made
