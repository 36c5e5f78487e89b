"""What an error of each of the three databases means: whose fault it is, and what to do about it.

Drivers do not agree on the class of an error, so the codes of the servers decide.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import exc

__all__ = [
    "cause",
    "is_conflict",
    "is_content",
    "is_elsewhere",
    "is_error",
    "is_lost",
    "is_outage",
    "is_refusal",
    "is_sessionless",
    "sqlstate",
]

#: Classes of errors about the content of rows, in SQLAlchemy and in Django.
_OF_CONTENT: Final = frozenset({"IntegrityError", "DataError"})

#: PostgreSQL has rolled the transaction back because of another one.
_CONFLICTS: Final = frozenset({"40001", "40P01"})
#: Lock wait timeout, dead-lock, and (MariaDB) a record that changed since it was read.
_MYSQL_CONFLICTS: Final = frozenset({1205, 1213, 1020})
#: SQLITE_BUSY and SQLITE_LOCKED.
_SQLITE_CONFLICTS: Final = frozenset({5, 6})

#: PostgreSQL: connections, resources, an operator's intervention, the system, an internal error.
_OUTAGES: Final = ("08", "53", "57", "58", "F0", "XX")
#: Disk and tables full, memory, files, a statement that was ended or took too long, a server that stops.
_MYSQL_OUTAGES: Final = frozenset({
    3, 28, 1021, 1026, 1028, 1030, 1037, 1038, 1041, 1053, 1114, 1135, 1180, 1317, 1927, 1969, 3024,
})  # fmt: skip
#: PERM, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, AUTH, NOTADB.
_SQLITE_OUTAGES: Final = frozenset({3, 7, 8, 9, 10, 11, 13, 14, 15, 23, 26})
#: The same as texts: Python 3.10 gives no codes.
_SQLITE_WORDS: Final = re.compile(
    "full|readonly|disk|unable to open|interrupted|out of memory|malformed|not a database"
)

#: The server accepts no writes: after a failover another one does.
_READ_ONLY: Final = "25006"
_MYSQL_READ_ONLY: Final = frozenset({1290, 1836})

#: The prepared statement is missing, or somebody else's: a pooler shares the server's sessions among clients.
_SESSIONLESS: Final = frozenset({"26000", "42P05"})


def is_error(error: BaseException) -> bool:
    """Whether this is an error of a database or its driver, through SQLAlchemy or Django."""
    return isinstance(error, (exc.DBAPIError, exc.TimeoutError)) or any(
        (c.__module__, c.__name__) == ("django.db.utils", "Error") for c in type(error).__mro__
    )


def is_content(error: BaseException) -> bool:
    """Whether the values of a statement are wrong, so that another try would not help."""
    names = {c.__name__ for c in type(error).__mro__}
    return not names.isdisjoint(_OF_CONTENT) and not getattr(error, "connection_invalidated", False)


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction was rolled back because of another one, so that it may be tried again."""
    if sqlstate(error) in _CONFLICTS:
        return True
    if _is_of(error, "sqlite3"):
        code = _sqlite_code(error)
        return code in _SQLITE_CONFLICTS if code is not None else "locked" in str(_origin(error))
    return _mysql_code(error) in _MYSQL_CONFLICTS


def is_lost(error: BaseException) -> bool:
    """Whether the connection was lost, so that the outcome of the transaction is unknown."""
    return isinstance(error, (exc.TimeoutError, exc.InterfaceError)) or (
        isinstance(error, exc.DBAPIError) and error.connection_invalidated
    )


def is_elsewhere(error: BaseException) -> bool:
    """Whether this server accepts no writes, and a new connection may lead to one that does."""
    return sqlstate(error) == _READ_ONLY or _mysql_code(error) in _MYSQL_READ_ONLY


def is_outage(error: BaseException) -> bool:
    """Whether the cause is the database's present state, not the statement: a full disk, a server that stops, a
    statement that somebody has cancelled.
    """
    state = sqlstate(error)
    if state is not None:
        return state.startswith(_OUTAGES) or state == _READ_ONLY
    if _is_of(error, "sqlite3"):
        code = _sqlite_code(error)
        return code in _SQLITE_OUTAGES if code is not None else bool(_SQLITE_WORDS.search(str(_origin(error))))
    return _mysql_code(error) in _MYSQL_OUTAGES | _MYSQL_READ_ONLY


def is_refusal(error: BaseException) -> bool:
    """Whether only people can fix it: missing rights, a missing table or column."""
    refused = isinstance(error, (exc.ProgrammingError, exc.NotSupportedError))
    return refused and not is_lost(error) and not is_sessionless(error)


def is_sessionless(error: BaseException) -> bool:
    """Whether the cause is that this connection has no session of its own on the server."""
    return sqlstate(error) in _SESSIONLESS


def cause(error: BaseException) -> str:
    """The driver's message of an error, without the values of the statement."""
    origin = getattr(error, "orig", None) or error
    # PostgreSQL's further lines may quote a row.
    said = getattr(getattr(origin, "diag", None), "message_primary", None) or str(origin)
    return f"{type(origin).__name__}: {' '.join(said.split())}"


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error; None if there is none."""
    origin = _origin(error)
    for one in (origin, error):
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(state, str):
            return state
    return None


def _origin(error: BaseException) -> Any:
    """The driver's error, which SQLAlchemy or Django has wrapped."""
    return getattr(error, "orig", None) or error.__cause__ or error


def _is_of(error: BaseException, *drivers: str) -> bool:
    return type(_origin(error)).__module__.startswith(drivers)


def _sqlite_code(error: BaseException) -> int | None:
    code = getattr(_origin(error), "sqlite_errorcode", None)  # Python 3.11
    return None if code is None else code & 0xFF


def _mysql_code(error: BaseException) -> int | None:
    if not _is_of(error, "pymysql", "MySQLdb", "mysql", "asyncmy"):
        return None
    origin = _origin(error)
    first = origin.args[0] if getattr(origin, "args", None) else None
    return first if isinstance(first, int) else None
