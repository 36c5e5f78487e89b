"""Whether a caller's connection leads to the journal's database: only then can one transaction cover both."""

from __future__ import annotations

import os
import weakref
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from celery_durable.errors import ConfigurationError, SchemaError

from . import migrations
from .database import Database
from .urls import shown

__all__ = ["IDENTITY", "different", "file_of", "told", "verify_same"]

#: Dialect -> query that identifies a database: the running server, the database in it and, if names are looked up in
#: several schemas, the journal's table.
IDENTITY = {
    "postgresql": "SELECT CAST(pg_postmaster_start_time() AS TEXT), current_database(), "
    "CAST(CAST(to_regclass('durable_execution') AS oid) AS TEXT)",
    "mysql": "SELECT @@hostname, CAST(@@port AS CHAR), DATABASE()",
    "sqlite": "SELECT file FROM pragma_database_list WHERE name = 'main'",
}

#: Engines that are known to lead to a journal's database.
_known: weakref.WeakKeyDictionary[Database, weakref.WeakSet[Engine]] = weakref.WeakKeyDictionary()


def told(row: Any) -> tuple[str, ...]:
    """The answer to :data:`IDENTITY`, in a form that can be compared."""
    words = tuple("" if word is None else str(word) for word in row)
    return (os.path.realpath(words[0]) if words[0] else "",) if len(words) == 1 else words


def verify_same(connection: Connection, database: Database) -> None:
    """Refuse a connection that does not lead to the journal's database. Asks once per engine.

    :raises ConfigurationError: names both.
    :raises JournalUnavailable: when the journal's database cannot be asked.
    :raises SchemaError: when the journal's tables are missing.
    """
    engine = connection.engine
    known = _known.setdefault(database, weakref.WeakSet())
    if engine in known or (database.in_memory and engine.pool is database.engine.pool):
        return
    dialect = {"mariadb": "mysql"}.get(connection.dialect.name, connection.dialect.name)
    # A database of another kind is different anyway, and would not understand the query.
    if not database.in_memory and dialect == database.dialect:
        given = _identity(connection, dialect)
        if given == (_file(connection, database) if dialect == "sqlite" else _ours(database)):
            known.add(engine)
            return
    raise ConfigurationError(different(shown(engine.url), database))


def different(given: str, database: Database) -> str:
    """The message about a connection to another database."""
    ours = shown(database.url)
    return (
        f"the connection is to {given}, but the journal is in {ours} (durable_database_url): one transaction cannot "
        "cover both. Use a session or connection of the journal's database (and, on PostgreSQL, a search_path in "
        "which the journal's tables are found), or put the journal into the database that your tables are in."
    )


def _identity(connection: Connection, dialect: str) -> tuple[str, ...]:
    return told(connection.execute(sa.text(IDENTITY[dialect])).one())


def _ours(database: Database) -> tuple[str, ...]:
    return database.read(lambda connection: _identity(connection, database.dialect))


def _file(connection: Connection, database: Database) -> tuple[str, ...]:
    """The journal's file. The caller may have locked it, so it is opened only if its tables must be created."""
    name = file_of(database)
    if not migrations.is_current(connection):
        try:
            database.check_schema()
        except exc.OperationalError as error:
            raise SchemaError(
                f"the journal's tables in {name} are not there yet, or of another version, and cannot be created while "
                "a transaction has the file locked. Create them first: celery -A <your app> durable upgrade"
            ) from error
    return (name,)


def file_of(database: Database) -> str:
    """The file of an SQLite database."""
    name = database.url.database or ""
    return os.path.realpath(name.removeprefix("file:").partition("?")[0])
