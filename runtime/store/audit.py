"""Audit: the books and every row of one snapshot, held against the rules that they must obey.

Imports the floor and its own room. The statements are a subset that SQLite and PostgreSQL share, over
anything with `execute(sql, values)` whose placeholders are `?`. Whoever calls begins the snapshot. Rows are
read once, in ranges of ids: each range is one statement that gives every row a number whose bits are the
rules that it breaks, and counts rows by function, status and that number; so memory is bounded by the number
of functions, and nothing is fetched row by row but errors and what is wrong.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from headrace.runtime.model.audit import ENDS, PARTS, Audit, Book, Problem, Reference
from headrace.runtime.model.ids import BEGIN_MS, show_id
from headrace.runtime.model.job import ENDED, LIVE
from headrace.runtime.store.rows import JOB, job_of, json_decode
from headrace.runtime.store.tally import BOOK_NAMES

RANGE = 20_000
"""Rows of one statement."""

ID_TIME_SLACK_S = 86_400.0
"""How far an id's own time may be from the moment of acceptance: clocks jump by hours, not by days."""

ATTEMPTS_MAX = 1_000_000
"""The store does not know what a function declares, and a lost node spends an attempt all the same."""

_PAGE = 500


class Rows(Protocol):
    """What `execute` gives."""

    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """A connection inside a snapshot."""

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Rows: ...


class RowCheck(NamedTuple):
    """A rule on one row of `invocation`: the condition is true where it is broken."""

    name: str
    condition: str
    message: str
    hint: str


_WRITER = "Nothing in Headrace writes this: look for who else writes to the database, or restore a backup."
_SHOW = "`headrace invocations show ID` shows it. "

ROW_CHECKS = (
    RowCheck("status", "status NOT IN (0, 1, 2, 3, 4)", "its status does not exist", _WRITER),
    RowCheck("ended_without_moment", "status IN (2, 3, 4) AND ended_at IS NULL",
             "it has ended, but not at any moment", _SHOW + _WRITER),
    RowCheck("unended_with_moment", "status IN (0, 1) AND ended_at IS NOT NULL",
             "it waits or runs, but has a moment of its end", _SHOW + _WRITER),
    RowCheck("unended_with_result", "status IN (0, 1) AND (result_ref IS NOT NULL OR result IS NOT NULL)",
             "it waits or runs, but has a result", _SHOW + _WRITER),
    RowCheck("waiting_but_started", "status = 0 AND started_at IS NOT NULL",
             "it waits, but has a moment of its start", _SHOW + _WRITER),
    RowCheck("running_nowhere", "status = 1 AND node IS NULL", "it runs, but on no node",
             "A restart of the node makes it wait again. " + _WRITER),
    RowCheck("node_unknown", "status IN (0, 1) AND node IS NOT NULL AND node NOT IN (SELECT name FROM node)",
             "it is claimed by a node that is not known", "A restart of the node makes it wait again."),
    RowCheck("attempts", f"attempts < 0 OR attempts > {ATTEMPTS_MAX}"
             " OR (status = 2 AND attempts < 1)",
             "its number of attempts is impossible", _SHOW + _WRITER),
    RowCheck("succeeded_with_error", "status = 2 AND error IS NOT NULL",
             "it succeeded, but has an error", _SHOW + _WRITER),
    RowCheck("ended_without_error", "status IN (3, 4) AND error IS NULL",
             "it is dead or cancelled, but no error says why", _SHOW + _WRITER),
    RowCheck("flow", "(job IS NULL AND flow <> function"
             " AND substr(flow, 1, length(function) + 1) <> function || '#')"
             " OR (job IS NOT NULL AND substr(flow, 1, 4) <> 'job:')",
             "its flow belongs to another function or to no job", _WRITER),
    RowCheck("place", "(job IS NULL AND (stage IS NOT NULL OR idx IS NOT NULL))"
             " OR (job IS NOT NULL AND (stage IS NULL OR idx IS NULL OR stage < -1 OR idx < 0))",
             "its place in a job is incomplete", _WRITER),
    RowCheck("expires", "expires_at < accepted_at", "it expired before it was accepted", _WRITER),
    RowCheck("id_time", f"id < 1 OR abs(((id >> 22) + {BEGIN_MS}) / 1000.0 - accepted_at)"
             f" > {ID_TIME_SLACK_S}",
             "its id was made more than a day before or after its acceptance", _WRITER),
)  # fmt: skip
"""The rules, in the order of their bits."""

_FLAGS = " + ".join(
    f"CASE WHEN {check.condition} THEN {1 << bit} ELSE 0 END" for bit, check in enumerate(ROW_CHECKS)
)
_END_OF_RANGE = (
    "SELECT max(id), count(DISTINCT id) FROM"
    " (SELECT id FROM invocation WHERE id > ? ORDER BY id LIMIT ?) AS ids"
)
_RANGE = "FROM invocation WHERE id > ? AND id <= ?"
_FUNCTION = " AND function = ?"
_BOOKS = (
    "SELECT function, status, flags, count(*), sum(has_error) FROM (SELECT function, status,"
    f" {_FLAGS} AS flags, CASE WHEN error IS NULL THEN 0 ELSE 1 END AS has_error {_RANGE}{{only}}) AS seen"
    " GROUP BY function, status, flags"
)
_BROKEN = (
    f"SELECT id, function, flags FROM (SELECT id, function, {_FLAGS} AS flags {_RANGE}{{only}}) AS seen"
    " WHERE (flags & ?) <> 0 ORDER BY id LIMIT ?"
)
_ERRORS = f"SELECT id, function, status, error {_RANGE}{{only}} AND error IS NOT NULL"
_TWICE = f"SELECT id, min(function) {_RANGE} GROUP BY id HAVING count(*) > 1"
_COUNTERS = (
    f"SELECT function, {', '.join(f'sum({name})' for name in BOOK_NAMES)} FROM counter{{only}}"
    " GROUP BY function"
)
_PARTS = (
    "SELECT p.job, p.stage, p.rows_there, p.places, p.last, j.id, j.function, j.chunks, j.ended_at"
    " FROM (SELECT job, stage, count(*) AS rows_there, count(DISTINCT idx) AS places, max(idx) AS last"
    " FROM invocation WHERE job IS NOT NULL GROUP BY job, stage) AS p LEFT JOIN job j ON j.id = p.job"
    " WHERE j.id IS NULL OR p.rows_there <> p.places"
    " OR (p.stage = 0 AND (p.last >= j.chunks OR (j.ended_at IS NULL AND p.rows_there <> j.chunks)))"
)
_NO_PARTS = (
    "SELECT id, function, chunks FROM job WHERE ended_at IS NULL AND chunks > 0"
    " AND NOT EXISTS (SELECT 1 FROM invocation WHERE invocation.job = job.id AND invocation.stage = 0)"
)
_JOB_PAGE = f"SELECT {JOB} FROM job WHERE id > ? ORDER BY id LIMIT ?"
_KEYS = (
    'SELECT i.function, i."key", i.invocation FROM idempotency i JOIN invocation v ON v.id = i.invocation'
    ' WHERE v.function <> i.function OR v.idempotency_key IS NULL OR v.idempotency_key <> i."key"'
)
_LEDGER = (
    'SELECT "trigger", bucket, "key", size FROM ledger'
    " WHERE \"trigger\" = '' OR bucket = '' OR \"key\" = '' OR size < 0 OR modified_at < 0"
)


def audit(db: Database, *, function: str | None = None, limit: int = 100) -> Audit:
    """Check one snapshot; of each check at most `limit` problems are named, and all are counted.

    With `function` only its books and rows are read, and what belongs to no function is left out.
    """
    found = Audit()
    names = _Names(found, limit)
    _read_counters(db, found, function)
    _read_rows(db, found, names, function)
    for name in sorted(found.books):
        _balance(names, name, found.books[name])
    if function is None:
        _read_jobs(db, names)
        _read_others(db, names)
    return found


class _Names:
    """Names problems, up to a limit for each check, and counts all of them."""

    def __init__(self, audit: Audit, limit: int) -> None:
        self._audit = audit
        self._limit = limit
        self._named: dict[str, int] = {}

    def room(self, check: str) -> int:
        return self._limit - self._named.get(check, 0)

    def count(self, check: str, number: int) -> None:
        self._audit.found[check] = self._audit.found.get(check, 0) + number

    def name(
        self, check: str, message: str, hint: str, *, function: str | None = None, id: str | None = None
    ) -> None:
        """Name what has been counted, if there is room."""
        if self.room(check) > 0:
            self._named[check] = self._named.get(check, 0) + 1
            hint = hint.replace(" ID`", f" {id}`") if id is not None else hint
            self._audit.problems.append(
                Problem(check=check, message=message, hint=hint, function=function, id=id)
            )

    def add(
        self, check: str, message: str, hint: str, *, function: str | None = None, id: str | None = None
    ) -> None:
        """Count and name one."""
        self.count(check, 1)
        self.name(check, message, hint, function=function, id=id)


# ---- books ----


def _read_counters(db: Database, found: Audit, function: str | None) -> None:
    only, values = ("", ()) if function is None else (" WHERE function = ?", (function,))
    for name, *sums in db.execute(_COUNTERS.format(only=only), values).fetchall():
        counts = {book: int(number) for book, number in zip(BOOK_NAMES, sums, strict=True)}
        found.books[name] = Book(
            accepted=counts["accepted"],
            succeeded=counts["succeeded"],
            dead=counts["dead"],
            cancelled=counts["cancelled"],
            deduplicated=counts["deduplicated"],
            removed={end: counts[f"removed_{end}"] for end in ENDS},
        )


def _balance(names: _Names, function: str, book: Book) -> None:
    """The equations of one function's books."""
    hint = "Rows were removed, added or changed by hand. " + _WRITER
    lost = book.accepted - book.waiting - book.running - book.succeeded - book.dead - book.cancelled
    if lost or book.other:
        parts = " + ".join(f"{part} {getattr(book, part)}" for part in PARTS)
        what = f"{abs(lost)} {'missing' if lost > 0 else 'too many'}" if lost else "some in no status"
        names.add("books", f"accepted {book.accepted} is not {parts}: {what}", hint, function=function)
    for end in ENDS:
        counted, there, removed = getattr(book, end), book.rows[end], book.removed[end]
        off = counted - there - removed
        if off:
            what = f"{abs(off)} {'missing' if off > 0 else 'too many'}"
            message = f"{end} {counted} is not {there} rows + {removed} removed: {what}"
            names.add("books", message, hint, function=function)
        if counted < 0 or removed < 0:
            names.add(
                "books", f"{end} {counted}, removed {removed}: a count below 0", hint, function=function
            )


# ---- rows ----


def _read_rows(db: Database, found: Audit, names: _Names, function: str | None) -> None:
    only, values = ("", ()) if function is None else (_FUNCTION, (function,))
    books, broken, errors = (sql.format(only=only) for sql in (_BOOKS, _BROKEN, _ERRORS))
    after = -(1 << 63)
    while True:
        last, ids = db.execute(_END_OF_RANGE, (after, RANGE)).fetchone()
        if last is None:
            return
        scope = (after, last, *values)
        rows = flags = with_error = 0
        for name, status, bits, count, has_error in db.execute(books, scope).fetchall():
            rows += count
            flags |= bits
            with_error += int(has_error)
            _count_rows(found, names, name, status, count)
            for bit, check in enumerate(ROW_CHECKS):
                if bits >> bit & 1:
                    names.count(check.name, count)
        found.checked_rows += rows
        if flags:
            _name_rows(db, names, broken, scope, flags)
        if with_error:
            _read_errors(db, names, errors, scope)
        if function is None and rows != ids:
            for id, name in db.execute(_TWICE, scope).fetchall():
                names.add("id_twice", "two rows have this id", _WRITER, function=name, id=shown(id))
        after = last


def _count_rows(found: Audit, names: _Names, function: str, status: int, count: int) -> None:
    book = found.books.get(function)
    if book is None:
        book = found.books[function] = Book()
        message = "it has rows, but the books do not know it"
        names.add("function_unknown", message, _WRITER, function=function)
    if status in range(len(PARTS)):
        part = PARTS[status]
        book.rows[part] += count
        if part not in ENDS:
            setattr(book, part, getattr(book, part) + count)
    else:
        book.other += count


def _name_rows(db: Database, names: _Names, broken: str, scope: Sequence[Any], flags: int) -> None:
    for bit, check in enumerate(ROW_CHECKS):
        room = names.room(check.name)
        if flags >> bit & 1 and room > 0:
            for id, function, _ in db.execute(broken, (*scope, 1 << bit, room)).fetchall():
                names.name(check.name, check.message, check.hint, function=function, id=shown(id))


def shown(id: int) -> str:
    """An id as users see it; one that is none as the number that it is."""
    return show_id(id) if id >= 0 else str(id)


def _read_errors(db: Database, names: _Names, errors: str, scope: Sequence[Any]) -> None:
    for id, function, status, text in db.execute(errors, scope):
        try:
            error = json_decode(text)
        except (msgspec.DecodeError, UnicodeError):
            error = None
        if not isinstance(error, dict) or not isinstance(error.get("code"), str):
            message = "its error is not readable"
            names.add("error", message, _SHOW + _WRITER, function=function, id=shown(id))
        elif status == 3 and error["code"] == "cancelled":
            message = "it is dead, but its error says that it was cancelled"
            names.add("error", message, _SHOW + _WRITER, function=function, id=shown(id))


# ---- jobs and the rest ----


def _read_jobs(db: Database, names: _Names) -> None:
    for job, stage, there, places, last, known, function, chunks, ended_at in db.execute(_PARTS):
        id = show_id(job)
        if known is None:
            message = f"stage {stage} has {there} invocations of this job, but the job has no row"
            names.add("job_missing", message, _WRITER, id=id)
            continue
        hint = f"`headrace job show {id} --chunks` lists its parts. " + _WRITER
        if there != places:
            message = f"stage {stage} has {there} invocations at {places} places: some are there twice"
            names.add("job_part_twice", message, hint, function=function, id=id)
        if stage == 0 and (last >= chunks or (ended_at is None and there != chunks)):
            message = f"the job has {chunks} chunks, but {there} invocations of its map, the last at {last}"
            names.add("job_chunks", message, hint, function=function, id=id)
    for id, function, chunks in db.execute(_NO_PARTS):
        message = f"the job has {chunks} chunks, but no invocation of its map"
        names.add("job_chunks", message, _WRITER, function=function, id=show_id(id))
    after = -(1 << 63)
    while page := db.execute(_JOB_PAGE, (after, _PAGE)).fetchall():
        for row in page:
            _read_job(names, row)
        after = page[-1][0]


def _read_job(names: _Names, row: Sequence[Any]) -> None:
    id, function = show_id(row[0]), row[1]
    try:
        job = job_of(row)
    except (msgspec.DecodeError, UnicodeError, TypeError) as error:
        names.add("job", f"its row is not readable: {error}", _WRITER, function=function, id=id)
        return
    if job.status not in (*LIVE, *ENDED):
        names.add("job", f"its status is {job.status!r}", _WRITER, function=function, id=id)
    elif (job.status in ENDED) != (job.ended_at is not None):
        moment = "no moment of its end" if job.ended_at is None else "a moment of its end"
        names.add("job", f"it is {job.status}, but has {moment}", _WRITER, function=function, id=id)
    elif job.status == "failed" and job.error is None:
        names.add("job", "it failed, but no error says why", _WRITER, function=function, id=id)


def _read_others(db: Database, names: _Names) -> None:
    for function, key, invocation in db.execute(_KEYS):
        message = f"its idempotency key {key!r} leads to {shown(invocation)}, which was not accepted with it"
        names.add("idempotency", message, _WRITER, function=function, id=shown(invocation))
    for trigger, bucket, key, size in db.execute(_LEDGER):
        message = f"trigger {trigger!r} remembers s3://{bucket}/{key} of {size} bytes: no such object can be"
        names.add("ledger", message, _WRITER, id=f"s3://{bucket}/{key}")


# ---- references ----

_REFERENCES = (
    "SELECT id, function, payload_ref, result_ref FROM invocation"
    " WHERE id > ? AND (payload_ref IS NOT NULL OR result_ref IS NOT NULL) ORDER BY id LIMIT ?"
)
_JOBS = "SELECT id, function, NULL, result_ref FROM job WHERE id > ? ORDER BY id LIMIT ?"


def references(db: Database, *, jobs: bool, after: int, limit: int) -> list[Reference]:
    """A page of the invocations that name objects, or of all jobs, with ids above `after`, by id."""
    rows = db.execute(_JOBS if jobs else _REFERENCES, (after, limit)).fetchall()
    return [
        Reference(id=id, function=function, payload_ref=payload_ref, result_ref=result_ref)
        for id, function, payload_ref, result_ref in rows
    ]
