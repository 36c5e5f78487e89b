"""The journal's schema: Alembic scripts in the package, run without an ini file.

The version table has a name of its own, so that the journal lives beside an application's own Alembic.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, TextIO

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from ...errors import SchemaError

__all__ = ["VERSION_TABLE", "current", "downgrade", "ensure", "head", "upgrade"]

VERSION_TABLE: Final = "durable_version"

#: Identifies the lock under which one process at a time migrates.
_LOCK: Final = 0x6475_7261
#: How long a process waits for another one that migrates, in seconds.
_PATIENCE: Final = 60


def _config(connection: Connection | None, dialect: str, output: TextIO | None = None) -> Config:
    config = Config(output_buffer=output or sys.stdout)
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["dialect"] = dialect
    return config


@cache
def head() -> str:
    """The newest revision that this version of the library knows."""
    revision = ScriptDirectory.from_config(_config(None, "sqlite")).get_current_head()
    assert revision is not None
    return revision


def current(engine: Engine) -> str | None:
    """The revision of a database; None where there are no tables."""
    with engine.connect() as connection:
        return _current(connection)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def upgrade(engine: Engine, revision: str = "head", *, sql: bool = False, output: TextIO | None = None) -> None:
    """Bring the tables to a revision.

    :param sql: write the statements to ``output`` (default: standard output) instead of running them; nothing is
        connected to.
    """
    if sql:
        command.upgrade(_config(None, engine.dialect.name, output), revision, sql=True)
        return
    with _migrating(engine) as connection:
        command.upgrade(_config(connection, engine.dialect.name, output), revision)


def downgrade(engine: Engine, revision: str, *, sql: bool = False, output: TextIO | None = None) -> None:
    """Take the tables back to a revision, ``base`` for none; parameters as in :func:`upgrade`.

    For ``sql`` the revision is a range, such as ``0002:0001``.
    """
    if sql:
        command.downgrade(_config(None, engine.dialect.name, output), revision, sql=True)
        return
    with _migrating(engine) as connection:
        command.downgrade(_config(connection, engine.dialect.name, output), revision)


def ensure(engine: Engine, create: bool) -> None:
    """Verify that the tables are of this version; with ``create`` make them so.

    :raises SchemaError: says what is wrong and which command cures it.
    """
    found = _quick_look(engine)
    if found == head():
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config(None, "sqlite")).walk_revisions()}
    where = engine.url.render_as_string(hide_password=True)
    if found is not None and found not in known:
        raise SchemaError(
            f"the journal's tables in {where} have revision {found!r}, which this version of celery_durable does not "
            f"know (it knows {head()!r}). Another program has upgraded them: install its version here too."
        )
    if create:
        upgrade(engine)
        return
    if found is None:
        raise SchemaError(
            f"the journal's tables are missing in {where}. Create them with: celery -A <your app> durable upgrade"
        )
    raise SchemaError(
        f"the journal's tables in {where} have revision {found!r}, this version of celery_durable needs {head()!r}. "
        "Upgrade them with: celery -A <your app> durable upgrade"
    )


def _quick_look(engine: Engine) -> str | None:
    """The revision, by one query: this runs at the start of every process."""
    query = sa.select(sa.table(VERSION_TABLE, sa.column("version_num")).c.version_num)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return connection.execute(query).scalar()
    except (exc.OperationalError, exc.ProgrammingError):
        # No such table, or no connection: the proper look tells them apart.
        return current(engine)


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """A connection that nobody else migrates over meanwhile."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        # BEGIN IMMEDIATE by the engine's own hook: others wait for the write lock.
        with engine.begin() as connection:
            yield connection
        return
    own = sa.create_engine(url, poolclass=NullPool)
    try:
        with own.connect() as connection, _server_lock(connection):
            yield connection
            connection.commit()
    finally:
        own.dispose()


@contextlib.contextmanager
def _server_lock(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        try:
            yield
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.commit()
        return
    name = f"celery_durable_{_LOCK}"
    got = connection.execute(sa.text("SELECT GET_LOCK(:name, :seconds)"), {"name": name, "seconds": _PATIENCE}).scalar()
    if not got:
        raise SchemaError(f"another process has been migrating the journal's tables for more than {_PATIENCE} s.")
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": name})
