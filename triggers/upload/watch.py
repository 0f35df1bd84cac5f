"""FolderWatch: what tells, within a millisecond, which files of a folder have been finished.

Imports the key rules of the object stores and its own room. A created or modified file is no finished one:
what counts is that its writer closed it, or that it was renamed into place. Where a platform cannot tell
that, the notice says so.
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from headrace.runtime.objects.key import is_temporary_name, key_of_path


class Happening(Enum):
    """What a notice says of its key."""

    FINISHED = auto()
    """The file was closed by its writer, or renamed into place."""

    UNSURE = auto()
    """The file changed, and this platform cannot tell whether its writer is done."""

    DIRECTORY = auto()
    """A directory appeared; the key ends with a slash. What was in it before it was watched has no notice."""


Notice = tuple[Happening, str]
InThread = Callable[..., Awaitable[Any]]
_IS_LINUX: bool = sys.platform == "linux"


class Listener(Protocol):
    """Who is told; called on the event loop."""

    def __call__(self, notices: list[Notice], /, *, lost: bool) -> None:
        """`notices` are in order and name no temporary files; `lost` says that some are missing."""


class FolderWatch(Protocol):
    """Watches the folder of one bucket, with all folders below it."""

    async def arm(self) -> None:
        """Begin to watch: when this returns, nothing that happens from then on is missed.

        Raises: OSError when the folder is missing or the system grants no more watches. When it does not
        grant enough for all folders, those that it grants are watched.
        """

    async def extend(self) -> None:
        """Watch the directories of which notices were given. Raises: OSError as `arm`."""

    async def disarm(self) -> None:
        """Stop watching; nobody is told anything after this. Twice is harmless."""

    async def is_stale(self) -> bool:
        """Whether it misses something: notices were lost, or the folder was removed or replaced."""


def watch_folder(path: str, listener: Listener, in_thread: InThread) -> FolderWatch:
    """A watch of the best kind for this platform. `path` may be a link; `in_thread` runs what blocks."""
    if _IS_LINUX:
        from headrace.triggers.upload.inotify import InotifyWatch

        return InotifyWatch(path, listener, in_thread)
    from headrace.triggers.upload.observer import ObserverWatch

    return ObserverWatch(path, listener, in_thread)


def file_notice(happening: Happening, names: Sequence[bytes]) -> Notice | None:
    """The notice of a file, from its path below the bucket; None if it is no object, or a temporary one."""
    key = _key(names)
    return None if key is None or is_temporary_name(key) else (happening, key)


def directory_notice(names: Sequence[bytes]) -> Notice | None:
    """The notice of a directory, from its path below the bucket; None if nothing below it can fire."""
    # A name stands in for what is below it, since a directory's own path may be no key: the empty segment's
    # is not.
    key = _key([*names, b"x"])
    return None if key is None or is_temporary_name(key) else (Happening.DIRECTORY, key[:-1])


def _key(names: Sequence[bytes]) -> str | None:
    try:
        return key_of_path([name.decode() for name in names])
    except UnicodeDecodeError:
        return None
