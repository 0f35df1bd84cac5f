"""Claims of the one process that owns a SQLite file: held in memory, since they die with the process anyway.

Imports the floor only. Only the writer's thread touches a `Claims`, between the transactions that it
concerns, so a claim can neither be given out twice nor outlive the commit that ends it. Changes made for a
transaction are noted and taken back when it, or one caller's part of it, is undone.
"""

from headrace.runtime.model.invocation import Claim, Invocation

_HEADS_MAX = 10_000
# A claim's moments may have come through 17 decimal digits, and be off by one unit in the last place.
_SLACK_S = 1e-5


class _Count:
    """Claims of one function that are held, in all and by flow."""

    __slots__ = ("flows", "total")

    def __init__(self) -> None:
        self.total = 0
        self.flows: dict[str, int] = {}

    def add(self, flow: str, change: int) -> None:
        self.total += change
        left = self.flows.get(flow, 0) + change
        if left:
            self.flows[flow] = left
        else:
            self.flows.pop(flow, None)


class Claims:
    """Who may run what, which nodes live, and how far each flow's queue has been given out."""

    def __init__(self) -> None:
        self.held: dict[int, Claim] = {}
        self.marked: set[int] = set()
        """Held claims that MarkRunning has recorded: the loss of their node costs an attempt."""
        self.leases: dict[str, float] = {}
        self.lost: list[Claim] = []
        """What an earlier process was running when it ended; `release_expired` reports it once."""
        # An id was not held before and is to be again so; a claim was held and not marked; the rest in full.
        self._undo: list[int | Claim | tuple[int, Claim | None, bool]] = []
        self._heads: dict[tuple[str, int], tuple[float, int]] = {}
        self._counts: dict[str, _Count] = {}
        """Of the functions whose limits were asked about. They follow from `held`, and are made when they are
        missing."""

    def count(self, function: str, flow: str) -> tuple[int, int]:
        """Claims held of a function, and of one of its flows."""
        found = self._counts.get(function)
        if found is None:
            found = self._counts[function] = _Count()
            for claim in self.held.values():
                if claim.invocation.function == function:
                    found.add(claim.invocation.flow, 1)
        return found.total, found.flows.get(flow, 0)

    def _counted(self, claim: Claim, change: int) -> None:
        count = self._counts.get(claim.invocation.function)
        if count is not None:
            count.add(claim.invocation.flow, change)

    # ---- by a transaction: every change can be undone ----

    @property
    def mark(self) -> int:
        """A point that `undo_to` can return to."""
        return len(self._undo)

    def undo_to(self, mark: int) -> None:
        """Take back all changes since `mark`, the newest first."""
        undo = self._undo
        if len(undo) > mark:
            self._counts.clear()
        while len(undo) > mark:
            change = undo.pop()
            if type(change) is int:
                self.held.pop(change, None)
                continue
            if type(change) is Claim:
                self.held[change.invocation.id] = change
                continue
            id, claim, marked = change  # type: ignore[misc]
            if claim is None:
                self.held.pop(id, None)
            else:
                self.held[id] = claim
            if marked:
                self.marked.add(id)
            else:
                self.marked.discard(id)

    def committed(self) -> None:
        """What was noted stands."""
        self._undo.clear()

    def stands(self, claim: Claim) -> bool:
        held = self.held.get(claim.invocation.id)
        return held is claim or (
            held is not None and held.attempt == claim.attempt and held.node == claim.node
        )

    def hold(self, claim: Claim) -> None:
        id = claim.invocation.id
        before = self.held.get(id)
        self._undo.append(id if before is None else (id, before, id in self.marked))
        self.held[id] = claim
        if self._counts:
            if before is not None:
                self._counted(before, -1)
            self._counted(claim, 1)

    def drop(self, id: int) -> Claim | None:
        """End the claim of an invocation, if there is one."""
        claim = self.held.pop(id, None)
        if claim is not None:
            if id in self.marked:
                self._undo.append((id, claim, True))
                self.marked.discard(id)
            else:
                self._undo.append(claim)
            if self._counts:
                self._counted(claim, -1)
        return claim

    def mark_running(self, id: int) -> None:
        self._undo.append((id, self.held.get(id), id in self.marked))
        self.marked.add(id)

    # ---- by nodes ----

    def of_nodes(self, nodes: set[str]) -> list[Claim]:
        return [claim for claim in self.held.values() if claim.node in nodes]

    def expired(self, now: float) -> set[str]:
        return {node for node, until in self.leases.items() if until <= now}

    # ---- heads: everything in (flow, priority) up to the head is claimed, so that no claim reads it again
    # ----

    def head(self, flow: str, priority: int) -> tuple[float, int]:
        """The (due_at, id) after which unclaimed invocations may be."""
        return self._heads.get((flow, priority), (float("-inf"), 0))

    def advance(self, flow: str, priority: int, due_at: float, id: int) -> None:
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()  # a lost head costs a longer read, never a claim
        self._heads[(flow, priority)] = (due_at, id)

    def freed(self, flow: str, priority: int, due_at: float, id: int) -> None:
        """An invocation waits unclaimed at this place, perhaps before the head."""
        head = self._heads.get((flow, priority))
        if head is not None and (due_at, id) <= head:
            self._heads[(flow, priority)] = (due_at, id - 1)

    def freed_claim(self, claim: Claim) -> None:
        invocation: Invocation = claim.invocation
        self.freed(invocation.flow, invocation.priority, invocation.due_at - _SLACK_S, invocation.id)
