"""What an S3 server's refusal means, in the words of the error tree.

Imports the floor and this room.
"""

from typing import NoReturn

from headrace.runtime.errors import (
    InvalidBucketName,
    InvalidKey,
    NoSuchBucket,
    NoSuchObject,
    ReadOnlyStorage,
    StorageFull,
)
from headrace.runtime.objects.protocol import BucketNotEmpty
from headrace.runtime.objects.s3_connection import Answer, S3Connection
from headrace.runtime.objects.s3_errors import ObjectServerRefuses

_FULL = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
)
_BAD_KEY = frozenset(
    {"KeyTooLongError", "KeyTooLong", "XMinioInvalidObjectName", "XMinioInvalidResourceName",
     "XMinioParentIsObject", "InvalidObjectName", "XMinioObjectExistsAsDirectory", "ObjectParentIsFile",
     "ExistingObjectIsDirectory", "DirectoryObjectContainsData"}
)  # fmt: skip


def is_about_key(answer: Answer) -> bool:
    """Whether the server says that it could not hold such a key, or any with such a prefix."""
    return answer.code in _BAD_KEY


def raise_refusal(
    connection: S3Connection, bucket: str, key: str | None, answer: Answer, *, writing: bool = False
) -> NoReturn:
    """Raise what an answer with an error means; a HEAD's has no words, so the bucket is asked after.

    A key that the server could not hold is InvalidKey for who writes, and absent for who reads.
    """
    code, where = answer.code, f"s3://{bucket}" + ("" if key is None else f"/{key}")
    if code == "NoSuchBucket":
        raise NoSuchBucket(bucket)
    if (answer.status in (400, 404) and not code) or (answer.status == 404 and key is None):
        # Not by HEAD: what hides behind a 404 may also be that the server does not know who asks.
        if key is None or not connection.request("GET", f"/{bucket}", query={"location": ""}).ok:
            raise NoSuchBucket(bucket)
        raise NoSuchObject(bucket, key)
    if key is not None and (answer.status in (404, 405) or code == "NoSuchVersion"):
        raise NoSuchObject(bucket, key)
    if code == "BucketNotEmpty":
        raise BucketNotEmpty(bucket)
    if code in _FULL or answer.status == 507:
        raise StorageFull(where)
    if is_about_key(answer) and key is not None:
        raise InvalidKey(key, answer.message or code) if writing else NoSuchObject(bucket, key)
    if code in ("InvalidBucketName", "BucketAlreadyExists"):
        raise InvalidBucketName(bucket, answer.message or code)
    if code == "MethodNotAllowed":
        raise ReadOnlyStorage(where)
    raise ObjectServerRefuses(
        connection.endpoint.base, where, answer.message or code or f"status {answer.status}"
    )
