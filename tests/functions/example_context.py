"""What the examples use of a Context, over a real folder store."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from headrace import Context
from headrace.runtime.objects.folder import FolderStore


def context_over(folder: Path) -> Context:
    """A context with `objects` in `folder`, and a `log` that keeps what it is told in `log.said`."""
    said: list[tuple[str, dict[str, Any]]] = []
    log = SimpleNamespace(info=lambda message, **fields: said.append((message, fields)), said=said)
    return cast(Context, SimpleNamespace(objects=FolderStore(folder, fsync=False), log=log))
