"""Connections at another level of isolation than their engine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

__all__ = ["autocommit", "isolated"]


@contextlib.contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection without transactions: each statement stands for itself and sees what is committed."""
    with isolated(engine.connect(), "AUTOCOMMIT") as connection:
        yield connection


@contextlib.contextmanager
def isolated(connection: Connection, level: str) -> Iterator[Connection]:
    """A connection at another level of isolation, until it is given back to its pool.

    :raises sqlalchemy.exc.OperationalError: where it turns out to be lost.
    """
    engine = connection.engine
    try:
        try:
            connection.execution_options(isolation_level=level)
        except engine.dialect.loaded_dbapi.Error as error:
            # The first word to the server since the pool kept this connection, perhaps. SQLAlchemy neither
            # translates the driver's error here nor empties the pool, as it does where a statement fails.
            connection.invalidate(error)
            engine.dispose()
            raise exc.OperationalError(level, None, error, connection_invalidated=True) from error
        yield connection
    finally:
        try:
            connection.close()
        except engine.dialect.loaded_dbapi.Error:
            # It was lost while SQLAlchemy gave it its own level back. What was done on it is done; but the pool has
            # lost count of it.
            engine.dispose()
