"""Statements that are whole transactions, said to the driver itself.

SQLAlchemy makes them, once, and keeps the connections; what it does for every execution of a statement costs more than
all the rest of one.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Engine

__all__ = ["Direct"]


class Direct:
    """Runs statements that SQLAlchemy has compiled.

    :param engine: in autocommit mode; its driver takes parameters by name.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._compiled: dict[sa.Executable, tuple[str, dict[str, Any]]] = {}

    def scalar(self, statement: sa.Executable, values: dict[str, Any]) -> Any:
        """Run ``statement``, commit it, and return the first column of its first row.

        :param statement: one of a fixed set; it is remembered.
        :raises sqlalchemy.exc.DBAPIError: as an engine would.
        """
        known = self._compiled.get(statement)
        if known is None:
            known = self._compiled[statement] = self._compile(statement)
        sql, constants = known
        connection: Any = None
        try:
            connection = self._engine.raw_connection()
            cursor = connection.cursor()
            cursor.execute(sql, {**constants, **values})
            row = cursor.fetchone()
            cursor.close()
        except self._engine.dialect.loaded_dbapi.Error as error:
            raise self._translated(error, sql, connection) from error
        except BaseException:
            # Interrupted while the server was at it: nobody can use this connection any more.
            if connection is not None:
                connection.invalidate()
            raise
        finally:
            if connection is not None:
                connection.close()
        return None if row is None else row[0]

    def _compile(self, statement: sa.Executable) -> tuple[str, dict[str, Any]]:
        compiled: Any = statement.compile(dialect=self._engine.dialect)  # type: ignore[attr-defined]
        return str(compiled), dict(compiled.params)

    def _translated(self, error: Exception, sql: str, connection: Any) -> BaseException:
        dialect = self._engine.dialect
        gone = connection is None or dialect.is_disconnect(error, connection.dbapi_connection, None)  # type: ignore[arg-type]
        if gone:
            if connection is not None:
                connection.invalidate(error)
            # The others of the pool have most likely met the same fate.
            self._engine.dispose()
        return exc.DBAPIError.instance(
            sql,
            None,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=gone,
            dialect=dialect,
        )
