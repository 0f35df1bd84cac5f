"""`/v1/buckets/{bucket}/connect`: have an S3 server tell of a bucket, and prove that it does.

Imports this room and the rooms below. Two targets send every event: one at once, which loses what comes while
the node is down, and one that keeps what was not accepted in a folder of the server's, which is slower.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.runtime.api.endpoint import Endpoint, answer, read_body
from headrace.runtime.api.notifications import Probe
from headrace.runtime.api.receiver import PATH
from headrace.runtime.api.services import Services
from headrace.runtime.errors import BadRequest, Forbidden
from headrace.runtime.objects.key import PROBES, SYSTEM_BUCKET
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.s3 import S3Store
from headrace.runtime.objects.s3_rules import CREATED, OWN, REMOVED, NotificationRules, Rule, UnknownTarget

WAIT_S = 10.0
WAIT_S_MAX = 60.0
BODY_BYTES_MAX = 16 << 10
NOW, QUEUED = "HEADRACE", "HEADRACEQ"
QUEUE_FOLDER = "/var/lib/minio/headrace-queue"


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body: `url` is the node as the server reaches it, `targets` the names of the server's two targets,
    `removals` asks for deletions too.
    """

    url: str = ""
    targets: tuple[str, str] = (NOW, QUEUED)
    removals: bool = False
    wait_s: float = WAIT_S


class Target(msgspec.Struct):
    """One of the two targets; `arn` is empty where the server does not have it."""

    name: str
    keeps: bool
    arn: str = ""

    def lines(self, url: str, token: str) -> list[str]:
        """The environment that a MinIO server needs for it."""
        endpoint = f"{url.rstrip('/')}{PATH}?target={self.name}"
        lines = [
            f"MINIO_NOTIFY_WEBHOOK_ENABLE_{self.name}=on",
            f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_{self.name}={endpoint}",
            f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{self.name}={token}",
        ]
        if self.keeps:
            lines.append(f"MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_{self.name}={QUEUE_FOLDER}")
        return lines


class Connecting:
    """The endpoints that connect buckets to this node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def endpoints(self) -> list[Endpoint]:
        path = "/v1/buckets/{bucket}/connect"
        return [
            Endpoint("GET", path, self.show, "admin"),
            Endpoint("POST", path, self.connect, "admin"),
            Endpoint("DELETE", path, self.disconnect, "admin"),
        ]

    async def show(self, request: Request) -> Response:
        bucket = _bucket(request)
        rules = await self._services.in_thread(self._rules().read, bucket)
        return answer({"bucket": bucket, "rules": msgspec.to_builtins(rules)})

    async def disconnect(self, request: Request) -> Response:
        bucket = _bucket(request)
        await self._services.in_thread(self._rules().replace, bucket, [])
        return answer({"bucket": bucket, "rules": []})

    async def connect(self, request: Request) -> Response:
        services, bucket = self._services, _bucket(request)
        body = await read_body(request, BODY_BYTES_MAX)
        try:
            asked = msgspec.json.decode(body, type=_Asked) if body else _Asked()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is wrong: {error}", "docs/guide/api.md has its fields.") from None
        if not 0 <= asked.wait_s <= WAIT_S_MAX:
            raise BadRequest(f"wait_s is {asked.wait_s}", f"It is 0 to {WAIT_S_MAX:g} seconds.")
        rules = self._rules()
        targets, events = await services.in_thread(
            set_rules, rules, bucket, asked.targets, removals=asked.removals or self._wants_removals(bucket)
        )
        found: dict[str, Any] = {"bucket": bucket, "events": events, "connected": False, "targets": []}
        delivered: list[str] = []
        if all(target.arn for target in targets):
            delivered = await self._probe(bucket, expected=len(targets), wait_s=asked.wait_s)
        url = asked.url or services.health().get("url") or ""
        lines: list[str] = []
        for target in targets:
            # A server whose endpoints name no targets delivers under no name: then their number tells.
            came = target.name in delivered or ("" in delivered and len(delivered) >= len(targets))
            found["targets"].append(
                {"name": target.name, "arn": target.arn or None, "keeps": target.keeps, "delivered": came}
            )
            if not came:
                lines += target.lines(url, services.events_token())
        found["connected"] = not lines
        found["server_environment"] = lines
        return answer(found)

    async def _probe(self, bucket: str, *, expected: int, wait_s: float) -> list[str]:
        """Put an object and see which targets tell of it, for so long."""
        services = self._services
        key = f"{PROBES}{services.new_request_id()}"
        probe = services.notifications.expect(key)
        try:
            await services.in_thread(services.objects.put, bucket, key, b"headrace")
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await _deliveries(probe, expected)
            finally:
                await services.in_thread(services.objects.delete, bucket, key)
            return list(probe.deliveries)
        finally:
            probe.close()

    def _wants_removals(self, bucket: str) -> bool:
        """Whether a function's trigger of this bucket asks for removals."""
        return any(
            given.fields.get("bucket") == bucket
            and any(str(name).startswith("ObjectRemoved") for name in given.fields.get("events") or ())
            for spec in self._services.manifest.functions
            for given in spec.triggers
        )

    def _rules(self) -> NotificationRules:
        return rules_of(self._services.objects)


def rules_of(objects: ObjectStore) -> NotificationRules:
    """The rules of a store's server. Raises: BadRequest for a store that has none."""
    if not isinstance(objects, S3Store):
        raise BadRequest(
            "the buckets are folders, which are watched as they are", "Connect the buckets of an S3 server."
        )
    return NotificationRules(objects.connection)


def set_rules(
    rules: NotificationRules, bucket: str, names: Sequence[str], *, removals: bool
) -> tuple[list[Target], list[str]]:
    """Have the server send a bucket's events to those of two targets that it has; the targets and the events.

    Blocks. Raises: NoSuchBucket.
    """
    known = rules.targets()
    targets = [Target(name, keeps=bool(index)) for index, name in enumerate(names)]
    events = [CREATED, REMOVED] if removals else [CREATED]
    for target in targets:
        if known is None:
            target.arn = f"arn:minio:sqs::{target.name}:webhook"
        else:
            target.arn = next((arn for arn in known if arn.endswith(f":{target.name}:webhook")), "")
    wanted = [Rule(OWN + target.name.lower(), target.arn, tuple(events)) for target in targets if target.arn]
    if wanted:
        try:
            rules.replace(bucket, wanted)
        except UnknownTarget:
            if known is not None:
                raise
            for target in targets:
                target.arn = ""
    return targets, events


async def _deliveries(probe: Probe, count: int) -> None:
    while len(probe.deliveries) < count:
        await probe.wait_next()


def _bucket(request: Request) -> str:
    bucket: str = request.path_params["bucket"]
    if bucket == SYSTEM_BUCKET:
        raise Forbidden(f"the bucket {SYSTEM_BUCKET} is the node's own")
    return bucket
