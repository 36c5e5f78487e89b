"""Which revisions there are, and which one a database has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ..connections import autocommit

__all__ = ["SCRIPTS", "VERSION_TABLE", "current", "head", "is_current", "known"]

VERSION_TABLE: Final = "durable_version"

#: The folder with ``env.py`` and ``versions/``.
SCRIPTS = Path(__file__).parent


def head() -> str:
    """The newest revision that this version of the library knows."""
    return known()[-1]


def known() -> list[str]:
    """All revisions, oldest first: they are numbered, and each file's name starts with its number."""
    return sorted(script.name.partition("_")[0] for script in (SCRIPTS / "versions").glob("[0-9]*_*.py"))


def current(engine: Engine) -> str | None:
    """The revision of a database; None where there are no tables."""
    query = sa.select(sa.table(VERSION_TABLE, sa.column("version_num")).c.version_num)
    with autocommit(engine) as connection:
        try:
            return connection.execute(query).scalar()
        except (exc.OperationalError, exc.ProgrammingError):
            # Drivers do not agree on the error for a missing table.
            if connection.invalidated:
                raise
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                return None
        # Another process has just made the table; or it was another error, which is raised again here.
        return connection.execute(query).scalar()


def is_current(connection: Connection) -> bool:
    """Whether a connection's tables are of this version. Only for SQLite: elsewhere an error ends a transaction."""
    try:
        query = sa.select(sa.table(VERSION_TABLE, sa.column("version_num")).c.version_num)
        return bool(connection.execute(query).scalar() == head())
    except exc.OperationalError:
        return False
