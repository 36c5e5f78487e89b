"""The journal's schema: numbered Alembic scripts in the package, run without an ini file.

The version table has a name of its own, so that the journal lives beside an application's own Alembic.

Alembic itself is imported by :mod:`.running` alone, and only where something has to be done: :func:`ensure` runs at
the start of every process, and where all is well it costs one query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TextIO

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ...errors import SchemaError
from ..database import autocommit

__all__ = ["VERSION_TABLE", "current", "downgrade", "ensure", "head", "is_current", "upgrade"]

VERSION_TABLE: Final = "durable_version"

#: The folder with ``env.py`` and ``versions/``.
_SCRIPTS = Path(__file__).parent

_CURE: Final = "celery -A <your app> durable upgrade"


def head() -> str:
    """The newest revision that this version of the library knows."""
    return _known()[-1]


def _known() -> list[str]:
    """All revisions, oldest first: they are numbered, and each file's name starts with its number."""
    return sorted(script.name.partition("_")[0] for script in (_SCRIPTS / "versions").glob("[0-9]*_*.py"))


def current(engine: Engine) -> str | None:
    """The revision of a database; None where there are no tables."""
    query = sa.select(sa.table(VERSION_TABLE, sa.column("version_num")).c.version_num)
    with autocommit(engine) as connection:
        try:
            return connection.execute(query).scalar()
        except (exc.OperationalError, exc.ProgrammingError):
            # Drivers do not agree on the error for a table that is not there.
            if connection.invalidated:
                raise
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                return None
        # Another process has just made it, or the error was another one and comes again.
        return connection.execute(query).scalar()


def is_current(connection: Connection) -> bool:
    """Whether the tables that a connection sees are of this version (SQLite: elsewhere an error ends a transaction)."""
    try:
        query = sa.select(sa.table(VERSION_TABLE, sa.column("version_num")).c.version_num)
        return bool(connection.execute(query).scalar() == head())
    except exc.OperationalError:
        return False


def ensure(engine: Engine, create: bool) -> None:
    """Verify that the tables are of this version; with ``create`` make them so.

    Any number of processes and threads may do this at once.

    :raises SchemaError: says what is wrong and which command cures it.
    """
    found = current(engine)
    if found == head():
        return
    where = engine.url.render_as_string(hide_password=True)
    if found is not None and found not in _known():
        raise SchemaError(
            f"the journal's tables in {where} have revision {found!r}, which this version of celery_durable does not "
            f"know (it needs {head()!r}). A newer version has upgraded them: upgrade celery_durable here too."
        )
    if create:
        upgrade(engine)
    elif found is None:
        raise SchemaError(f"the journal's tables are missing in {where}. Create them with: {_CURE}")
    else:
        raise SchemaError(
            f"the journal's tables in {where} have revision {found!r}, this version of celery_durable needs "
            f"{head()!r}. Upgrade them with: {_CURE}"
        )


def upgrade(database: str | Engine, revision: str = "head", *, sql: bool = False, output: TextIO | None = None) -> None:
    """Bring the tables to a revision. Two that do it at once do it one after the other.

    :param database: an engine, or a ``durable_database_url``.
    :param sql: write the statements to ``output`` (default: standard output) instead of running them; nothing is
        connected to.
    :raises ConfigurationError: when ``database`` is text and no URL that could hold a journal.
    :raises SchemaError: when another process migrates and does not come to an end.
    """
    from .running import run

    run("upgrade", database, revision, sql, output)


def downgrade(database: str | Engine, revision: str, *, sql: bool = False, output: TextIO | None = None) -> None:
    """Take the tables back to a revision, ``base`` for none; parameters as in :func:`upgrade`.

    For ``sql`` the revision is a range, such as ``0002:0001``.
    """
    from .running import run

    run("downgrade", database, revision, sql, output)
