"""A sample event of an upload, as the trigger's source makes it.

Imports the trigger protocol, the object stores' names and its own room.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from headrace.runtime.errors import BadRequest, HeadraceError
from headrace.runtime.objects.key import check_bucket, check_key
from headrace.runtime.objects.protocol import ObjectInfo
from headrace.runtime.trigger import Options, moment_option, number_option, the_option
from headrace.triggers.upload.arrival import CREATED, Arrival, event_of
from headrace.triggers.upload.trigger import Upload

SIZE = 1024


def sample_upload(options: Options, like: Upload | None, moment: float) -> Mapping[str, Any]:
    """See Sampled. Raises: BadRequest for what the trigger would pass over."""
    trigger = like or Upload(_checked(check_bucket, the_option(options, "bucket", "inbox")))
    bucket = the_option(options, "bucket", trigger.bucket)
    key = the_option(options, "key", f"{trigger.prefix}example{trigger.suffix}")
    _checked(check_bucket, bucket)
    _checked(check_key, key)
    size = number_option(options, "size", max(trigger.min_size or 0, min(SIZE, trigger.max_size or SIZE)))
    at = moment_option(options, "time", math.floor(moment * 1000) / 1000)
    nanoseconds = round(at * 1000) * 1_000_000
    named = [name for name in trigger.events if not name.endswith("*")]
    is_only_removed = trigger.wants_removed and not trigger.wants_created
    default = named[0] if named else "ObjectRemoved:Delete" if is_only_removed else CREATED
    info = ObjectInfo(
        bucket,
        key,
        size,
        the_option(options, "etag", hashlib.sha256(f"{key} {size}".encode()).hexdigest()[:32]),
        at,
        the_option(options, "sequencer", f"{nanoseconds:016x}"),
        None,
        the_option(options, "version-id", "") or None,
    )
    name = the_option(options, "event", default).removeprefix("s3:")
    if like is not None and (bucket != like.bucket or not like.matches(info, name)):
        raise BadRequest(
            f"{like!r} passes over {name} of s3://{bucket}/{key} with {size} bytes",
            "Say what the trigger takes, or ask for an event without a function.",
        )
    source = the_option(options, "source", "headrace:folder")
    return event_of(Arrival(info, name=name, source=source))


def _checked(check: Any, text: str) -> str:
    try:
        check(text)
    except HeadraceError as error:
        raise BadRequest(str(error), error.hint) from None
    return text
