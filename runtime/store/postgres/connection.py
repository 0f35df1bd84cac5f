"""Connection: one session of a PostgreSQL server, and what shared statements see of it.

Imports the floor and its own room. Whoever reads this first should know that a COMMIT whose answer is lost
may have happened: so each transaction of a connection that was given a mark also counts up the
connection's own row of table `meta`, its mark, and `happened` reads that row on another connection.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.store.database import POSTGRESQL, Values
from headrace.runtime.store.postgres.arrays import register

_CONNECT_S = 5
_LOCK_MS = 15_000
_IDLE_MS = 60_000
_STATEMENTS = 200
_MARK_KEPT_S = 86_400

# What a node asks is many keys at once, each found by an index: a plan made while a table was empty, or from
# the statistics of a moment when it was, must not read a table from end to end ever after.
_SESSION = (
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', false),"
    " set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),"
    " set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false),"
    " set_config('work_mem', '64MB', false),"  # a transaction's rows, unnested
    f" set_config('lock_timeout', '{_LOCK_MS}', false),"
    f" set_config('idle_in_transaction_session_timeout', '{_IDLE_MS}', false)"
)
# A server that was told to lose the newest commits in a crash is told otherwise.
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)

_SET_MARK = "UPDATE meta SET value = %s WHERE key = %s"

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|::\w+|:([a-z_]\w*)|\?|%")


def translated(sql: str) -> str:
    """A shared statement with psycopg's placeholders in the place of `?` and `:name`."""

    def one(match: re.Match[str]) -> str:
        text = match.group()
        if text == "?":
            return "%s"
        if match.group(1) is not None:
            return f"%({match.group(1)})s"
        return text.replace("%", "%%")

    return _TOKEN.sub(one, sql)


def shown(url: str) -> str:
    """The address without its password, for messages."""
    try:
        known = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "postgresql://…"
    host = known.get("host") or known.get("hostaddr") or "localhost"
    port, name = known.get("port") or 5432, known.get("dbname") or known.get("user") or ""
    return f"postgresql://{host}:{port}/{name}"


class PostgresDatabase:
    """One connection; `connect` makes it. Used by one thread at a time.

    It commits each statement by itself, outside of `transaction` and `snapshot`.
    """

    dialect = POSTGRESQL

    def __init__(self, raw: "psycopg.Connection[TupleRow]") -> None:
        self.raw = raw
        self.mark = ""
        """The name of this connection's own row in `meta`, empty before `make_mark`."""
        self.commits = 0
        """Transactions that have set the mark, the one in work included."""
        self.pid = raw.info.backend_pid
        """The server's process that serves this connection."""
        self._texts: dict[str, str] = {}

    @classmethod
    def connect(cls, url: str, *, name: str) -> "PostgresDatabase":
        """Open a session that operators see as `name`. Raises psycopg.Error, or InvalidSettings for a
        malformed address.
        """
        try:
            # A partition of the network is noticed within half a minute, on both sides.
            conninfo = make_conninfo(
                url, application_name=name, connect_timeout=_CONNECT_S, keepalives=1, keepalives_idle=10,
                keepalives_interval=5, keepalives_count=3, tcp_user_timeout=30_000,
                options=_options(url),
            )  # fmt: skip
        except psycopg.ProgrammingError:
            # The parser's message may quote the password.
            raise InvalidSettings(
                "the address of the PostgreSQL database cannot be read",
                "Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
            ) from None
        raw = psycopg.connect(conninfo, autocommit=True, prepare_threshold=2)
        try:
            raw.prepared_max = _STATEMENTS
            register(raw)
            raw.execute(_SESSION)
            raw.execute(_DURABLE)
        except BaseException:
            raw.close()
            raise
        return cls(raw)

    # ---- what shared statements ask ----

    def execute(self, sql: str, values: Values = (), /) -> "psycopg.Cursor[TupleRow]":
        return self.raw.execute(self._text(sql), values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> None:
        self.raw.cursor().executemany(self._text(sql), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; within another one, a part of it."""
        if self.raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            yield
            return
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        self.raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield
        finally:
            self.rollback()

    # ---- transactions ----

    pending = False
    """Whether a COMMIT has been sent whose answer has not come."""

    def begin(self) -> None:
        self.raw.execute("BEGIN")

    def commit(self) -> None:
        """Set the mark and commit. When the answer is lost, `pending` stays true: see `happened`."""
        self.pending = True
        with self.raw.pipeline():
            if self.mark:
                self.commits += 1
                self.raw.execute(_SET_MARK, (str(self.commits), self.mark), prepare=True)
            self.raw.execute("COMMIT")
        self.pending = False

    def commit_one(self, parts: Sequence[str], answer: str, values: Sequence[Any]) -> None:
        """Run one statement that commits by itself: `answer` with the statements `parts`, and with the mark.
        As `commit`, it leaves `pending` true when its answer is lost.
        """
        if self.mark:
            self.commits += 1
            parts = [f"marked AS ({_SET_MARK})", *parts]
            values = [str(self.commits), self.mark, *values]
        self.pending = True
        self.raw.execute(f"WITH {', '.join(parts)} {answer}" if parts else answer, values, prepare=True)
        self.pending = False

    def rollback(self) -> None:
        """Back out of a transaction, if there is one and the connection stands."""
        if not self.broken and self.raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            # A server that went away has rolled back by itself; the error that brought us here is the answer.
            with contextlib.suppress(psycopg.Error):
                self.raw.execute("ROLLBACK")
        if not self.broken:
            self.pending = False

    def pipeline(self) -> "AbstractContextManager[psycopg.Pipeline]":
        """Statements within are sent together, and their results are read at its end."""
        return self.raw.pipeline()

    @property
    def broken(self) -> bool:
        return self.raw.closed

    def close(self) -> None:
        if self.mark and not self.broken:
            with contextlib.suppress(psycopg.Error):
                self.raw.execute("DELETE FROM meta WHERE key = %s", (self.mark,))
        self.raw.close()

    # ---- marks ----

    def make_mark(self) -> None:
        """Make this connection's row of `meta`, and remove those that crashed nodes left a day ago."""
        [pid, began, now] = self.raw.execute(
            "SELECT pid, extract(epoch FROM backend_start)::text,"
            " extract(epoch FROM clock_timestamp())::float8"
            " FROM pg_stat_get_activity(pg_backend_pid())"
        ).fetchone() or (0, "", 0.0)
        self.mark = f"writer:{pid}:{began}"
        self.raw.execute(
            "DELETE FROM meta WHERE key IN (SELECT key FROM meta WHERE key LIKE 'writer:%%'"
            " AND split_part(key, ':', 3)::float8 < %s AND NOT EXISTS (SELECT FROM pg_stat_activity a"
            " WHERE a.pid::text = split_part(key, ':', 2)) FOR UPDATE SKIP LOCKED)",
            (now - _MARK_KEPT_S,),
        )
        self.raw.execute("INSERT INTO meta (key, value) VALUES (%s, '0')", (self.mark,))

    def happened(self, mark: str, commits: int) -> bool:
        """Whether the transaction with that number was committed by the lost connection of that mark.

        Ends the lost session first, if the server has not noticed, and waits until its transaction has ended.
        """
        _, pid, began = mark.split(":")
        self.raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s",
            (int(pid), began),
        )
        row = self.raw.execute("SELECT value FROM meta WHERE key = %s FOR UPDATE", (mark,)).fetchone()
        self.raw.execute("DELETE FROM meta WHERE key = %s", (mark,))
        return row is not None and int(row[0]) >= commits

    # ---- within ----

    def _text(self, sql: str) -> str:
        text = self._texts.get(sql)
        if text is None:
            if len(self._texts) >= 1_000:
                self._texts.clear()
            text = self._texts[sql] = translated(sql)
        return text


def _options(url: str) -> str:
    given = str(conninfo_to_dict(url).get("options") or "")
    return f"{given} -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3".strip()
