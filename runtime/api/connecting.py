"""`/v1/buckets/{bucket}/connect`: have an S3 server tell of a bucket, and prove that it does.

Imports this room and the rooms below. Two targets send every event: one at once, which loses what comes while
the node is down, and one that keeps what was not accepted in a folder of the server's, which is slower.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

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
from headrace.runtime.objects.webhook import (
    CREATED,
    OWN,
    REMOVED,
    BucketRules,
    Rule,
    UnknownTarget,
    Webhook,
    open_rules,
)

WAIT_S = 10.0
WAIT_S_MAX = 60.0
BODY_BYTES_MAX = 16 << 10
NOW, QUEUED = "HEADRACE", "HEADRACEQ"
STRAYS = "probes/"
LOOK_EVERY_S = 0.2
_NAMED = "target-"
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
    """One of the two targets, and what the server has of it: None where it has none, or does not tell."""

    name: str
    keeps: bool
    webhook: Webhook | None = None
    delivered: bool = False

    @property
    def keeps_truly(self) -> bool:
        """Whether it keeps what was not accepted, as far as the server tells."""
        return self.webhook is None or self.webhook.queue_dir is None or bool(self.webhook.queue_dir)

    def missing(self, url: str, token: str) -> list[str]:
        """The lines that the environment of the server lacks, or has wrong."""
        lines = []
        if not self.delivered:
            lines = [
                f"MINIO_NOTIFY_WEBHOOK_ENABLE_{self.name}=on",
                f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_{self.name}={url.rstrip('/')}{PATH}?target={self.name}",
                f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{self.name}={token}",
            ]
        if self.keeps and not (self.delivered and self.keeps_truly):
            folder = self.webhook.queue_dir if self.webhook is not None else ""
            lines.append(f"MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_{self.name}={folder or QUEUE_FOLDER}")
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
        rules = await self._services.in_thread((await self._rules()).read, bucket)
        return answer({"bucket": bucket, "rules": msgspec.to_builtins(rules)})

    async def disconnect(self, request: Request) -> Response:
        bucket = _bucket(request)
        await self._services.in_thread((await self._rules()).replace, bucket, [])
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
        rules = await self._rules()
        targets, events = await services.in_thread(
            set_rules, rules, bucket, asked.targets, removals=asked.removals or self._wants_removals(bucket)
        )
        present = [target for target in targets if target.webhook is not None]
        if present:
            delivered = await self._probe(bucket, expected=len(present), wait_s=asked.wait_s)
            for target in present:
                target.delivered = target.name in delivered
            # Endpoints that somebody wrote need not name their targets: then the number of deliveries tells.
            unnamed = [name for name in delivered if all(name != target.name for target in present)]
            left = [target for target in present if not target.delivered]
            if len(unnamed) >= len(left):
                for target in left:
                    target.delivered = True
        url = asked.url or services.health().get("url") or ""
        lines = [
            line for target in targets for line in target.missing(url, services.events_token() or "SECRET")
        ]
        found: dict[str, Any] = {
            "bucket": bucket,
            "connected": not lines,
            "events": events,
            "targets": [_shown(target) for target in targets],
            "server_environment": lines,
        }
        return answer(found)

    async def _probe(self, bucket: str, *, expected: int, wait_s: float) -> list[str]:
        """Put an object and see which targets tell of it, for so long."""
        services = self._services
        key = f"{PROBES}{services.new_request_id()}"
        probe = services.notifications.expect(key)
        try:
            await services.in_thread(services.objects.put, bucket, key, b"headrace")
            looking = asyncio.create_task(self._look_for_strays(key, probe))
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await _deliveries(probe, expected)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
                await services.in_thread(services.objects.delete, bucket, key)
            return list(probe.deliveries)
        finally:
            probe.close()

    async def _look_for_strays(self, key: str, probe: Probe) -> None:
        """Find the deliveries that other nodes got: each has left an object."""
        services = self._services
        while services.store.shared:
            await services.clock.sleep(LOOK_EVERY_S)
            found = await services.in_thread(services.objects.list, SYSTEM_BUCKET, prefix=f"{STRAYS}{key}/")
            for info in found:
                await services.in_thread(services.objects.delete, SYSTEM_BUCKET, info.key)
                probe.deliver(info.key.rpartition("/")[2].removeprefix(_NAMED))

    def _wants_removals(self, bucket: str) -> bool:
        """Whether a function's trigger of this bucket asks for removals."""
        return any(
            given.fields.get("bucket") == bucket
            and any(str(name).startswith("ObjectRemoved") for name in given.fields.get("events") or ())
            for spec in self._services.manifest.functions
            for given in spec.triggers
        )

    async def _rules(self) -> BucketRules:
        return await self._services.in_thread(open_rules, self._services.objects_url)  # type: ignore[no-any-return]


def leave_stray(objects: ObjectStore, key: str, target: str) -> None:
    """Leave word of a probe's delivery for the node that put it."""
    objects.put(SYSTEM_BUCKET, f"{STRAYS}{key}/{_NAMED}{quote(target, safe='')}", b"")


def set_rules(
    rules: BucketRules, bucket: str, names: Sequence[str], *, removals: bool
) -> tuple[list[Target], list[str]]:
    """Have the server send a bucket's events to those of two targets that it has; the targets and the events.

    Blocks. Raises: NoSuchBucket, and what BucketRules raise.
    """
    known = rules.webhooks()
    events = [CREATED, REMOVED] if removals else [CREATED]
    targets = [Target(name, keeps=bool(index)) for index, name in enumerate(names)]
    for target in targets:
        if known is None:
            target.webhook = Webhook(target.name, f"arn:minio:sqs::{target.name}:webhook")
        else:
            target.webhook = next((hook for hook in known if hook.name == target.name), None)
    wanted = [
        Rule(OWN + target.name.lower(), target.webhook.arn, events)
        for target in targets
        if target.webhook is not None
    ]
    try:
        rules.replace(bucket, wanted)
    except UnknownTarget:
        for target in targets:
            target.webhook = None
    return targets, events


def _shown(target: Target) -> dict[str, Any]:
    hook = target.webhook
    return {
        "name": target.name,
        "arn": hook.arn if hook is not None else None,
        "endpoint": hook.endpoint if hook is not None else None,
        "queue_dir": hook.queue_dir if hook is not None else None,
        "keeps": target.keeps,
        "delivered": target.delivered,
    }


async def _deliveries(probe: Probe, count: int) -> None:
    while len(probe.deliveries) < count:
        await probe.wait_next()


def _bucket(request: Request) -> str:
    bucket: str = request.path_params["bucket"]
    if bucket == SYSTEM_BUCKET:
        raise Forbidden(f"the bucket {SYSTEM_BUCKET} is the node's own")
    return bucket
