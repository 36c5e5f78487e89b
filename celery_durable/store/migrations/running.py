"""Runs Alembic: one migration at a time, in this process and across all processes."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal, TextIO

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from celery_durable.errors import SchemaError

from ..connections import autocommit
from ..urls import parse_url, shown
from . import revisions

__all__ = ["run"]

#: How long a process waits for another one that migrates, in seconds.
_PATIENCE = 60.0
_PAUSE: Final = 0.1

#: Locks, taken without waiting. PostgreSQL's is released with the transaction, because a pooler may then give the
#: session to somebody else; MySQL's, which covers the server and not only the database, with the connection.
_TAKE_LOCK_POSTGRESQL: Final = "SELECT pg_try_advisory_xact_lock(1685418593)"
_TAKE_LOCK_MYSQL: Final = "SELECT GET_LOCK(CONCAT('celery_durable:', MD5(COALESCE(DATABASE(), ''))), 0)"

#: Alembic keeps the migration that runs in global variables of its modules.
_one_at_a_time = threading.Lock()


def run(
    direction: Literal["upgrade", "downgrade"],
    database: str | Engine,
    revision: str,
    sql: bool,
    output: TextIO | None,
) -> None:
    """See :func:`celery_durable.store.migrations.upgrade`."""
    move = command.upgrade if direction == "upgrade" else command.downgrade
    url = database.url if isinstance(database, Engine) else parse_url(database)
    dialect = url.get_backend_name()
    engine = database if isinstance(database, Engine) else None
    with _one_at_a_time:
        if sql:
            move(_config(None, dialect, output), revision, sql=True)
            return
        with _connected(url, engine) as connection:
            move(_config(connection, dialect, output), revision)


def _config(connection: Connection | None, dialect: str, output: TextIO | None) -> Config:
    config = Config(output_buffer=output or sys.stdout)
    config.set_main_option("script_location", str(revisions.SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["dialect"] = dialect
    return config


@contextlib.contextmanager
def _connected(url: URL, engine: Engine | None) -> Iterator[Connection]:
    """A connection with the lock that keeps other processes from migrating."""
    if url.get_backend_name() == "sqlite":
        # With the given engine, if any: an in-memory journal exists only there.
        with _write_locked(engine or sa.create_engine(url, poolclass=NullPool)) as connection:
            yield connection
        return
    # Not with the given engine: its statements are limited to durable_ack_timeout, and a migration may take longer.
    # No prepared statements either: behind a pooler they would stay in a session that others get.
    connect_args = {"prepare_threshold": None} if url.get_driver_name() == "psycopg" else {}
    with sa.create_engine(url, poolclass=NullPool, connect_args=connect_args).connect() as connection:
        _take_lock(connection)
        yield connection
        connection.commit()


@contextlib.contextmanager
def _write_locked(engine: Engine) -> Iterator[Connection]:
    """SQLite: one transaction around everything, and the write lock from its start.

    Autocommit, because neither the driver nor the engine may begin a transaction of its own.
    """
    with autocommit(engine) as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()


def _take_lock(connection: Connection) -> None:
    statement = _TAKE_LOCK_POSTGRESQL if connection.dialect.name == "postgresql" else _TAKE_LOCK_MYSQL
    deadline = time.monotonic() + _PATIENCE
    while not connection.exec_driver_sql(statement).scalar():
        if time.monotonic() > deadline:
            where = shown(connection.engine.url)
            raise SchemaError(
                f"another process has been migrating the journal's tables in {where} for more than {_PATIENCE:g} s. "
                "Wait for it, or end it, and try again."
            )
        connection.rollback()
        time.sleep(_PAUSE)
    if connection.dialect.name != "postgresql":
        # The lock belongs to the session; Alembic is to begin the transaction of the migration itself.
        connection.commit()


def _after_fork() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
