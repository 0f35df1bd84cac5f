"""Snapshots: one version of the user's code as a zip file, kept so that it can be run again later.

Imports the code request only. A snapshot holds what the version's hash covers and the data files beside it;
what is installed in the environment it only names, by its version.
"""

import base64
import importlib.metadata
import io
import os
import platform
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from headrace.runtime.code import SKIPPED_FOLDERS, CodeRequest, find_module, is_path

BYTES_MAX = 50 << 20
"""Bytes of files, before they are compressed, that one snapshot may hold."""

FILES_MAX = 20_000
ABOUT = "headrace.json"
_PICKLE = "app.pickle"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say: equal code gives equal bytes


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """One of the paths that were loaded: `kind` is `folder`, `file` or `module`, `place` where it is in the
    zip, `given` what the node was told, `import_from` the folder in the zip that goes on the import path.
    """

    kind: str
    place: str
    given: str
    import_from: str


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says of itself.

    `functions` are the names that this version has. `kept` is whether the files are in the zip; `note` says
    why not. `code_bytes` is the size of the files as far as they were counted.
    """

    version: str
    python: str
    cloudpickle: str
    headrace: str
    functions: tuple[str, ...] = ()
    roots: tuple[Root, ...] = ()
    pickled: bool = False
    defaults: dict[str, Any] = {}
    code_bytes: int = 0
    kept: bool = True
    note: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """A zip file and what it says of itself."""

    about: About
    data: bytes


class TooMuch(Exception):
    """The files are more than a snapshot may hold: (bytes so far, files so far)."""


class ChangedMeanwhile(Exception):
    """A file was written after the code began to be loaded, so it may not be what was loaded: (path)."""


def environment() -> dict[str, str]:
    """The versions that a replay has to have in common with the first run."""
    return {
        "python": platform.python_version(),
        "cloudpickle": _installed("cloudpickle"),
        "headrace": _installed("headrace"),
    }


def take(
    argument: bytes,
    *,
    version: str,
    functions: Sequence[str],
    loaded_at: float,
    without: Sequence[Path] = (),
    bytes_max: int = BYTES_MAX,
) -> Snapshot:
    """The snapshot of the code that `argument` (a loader's) names. Blocks for as long as reading it takes.

    Args:
        loaded_at: when its loading began, UTC epoch seconds.
        without: folders that are left out, such as the node's data.
        bytes_max: beyond it only `about` is in the zip, with a note that says so.

    Raises: ChangedMeanwhile; OSError for what cannot be read.
    """
    wanted = msgspec.json.decode(argument, type=CodeRequest)
    barred = frozenset(path.absolute() for path in without)
    files: list[tuple[str, Path]] = []
    roots: list[Root] = []
    total, note = 0, ""
    try:
        for number, given in enumerate(wanted.paths):
            root, found = _root(given, number, barred)
            if root is None:
                continue
            roots.append(root)
            for place, file in found:
                facts = file.stat()
                if facts.st_mtime > loaded_at:
                    raise ChangedMeanwhile(str(file))
                total += facts.st_size
                files.append((place, file))
                if total > bytes_max or len(files) > FILES_MAX:
                    raise TooMuch(total, len(files))
    except TooMuch:
        note = (
            f"the code and its data files are more than {bytes_max >> 20} MiB or {FILES_MAX:,} files, so they"
            " are not kept"
        )
        files = []
    about = About(
        version=version, functions=tuple(functions), roots=tuple(roots), pickled=bool(wanted.pickled),
        defaults=wanted.defaults, code_bytes=total, kept=not note, note=note, **environment(),
    )  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(ABOUT, _EPOCH), msgspec.json.encode(about))
        if wanted.pickled:
            archive.writestr(zipfile.ZipInfo(_PICKLE, _EPOCH), base64.b64decode(wanted.pickled))
        for place, file in files:
            entry = zipfile.ZipInfo(place, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    return Snapshot(about, buffer.getvalue())


def read_about(data: bytes) -> About:
    """What a snapshot says of itself. Raises ValueError when it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return msgspec.json.decode(archive.read(ABOUT), type=About)
    except (zipfile.BadZipFile, KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"this is no snapshot of code: {error}") from None


def unpack(data: bytes, folder: Path) -> bytes:
    """Lay a snapshot's files out in an empty folder; returns the loader's argument for them.

    Raises ValueError when it is none, or names a place outside the folder.
    """
    about = read_about(data)
    pickled = ""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            place = PurePosixPath(entry.filename)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"the snapshot names a place outside its folder: {entry.filename}")
            if entry.filename == _PICKLE:
                pickled = base64.b64encode(archive.read(entry)).decode()
            elif entry.filename != ABOUT:
                target = folder.joinpath(*place.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(entry))
    paths = [root.given if root.kind == "module" else str(folder / root.place) for root in about.roots]
    imports = [str(folder / root.import_from) for root in about.roots]
    return msgspec.json.encode(
        CodeRequest(paths=paths, pickled=pickled, sys_path=imports, defaults=about.defaults)
    )


def _root(given: str, number: int, barred: frozenset[Path]) -> tuple[Root | None, Iterator[tuple[str, Path]]]:
    """Where a path's files go in the zip, and the files."""
    place, top = Path(given), str(number)
    if place.is_dir():
        root = Root(kind="folder", place=top, given=given, import_from=top)
        return root, _below(place, top, barred)
    if place.is_file():
        root = Root(kind="file", place=f"{top}/{place.name}", given=given, import_from=top)
        return root, _beside(place, top)
    if is_path(given) or (spec := find_module(given)) is None or not spec.origin:
        return None, iter(())
    root = Root(kind="module", place=top, given=given, import_from=top)
    origin, parents = Path(spec.origin), given.split(".")
    if origin.name == "__init__.py":
        return root, _below(origin.parent, "/".join([top, *parents]), barred)
    return root, _beside(origin, "/".join([top, *parents[:-1]]))


def _below(folder: Path, top: str, barred: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    for at, names, files in os.walk(folder):
        here = Path(at)
        names[:] = sorted(
            name
            for name in names
            if name not in SKIPPED_FOLDERS and name[0] != "." and (here / name).absolute() not in barred
        )
        for name in sorted(files):
            file = here / name
            if name[0] != "." and not name.endswith((".pyc", ".pyo")) and file.is_file():
                yield f"{top}/{file.relative_to(folder).as_posix()}", file


def _beside(file: Path, top: str) -> Iterator[tuple[str, Path]]:
    """A file of functions, and the Python files in its folder, which it may import."""
    for other in sorted(file.parent.glob("*.py")):
        if other == file or (other.name[0] != "." and other.is_file()):
            yield f"{top}/{other.name}", other
    if file.suffix != ".py":
        yield f"{top}/{file.name}", file


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
