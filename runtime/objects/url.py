"""URLs: `s3://BUCKET/KEY` names an object on the configured store, and another text names a store.

Imports the floor and this room. Stores are one table from scheme to what opens them, so a new kind of store
is one line.
"""

from collections.abc import Callable
from pathlib import Path

from headrace.runtime.clock import SystemClock
from headrace.runtime.errors import InvalidBucketName, InvalidKey, InvalidObjectUrl, InvalidSettings
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.key import check_bucket, check_key
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.s3_endpoint import credentials_from, parse_endpoint
from headrace.runtime.objects.s3_signature import Credentials


def parse_object_url(url: str) -> tuple[str, str]:
    """The bucket and key that `s3://BUCKET/KEY` names; nothing in the key is decoded.

    Raises: InvalidObjectUrl.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() != "s3":
        raise InvalidObjectUrl(url, "it does not begin with s3://")
    bucket, slash, key = rest.partition("/")
    if not bucket:
        raise InvalidObjectUrl(url, "the bucket is missing")
    if not slash or not key:
        raise InvalidObjectUrl(url, "the key is missing")
    try:
        check_bucket(bucket)
        check_key(key)
    except (InvalidBucketName, InvalidKey) as error:
        raise InvalidObjectUrl(url, str(error)) from error
    return bucket, key


def credentials_for(url: str | Path) -> Credentials | None:
    """What the store at `url` asks of who opens it, from the environment; None for a folder.

    Raises: InvalidSettings if it is missing.
    """
    return credentials_from() if isinstance(url, str) and url.lower().startswith("s3://") else None


def open_store(
    url: str | Path, *, fsync: bool = True, credentials: Credentials | None = None, patient: bool = True
) -> ObjectStore:
    """The object store at a folder's path, or at a URL of a kind in the table below.

    Args:
        fsync: whether a folder's writes outlive a power cut.
        credentials: for a server; by default those in the environment. A folder needs none.
        patient: whether every request waits for a server that is away; if not, only until one has given up.

    Raises: InvalidSettings if nothing can open the URL; what the store raises when it starts.
    """
    if isinstance(url, str):
        scheme, separator, _ = url.partition("://")
        if separator:
            opener = _OPENERS.get(scheme.lower())
            if opener is None:
                known = ", ".join(f"{name}://" for name in sorted(_OPENERS))
                raise InvalidSettings(
                    f"no object store is reached by {scheme}://", f"Give a folder's path or {known}."
                )
            return opener(url, credentials, patient)
        if not url:
            raise InvalidSettings(
                "the object store's folder is empty", "Give a folder's path or s3://HOST:PORT."
            )
    return FolderStore(Path(url), fsync=fsync)


def _open_s3(url: str, credentials: Credentials | None, patient: bool) -> ObjectStore:
    # Only who keeps objects on a server pays for importing what speaks HTTP.
    from headrace.runtime.objects.s3 import S3Store

    return S3Store(
        parse_endpoint(url), credentials or credentials_from(), clock=SystemClock(), patient=patient
    )


_OPENERS: dict[str, Callable[[str, Credentials | None, bool], ObjectStore]] = {"s3": _open_s3}
