"""Connections with a different isolation level than their engine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

__all__ = ["autocommit", "isolated"]


@contextlib.contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection without transactions: each statement is committed by itself, and sees what is committed."""
    with isolated(engine.connect(), "AUTOCOMMIT") as connection:
        yield connection


@contextlib.contextmanager
def isolated(connection: Connection, level: str) -> Iterator[Connection]:
    """A connection with another isolation level, until it is given back to its pool.

    :raises sqlalchemy.exc.OperationalError: if the connection turns out to be lost.
    """
    engine = connection.engine
    try:
        try:
            connection.execution_options(isolation_level=level)
        except engine.dialect.loaded_dbapi.Error as error:
            # This may be the first message to the server since the connection was in the pool. Here SQLAlchemy neither
            # translates the driver's error nor empties the pool, as it does when a statement fails.
            connection.invalidate(error)
            engine.dispose()
            raise exc.OperationalError(level, None, error, connection_invalidated=True) from error
        yield connection
    finally:
        try:
            connection.close()
        except engine.dialect.loaded_dbapi.Error:
            # It was lost while SQLAlchemy restored its isolation level. Its transaction is already over, but the pool
            # no longer counts its connections correctly.
            engine.dispose()
