"""Reports of one source: what goes wrong in the background is told once, and the source goes on.

Imports the trigger protocol.
"""

import contextlib
from collections.abc import Iterator

from headrace.runtime.trigger import TriggerContext


class Reports:
    """Tells what happens to one trigger's source, with the trigger's name and its bucket."""

    def __init__(self, context: TriggerContext, bucket: str) -> None:
        self._context, self._bucket = context, bucket
        self._told: dict[str, str] = {}

    def tell(self, message: str, *, error: Exception | None = None, **facts: object) -> None:
        shown = {"trigger": self._context.name, "bucket": self._bucket, **facts}
        if error is not None:
            shown |= {
                "error": f"{type(error).__name__}: {error}",
                "hint": getattr(error, "hint", ""),
            }
        self._context.report(message, shown)

    @contextlib.contextmanager
    def catching(
        self, message: str, *, unless: type[Exception] | None = None, once: bool = False, **facts: object
    ) -> Iterator[None]:
        """The outermost catch of whatever runs in the background; errors of kind `unless` pass through. With
        `once` an error that comes again and again is told the first time.
        """
        try:
            yield
            if once:
                self._told.pop(message, None)
        except Exception as error:
            if unless is not None and isinstance(error, unless):
                raise
            words = f"{type(error).__name__}: {error}"
            if not once or self._told.get(message) != words:
                self.tell(message, error=error, **facts)
            if once:
                self._told[message] = words
