"""Webhook: a target of an S3 server that tells of a bucket's events over HTTP, and the rules that lead there.

Imports the floor only.
"""

from collections.abc import Iterable
from typing import Protocol

import msgspec

from headrace.runtime.errors import BadRequest, HeadraceError

OWN = "headrace-"
"""How the ids of our rules begin."""
CREATED = "s3:ObjectCreated:*"
REMOVED = "s3:ObjectRemoved:*"


class Rule(msgspec.Struct, frozen=True):
    """Events of one bucket that are sent to one target, an ARN."""

    id: str
    target: str
    events: list[str]


class Webhook(msgspec.Struct, frozen=True):
    """A webhook target of a server: its ARN, and how it is set; None where the server does not tell."""

    name: str
    arn: str
    endpoint: str | None = None
    queue_dir: str | None = None


class BucketRules(Protocol):
    """The rules of one server's buckets. The methods block, and raise ObjectServerUnavailable, or
    ObjectServerRefuses where the credentials do not suffice.
    """

    def webhooks(self) -> list[Webhook] | None:
        """The server's webhook targets; None where it does not tell."""

    def read(self, bucket: str) -> list[Rule]:
        """Headrace's own rules of a bucket. Raises: NoSuchBucket."""

    def replace(self, bucket: str, rules: Iterable[Rule]) -> None:
        """Make these Headrace's rules of a bucket, in place of those it had.

        Raises: NoSuchBucket; UnknownTarget when the server has no such target.
        """


class UnknownTarget(BadRequest):
    """A server that is to send events does not have the target: (targets, its words)."""

    code = "unknown_target"
    hint = "Give the server the target's environment variables, and restart it."

    def __init__(self, targets: str, why: str) -> None:
        HeadraceError.__init__(self, targets, why)

    def __str__(self) -> str:
        return f"the server does not have the target {self.args[0]}: {self.args[1]}"


def open_rules(url: str) -> BucketRules:
    """The rules of the server that `url` names, as for `open_store`.

    Raises: BadRequest for a folder, or where the package `minio` is not installed.
    """
    if not url.lower().startswith("s3://"):
        raise BadRequest(
            "the buckets are folders, which are watched as they are", "Connect the buckets of an S3 server."
        )
    try:
        from headrace.runtime.objects.s3_rules import NotificationRules
    except ImportError as error:
        why = f"connecting buckets needs a package that is not installed ({error})"
        raise BadRequest(why, "pip install 'headrace[minio]'") from None
    return NotificationRules(url)
