"""StoreWatch: for stores of this process that tell of each object themselves.

Imports the object stores' protocol and its own room.
"""

import asyncio
from collections.abc import Callable

from headrace.runtime.objects.protocol import Notifying
from headrace.triggers.upload.watch import Happening, Listener


class StoreWatch:
    """A watch (see FolderWatch) of one bucket of such a store. An object is whole when it is told of."""

    def __init__(self, store: Notifying, bucket: str, listener: Listener) -> None:
        self._store = store
        self._bucket = bucket
        self._listener = listener
        self._end: Callable[[], None] | None = None

    async def arm(self) -> None:
        """See FolderWatch."""
        if self._end is not None:
            return
        loop = asyncio.get_running_loop()

        def told(key: str) -> None:
            loop.call_soon_threadsafe(self._tell, key)

        self._end = self._store.subscribe(self._bucket, told)

    def _tell(self, key: str) -> None:
        if self._end is not None:
            self._listener([(Happening.FINISHED, key)], lost=False)

    async def extend(self) -> None:
        """There are no folders."""

    async def disarm(self) -> None:
        """See FolderWatch."""
        end, self._end = self._end, None
        if end is not None:
            end()

    async def is_stale(self) -> bool:
        """Nothing is lost on the way."""
        return False
