"""Exceptions raised in the middle of a transaction: for example a soft time limit, which a signal raises at any
instruction.

Such an exception belongs neither to the database nor to us. It must come out as it is, whatever SQLAlchemy and the
driver make of it on its way. And a connection whose driver was interrupted, perhaps between a request and its answer,
cannot be used any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

__all__ = ["begun", "thrown_behind", "unusable_if_interrupted"]

#: Packages whose ordinary exceptions stand behind errors of a database: the drivers', and what they are made of.
_EXPECTED: Final = frozenset({
    "builtins", "socket", "ssl", "asyncio", "concurrent", "sqlalchemy", "celery_durable",
    "psycopg", "psycopg2", "asyncpg", "pymysql", "MySQLdb", "mysql", "asyncmy", "sqlite3", "aiosqlite",
})  # fmt: skip


@contextlib.contextmanager
def begun(engine: Engine) -> Iterator[Connection]:
    """A transaction, whose connection is not used again when something was thrown into it."""
    with engine.connect() as connection, unusable_if_interrupted(connection), connection.begin():
        yield connection


@contextlib.contextmanager
def unusable_if_interrupted(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        meant = isinstance(error, exc.SQLAlchemyError) or _package(error) == "celery_durable"
        # A journal in memory lives by its connection. One in a file would stay locked by what is left of this one.
        if not meant and connection.engine.url.database not in (None, "", ":memory:"):
            connection.invalidate()
        raise


def thrown_behind(error: Exception, before: BaseException | None) -> BaseException | None:
    """What was thrown in, where SQLAlchemy has wrapped it, or has met an error while it cleaned up behind it.

    :param before: what was being handled when the transaction began.
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
