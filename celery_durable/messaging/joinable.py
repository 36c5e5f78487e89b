"""Which transaction of the caller's to join."""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import UnboundExecutionError

from celery_durable.errors import ConfigurationError

__all__ = ["connection_of"]


def connection_of(
    where: Any, call: str = "enqueue()", awaited: str = "await {}.run_sync(enqueue, task, (1, 2))"
) -> Connection:
    """The connection of the session or connection that the caller gave.

    :param call: the call that wants to join it, for messages.
    :param awaited: how to write this call with an asynchronous session, with a placeholder for the session's name.

    :raises ConfigurationError: if there is no transaction that could be joined.
    """
    # A caller with one of SQLAlchemy's sessions has already imported this module.
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(where, orm.scoped_session):
        where = where()
    if hasattr(where, "run_sync"):
        name = "connection" if hasattr(where, "sync_connection") else "session"
        raise ConfigurationError(f"{call} cannot wait for {type(where).__name__}; write: {awaited.format(name)}.")
    if orm is not None and isinstance(where, orm.Session):
        try:
            where = where.connection()
        except UnboundExecutionError as error:
            raise ConfigurationError(
                f"this session has several databases; give {call} the connection of the journal's: "
                "session.connection(bind_arguments={'mapper': ...})."
            ) from error
    if not isinstance(where, Connection):
        raise ConfigurationError(
            f"{call} takes an SQLAlchemy Session or Connection, or django.db.connection, not {where!r}."
        )
    default = getattr(where.dialect, "_on_connect_isolation_level", None)
    if where.get_execution_options().get("isolation_level", default) == "AUTOCOMMIT":
        raise ConfigurationError(
            f"this connection is in autocommit mode: it has no transaction that {call} could join. Use a connection "
            "with transactions, or do without one."
        )
    return where
