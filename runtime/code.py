"""Code: what user code a node is to run, as the value that travels to the process that imports it.

Imports nothing of Headrace.
"""

import base64
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "site-packages", "tests", "data"})
"""Folders that are no part of the code, wherever they are below it."""


class CodeRequest(msgspec.Struct, kw_only=True):
    """What to load: files, folders or module names, or one app by cloudpickle (base64). `defaults` are
    settings of functions that do not say their own (`timeout_s`, `memory_bytes`, `max_age_s`).
    """

    paths: list[str] = []
    pickled: str = ""
    sys_path: list[str] = []
    defaults: dict[str, Any] = {}
    allow_code: bool = False


def request_for(paths: list[str], *, defaults: Mapping[str, Any] | None = None) -> bytes:
    """The loader's argument for files, folders and modules."""
    shown = [str(Path(path).absolute()) if is_path(path) else path for path in paths]
    return msgspec.json.encode(
        CodeRequest(paths=shown, sys_path=caller_paths(), defaults=dict(defaults or {}))
    )


def request_for_app(app: object, *, defaults: Mapping[str, Any] | None = None) -> bytes:
    """The loader's argument for an app of this process: its functions travel by cloudpickle."""
    import cloudpickle

    blob = base64.b64encode(cloudpickle.dumps(app)).decode()
    return msgspec.json.encode(
        CodeRequest(pickled=blob, sys_path=caller_paths(), defaults=dict(defaults or {}))
    )


def watched_folders(paths: list[str]) -> list[Path]:
    """The folders whose files make up the code, for reloading on save."""
    folders = set()
    for path in paths:
        place = Path(path)
        if place.is_dir():
            folders.add(place.absolute())
        elif place.is_file():
            folders.add(place.absolute().parent)
        else:
            spec = find_module(path)
            if spec is not None and spec.origin:
                folders.add(Path(spec.origin).absolute().parent)
    return sorted(folders)


def caller_paths() -> list[str]:
    """The import path of this process, for a process that has to import the same modules."""
    return [entry or str(Path.cwd()) for entry in sys.path]


def is_path(text: str) -> bool:
    """Whether the text means a file or folder, not a module."""
    return text.endswith(".py") or os.sep in text or Path(text).exists()


def find_module(module: str) -> Any:
    """The module's import spec; None when it cannot be found."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
