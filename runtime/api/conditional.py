"""Conditional answers: 304 when the caller has what it would get, and no body to a HEAD.

Imports this room. Source: RFC 9110, sections 8.8.3, 9.3.2, 13.1.2 and 15.4.5.
"""

import hashlib

from headrace.runtime.api.answers import Headers, Scope, Send, header, send


async def send_conditional(
    reply: Send, scope: Scope, status: int, body: bytes, headers: Headers, *, etag: bool
) -> None:
    """Answer a GET or HEAD. With `etag` the answer gets one made from its body, unless it has one."""
    tag = next((value for name, value in headers if name == b"etag"), None)
    if tag is None and etag and status == 200:
        tag = b'"' + hashlib.blake2b(body, digest_size=12).hexdigest().encode() + b'"'
        headers.append((b"etag", tag))
    if tag is not None and status == 200:
        wanted = header(scope, b"if-none-match")
        if wanted is not None and _has_tag(wanted, tag.decode("latin-1")):
            kept = [item for item in headers if item[0] not in (b"content-type", b"content-encoding")]
            await reply({"type": "http.response.start", "status": 304, "headers": kept})
            await reply({"type": "http.response.body", "body": b""})
            return
    if scope["method"] != "HEAD":
        await send(reply, status, body, headers)
        return
    length = [(b"content-length", str(len(body)).encode())]
    await reply({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
    await reply({"type": "http.response.body", "body": b""})


def _has_tag(wanted: str, tag: str) -> bool:
    """Whether If-None-Match names the tag; weak and strong ones of the same text are the same here."""
    plain = tag.removeprefix("W/")
    return any(given.strip().removeprefix("W/") in ("*", plain) for given in wanted.split(","))
