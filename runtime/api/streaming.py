"""Streamed answers: what a function streams, on its way to an HTTP caller.

Imports the floor, this room and the pool's readings. Bytes are taken from the stream no faster than the
caller takes them, and a caller who leaves, or takes nothing for too long, ends the function.
"""

import asyncio

from headrace.runtime.api.answers import Headers, Receive, Scope, Send
from headrace.runtime.api.services import Services
from headrace.runtime.errors import StreamBroken
from headrace.runtime.model.ids import show_id
from headrace.runtime.pool.reading import Reading

KEEP_ALIVE = b": still here\n\n"
"""A comment, which readers of events skip, so that nothing between takes the connection for dead."""


async def send_stream(
    services: Services, reading: Reading, function: str, scope: Scope, receive: Receive, reply: Send
) -> None:
    """Answer with a stream, from its status to its end.

    Raises: StreamBroken when the answer has begun and cannot be brought to its end; the connection is to be
    broken off then, so that the caller notices.
    """
    limits = services.limits
    id = show_id(reading.invocation_id)
    headers: Headers = [
        (b"content-type", reading.content_type.encode("latin-1")),
        (b"headrace-invocation-id", id.encode()),
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in reading.headers),
    ]
    if reading.events and not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))
    watching = asyncio.create_task(_watch(receive, reading), name="headrace-caller")
    try:
        async with asyncio.timeout(limits.stream_idle_s):
            await reply({"type": "http.response.start", "status": reading.status, "headers": headers})
            await reply({"type": "http.response.body", "body": b"", "more_body": True})  # the head leaves now
        if scope["method"] == "HEAD":
            reading.abandon()
        wait_s = limits.keep_alive_s if reading.events else None
        while (piece := await reading.take(wait_s)) is not None:
            async with asyncio.timeout(limits.stream_idle_s):
                body = {"type": "http.response.body", "body": piece or KEEP_ALIVE, "more_body": True}
                await reply(body)
        if not reading.abandoned:
            reading.check()
        await reply({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        message = f"the caller took nothing for {limits.stream_idle_s:g} s"
        services.report("a stream was broken off", {"function": function, "id": id, "why": message})
        raise StreamBroken(message) from None
    except StreamBroken as error:
        services.report("a stream was broken off", {"function": function, "id": id, "why": str(error)})
        raise
    finally:
        reading.abandon()  # harmless at its end
        watching.cancel()


async def _watch(receive: Receive, reading: Reading) -> None:
    """Abandon the stream when its caller has gone. The request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reading.abandon()
