"""NotificationRules: which events of a bucket an S3 server sends to which of its targets.

Imports the floor and this room. Rules that are not Headrace's are left as they are. Which targets a server has
is asked of MinIO's own interface for administrators, and of no other server.

Source: "GetBucketNotificationConfiguration" and "PutBucketNotificationConfiguration", Amazon S3 API Reference;
"Publish Events to Webhook", MinIO documentation.
"""

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

import msgspec

from headrace.runtime.errors import BadRequest, HeadraceError
from headrace.runtime.objects.key import check_bucket
from headrace.runtime.objects.s3_connection import S3Connection
from headrace.runtime.objects.s3_refusal import raise_refusal

OWN = "headrace-"
"""How the ids of our rules begin."""
CREATED = "s3:ObjectCreated:*"
REMOVED = "s3:ObjectRemoved:*"
_SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Rule(msgspec.Struct, frozen=True):
    """Events of one bucket that are sent to one target, an ARN."""

    id: str
    target: str
    events: tuple[str, ...]


class NotificationRules:
    """The rules of one server's buckets. The methods block."""

    def __init__(self, connection: S3Connection) -> None:
        self._connection = connection

    def targets(self) -> list[str] | None:
        """The ARNs of the server's targets; None where the server, or the right to ask it, is another one."""
        try:
            answer = self._connection.request("GET", "/minio/admin/v3/info")
            found = msgspec.json.decode(answer.data, type=_Info) if answer.ok else None
        except (HeadraceError, msgspec.DecodeError):
            return None
        return None if found is None else list(found.targets)

    def read(self, bucket: str) -> list[Rule]:
        """Headrace's own rules of a bucket. Raises: NoSuchBucket."""
        return [_rule(element) for element in self._read(bucket) if _is_own(element)]

    def replace(self, bucket: str, rules: Iterable[Rule]) -> None:
        """Make these Headrace's rules of a bucket, in place of those it had.

        Raises: NoSuchBucket; UnknownTarget when the server has no such target; BadRequest when it refuses for
        another reason.
        """
        root = ElementTree.Element("NotificationConfiguration", xmlns=_SPACE)
        given = list(rules)
        # A server takes no two rules for one target and event, so one that somebody made by hand is replaced.
        taken = {rule.target for rule in given}
        for element in self._read(bucket):
            if not _is_own(element) and _rule(element).target not in taken:
                root.append(_without_space(element))
        for rule in given:
            one = ElementTree.SubElement(root, "QueueConfiguration")
            ElementTree.SubElement(one, "Id").text = rule.id
            for event in rule.events:
                ElementTree.SubElement(one, "Event").text = event
            ElementTree.SubElement(one, "Queue").text = rule.target
        answer = self._connection.request(
            "PUT", f"/{bucket}", query={"notification": ""}, body=ElementTree.tostring(root, "utf-8")
        )
        if answer.ok:
            return
        if answer.code == "InvalidArgument":
            raise UnknownTarget(", ".join(sorted(taken)), answer.message)
        raise_refusal(self._connection, bucket, None, answer)

    def _read(self, bucket: str) -> Sequence[ElementTree.Element]:
        check_bucket(bucket)
        answer = self._connection.request("GET", f"/{bucket}", query={"notification": ""})
        if not answer.ok:
            raise_refusal(self._connection, bucket, None, answer)
        return list(ElementTree.fromstring(answer.data)) if answer.data.strip() else []


class UnknownTarget(BadRequest):
    """A server that is to send events has no such target: (targets, its words)."""

    code = "unknown_target"
    hint = "Give the server the target's environment variables, and restart it."

    def __init__(self, targets: str, why: str) -> None:
        HeadraceError.__init__(self, targets, why)

    def __str__(self) -> str:
        return f"the server does not know the target {self.args[0]}: {self.args[1]}"


class _Info(msgspec.Struct):
    targets: list[str] = msgspec.field(default_factory=list, name="sqsARN")


def _is_own(element: ElementTree.Element) -> bool:
    return _rule(element).id.startswith(OWN)


def _rule(element: ElementTree.Element) -> Rule:
    id, target, events = "", "", []
    for child in element:
        tag, text = child.tag.rpartition("}")[2], child.text or ""
        if tag == "Id":
            id = text
        elif tag in ("Queue", "Topic", "CloudFunction"):
            target = text
        elif tag == "Event":
            events.append(text)
    return Rule(id, target, tuple(events))


def _without_space(element: ElementTree.Element) -> ElementTree.Element:
    """The element with plain names: the new document has the namespace as its default."""
    copy = ElementTree.Element(element.tag.rpartition("}")[2])
    copy.text = element.text
    copy.extend(_without_space(child) for child in element)
    return copy
