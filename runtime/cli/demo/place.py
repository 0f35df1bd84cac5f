"""The demo's place: the folder that holds its node's data, and the file that it analyses.

Imports the error tree and the data folder's lock. The demo empties a folder only if it made it, which a mark
inside says, and only while no node works in it.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.runtime.errors import DataInUse, InvalidSettings, ReadOnlyStorage, StorageFull
from headrace.runtime.objects.key import file_name
from headrace.runtime.store.holder import Holder

MARK = ".headrace-demo"
LOCK = "headrace.db.lock"  # what a node on this folder holds
SUFFIXES = {".csv": "reviews.score", ".tsv": "reviews.score_snippets"}
"""Which job the upload of such a file starts; the triggers in `functions/reviews.py` say the same."""


def functions_folder() -> Path:
    """The folder of example functions: beside `runtime/` both in a clone and in what is installed.

    Raises InvalidSettings if it was left out.
    """
    folder = Path(__file__).resolve().parents[3] / "functions"
    if not (folder / "reviews.py").is_file():
        raise InvalidSettings(
            f"the example functions are missing: there is no {folder / 'reviews.py'}",
            "Install Headrace again.",
        )
    return folder


def check_input(path: Path) -> str:
    """The job for a file of reviews, by its suffix. Raises InvalidSettings for what the demo cannot take."""
    if not path.exists():
        raise InvalidSettings(
            f"{path} does not exist", "Check the path's spelling; without --input the demo makes a file."
        )
    if not path.is_file():
        raise InvalidSettings(f"{path} is not a file", "Name one file of reviews.")
    job = SUFFIXES.get(path.suffix)
    if job is None:
        raise InvalidSettings(
            f"the demo takes .csv and .tsv files, not {path.name}",
            "A .csv file names its columns (review_text, and if you like product and rating); "
            "a .tsv file has the columns id, rating, text and no header.",
        )
    if not os.access(path, os.R_OK):
        raise InvalidSettings(f"{path} cannot be read", "Check its owner and mode.")
    return job


@contextmanager
def demo_folder(folder: Path, *, keep: bool) -> Iterator[None]:
    """Hold `folder` for one run: made, or emptied if an earlier run of the demo made it and `keep` is off.

    Raises: InvalidSettings if the folder holds anything and is not the demo's; DataInUse if another demo, or
    a node, works in it; ReadOnlyStorage; StorageFull.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidSettings(
            f"{folder} is not a folder", "Name a folder with --data; it is made when it is missing."
        )
    if folder.is_dir() and not (folder / MARK).is_file() and any(folder.iterdir()):
        raise InvalidSettings(
            f"{folder} holds files that the demo did not make",
            "Name another folder with --data; it is made when it is missing.",
        )
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark = (folder / MARK).open("a", encoding="utf-8")
    with mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataInUse(str(folder), "another demo") from None
        if not keep:
            asyncio.run(_empty(folder))
        if mark.tell() == 0:
            mark.write("`headrace demo` made this folder, and empties it whenever it begins anew.\n")
            mark.flush()
        yield


def drop(path: Path, bucket: Path, *, key: str) -> Path:
    """Move a finished file into a bucket in one step, so that nobody sees a part of it; where it is then."""
    bucket.mkdir(parents=True, exist_ok=True)
    return path.replace(bucket / os.fsdecode(file_name(key)))


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns what the system says of a folder that cannot be written into errors that say what to do."""
    try:
        yield
    except PermissionError as e:
        raise ReadOnlyStorage(str(folder)) from e
    except OSError as e:
        if e.strerror and e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise StorageFull(str(folder)) from e
        raise


async def _empty(folder: Path) -> None:
    """Remove what earlier runs left, holding the lock of a node meanwhile. Raises DataInUse."""
    lock = Holder(folder / LOCK)
    await lock.take()
    try:
        _remove(folder)
    finally:
        lock.drop()


def _remove(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name in (MARK, LOCK):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
