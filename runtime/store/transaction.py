"""Transaction: many callers' lists of writes in one commit, each list atomic for itself.

Imports the floor and its own room. Nearly all lists hold only accepted invocations and ends of attempts.
Those are checked against the claims in memory, gathered over callers, and written by a few statements of many
rows each: Python's `sqlite3` gives up the interpreter lock at every step of a statement, and may wait
milliseconds for it beside a busy event loop, so what counts is the number of statements, not of rows. A few
acceptances and nothing else, which is what a caller who waits for each brings, are one statement that is its
own transaction. All other lists run one by one, each inside a savepoint.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from headrace.runtime.errors import Duplicate
from headrace.runtime.fault import reach
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.write import Applied, ChunkDone, MarkRunning, Put, Retry, Settle, Write
from headrace.runtime.store.claims import Claims
from headrace.runtime.store.database import SqliteDatabase
from headrace.runtime.store.recording import PLAIN, USUAL, Answer, Recording, Refused, lease_lost, usual
from headrace.runtime.store.rows import INVOCATION, invocation_row, text_of
from headrace.runtime.store.tally import ACCEPTED, BOOK_NAMES, Tally, add_to_books

_SUCCEEDED, _DEAD, _CANCELLED = Status.SUCCEEDED, Status.DEAD, Status.CANCELLED
_ENDED = (_SUCCEEDED, _DEAD, _CANCELLED)

# Rows a statement; each size is one prepared statement, so there are few, and any number of rows takes few.
_SIZES = tuple(1 << power for power in range(9, -1, -1))

_PUT = f"INSERT INTO invocation ({INVOCATION}, status) VALUES {{rows}}"
_SETTLE_PLAIN = (
    "UPDATE invocation SET status = v.column2, attempts = v.column3, started_at = v.column4, ended_at ="
    " v.column5,"
    " result = v.column6, error = NULL FROM (VALUES {rows}) AS v WHERE id = v.column1"
)
_SETTLE = (
    "UPDATE invocation SET status = v.column2, attempts = v.column3, started_at = v.column4, ended_at ="
    " v.column5, result = v.column6, result_ref = v.column7, error = v.column8"
    " FROM (VALUES (?, ?, ?, ?, ?, ?, ?, ?)) AS v WHERE id = v.column1"
)
_RETRY = (
    "UPDATE invocation SET status = 0, attempts = v.column2, due_at = v.column3, error = v.column4,"
    " node = NULL, started_at = NULL, memory_bytes = coalesce(v.column5, memory_bytes)"
    " FROM (VALUES (?, ?, ?, ?, ?)) AS v WHERE id = v.column1"
)
_MARK = (
    "UPDATE invocation SET status = 1, node = v.column2, started_at = v.column3"
    " FROM (VALUES (?, ?, ?)) AS v WHERE id = v.column1"
)


def _statements(text: str, row: str) -> dict[int, str]:
    return {size: text.format(rows=", ".join([row] * size)) for size in _SIZES}


_PUT_PLAIN_BY_SIZE = _statements(
    "INSERT INTO invocation (id, function, flow, payload, accepted_at, due_at, expires_at, priority,"
    " status, attempts)"
    " VALUES {rows}",
    "(?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
)
_PUT_BY_SIZE = _statements(_PUT, f"({', '.join('?' * 17)}, 0)")
_SETTLE_PLAIN_BY_SIZE = _statements(_SETTLE_PLAIN, "(?, ?, ?, ?, ?, ?)")

_ALONE_MAX = 16
"""Acceptances that are written with their books by one statement; for more, books apart cost less."""

_ACCEPT_ALONE = tuple(
    "INSERT INTO acceptance (id, function, flow, payload, accepted_at, due_at, expires_at, priority)"
    f" VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?, ?)'] * rows)}"
    for rows in range(1, _ALONE_MAX + 1)
)

ACCEPTANCE = (
    "CREATE TEMP VIEW acceptance AS SELECT id, function, flow, payload, accepted_at, due_at, expires_at,"
    " priority FROM invocation",
    "CREATE TEMP TRIGGER accept INSTEAD OF INSERT ON acceptance BEGIN"
    " INSERT INTO invocation (id, function, flow, payload, accepted_at, due_at, expires_at, priority, status,"
    " attempts) VALUES (NEW.id, NEW.function, NEW.flow, NEW.payload, NEW.accepted_at, NEW.due_at,"
    " NEW.expires_at, NEW.priority, 0, 0);"
    f" INSERT INTO counter (function, shard, {', '.join(BOOK_NAMES)})"
    f" VALUES (NEW.function, 0, 1{', 0' * (len(BOOK_NAMES) - 1)})"
    " ON CONFLICT (function, shard) DO UPDATE SET accepted = counter.accepted + 1;"
    " END",
)
"""What a connection needs before its first transaction: the view into which a few acceptances are written."""


class Transaction:
    """The lists of one commit: `run`, then `commit`; on any error the caller rolls back and `undo`es."""

    def __init__(
        self,
        db: SqliteDatabase,
        claims: Claims,
        cold: Callable[[Recording, Write, float], Applied],
        gather: Callable[[Recording, ChunkDone], Applied],
    ) -> None:
        self.db = db
        self.claims = claims
        self.tally = Tally()
        self._cold = cold
        self._gather = gather
        self._puts_plain: list[Any] = []
        self._puts: list[Any] = []
        self._marks: list[tuple[Any, ...]] = []
        self._retries: list[tuple[Any, ...]] = []
        self._settles_plain: list[Any] = []
        self._settles: list[tuple[Any, ...]] = []
        self._chunks: list[tuple[list[Applied], int, ChunkDone]] = []
        self._begun = False

    # ---- lists ----

    def run(self, lists: Iterable[tuple[Sequence[Write], float]], *, carefully: bool) -> list[Answer]:
        """Check every list, and write what cannot wait for `commit`; one answer each, in order.

        `carefully` gives each list a savepoint of its own. Without it an error that is one list's fault
        reaches the caller, who rolls back and runs all of them carefully.
        """
        answers: list[Answer] = []
        for writes, now in lists:
            if carefully or not usual(writes):
                self.flush()
                answers.append(self._apart(writes, now))
            else:
                answers.append(self._together(writes, now))
        return answers

    def commit(self) -> None:
        """Write the rest and the books, and make all of it durable."""
        if not self._begun and self._is_acceptance_alone():
            reach("commit.before")
            rows = self._puts_plain
            self.db.execute(_ACCEPT_ALONE[len(rows) // 8 - 1], rows)
        else:
            self.flush()
            add_to_books(self.db, self.tally, 0)
            reach("commit.before")
            self.db.execute("COMMIT")
        reach("commit.after")

    def _is_acceptance_alone(self) -> bool:
        puts, *others = self._lengths()
        return 0 < puts <= 8 * _ALONE_MAX and not any(others)

    def undo(self) -> None:
        """Forget everything; the database has been rolled back."""
        self.claims.undo_to(0)
        self.tally = Tally()
        self._begun = False
        self._truncate((0, 0, 0, 0, 0, 0, 0))

    def _together(self, writes: Sequence[Write], now: float) -> list[Applied]:
        """Check a list in memory and gather its rows; `flush` writes them."""
        if len(writes) == 1:  # nothing can be half done
            answers: list[Applied] = []
            try:
                self._gather_one(writes[0], now, answers)
            except Refused as refused:
                return [Applied(refused=refused.reason)]
            return answers
        mark, lengths, tally, self.tally = self.claims.mark, self._lengths(), self.tally, Tally()
        answers = []
        try:
            for write in writes:
                kind = type(write)
                if kind is Settle:
                    self._settle(write, now)  # type: ignore[arg-type]
                    answers.append(PLAIN)
                elif kind is Put:  # a usual one, or the list were not here
                    answers.append(self.accept(write.invocation, write.node))  # type: ignore[union-attr]
                else:
                    self._gather_one(write, now, answers)
        except Refused as refused:
            self.claims.undo_to(mark)
            self._truncate(lengths)
            self.tally = tally
            return [Applied(refused=refused.reason)] * len(writes)
        tally.merge(self.tally)
        self.tally = tally
        return answers

    def _apart(self, writes: Sequence[Write], now: float) -> Answer:
        """Write a list inside a savepoint; what goes wrong with it alone is its answer."""
        mark, tally, self.tally = self.claims.mark, self.tally, Tally()
        self.db.execute("SAVEPOINT list")
        try:
            answers: list[Applied] = []
            for write in writes:
                if type(write) in USUAL:
                    self._gather_one(write, now, answers)
                else:
                    self.flush()
                    answers.append(self._cold(self, write, now))
            self.flush()
        except (sqlite3.OperationalError, sqlite3.InternalError):
            raise  # the database's fault: nobody's list can be recorded
        except Exception as error:
            if type(error) is sqlite3.DatabaseError:
                raise
            self._back_out(mark)
            self.tally = tally
            if isinstance(error, sqlite3.IntegrityError):
                error = Refused(Duplicate(f"one of the ids ({error})"))
            if not isinstance(error, Refused):
                return error
            if error.after is not None:
                error.after(self)
            return [Applied(refused=error.reason)] * len(writes)
        self.db.execute("RELEASE list")
        tally.merge(self.tally)
        self.tally = tally
        return answers

    def _back_out(self, mark: int) -> None:
        self.db.execute("ROLLBACK TO list")
        self.db.execute("RELEASE list")
        self.claims.undo_to(mark)
        self._truncate((0, 0, 0, 0, 0, 0, 0))

    # ---- for steps, which see it as a Recording ----

    def is_claimed(self, id: int) -> bool:
        return id in self.claims.held

    def claimed(self) -> list[int]:
        return list(self.claims.held)

    def claimed_of_job(self, job: int) -> list[int]:
        return [id for id, claim in self.claims.held.items() if claim.invocation.job == job]

    def drop_claim(self, id: int) -> None:
        self.claims.drop(id)

    def freed(self, flow: str, priority: int, due_at: float, id: int) -> None:
        self.claims.freed(flow, priority, due_at, id)

    # ---- the writes of the usual path ----

    def _gather_one(self, write: Write, now: float, answers: list[Applied]) -> None:
        kind = type(write)
        if kind is Put:
            answers.append(self._put(write, now))  # type: ignore[arg-type]
        elif kind is Settle:
            self._settle(write, now)  # type: ignore[arg-type]
            answers.append(PLAIN)
        elif kind is ChunkDone:
            self._settle(write.settle, now)  # type: ignore[union-attr]
            if write.group is not None and write.parent is not None:  # type: ignore[union-attr]
                self._chunks.append((answers, len(answers), write))  # type: ignore[arg-type]
            answers.append(PLAIN)
        elif kind is Retry:
            self._retry(write)  # type: ignore[arg-type]
            answers.append(PLAIN)
        else:
            self._mark(write)  # type: ignore[arg-type]
            answers.append(PLAIN)

    def _put(self, write: Put, now: float) -> Applied:
        invocation = write.invocation
        if invocation.idempotency_key is not None or invocation.job is not None:
            self.flush()
            return self._cold(self, write, now)
        return self.accept(invocation, write.node)

    def accept(self, invocation: Invocation, node: str | None) -> Applied:
        """Gather the row of an invocation that is known to be new, and claim it for `node`."""
        if (
            invocation.source is None and invocation.tags is None and invocation.payload_ref is None
            and invocation.attempts == 0 and invocation.job is None and invocation.idempotency_key is None
            and invocation.memory_bytes is None
        ):  # fmt: skip
            self._puts_plain += (
                invocation.id, invocation.function, invocation.flow, invocation.payload,
                invocation.accepted_at, invocation.due_at, invocation.expires_at, invocation.priority,
            )  # fmt: skip
        else:
            self._puts += invocation_row(invocation)
        self.tally.add(invocation.function, ACCEPTED)
        if node is None:
            self.claims.freed(invocation.flow, invocation.priority, invocation.due_at, invocation.id)
            return Applied(invocation.id)
        claim = Claim(invocation, invocation.attempts + 1, node)
        self.claims.hold(claim)
        return Applied(invocation.id, False, claim)

    def _settle(self, write: Settle, now: float) -> None:
        claim, status = write.claim, write.status
        if not self.claims.stands(claim):
            raise lease_lost(claim)
        if status not in _ENDED:
            raise ValueError(f"an invocation cannot be settled as {status!r}")
        invocation = claim.invocation
        self.claims.drop(invocation.id)
        self.tally.add(invocation.function, status - 1)
        if write.error is None and write.result_ref is None:
            self._settles_plain += (
                invocation.id, status, write.attempts, write.started_at or None, now, write.result,
            )  # fmt: skip
        else:
            self._settles.append(
                (invocation.id, int(status), write.attempts, write.started_at or None, now, write.result,
                 write.result_ref, text_of(write.error))
            )  # fmt: skip

    def _retry(self, write: Retry) -> None:
        claim = write.claim
        if not self.claims.stands(claim):
            raise lease_lost(claim)
        invocation = claim.invocation
        self.claims.drop(invocation.id)
        self.claims.freed(invocation.flow, invocation.priority, write.due_at, invocation.id)
        attempts = claim.attempt if write.spent else claim.attempt - 1
        self._retries.append(
            (invocation.id, attempts, write.due_at, text_of(write.error), write.memory_bytes)
        )

    def _mark(self, write: MarkRunning) -> None:
        claim = write.claim
        if not self.claims.stands(claim):
            raise lease_lost(claim)
        self.claims.mark_running(claim.invocation.id)
        self._marks.append((claim.invocation.id, claim.node, write.started_at))

    # ---- statements ----

    def flush(self) -> None:
        """Write the gathered rows: first what accepts, last what ends, since that is how they may depend."""
        if not self._begun:
            self.db.execute("BEGIN IMMEDIATE")
            self._begun = True
        if self._puts_plain:
            self._many(_PUT_PLAIN_BY_SIZE, self._puts_plain, 8)
            self._puts_plain = []
        if self._puts:
            self._many(_PUT_BY_SIZE, self._puts, 17)
            self._puts = []
        if self._marks:
            self.db.executemany(_MARK, self._marks)
            self._marks = []
        if self._retries:
            self.db.executemany(_RETRY, self._retries)
            self._retries = []
        if self._settles_plain:
            self._many(_SETTLE_PLAIN_BY_SIZE, self._settles_plain, 6)
            self._settles_plain = []
        if self._settles:
            self.db.executemany(_SETTLE, self._settles)
            self._settles = []
        if self._chunks:
            self._gather_groups()

    def _gather_groups(self) -> None:
        """Accept the reduces whose groups these chunks completed; the last chunk of a group asks for all."""
        chunks, self._chunks = self._chunks, []
        last = {
            (chunk.settle.claim.invocation.job, chunk.settle.claim.invocation.stage, chunk.group): (
                answers,
                place,
                chunk,
            )
            for answers, place, chunk in chunks
        }
        for answers, place, chunk in last.values():
            answers[place] = self._gather(self, chunk)
        self.flush()

    def _many(self, statements: dict[int, str], flat: list[Any], width: int) -> None:
        at, left = 0, len(flat) // width
        for size in _SIZES:
            while left >= size:
                end = at + size * width
                self.db.execute(statements[size], flat[at:end])
                at, left = end, left - size

    def _lengths(self) -> tuple[int, ...]:
        return (
            len(self._puts_plain), len(self._puts), len(self._marks), len(self._retries),
            len(self._settles_plain), len(self._settles), len(self._chunks),
        )  # fmt: skip

    def _truncate(self, lengths: tuple[int, ...]) -> None:
        gathered: tuple[list[Any], ...] = (
            self._puts_plain, self._puts, self._marks, self._retries, self._settles_plain, self._settles,
            self._chunks,
        )  # fmt: skip
        for rows, length in zip(gathered, lengths, strict=True):
            del rows[length:]
