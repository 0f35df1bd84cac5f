"""Recent ends: how invocations that ended a moment ago did, so that polls for them need not ask the store.

Imports the floor and the queue. Bounded by count and by bytes; what has been dropped is in the store.
"""

from headrace.runtime.queue.watchers import Ended

COUNT_MAX = 20_000
BYTES_MAX = 16 << 20


class RecentEnds:
    """The last ends of this node's invocations, the oldest dropped first."""

    def __init__(self) -> None:
        self._ends: dict[int, Ended] = {}
        self._bytes = 0

    def add(self, ended: Ended) -> None:
        """An invocation has ended, durably."""
        self.drop(ended.id)
        ends = self._ends
        ends[ended.id] = ended
        self._bytes += len(ended.result)
        while len(ends) > COUNT_MAX or self._bytes > BYTES_MAX:
            self._bytes -= len(ends.pop(next(iter(ends))).result)

    def drop(self, id: int) -> None:
        """The invocation is to run again."""
        dropped = self._ends.pop(id, None)
        if dropped is not None:
            self._bytes -= len(dropped.result)

    def find(self, ids: dict[int, str]) -> list[Ended]:
        """Those of the ids that ended of late."""
        ends = self._ends
        return [ends[id] for id in ids if id in ends] if ends else []
