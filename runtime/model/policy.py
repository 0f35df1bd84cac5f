"""Policies: when an attempt that failed is made again.

Imports nothing of Headrace.
"""

from random import Random

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how soon a failed invocation is tried again.

    `retries` attempts follow the first (so `retries + 1` in all); delays start at `base_s` and double up to
    `max_s`, in seconds, with full jitter.
    """

    retries: int = 2
    base_s: float = 1.0
    max_s: float = 300.0

    @property
    def attempts_max(self) -> int:
        return self.retries + 1


def retry_delay(attempt: int, policy: RetryPolicy, chance: Random) -> float:
    """Seconds to wait before the next attempt, with full jitter.

    Args:
        attempt: attempts already made, counted from 1.
        policy: `base_s` and `max_s`, in seconds.
        chance: where the jitter comes from; seeded by the caller.

    Returns: seconds, uniform in [0, min(max_s, base_s * 2 ** (attempt - 1))].
    Raises: ValueError if `attempt` is below 1.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, not {attempt}")
    ceiling = min(policy.max_s, policy.base_s * 2 ** min(attempt - 1, 60))
    return chance.uniform(0.0, ceiling)
