"""Media types: whether a body is of a form that is taken.

Imports this room and the floor.
"""

from headrace.runtime.api.answers import Scope, header, headers_of
from headrace.runtime.api.routing import Endpoint
from headrace.runtime.errors import UnsupportedMediaType


def check_coding(scope: Scope) -> None:
    """Raises UnsupportedMediaType for a body that is compressed."""
    coding = header(scope, b"content-encoding") or ""
    if coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(f"the encoding {coding[:50]!r}", "the body as it is, not compressed")


def check_media_type(endpoint: Endpoint, scope: Scope) -> None:
    """Raises UnsupportedMediaType for a body that is encoded, or of a type that is not taken."""
    if b"content-encoding" in headers_of(scope):
        check_coding(scope)
    accepts = endpoint.accepts
    if accepts is None:
        return
    kind = header(scope, b"content-type")
    if kind is not None and kind not in accepts and not endpoint.takes(kind):
        raise UnsupportedMediaType(f"the type {kind[:100]!r}", " or ".join(accepts))
