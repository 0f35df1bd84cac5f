"""Burying: events that are accepted as dead letters, since whoever brought them knows that they must not run.

Imports the floor and this room.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.model.ids import show_id
from headrace.runtime.model.invocation import Claim, Status
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.model.write import Settle, Write
from headrace.runtime.queue.dispatcher import Dispatcher


async def bury(
    dispatcher: Dispatcher,
    spec: FunctionSpec,
    event: bytes,
    *,
    error: Mapping[str, Any],
    node: str,
    source: str,
    clock: Clock,
    before: Sequence[Write] = (),
) -> str:
    """Accept an event and end it as dead, in one step with `before`, and with what its destination is told.

    It counts as accepted and as dead, has no attempts, and can be edited and redriven like all dead letters.

    Args:
        event: JSON.
        error: why, as `{"code", "message", …}`.
        node: this node's name, which claims it for that step.

    Returns: the invocation's id. Raises: as `Dispatcher.prepare`, or what refused a write.
    """
    put = dispatcher.prepare(spec.name, event, source=source)
    put.node = node
    claim = Claim(put.invocation, 1, node)
    settle = Settle(claim, Status.DEAD, error=dict(error), begun=False)
    told = dispatcher.ends.told(settle, spec, clock.now())
    await dispatcher.accept([] if told is None else [told], before=[*before, put, settle])
    return show_id(put.invocation.id)
