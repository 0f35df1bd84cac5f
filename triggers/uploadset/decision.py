"""Decisions: what becomes of a set, from what is remembered of it and what is seen of it now.

Imports the floor and the room's conditions. Pure: `decide` says what to do and what to remember, whoever
asked does both in one step, and another node that was faster makes that step fail. So a set fires once.
"""

from enum import StrEnum

import msgspec

from headrace.triggers.uploadset.condition import Verdict

LATE_S = 2.0
"""How long nothing of a fired set may change before its late files are told of: so they come together."""


class Late(StrEnum):
    """What becomes of files that come, or are replaced, after their set fired."""

    IGNORE = "ignore"
    FIRE = "fire"
    """Tell of the late ones."""

    AGAIN = "again"
    """Tell of the whole set, once it is complete with them."""

    DEAD = "dead"


class Incomplete(StrEnum):
    """What becomes of a set that is not complete in time."""

    FIRE = "fire"
    DEAD = "dead"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a trigger says. `timeout_s` counts from the first file; `gather_s` is LATE_S, or the period."""

    late: Late = Late.IGNORE
    incomplete: Incomplete = Incomplete.DEAD
    timeout_s: float | None = None
    gather_s: float = LATE_S
    keeps_time: bool = False
    """Whether a condition is about time, so that moments must be remembered."""


class SetMemory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of one set.

    Attributes:
        told: how many events it has had, 0 while it is open; a set that was there before the trigger has had
            none, and is `closed`.
        seen: fingerprint of what was seen of it when this was recorded.
        first_at: UTC epoch seconds at which it was first seen.
        changed_at: UTC epoch seconds at which `seen` was first seen.
        settled: fingerprint of what has been told of, or needs not to be.
        known: key in the system bucket of the list of what was there when it was last told of; None if none
            was kept.
    """

    seen: str
    first_at: float
    changed_at: float
    told: int = 0
    closed: bool = False
    settled: str = ""
    known: str | None = None

    @property
    def is_gone(self) -> bool:
        """Whether nothing was there when this was recorded."""
        return not self.seen


class Action(StrEnum):
    """What to do now."""

    NOTHING = "nothing"
    NOTE = "note"
    """Remember what was seen."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    """The time is up."""

    LATE = "late"
    """Look which files are late, and do with them as the policy says."""

    CLOSE = "close"
    """Remember it as told of, without an event: it was there before the trigger."""


class Decision(msgspec.Struct, frozen=True):
    """What to do, what to remember then, and after how many seconds to look again; None if only when
    something changes. The memory of an action that tells still lacks its `known`.
    """

    action: Action
    memory: SetMemory | None = None
    wait_s: float | None = None


def quiet_s(memory: SetMemory | None, seen: str, now: float) -> float:
    """For how long the set has been as it is seen now."""
    if memory is None or memory.seen != seen:
        return 0.0
    return max(now - memory.changed_at, 0.0)


def decide(
    memory: SetMemory | None, seen: str, verdict: Verdict, *, policy: Policy, now: float, is_old: bool = False
) -> Decision:
    """What becomes of a set of which something is there.

    Args:
        memory: None if nothing is remembered of it.
        seen: the fingerprint of what is there now.
        verdict: of the condition, with `quiet_s(memory, seen, now)`.
        now: UTC epoch seconds.
        is_old: whether this is the trigger's first look, which passes over what is complete.
    """
    if memory is None or memory.seen != seen:
        first_at = now if memory is None else memory.first_at
        told, closed, settled, kept = (0, False, "", None) if memory is None else (
            memory.told, memory.closed, memory.settled, memory.known,
        )  # fmt: skip
        noted = SetMemory(seen=seen, first_at=first_at, changed_at=now, told=told, closed=closed,
                          settled=settled, known=kept)  # fmt: skip
        is_news = True
    else:
        noted, is_news = memory, False
    if noted.told or noted.closed:
        return _decide_late(noted, is_news, verdict, policy, now)
    if verdict.complete:
        if is_old:
            return Decision(Action.CLOSE, msgspec.structs.replace(noted, closed=True, settled=seen))
        return Decision(Action.COMPLETE, msgspec.structs.replace(noted, told=1, settled=seen))
    left = None if policy.timeout_s is None else noted.first_at + policy.timeout_s - now
    if left is not None and left <= 0:
        return Decision(Action.INCOMPLETE, msgspec.structs.replace(noted, told=1, settled=seen))
    wait_s = min((wait for wait in (left, verdict.wait_s) if wait is not None), default=None)
    remember = is_news and (policy.keeps_time or policy.timeout_s is not None)
    return Decision(Action.NOTE if remember else Action.NOTHING, noted if remember else None, wait_s)


def _decide_late(noted: SetMemory, is_news: bool, verdict: Verdict, policy: Policy, now: float) -> Decision:
    if noted.seen == noted.settled:
        return Decision(Action.NOTE, noted) if is_news else Decision(Action.NOTHING)
    if policy.late is Late.IGNORE:
        # Remembered, so that a sweep has nothing more to look at.
        return Decision(Action.NOTE, msgspec.structs.replace(noted, settled=noted.seen))
    left: float | None = policy.gather_s - (now - noted.changed_at)
    is_ready = left is not None and left <= 0
    if policy.late is Late.AGAIN and not verdict.complete:
        is_ready, left = False, verdict.wait_s
    if not is_ready:
        return Decision(Action.NOTE if is_news else Action.NOTHING, noted if is_news else None, left)
    return Decision(
        Action.LATE, msgspec.structs.replace(noted, told=noted.told + 1, closed=False, settled=noted.seen)
    )
