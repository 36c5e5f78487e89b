"""Which transaction of the caller's ``enqueue()`` is to join."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from .errors import ConfigurationError

__all__ = ["connection_of"]


def connection_of(where: Any) -> Connection:
    """The connection of what the caller has.

    :raises ConfigurationError: where it has no transaction that could be joined.
    """
    if isinstance(where, scoped_session):
        where = where()
    if hasattr(where, "run_sync"):
        name = "connection" if hasattr(where, "sync_connection") else "session"
        raise ConfigurationError(
            f"enqueue() cannot wait for {type(where).__name__}; write: await {name}.run_sync(enqueue, task, (1, 2))."
        )
    if isinstance(where, Session):
        try:
            where = where.connection()
        except UnboundExecutionError as error:
            raise ConfigurationError(
                "this session has several databases; give enqueue() the connection of the journal's: "
                "session.connection(bind_arguments={'mapper': ...})."
            ) from error
    if not isinstance(where, Connection):
        raise ConfigurationError(
            f"enqueue() takes an SQLAlchemy Session or Connection, or django.db.connection, first, not {where!r}."
        )
    default = getattr(where.dialect, "_on_connect_isolation_level", None)
    if where.get_execution_options().get("isolation_level", default) == "AUTOCOMMIT":
        raise ConfigurationError(
            "this connection is in autocommit mode: it has no transaction that enqueue() could join. Use apply_async, "
            "or a connection with transactions."
        )
    return where
