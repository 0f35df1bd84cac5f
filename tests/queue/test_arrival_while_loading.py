"""What comes while the window asks the store for more is neither forgotten nor a reason to stop asking."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace import App
from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.model.invocation import Claim, Status
from tests.inline_node import InlineNode

app = App("late")


@app.function
def follow(event: Any) -> None: ...


class HeldAnswers:
    """A store's `claim` whose answers for one flow come only when they are let go, or fail once."""

    def __init__(self, node: InlineNode, flow: str, *, error: Exception | None = None) -> None:
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()
        self._claim, self._flow, self._error = node.store.claim, flow, error

    async def claim(self, node: str, *, flow: str, **options: Any) -> list[Claim]:
        if flow != self._flow:
            return await self._claim(node, flow=flow, **options)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        found = await self._claim(node, flow=flow, **options)
        self.asked.set()
        await self.let_go.wait()
        return found


async def test_an_arrival_while_nothing_is_found_is_loaded_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with InlineNode(tmp_path, app, held=True) as node:
        held = HeldAnswers(node, "late.follow")
        monkeypatch.setattr(node.store, "claim", held.claim)
        node.dispatcher.wake("late.follow", "late.follow")
        await held.asked.wait()  # the store has said that there is nothing
        id = await unclaimed(node)
        held.let_go.set()
        await node.until(lambda: node.pool.attempts, "its attempt")
        node.pool.run()
        await node.idle()

        assert (await node.record(id)).status is Status.SUCCEEDED
        assert node.said == []


@pytest.mark.parametrize("error", [StoreUnavailable("for a moment"), LookupError("of ours")])
async def test_a_flow_that_could_not_be_loaded_is_loaded_later_whatever_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with InlineNode(tmp_path, app) as node:
        held = HeldAnswers(node, "late.follow", error=error)
        monkeypatch.setattr(node.store, "claim", held.claim)
        held.let_go.set()
        await unclaimed(node)
        await node.until(lambda: node.said, "the report")
        await node.clock.advance(2.0)
        await node.idle()

        assert (await node.books()).succeeded == 1
        [(message, details)] = node.said
        assert "trying again" in message
        assert str(error.args[0]) in details["error"]


async def unclaimed(node: InlineNode) -> int:
    """Accept an invocation that nobody has claimed yet, and have the window told."""
    put = node.dispatcher.prepare("late.follow", b"1")
    await node.store.apply([put], now=node.clock.now())
    window = node.dispatcher._window
    window.waits("late.follow", "late.follow", priority=0, due_at=put.invocation.due_at)
    return put.invocation.id
