"""Limits: what claims of a function keep to, over all nodes.

Imports the floor only. A limit is held in the claim itself and derived from the claims there are, never
from a count kept beside them; so a crash can neither leak a slot nor free one twice.
"""

import msgspec

KEY_MARK = "#"
"""Between a function's name and the key in the flow of a keyed invocation."""


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


def key_of(flow: str) -> str | None:
    """The concurrency key in a flow's name; None when it has none."""
    _, mark, key = flow.partition(KEY_MARK)
    return key if mark else None
