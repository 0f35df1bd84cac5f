"""Faults: what a PostgreSQL server reports, as errors of our tree.

Imports the floor only. Messages name the address without its password.
"""

import psycopg
from psycopg import errors

from headrace.runtime.errors import (
    BadRequest,
    DataDamaged,
    HeadraceError,
    ReadOnlyStorage,
    StorageFull,
    StoreUnavailable,
)

AGAIN = (errors.SerializationFailure, errors.DeadlockDetected)
"""A transaction that met another: it is simply run again."""

_READ_ONLY = (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege)


def is_database_fault(error: BaseException) -> bool:
    """Whether the database failed, rather than one list of writes."""
    return isinstance(
        error, (psycopg.OperationalError, psycopg.InternalError, *_READ_ONLY, psycopg.InterfaceError)
    )


def fault(error: Exception, where: str) -> Exception:
    """The error of our tree for what psycopg reports; anything else is returned as it is."""
    if not isinstance(error, psycopg.Error):
        return error
    made: HeadraceError
    if isinstance(error, errors.DiskFull):
        made = StorageFull(where)
    elif isinstance(error, _READ_ONLY):
        made = ReadOnlyStorage(where)
    elif isinstance(error, (errors.DataCorrupted, errors.IndexCorrupted)):
        made = DataDamaged(where, _said(error))
    elif isinstance(error, psycopg.DataError):
        made = BadRequest(f"the database cannot hold a value: {_said(error)}")
    else:
        made = StoreUnavailable(f"{where}: {_said(error)}")
    made.__cause__ = error
    return made


def _said(error: psycopg.Error) -> str:
    """The first line of the message, which holds no values of a row."""
    return (error.diag.message_primary or str(error)).strip().partition("\n")[0]
