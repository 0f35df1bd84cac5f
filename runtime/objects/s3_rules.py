"""NotificationRules: which events of a bucket an S3 server sends to which of its targets.

Imports the floor, this room and the package `minio`. Rules that are not Headrace's are left as they are.
Which targets a server has, and how they are set, is asked of MinIO's interface for administrators; a server
without one, or credentials without the right, are no error.

Source: "PutBucketNotificationConfiguration", Amazon S3 API Reference; "Publish Events to Webhook", MinIO
documentation.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from minio import Minio
from minio.credentials.providers import AWSConfigProvider, ChainedProvider, EnvAWSProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.minioadmin import MinioAdmin
from minio.notificationconfig import NotificationConfig, QueueConfig
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from headrace.runtime.errors import NoSuchBucket
from headrace.runtime.objects.key import check_bucket
from headrace.runtime.objects.s3_endpoint import parse_endpoint
from headrace.runtime.objects.s3_errors import ObjectServerRefuses, ObjectServerUnavailable
from headrace.runtime.objects.webhook import OWN, Rule, UnknownTarget, Webhook

_TIMEOUT_S = 10.0
_SET = re.compile(r"MINIO_NOTIFY_WEBHOOK_([A-Z_]+?)_([A-Za-z0-9-]+)=(.*)")
_PAIR = re.compile(r'(\w+)=("[^"]*"|\S*)')
_KEYS = ("ENABLE", "ENDPOINT", "QUEUE_DIR")


class NotificationRules:
    """The rules of one server's buckets; `url` is as for `open_store`. The methods block, and all raise
    ObjectServerUnavailable, and ObjectServerRefuses where the credentials do not suffice.
    """

    def __init__(self, url: str) -> None:
        endpoint = parse_endpoint(url)
        self._base = endpoint.base
        provider = ChainedProvider([EnvAWSProvider(), AWSConfigProvider()])
        connections = PoolManager(timeout=Timeout(_TIMEOUT_S), retries=Retry(2, backoff_factor=0.2))
        self._client = Minio(
            endpoint.host,
            credentials=provider,
            secure=endpoint.tls,
            region=endpoint.region,
            http_client=connections,
        )
        self._admin = MinioAdmin(
            endpoint=endpoint.host, credentials=provider, secure=endpoint.tls, http_client=connections
        )

    def webhooks(self) -> list[Webhook] | None:
        """The server's webhook targets; None where it does not tell."""
        try:
            arns = json.loads(self._admin.info()).get("sqsARN") or []
        except (MinioAdminException, HTTPError, ValueError):
            return None
        told = self._told()
        found = []
        for arn in arns:
            name, _, kind = arn.rpartition(":")
            if kind == "webhook":
                name = name.rpartition(":")[2]
                of = told.get(name)
                found.append(
                    Webhook(name, arn)
                    if of is None
                    else Webhook(name, arn, of.get("ENDPOINT", ""), of.get("QUEUE_DIR", ""))
                )
        return found

    def read(self, bucket: str) -> list[Rule]:
        """Headrace's own rules of a bucket. Raises: NoSuchBucket."""
        return [
            Rule(rule.config_id or "", rule.queue or "", rule.events)
            for rule in self._read(bucket).queue_config_list
            if _is_own(rule)
        ]

    def replace(self, bucket: str, rules: Iterable[Rule]) -> None:
        """Make these Headrace's rules of a bucket, in place of those it had.

        Raises: NoSuchBucket; UnknownTarget when the server has no such target.
        """
        now, given = self._read(bucket), list(rules)
        # A server takes no two rules of one target and event, so one that somebody made by hand is replaced.
        taken = {rule.target for rule in given}
        others = [rule for rule in now.queue_config_list if not _is_own(rule) and rule.queue not in taken]
        own = [QueueConfig(queue=rule.target, events=rule.events, config_id=rule.id) for rule in given]
        wanted = NotificationConfig(
            cloud_func_config_list=now.cloud_func_config_list,
            queue_config_list=[*others, *own],
            topic_config_list=now.topic_config_list,
        )
        with self._mapped(bucket, ", ".join(sorted(taken))):
            self._client.set_bucket_notification(bucket, wanted)

    def _read(self, bucket: str) -> NotificationConfig:
        check_bucket(bucket)
        with self._mapped(bucket, ""):
            return self._client.get_bucket_notification(bucket)

    def _told(self) -> dict[str, dict[str, str]]:
        """How webhooks are set, by their names; nothing where the credentials do not suffice."""
        try:
            text = self._admin.config_get("notify_webhook")
        except (
            MinioAdminException,
            HTTPError,
            ValueError,
            UnboundLocalError,
        ):  # the last is the package's own
            return {}
        return read_webhook_settings(text)

    @contextmanager
    def _mapped(self, bucket: str, targets: str) -> Iterator[None]:
        """What the package raises, as errors of ours."""
        try:
            yield
        except S3Error as error:
            if error.code == "NoSuchBucket":
                raise NoSuchBucket(bucket) from None
            if error.code == "InvalidArgument" and targets:
                raise UnknownTarget(targets, error.message or error.code) from None
            why = error.message or error.code or "it does not say why"
            raise ObjectServerRefuses(self._base, f"the notifications of s3://{bucket}", why) from error
        except (MinioException, HTTPError) as error:
            raise ObjectServerUnavailable(self._base, str(error)) from error
        except ValueError as error:  # no credentials
            raise ObjectServerRefuses(
                self._base, f"the notifications of s3://{bucket}", str(error)
            ) from error


def read_webhook_settings(text: str) -> dict[str, dict[str, str]]:
    """What MinIO tells of its webhooks: by their names, the values of ENABLE, ENDPOINT and QUEUE_DIR. What
    comes from its environment stands there as a comment, and wins.
    """
    found: dict[str, dict[str, str]] = {}
    named: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        given = _SET.search(line)
        if given is not None and line.lstrip().startswith("#"):
            # The longest key that fits, since a name may hold an underscore.
            whole = f"{given[1]}_{given[2]}"
            for key in _KEYS:
                if whole.startswith(f"{key}_"):
                    found.setdefault(whole[len(key) + 1 :], {})[key] = given[3].strip()
        elif line.startswith("notify_webhook"):
            name, _, rest = line.removeprefix("notify_webhook").removeprefix(":").partition(" ")
            of = named.setdefault(name, {})
            for key, value in _PAIR.findall(rest):
                if key.upper() in _KEYS:
                    of[key.upper()] = value.strip('"')
    for name, of in named.items():
        if name:
            found[name] = {**of, **found.get(name, {})}
    return found


def _is_own(rule: QueueConfig) -> bool:
    return (rule.config_id or "").startswith(OWN)
