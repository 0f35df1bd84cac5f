"""Limits: what claims of a function keep to, over all nodes.

Imports the floor only. A limit is held in the claim itself and derived from the claims there are, never
from a count kept beside them; so a crash can neither leak a slot nor free one twice.
"""

import hashlib

import msgspec

from headrace.runtime.errors import BadRequest
from headrace.runtime.model.spec import FunctionSpec

KEY_MARK = "#"
"""Between a function's name and the key in the flow of a keyed invocation."""

KEY_BYTES_MAX = 256
"""How long a concurrency key may be, in bytes of UTF-8."""


class Limits(msgspec.Struct, frozen=True):
    """What a claim may not exceed; None where there is no limit.

    Attributes:
        concurrency: claims on the function at once, over all of its flows and all nodes.
        key_concurrency: claims of one flow at once: of one key, or of one job.
        rate: claims of the function begun a second, by a token bucket.
        burst: how many tokens the bucket holds, at least 1.
    """

    concurrency: int | None = None
    key_concurrency: int | None = None
    rate: float | None = None
    burst: float = 1.0

    @property
    def any(self) -> bool:
        """Whether there is anything to keep to."""
        return self.concurrency is not None or self.key_concurrency is not None or self.rate is not None


NO_LIMITS = Limits()


def limits_of(spec: FunctionSpec, *, shared: bool) -> Limits:
    """What claims of a function keep to. Its reserved concurrency is among them on a store that other nodes
    claim from as well; a node that is alone keeps to it when it begins attempts.
    """
    return Limits(
        spec.reserved_concurrency if shared else None, spec.key_concurrency, spec.rate, spec.rate_burst
    )


_WHOLE = 1e-6
# A token is whole although its moments were rounded: they have 17 digits, of which 10 stand before the point.


def tokens_at(limits: Limits, tokens: float, refilled_at: float, *, now: float) -> float:
    """What a bucket that had `tokens` at `refilled_at` holds now; never more than its burst."""
    assert limits.rate is not None
    return min(limits.burst, tokens + max(now - refilled_at, 0.0) * limits.rate)


def whole_tokens(tokens: float) -> int:
    """How many may begin with so many tokens."""
    return max(int(tokens + _WHOLE), 0)


def next_token_at(limits: Limits, tokens: float, *, now: float) -> float:
    """When the bucket that holds `tokens` now will hold a whole one."""
    assert limits.rate is not None
    return now + max(1.0 - tokens, 0.0) / limits.rate


class Held(msgspec.Struct, frozen=True):
    """Why waiting invocations of a flow are not claimed now.

    `by` is one of `paused`, `closed`, `concurrency`, `key_concurrency`, `rate`; `until` the moment from which
    it may be tried again, in epoch seconds, None when that depends on an end or on an operator.
    """

    by: str
    until: float | None = None
    reason: str = ""


def flow_of(function: str, key: str | None) -> str:
    """The flow of a function's invocations that have this concurrency key."""
    return function if key is None else f"{function}{KEY_MARK}{key}"


def check_key(key: str) -> str:
    """A concurrency key as a caller gave it. Raises BadRequest for one that cannot be used."""
    if not 0 < len(key.encode("utf-8", "replace")) <= KEY_BYTES_MAX:
        size = len(key.encode("utf-8", "replace"))
        raise BadRequest(
            f"the concurrency key has {size:,} bytes", f"It must have 1 to {KEY_BYTES_MAX} bytes of UTF-8."
        )
    if "\0" in key or (not key.isascii() and _lone_surrogate(key)):
        raise BadRequest("the concurrency key has a NUL or half a surrogate pair", "Use plain text.")
    return key


def _lone_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def key_at(event: object, path: tuple[str, ...]) -> str | None:
    """The concurrency key at a path of an event: a text as it is, a number or truth value as JSON writes it.

    None where the path leads to nothing, to null, to an empty text, a list or an object. A text that is too
    long for a key, or holds a NUL, is cut and gets a digest of the whole, so that it stays a key of its own.
    """
    for step in path:
        if isinstance(event, dict):
            event = event.get(step)
        elif isinstance(event, list) and step.isdecimal() and int(step) < len(event):
            event = event[int(step)]
        else:
            return None
    if isinstance(event, str):
        data = event.encode("utf-8", "replace")
        if len(data) <= KEY_BYTES_MAX and "\0" not in event:
            return event or None
        cut = data[: KEY_BYTES_MAX - 40].decode("utf-8", "ignore").replace("\0", "?")
        return f"{cut}~{hashlib.blake2b(data, digest_size=16).hexdigest()}"
    if isinstance(event, (bool, int, float)):
        return msgspec.json.encode(event).decode()
    return None


def key_of(flow: str) -> str | None:
    """The concurrency key in a flow's name; None when it has none."""
    _, mark, key = flow.partition(KEY_MARK)
    return key if mark else None
