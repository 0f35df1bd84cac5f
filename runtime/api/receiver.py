"""Receiver: `POST /v1/events/minio`, where an object store tells of what happens in its buckets.

Imports this room, the trigger protocol and the rooms below. The answer is 200 once everything in the call is
durable, and an error whenever something of it is to come again, so that a store which keeps what was not
accepted loses nothing.
"""

from collections.abc import Iterator
from datetime import datetime
from urllib.parse import unquote_plus

import msgspec

from headrace.runtime.api.answers import JSON_TYPE, Receive, Scope, Send, header, read_body, send
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, NodeStopping
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import Notification

PATH = "/v1/events/minio"
SCOPE = "events"
_OK = b'{"status":"ok"}'
_META = "x-amz-meta-"


class Receiver:
    """The endpoint itself, on the bare protocol: it is on the way of every upload."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def receive(self, scope: Scope, receive: Receive, reply: Send) -> None:
        """Take one call of a store's webhook: one message, an array of them, or several in a row.

        Raises: Unauthorized, Forbidden, PayloadTooLarge, BadRequest for a body that is none, NodeStopping
        while the node is not ready, Throttled, or what kept it from being durable.
        """
        services = self._services
        services.access.check(header(scope, b"authorization"), SCOPE)
        body = await read_body(receive, scope, services.limits.async_body_bytes)
        notifications = read_notifications(body)
        if notifications:
            if (why := services.ready()) is not None:
                raise NodeStopping(f"the node is {why}")
            query: bytes = scope.get("query_string", b"")
            target = query.partition(b"target=")[2].decode("latin-1") if query else ""
            await services.notifications.tell(notifications, target=target)
        await send(reply, 200, _OK, [JSON_TYPE])


class _Bucket(msgspec.Struct, gc=False):
    name: str


class _Object(msgspec.Struct, gc=False):
    key: str
    size: int = 0
    etag: str = msgspec.field(default="", name="eTag")
    sequencer: str = ""
    version_id: str | None = msgspec.field(default=None, name="versionId")
    content_type: str | None = msgspec.field(default=None, name="contentType")
    metadata: dict[str, str] | None = msgspec.field(default=None, name="userMetadata")


class _S3(msgspec.Struct, gc=False):
    bucket: _Bucket
    object: _Object


class _Record(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="eventName")
    s3: _S3
    time: str = msgspec.field(default="", name="eventTime")
    source: str = msgspec.field(default="", name="eventSource")


class _Message(msgspec.Struct, gc=False):
    records: list[_Record] | None = msgspec.field(default=None, name="Records")


_one = msgspec.json.Decoder(_Message)
_many = msgspec.json.Decoder(list[_Message])


def read_notifications(body: bytes) -> list[Notification]:
    """The notifications of one call's body, in its order; none of an empty one. Raises: BadRequest."""
    if not body.strip():
        return []
    try:
        return [_notification(record) for message in _messages(body) for record in message.records or ()]
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        hint = "Send S3's event messages: one object with Records, an array of them, or one on each line."
        raise BadRequest(f"the body holds no event messages: {error}", hint) from None


def _messages(body: bytes) -> Iterator[_Message]:
    if body.lstrip()[:1] == b"[":
        yield from _many.decode(body)
        return
    try:
        yield _one.decode(body)
    except msgspec.DecodeError:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        yield from [_one.decode(line) for line in lines]


def _notification(record: _Record) -> Notification:
    bucket, found = record.s3.bucket.name, record.s3.object
    modified_at: float | None = None
    if record.source == "minio:s3" and found.sequencer:
        # MinIO's is the object's modification time in nanoseconds, while `eventTime` is a little later. Its
        # listings show whole milliseconds, and the ledger compares the two.
        modified_at = (int(found.sequencer, 16) // 1_000_000) / 1e3
    if modified_at is None:
        modified_at = datetime.fromisoformat(record.time).timestamp() if record.time else 0.0
    metadata = None
    if found.metadata is not None:
        metadata = {
            name[len(_META) :].lower(): value
            for name, value in found.metadata.items()
            if name[: len(_META)].lower() == _META
        }
    info = ObjectInfo(
        bucket, unquote_plus(found.key), found.size, found.etag, modified_at, found.sequencer.lower(),
        found.content_type, found.version_id or None, metadata,
    )  # fmt: skip
    if not bucket or not info.key:
        raise ValueError("a bucket or a key is empty")
    return Notification(info, record.name.removeprefix("s3:"), record.source)
