"""Offline: a SQLite file of a node that is not running, for looking at only.

Imports the floor and its own room. Opening it as a store would recover what an earlier node was running; this
takes the lock, so that no node starts meanwhile, and changes nothing.
"""

import asyncio
import sqlite3
from pathlib import Path

from headrace.runtime.errors import DataDamaged, DataTooNew, InvalidSettings
from headrace.runtime.model.audit import Audit, Reference
from headrace.runtime.store import audit
from headrace.runtime.store.holder import Holder
from headrace.runtime.store.longread import LongReader
from headrace.runtime.store.version import SCHEMA


class OfflineStore:
    """An `AuditStore` over the file `path`, under its lock."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._holder = Holder(self.path.with_name(self.path.name + ".lock"))
        self._long = LongReader(self.path)

    async def start(self) -> None:
        """Take the lock and look at the schema.

        Raises DataInUse, DataTooNew, DataDamaged, ReadOnlyStorage; InvalidSettings where there is no
        database, or one of an older release.
        """
        if not self.path.is_file():
            raise InvalidSettings(f"there is no database at {self.path}", "Name the data folder with --data.")
        await self._holder.take()
        try:
            await self._long.ask(self._check)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Give the lock up."""
        await asyncio.to_thread(self._long.stop)
        self._holder.drop()

    async def audit(self, *, function: str | None = None, limit: int = 100) -> Audit:
        return await self._long.ask(lambda db: audit.audit(db, function=function, limit=limit))

    async def references(self, *, jobs: bool = False, after: int = 0, limit: int = 1000) -> list[Reference]:
        return await self._long.ask(lambda db: audit.references(db, jobs=jobs, after=after, limit=limit))

    def _check(self, db: sqlite3.Connection) -> None:
        tables = {name for [name] in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "meta" not in tables:
            raise DataDamaged(str(self.path), "it is a SQLite database, but none of Headrace's")
        facts = dict(db.execute('SELECT "key", value FROM meta').fetchall())
        schema, min_reader = int(facts["schema"]), int(facts["min_reader"])
        if min_reader > SCHEMA:
            raise DataTooNew(str(self.path), schema, SCHEMA)
        if schema < SCHEMA:
            raise InvalidSettings(
                f"{self.path} has the schema of an older release",
                "Start a node on it once, which brings it to the new one.",
            )
