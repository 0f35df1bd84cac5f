"""Transaction: many callers' lists of writes in one commit of a PostgreSQL server, each atomic for itself.

Imports the floor and its own room. Nearly all lists hold only accepted invocations and ends of attempts.
Those are gathered over callers and written by one statement a kind, sent together. Whether a claim still
stands is known only from what such a statement changed: a row that it did not find names the list that must
be refused, and then all is rolled back and written again, with that list alone inside a savepoint.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import psycopg

from headrace.runtime.errors import Duplicate
from headrace.runtime.fault import reach
from headrace.runtime.model.invocation import Claim, Invocation, Status
from headrace.runtime.model.write import (
    Applied,
    ChunkDone,
    Closed,
    FunctionPaused,
    JobMoved,
    JobPlanned,
    JobRedriven,
    MarkRunning,
    Opened,
    Put,
    Retry,
    Settle,
    Write,
)
from headrace.runtime.store.postgres.arrays import bigints, blobs, doubles, integers, smallints, texts
from headrace.runtime.store.postgres.connection import PostgresDatabase
from headrace.runtime.store.postgres.fault import is_database_fault
from headrace.runtime.store.recording import PLAIN, USUAL, Answer, Recording, Refused, lease_lost, usual
from headrace.runtime.store.rows import text_of
from headrace.runtime.store.tally import ACCEPTED, BOOK_NAMES, Tally

CHANNEL = "headrace"
"""What nodes LISTEN to: the words that `QueueStore.listen` explains."""

ANY, CONTROL = "*", "control"
_NAMES_MAX = 16
_NAME_BYTES_MAX = 7_000  # the server's limit on what one notification carries is 8,000

SHARDS = 16
"""Nodes count in shards of the books, by their numbers, so that they do not wait for each other."""

_ENDED = (Status.SUCCEEDED, Status.DEAD, Status.CANCELLED)

_PLAIN = "id, function, flow, payload, accepted_at, due_at, expires_at, priority, node"
_FULL = f"{_PLAIN}, attempts, payload_ref, idempotency_key, tags, source, job, stage, idx, memory_bytes"


def _unnest(columns: str) -> str:
    return f"unnest({', '.join(['%s'] * len(columns.split(',')))}) AS v({columns})"


_PUT_PLAIN = (
    f"INSERT INTO invocation_live ({_PLAIN}, status, attempts) SELECT {_PLAIN}, 0, 0 FROM {_unnest(_PLAIN)}"
)
# Of many rows COPY takes two thirds of the time, and two more round trips.
_COPY_FROM = 1_000
_COPY = f"COPY invocation_live ({_PLAIN}, status, attempts) FROM STDIN (FORMAT binary)"
_COPIED = (
    "int8", "text", "text", "bytea", "float8", "float8", "float8", "int4", "text", "int2", "int4",
)  # fmt: skip
_PUT = f"INSERT INTO invocation_live ({_FULL}, status) SELECT {_FULL}, 0 FROM {_unnest(_FULL)}"

# Removing and inserting costs a tenth of an UPDATE that moves rows to the other partition; and another node
# that wants the same row finds it gone instead of failing.
_KEPT = (
    "id, function, flow, payload, accepted_at, due_at, expires_at, priority, node, payload_ref,"
    " idempotency_key, tags, source, job, stage, idx, memory_bytes"
)
_SET = "status, attempts, started_at, ended_at, result, result_ref, error"
_GONE = (
    "gone AS (DELETE FROM invocation_live AS i"
    f" USING {_unnest(f'id, node, before, {_SET}')}"
    " WHERE i.id = v.id AND i.node = v.node AND i.attempts = v.before"
    f" RETURNING {', '.join('i.' + name.strip() for name in _KEPT.split(','))},"
    f" {', '.join('v.' + name.strip() for name in _SET.split(','))})"
)
_KEEP = f"INSERT INTO invocation_ended ({_KEPT}, {_SET}) SELECT * FROM gone RETURNING id"
_SETTLE = f"WITH {_GONE} {_KEEP}"
_STANDS = "i.id = v.id AND i.node = v.node AND i.attempts = v.before"
_RETRY = (
    "UPDATE invocation_live AS i SET status = 0, attempts = v.attempts, due_at = v.due_at, error = v.error,"
    " node = NULL, started_at = NULL, memory_bytes = coalesce(v.memory_bytes, i.memory_bytes)"
    f" FROM {_unnest('id, node, before, attempts, due_at, error, memory_bytes')}"
    f" WHERE {_STANDS} RETURNING i.id"
)
_MARK = (
    "UPDATE invocation_live AS i SET status = 1, started_at = v.started_at"
    f" FROM {_unnest('id, node, before, started_at')} WHERE {_STANDS} RETURNING i.id"
)
_COUNT = (
    f"INSERT INTO counter (function, shard, {', '.join(BOOK_NAMES)})"
    f" SELECT function, %s, {', '.join(BOOK_NAMES)} FROM {_unnest('function, ' + ', '.join(BOOK_NAMES))}"
    " ORDER BY function ON CONFLICT (function, shard) DO UPDATE SET "
    + ", ".join(f"{name} = counter.{name} + excluded.{name}" for name in BOOK_NAMES)
)
_NOTIFY = f"SELECT pg_notify('{CHANNEL}', name) FROM unnest(%s) AS v(name)"

# Nearly all transactions hold accepted invocations and outcomes alone: one statement, which commits by
# itself, and fails when it ends another number of claims than it should.
_ALL_ENDED = "1 / ((SELECT count(*) FROM kept) = %s)::integer"
_TOLD = f"(SELECT count(pg_notify('{CHANNEL}', name)) FROM unnest(%s) AS v(name))"


class Stale(Exception):
    """Claims of these lists, by their places, do not stand: they are to be written apart from the others.
    With no places it is not known which: statements must be sent one by one to tell.
    """

    def __init__(self, places: set[int]) -> None:
        super().__init__(places)
        self.places = places


class Transaction:
    """The lists of one commit: `run`, `finish`; on any error the caller rolls back."""

    def __init__(
        self,
        db: PostgresDatabase,
        shard: int,
        cold: Callable[[Recording, Write, float], Applied],
        gather: Callable[[Recording, Sequence[ChunkDone]], list[Applied]],
    ) -> None:
        self.db = db
        self.tally = Tally()
        self._shard = shard
        self._cold = cold
        self._gather = gather
        self._begun = False
        self._apart_now = False
        self._place = 0
        self._names: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        """Drop what was gathered."""
        self._plain: list[tuple[Invocation, str | None]] = []
        self._full: list[tuple[Invocation, str | None]] = []
        self._marks: list[tuple[MarkRunning, int]] = []
        self._retries: list[tuple[Retry, int]] = []
        self._settles: list[tuple[Settle, float, int]] = []
        self._chunks: list[tuple[list[Applied], int, ChunkDone]] = []
        self._over: set[int] = set()

    # ---- lists ----

    def run(
        self,
        lists: Iterable[tuple[Sequence[Write], float]],
        *,
        at_once: bool = True,
        carefully: bool = False,
        apart: Collection[int] = (),
    ) -> list[Answer]:
        """Write every list; one answer each, in order. `at_once` is to try it by one statement.

        `carefully` gives each list a savepoint of its own, `apart` those at these places. Without it an error
        that is one list's fault reaches the caller, who rolls back and runs all of them carefully. Raises
        Stale, here or in `finish`.
        """
        if not at_once:
            self._begin()
        answers: list[Answer] = []
        for place, (writes, now) in enumerate(lists):
            if carefully or place in apart or not usual(writes):
                self.flush()
                answers.append(self._apart(writes, now))
            else:
                self._place = place
                gathered: list[Applied] = []
                for write in writes:
                    self._gather_one(write, now, gathered)
                answers.append(gathered)
        if self._chunks:
            self.flush()
        return answers

    def finish(self) -> None:
        """Write what is left, the books, and what other nodes must hear, and commit."""
        if not (self._begun or self._marks or self._retries or len(self._plain) >= _COPY_FROM):
            self._write_at_once()
        else:
            self._write(last=True)
            reach("commit.before")
            self.db.commit()
        reach("commit.after")

    def _apart(self, writes: Sequence[Write], now: float) -> Answer:
        """Write a list inside a savepoint; what goes wrong with it alone is its answer."""
        self._begin()
        tally, self.tally = self.tally, Tally()
        names, self._names = self._names, set()
        self._apart_now = True
        self.db.raw.execute("SAVEPOINT list")
        try:
            answers: list[Applied] = []
            for write in writes:
                if type(write) in USUAL:
                    self._gather_one(write, now, answers)
                else:
                    self.flush()
                    answers.append(self._cold(self, write, now))
                    self._names.update(_words(write))
            self.flush()
        except Exception as error:
            if is_database_fault(error):
                raise  # nobody's list can be recorded
            self.db.raw.execute("ROLLBACK TO SAVEPOINT list")
            self.db.raw.execute("RELEASE SAVEPOINT list")
            self._forget()
            self.tally, self._names = tally, names
            if isinstance(error, psycopg.errors.UniqueViolation):
                error = Refused(Duplicate("one of the ids or places is taken"))
            if not isinstance(error, Refused):
                return error
            if error.after is not None:
                error.after(self)
            return [Applied(refused=error.reason)] * len(writes)
        finally:
            self._apart_now = False
        self.db.raw.execute("RELEASE SAVEPOINT list")
        tally.merge(self.tally)
        self.tally = tally
        self._names |= names
        return answers

    # ---- for steps, which see it as a Recording ----

    def accept(self, invocation: Invocation, node: str | None) -> Applied:
        """Gather the row of an invocation that is known to be new, and claim it for `node`."""
        if (
            invocation.source is None and invocation.tags is None and invocation.payload_ref is None
            and invocation.attempts == 0 and invocation.job is None and invocation.idempotency_key is None
            and invocation.memory_bytes is None
        ):  # fmt: skip
            self._plain.append((invocation, node))
        else:
            self._full.append((invocation, node))
        self.tally.add(invocation.function, ACCEPTED)
        if node is None:
            self._names.add(invocation.flow)
            return Applied(invocation.id)
        return Applied(invocation.id, False, Claim(invocation, invocation.attempts + 1, node))

    def flush(self) -> None:
        """Write the gathered rows: first what accepts, last what ends, since that is how they may depend."""
        self._write(last=False)
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            last = {
                (chunk.settle.claim.invocation.job, chunk.settle.claim.invocation.stage, chunk.group): (
                    answers,
                    place,
                    chunk,
                )
                for answers, place, chunk in chunks
            }
            gathered = self._gather(self, [chunk for _, _, chunk in last.values()])
            for (answers, place, _), applied in zip(last.values(), gathered, strict=True):
                answers[place] = applied
            self._write(last=False)

    def is_claimed(self, id: int) -> bool:
        return False

    def claimed(self) -> Sequence[int]:
        return ()

    def claimed_of_job(self, job: int) -> Sequence[int]:
        return ()

    def drop_claim(self, id: int) -> None:
        """Claims are columns: they go with the row."""

    def freed(self, flow: str, priority: int, due_at: float, id: int) -> None:
        self._names.add(flow)

    # ---- the writes of the usual path ----

    def _gather_one(self, write: Write, now: float, answers: list[Applied]) -> None:
        kind = type(write)
        if kind is Put:
            invocation = write.invocation  # type: ignore[union-attr]
            if invocation.idempotency_key is not None or invocation.job is not None:
                self.flush()
                answers.append(self._cold(self, write, now))
            else:
                answers.append(self.accept(invocation, write.node))  # type: ignore[union-attr]
            return
        if kind is Settle:
            self._settle(write, now)  # type: ignore[arg-type]
        elif kind is ChunkDone:
            self._settle(write.settle, now)  # type: ignore[union-attr]
            if write.group is not None and write.parent is not None:  # type: ignore[union-attr]
                self._chunks.append((answers, len(answers), write))  # type: ignore[arg-type]
        elif kind is Retry:
            self._ends(write.claim)  # type: ignore[union-attr]
            self._names.add(write.claim.invocation.flow)  # type: ignore[union-attr]
            self._retries.append((write, self._place))  # type: ignore[arg-type]
        else:
            if write.claim.invocation.id in self._over:  # type: ignore[union-attr]
                self._again()
            self._marks.append((write, self._place))  # type: ignore[arg-type]
        answers.append(PLAIN)

    def _settle(self, write: Settle, now: float) -> None:
        if write.status not in _ENDED:
            raise ValueError(f"an invocation cannot be settled as {write.status!r}")
        self._ends(write.claim)
        self.tally.add(write.claim.invocation.function, write.status - 1)
        self._settles.append((write, now, self._place))

    def _ends(self, claim: Claim) -> None:
        id = claim.invocation.id
        if id in self._over:
            self._again()
        self._over.add(id)

    def _again(self) -> None:
        """A claim that is used after its end: the statements so far must show whether that end stood."""
        if not self._apart_now:
            raise Stale({self._place})
        self.flush()

    # ---- statements ----

    def _begin(self) -> None:
        if not self._begun:
            self.db.begin()
            self._begun = True

    def _write(self, *, last: bool) -> None:
        if not last and not (self._plain or self._full or self._marks or self._retries or self._settles):
            return
        plain, full, marks, retries, settles = (
            self._plain, self._full, self._marks, self._retries, self._settles,
        )  # fmt: skip
        if len(plain) >= _COPY_FROM:
            self._copy(plain)
            plain = []
        statements = _puts(plain, full)
        asked = [_marked(marks), _retried(retries), _settled(settles)]
        more = self._rest() if last else []
        run = self.db.raw.execute
        with self.db.pipeline():
            self._begin()
            for text, values in statements:
                run(text, values, prepare=True)
            cursors = [None if one is None else run(one[0], one[1], prepare=True) for one in asked]
            for text, values in more:
                run(text, values, prepare=True)
        gathered: tuple[list[Any], ...] = (marks, retries, settles)
        missing: list[tuple[Claim, int]] = []
        for rows, cursor in zip(gathered, cursors, strict=True):
            if cursor is not None and cursor.rowcount != len(rows):
                found = {id for [id] in cursor.fetchall()}
                missing += [
                    (claim, row[-1]) for row in rows if (claim := _claim(row[0])).invocation.id not in found
                ]
        chunks = self._chunks
        self._forget()
        self._chunks = chunks
        if missing:
            if self._apart_now:
                raise lease_lost(missing[0][0])
            raise Stale({place for _, place in missing})

    def _copy(self, puts: list[tuple[Invocation, str | None]]) -> None:
        self._begin()
        with self.db.raw.cursor().copy(_COPY) as copy:
            copy.set_types(_COPIED)
            for row, node in puts:
                copy.write_row((
                    row.id, row.function, row.flow, row.payload, row.accepted_at, row.due_at, row.expires_at,
                    row.priority, node, 0, 0,
                ))  # fmt: skip

    def _write_at_once(self) -> None:
        parts: list[str] = []
        values: list[Any] = []
        for number, (text, columns) in enumerate(_puts(self._plain, self._full)):
            parts.append(f"put{number} AS ({text})")
            values += columns
        answer: list[str] = ["1"]
        last: list[Any] = []
        settled = _settled(self._settles)
        if settled is not None:
            parts.append(f"{_GONE}, kept AS ({_KEEP})")
            values += settled[1]
            answer = [_ALL_ENDED]
            last = [len(self._settles)]
        for text, columns in self._rest():
            if text is _NOTIFY:
                answer.append(_TOLD)
                last += columns
            else:
                parts.append(f"counted AS ({text})")
                values += columns
        reach("commit.before")
        try:
            self.db.commit_one(parts, f"SELECT {', '.join(answer)}", [*values, *last])
        except psycopg.errors.DivisionByZero:
            places = {place for _, _, place in self._settles}
            raise Stale(set() if len(places) > 1 else places) from None

    def _rest(self) -> list[tuple[str, Sequence[Any]]]:
        """The books and the notifications of the whole transaction."""
        rest: list[tuple[str, Sequence[Any]]] = []
        books = sorted((name, row) for name, row in self.tally.by_function.items() if any(row))
        if books:
            counts = zip(*[row for _, row in books], strict=True)
            names = texts([name for name, _ in books])
            rest.append((_COUNT, (self._shard, names, *[bigints(column) for column in counts])))
        if self._names:
            rest.append(notification(self._names))
        return rest


def words_of(names: set[str]) -> list[str]:
    """What is said of these names; `*` stands for many, or for long ones."""
    flows = names - {CONTROL}
    if len(flows) > _NAMES_MAX or any(len(name) > _NAME_BYTES_MAX // 4 for name in flows):
        names = {ANY} | (names & {CONTROL})
    return sorted(names)


def notification(names: set[str]) -> tuple[str, Sequence[Any]]:
    """The statement that says these names to the others."""
    return _NOTIFY, (texts(words_of(names)),)


def _claim(write: MarkRunning | Retry | Settle) -> Claim:
    return write.claim


_Statement = tuple[str, Sequence[Any]]


def _puts(
    plain: list[tuple[Invocation, str | None]], full: list[tuple[Invocation, str | None]]
) -> list[_Statement]:
    statements: list[_Statement] = []
    if plain:
        statements.append((_PUT_PLAIN, _plain_columns(plain)))
    if full:
        rows = [row for row, _ in full]
        placed: list[Invocation | None] = [row if row.job is not None else None for row in rows]
        stages = [None if row is None else row.stage for row in placed]
        places = [None if row is None else row.index for row in placed]
        statements.append((_PUT, (
            *_plain_columns(full), integers([row.attempts for row in rows]),
            texts([row.payload_ref for row in rows]), texts([row.idempotency_key for row in rows]),
            texts([row.tags for row in rows]), texts([row.source for row in rows]),
            bigints([row.job for row in rows]), smallints(stages),
            integers(places), bigints([row.memory_bytes for row in rows]),
        )))  # fmt: skip
    return statements


def _plain_columns(puts: list[tuple[Invocation, str | None]]) -> tuple[Any, ...]:
    rows = [row for row, _ in puts]
    return (
        bigints([row.id for row in rows]), texts([row.function for row in rows]),
        texts([row.flow for row in rows]), blobs([row.payload for row in rows]),
        doubles([row.accepted_at for row in rows]), doubles([row.due_at for row in rows]),
        doubles([row.expires_at for row in rows]), integers([row.priority for row in rows]),
        texts([node for _, node in puts]),
    )  # fmt: skip


def _standing(claims: list[Claim]) -> tuple[Any, ...]:
    """What identifies claims: id, node and the attempts that were spent before."""
    return (
        bigints([claim.invocation.id for claim in claims]),
        texts([claim.node for claim in claims]),
        integers([claim.attempt - 1 for claim in claims]),
    )


def _marked(marks: list[tuple[MarkRunning, int]]) -> _Statement | None:
    if not marks:
        return None
    return _MARK, (
        *_standing([write.claim for write, _ in marks]), doubles([write.started_at for write, _ in marks]),
    )  # fmt: skip


def _retried(retries: list[tuple[Retry, int]]) -> _Statement | None:
    if not retries:
        return None
    writes = [write for write, _ in retries]
    return _RETRY, (
        *_standing([write.claim for write in writes]),
        integers([write.claim.attempt if write.spent else write.claim.attempt - 1 for write in writes]),
        doubles([write.due_at for write in writes]), texts([text_of(write.error) for write in writes]),
        bigints([write.memory_bytes for write in writes]),
    )  # fmt: skip


def _settled(settles: list[tuple[Settle, float, int]]) -> _Statement | None:
    if not settles:
        return None
    writes = [write for write, _, _ in settles]
    return _SETTLE, (
        *_standing([write.claim for write in writes]), smallints([write.status for write in writes]),
        integers([write.attempts for write in writes]),
        doubles([write.started_at or None for write in writes]), doubles([now for _, now, _ in settles]),
        blobs([write.result for write in writes]), texts([write.result_ref for write in writes]),
        texts([text_of(write.error) for write in writes]),
    )  # fmt: skip


def _words(write: Write) -> tuple[str, ...]:
    """What other nodes are told of a write beside the flows that it fed."""
    if isinstance(write, (FunctionPaused, Closed, Opened)):
        return (CONTROL,)
    if isinstance(write, (JobPlanned, JobMoved, JobRedriven)):
        return (f"moved:{write.job}",)
    return ()
