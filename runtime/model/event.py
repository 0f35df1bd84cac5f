"""Events: the JSON documents that sources emit, as dictionaries with typed helpers.

Imports nothing of Headrace. An event is always a plain JSON object, so that it can be recorded, edited and
replayed.
"""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote_plus, unquote_plus


class Event(dict[str, Any]):
    """A JSON object that a source emitted, or that a caller sent."""


class UploadEvent(Event):
    """One object that appeared in a bucket: S3's event message with exactly one record.

    Source: "Event message structure", Amazon S3 User Guide. Keys are URL-encoded in the record, as S3 does
    it; `key` is decoded.
    """

    @classmethod
    def of(
        cls,
        bucket: str,
        key: str,
        *,
        size: int,
        etag: str,
        sequencer: str,
        time: str,
        name: str = "ObjectCreated:Put",
        source: str = "headrace:folder",
        version_id: str | None = None,
    ) -> "UploadEvent":
        """Build the event of one object. `time` is ISO 8601 UTC, `size` in bytes, `sequencer` hexadecimal
        text.
        """
        item: dict[str, Any] = {
            "key": quote_plus(key, safe="/"),
            "size": size,
            "eTag": etag,
            "sequencer": sequencer,
        }
        if version_id is not None:
            item["versionId"] = version_id
        record = {
            "eventVersion": "2.1",
            "eventSource": source,
            "awsRegion": "",
            "eventTime": time,
            "eventName": name,
            "s3": {
                "s3SchemaVersion": "1.0",
                "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
                "object": item,
            },
        }
        return cls(Records=[record])

    @property
    def record(self) -> dict[str, Any]:
        """The event's one record."""
        record: dict[str, Any] = self["Records"][0]
        return record

    @property
    def bucket(self) -> str:
        return str(self.record["s3"]["bucket"]["name"])

    @property
    def key(self) -> str:
        """The object's key, decoded."""
        return unquote_plus(str(self.record["s3"]["object"]["key"]))

    @property
    def name(self) -> str:
        """What happened, as S3 calls it, without `s3:`."""
        return str(self.record.get("eventName", "")).removeprefix("s3:")

    @property
    def removed(self) -> bool:
        """Whether the object has gone, rather than come."""
        return self.name.startswith("ObjectRemoved")

    @property
    def size(self) -> int:
        """Bytes; 0 of an object that has gone."""
        return int(self.record["s3"]["object"].get("size", 0))

    @property
    def etag(self) -> str:
        return str(self.record["s3"]["object"].get("eTag", ""))

    @property
    def url(self) -> str:
        """The object's address, `s3://BUCKET/KEY`."""
        return f"s3://{self.bucket}/{self.key}"


class ScheduleEvent(Event):
    """A schedule's fire, in EventBridge's envelope; `time` is the due instant, not when it ran."""

    @classmethod
    def of(cls, schedule: str, *, due: str, id: str) -> "ScheduleEvent":
        """`due` is ISO 8601 UTC; `id` is the invocation's."""
        return cls(
            {
                "version": "0",
                "id": id,
                "detail-type": "Scheduled Event",
                "source": "headrace.schedule",
                "account": "",
                "time": due,
                "region": "",
                "resources": [schedule],
                "detail": {},
            }
        )

    @property
    def due(self) -> datetime:
        """The due instant, with time zone UTC."""
        return datetime.fromisoformat(str(self["time"]))

    @property
    def schedule(self) -> str:
        return str(self["resources"][0])


class UploadSetEvent(Event):
    """A set of uploads, in EventBridge's envelope. `detail` is what there is to know of it.

    Files are `{"bucket", "key", "etag", "size"}`, with `version-id` in a versioned bucket; keys are as they
    are, not encoded.
    """

    COMPLETE = "Upload Set Complete"
    INCOMPLETE = "Upload Set Incomplete"
    LATE = "Upload Set Late Files"

    @classmethod
    def of(
        cls, trigger: str, *, bucket: str, name: str, kind: str, time: str, id: str, detail: Mapping[str, Any]
    ) -> "UploadSetEvent":
        """`kind` is COMPLETE, INCOMPLETE or LATE; `time` is ISO 8601 UTC; `id` is the event's; `detail` holds
        the rest.
        """
        return cls(
            {
                "version": "0",
                "id": id,
                "detail-type": kind,
                "source": "headrace.uploadset",
                "account": "",
                "time": time,
                "region": "",
                "resources": [trigger],
                "detail": {"bucket": bucket, "set": name, **detail},
            }
        )

    @property
    def bucket(self) -> str:
        return str(self["detail"]["bucket"])

    @property
    def set(self) -> str:
        """The set's name: what its keys have in common, joined by slashes."""
        return str(self["detail"]["set"])

    @property
    def by(self) -> dict[str, str]:
        """The same by name: `{"day": "2026-01-31"}`."""
        by: dict[str, str] = self["detail"]["by"]
        return by

    @property
    def complete(self) -> bool:
        return bool(self["detail"]["complete"])

    @property
    def late(self) -> bool:
        """Whether the files came after their set had fired."""
        return bool(self["detail"]["late"])

    @property
    def reason(self) -> str:
        """Why it is complete, or what is missing."""
        return str(self["detail"]["reason"])

    @property
    def count(self) -> int:
        """How many files there are, in the event or in its list."""
        return int(self["detail"]["count"])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return int(self["detail"]["size"])

    @property
    def list_url(self) -> str | None:
        """The address of the JSON array of all files, where the event holds only the first of them."""
        url = self["detail"].get("list")
        return None if url is None else str(url)

    def files(self, objects: Any = None) -> list[dict[str, Any]]:
        """All files, by key. Those that do not fit into the event are read from `context.objects`.

        Raises: ValueError if they do not fit and `objects` is None; NoSuchObject when their list is too old.
        """
        if self.list_url is None:
            found: list[dict[str, Any]] = self["detail"]["files"]
            return found
        if objects is None:
            raise ValueError(
                f"the event holds some of {self.count:,} files only: call files(context.objects)"
            )
        bucket, _, key = self.list_url.removeprefix("s3://").partition("/")
        found = json.loads(objects.get(bucket, key))
        return found


class HttpEvent(Event):
    """An HTTP call, in the shape of API Gateway's payload format 2.0."""

    @property
    def method(self) -> str:
        return str(self["requestContext"]["http"]["method"])

    @property
    def path(self) -> str:
        return str(self["rawPath"])

    @property
    def headers(self) -> dict[str, str]:
        """Header values by lower-case name; repeated ones are joined by commas."""
        headers: dict[str, str] = self.get("headers", {})
        return headers

    @property
    def query(self) -> dict[str, str]:
        query: dict[str, str] = self.get("queryStringParameters") or {}
        return query

    @property
    def path_parameters(self) -> dict[str, str]:
        parameters: dict[str, str] = self.get("pathParameters") or {}
        return parameters

    @property
    def body(self) -> bytes:
        """The request's body, decoded from base64 where it was sent so."""
        body = self.get("body") or ""
        return base64.b64decode(body) if self.get("isBase64Encoded") else str(body).encode()

    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is not."""
        return json.loads(self.body)
