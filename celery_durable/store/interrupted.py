"""Exceptions raised in the middle of a transaction: for example a soft time limit, which a signal raises at any
instruction.

Such an exception comes neither from the database nor from us. The caller must get it unchanged, although SQLAlchemy and
the driver may wrap or replace it. And a connection whose driver was interrupted, perhaps between a request and its
answer, cannot be used any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

__all__ = ["begun", "thrown_behind", "unusable_if_interrupted"]

#: Packages whose ordinary exceptions cause errors of a database: drivers, and the modules that they use.
_EXPECTED: Final = frozenset({
    "builtins", "socket", "ssl", "asyncio", "concurrent", "sqlalchemy", "celery_durable",
    "psycopg", "psycopg2", "asyncpg", "pymysql", "MySQLdb", "mysql", "asyncmy", "sqlite3", "aiosqlite",
})  # fmt: skip


@contextlib.contextmanager
def begun(engine: Engine) -> Iterator[Connection]:
    """A transaction whose connection is not used again if an exception interrupts it."""
    with engine.connect() as connection, unusable_if_interrupted(connection), connection.begin():
        yield connection


@contextlib.contextmanager
def unusable_if_interrupted(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        meant = isinstance(error, exc.SQLAlchemyError) or _package(error) == "celery_durable"
        # A journal in memory is lost with its connection. A file would stay locked by an interrupted transaction.
        if not meant and connection.engine.url.database not in (None, "", ":memory:"):
            connection.invalidate()
        raise


def thrown_behind(error: Exception, before: BaseException | None) -> BaseException | None:
    """The exception that interrupted a transaction, if SQLAlchemy has wrapped it, or failed while cleaning up after it.

    :param before: the exception that was being handled when the transaction began.
    """
    if type(error) is exc.StatementError:
        return error.orig
    behind = error.__cause__ or error.__context__
    while behind is not None and behind is not before:
        if not isinstance(behind, Exception) or _package(behind) not in _EXPECTED:
            return behind
        behind = behind.__cause__ or behind.__context__
    return None


def _package(error: BaseException | None) -> str:
    return type(error).__module__.partition(".")[0]
