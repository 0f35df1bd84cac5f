"""Code: what a pool runs, how it reaches the processes that run it, and what they get when they import it.

Imports the floor. The loader is named by text and called in the zygote and in spawned workers only: the node
never imports user code.
"""

import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from headrace.runtime.model.spec import Manifest
from headrace.runtime.pool.context import Context, WorkerConfig

ARGUMENT_BYTES_MAX = 64 << 20

Entry = Callable[[Any, Context], Any]


class Loaded(Protocol):
    """What a loader returns: the manifest, and by function name what runs it, given the decoded payload
    and a Context."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...


class Setup(msgspec.Struct, kw_only=True):
    """What the zygote and spawned workers read from the descriptor they are started with.

    `loader` is `module:function`, called with `argument`. `folder` is where the pool's workers keep scratch
    folders. `held` are descriptors that the zygote alone keeps open.
    """

    loader: str
    argument: bytes
    config: WorkerConfig
    folder: str
    held: tuple[int, ...] = ()

    @classmethod
    def read(cls, descriptor: int) -> "Setup":
        """The setup in a file, wherever its position is."""
        size = os.fstat(descriptor).st_size
        data = bytearray()
        while len(data) < size:
            piece = os.pread(descriptor, size - len(data), len(data))
            if not piece:
                break
            data += piece
        return msgspec.msgpack.decode(data, type=cls)

    def load(self) -> Loaded:
        """Import the code. Raises: whatever the loader raises."""
        module, _, name = self.loader.partition(":")
        loaded: Loaded = getattr(importlib.import_module(module), name)(self.argument)
        return loaded


def plain_streams() -> None:
    """Make stdout and stderr text that is written line by line straight to descriptors 1 and 2.

    Without the usual buffer below the text layer, flushing what is already written costs 60 ns instead of
    370.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        # A raw file as the buffer is what `python -u` uses too, whatever the type stubs say.
        raw: Any = io.FileIO(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def show_log_records() -> None:
    """Send what user code logs to stderr, from INFO up, unless it has made arrangements of its own;
    called after the import."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
