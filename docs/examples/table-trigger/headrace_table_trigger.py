"""A trigger for Headrace: each new row of an SQLite table is an event.

Imports the trigger protocol and the floor of Headrace, as every trigger may, and nothing else of it.
"""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from headrace.runtime.errors import Duplicate, InvalidFunction, Retryable
from headrace.runtime.model.write import CursorMoved
from headrace.runtime.trigger import Route, Source, TriggerContext

BATCH = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Table:
    """Call the function for every row that is added to a table.

    Args:
        database: path of the SQLite file.
        table: the table's name.
        column: a column of whole numbers that grow with each row, such as the primary key.
        every: seconds from one look for new rows to the next, above 0.
        existing: `skip` passes over the rows that were there before the trigger first started, `run` does
            not.

    Raises: InvalidFunction.
    """

    kind: ClassVar[str] = "table"

    def __init__(
        self, database: str, table: str, *, column: str = "id", every: float = 1.0, existing: str = "skip"
    ) -> None:
        for name in (table, column):
            if not _NAME.fullmatch(name):
                raise InvalidFunction(
                    f"Table({table!r})", f"{name!r} is no name in SQL", "Use letters, digits and _."
                )
        if not every > 0:
            raise InvalidFunction(f"Table({table!r})", f"every is {every!r}", "Give seconds, above 0.")
        if existing not in ("skip", "run"):
            raise InvalidFunction(f"Table({table!r})", f"existing is {existing!r}", 'Use "skip" or "run".')
        self.database, self.table, self.column = database, table, column
        self.every, self.existing = float(every), existing

    def fields(self) -> dict[str, Any]:
        return {
            "database": self.database,
            "table": self.table,
            "column": self.column,
            "every": self.every,
            "existing": self.existing,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields)

    def source(self, context: TriggerContext) -> Source:
        return TableSource(self, context)

    def routes(self) -> Sequence[Route]:
        return ()


class TableSource:
    """Looks for rows above a position, and moves the position in the step that accepts their events."""

    def __init__(self, trigger: Table, context: TriggerContext) -> None:
        self._trigger, self._context = trigger, context
        self._position = f"table:{context.name}"
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._position)

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            more = False
            try:
                more = await self.step()
            except Duplicate:
                more = True  # another node brought these rows: go on from its position
            except (Retryable, sqlite3.Error) as error:
                # A full queue or disk, a table that is not there yet: nothing has moved, so nothing is lost.
                self._context.report("a table cannot be read on", {"error": str(error)})
            if not more:
                await self._context.clock.sleep(self._trigger.every)

    async def step(self) -> bool:
        """Bring up to BATCH rows; whether there may be more."""
        context, known = self._context, await self._context.state.cursor(self._position)
        if known is None and self._trigger.existing == "skip":
            newest = await context.in_thread(self._newest)
            await context.accept([], [CursorMoved(self._position, str(newest), expected="")])
            return True
        rows = await context.in_thread(self._read, None if known is None else int(known))
        if not rows:
            return False
        events = [{"table": self._trigger.table, "row": row} for row in rows]
        reached = str(rows[-1][self._trigger.column])
        await context.accept(events, [CursorMoved(self._position, reached, expected=known or "")])
        return len(rows) == BATCH

    def _newest(self) -> int:
        [row] = self._select(f"SELECT max({self._trigger.column}) AS newest FROM {self._trigger.table}")
        return int(row["newest"] or 0)

    def _read(self, after: int | None) -> list[dict[str, Any]]:
        column, table = self._trigger.column, self._trigger.table
        where = "" if after is None else f" WHERE {column} > {after}"
        return self._select(f"SELECT * FROM {table}{where} ORDER BY {column} LIMIT {BATCH}")

    def _select(self, query: str) -> list[dict[str, Any]]:
        # By URI, so that a file that is missing is not made.
        with contextlib.closing(sqlite3.connect(f"file:{self._trigger.database}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query)]
