"""Statements that are whole transactions, said to the driver itself.

SQLAlchemy makes them, once, and opens the connections; what it does for every execution of a statement costs more than
all the rest of one. So does a cursor of psycopg: where nothing speaks against it, libpq is asked directly.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.engine import Engine

from ..threads import close_at_once, is_patched
from .watchdog import Watchdog

__all__ = ["Direct"]

#: Connections that are kept open while nobody needs them.
_KEPT: Final = 8
#: A connection is used for so long, in seconds; as in the pool.
_AGE: Final = 1800.0
#: The prepared statement is gone, or is somebody else's: a proxy hands the server's sessions round.
_NO_SESSION: Final = frozenset({"26000", "42P05"})


class _Form:
    """A statement as the driver gets it."""

    _numbers = itertools.count()

    def __init__(self, statement: Any, engine: Engine) -> None:
        named = statement.compile(dialect=engine.dialect)
        self.named = str(named)
        self.constants = dict(named.params)
        # SQLAlchemy's words for parameters by number, which libpq wants; nothing else of that driver is used.
        numbered = statement.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
        self.sql = str(numbered).encode()
        self.order: list[str] = list(numbered.positiontup)
        self.name = f"durable_{next(self._numbers)}".encode()


class _Line:
    """A connection, kept for one statement after the other."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.driver: Any = connection.dbapi_connection
        self.since = time.monotonic()
        self.prepared: set[bytes] = set()
        self.libpq: Any = None if is_patched() else getattr(self.driver, "pgconn", None)
        self.prepares = getattr(self.driver, "prepare_threshold", None) is not None
        if self.libpq is not None:
            import psycopg

            self.encoding: str = self.driver.info.encoding
            self.pq: Any = psycopg.pq
            self.fine = (psycopg.pq.ExecStatus.TUPLES_OK, psycopg.pq.ExecStatus.COMMAND_OK)
        # A descriptor of its own: the driver may close its one, and the system give it away, at any moment.
        self.watched = os.dup(self.driver.fileno())

    def rows(self, form: _Form, values: dict[str, Any]) -> list[Any]:
        """What a query finds. The driver's cursor, which makes values of it, is worth its price here."""
        with self.driver.cursor(binary=True) as cursor:
            cursor.execute(form.named, {**form.constants, **values}, prepare=self.prepares)
            found: list[Any] = cursor.fetchall()
        return found

    def ask(self, form: _Form, values: dict[str, Any]) -> bool:
        """Whether the answer has a row."""
        if self.libpq is None:
            cursor = self.driver.cursor()
            cursor.execute(form.named, {**form.constants, **values})
            found = cursor.fetchone() is not None
            cursor.close()
            return found
        named = {**form.constants, **values}
        given = [named[name] for name in form.order]
        data = [
            value if type(value) is bytes or value is None
            else b"%d" % value if type(value) is int
            else _text(value, self.encoding)
            for value in given
        ]  # fmt: skip
        formats = [type(value) is bytes for value in given]
        if not self.prepares:
            result = self.libpq.exec_params(form.sql, data, None, formats)
        else:
            if form.name not in self.prepared:
                self._rows(self.libpq.prepare(form.name, form.sql))
                self.prepared.add(form.name)
            result = self.libpq.exec_prepared(form.name, data, formats)
        return self._rows(result) > 0

    def _rows(self, result: Any) -> int:
        if result.status in self.fine:
            return int(result.ntuples)
        from psycopg import errors

        raise errors.error_from_result(result, encoding=self.encoding)

    def is_lost(self, error: BaseException) -> bool:
        if self.libpq is not None and self.libpq.status != self.pq.ConnStatus.OK:
            return True
        return bool(self.connection.dialect.is_disconnect(error, self.driver, None))

    def close(self, error: Exception | None = None) -> None:
        if self.watched >= 0:
            close_at_once(self.watched)
            self.watched = -1
        self.connection.invalidate(error)
        self.connection.close()


class Direct:
    """Runs statements that SQLAlchemy has compiled, each in a transaction of its own.

    :param engine: in autocommit mode; its driver takes parameters by name.
    :param watchdog: ends waits for a silent server.
    :param timeout: longest wait for an answer, in seconds.
    """

    def __init__(self, engine: Engine, watchdog: Watchdog, timeout: float) -> None:
        self._engine = engine
        self._watchdog = watchdog
        self._timeout = timeout
        self._forms: dict[sa.Executable, _Form] = {}
        #: The latest first, so that those that are not needed grow old.
        self._idle: deque[_Line] = deque()
        self._prepares = True

    def says(self, statement: sa.Executable, values: dict[str, Any]) -> bool:
        """Run ``statement`` and commit it; True when it gives a row.

        :param statement: one of a fixed set; it is remembered.
        :raises sqlalchemy.exc.DBAPIError: as an engine would.
        """
        return bool(self._on_a_line(_Line.ask, statement, values))

    def rows(self, query: sa.Select[Any], values: dict[str, Any]) -> list[Any]:
        """What ``query`` finds, as tuples; the rest as for :meth:`says`."""
        found: list[Any] = self._on_a_line(_Line.rows, query, values)
        return found

    def _on_a_line(self, ask: Callable[..., Any], statement: sa.Executable, values: dict[str, Any]) -> Any:
        form = self._forms.get(statement)
        if form is None:
            form = self._forms[statement] = _Form(statement, self._engine)
        now = time.monotonic()
        deadline = now + self._timeout
        while True:
            line = self._take(now, deadline)
            guard = self._watchdog.guard(line.watched, deadline)
            try:
                found = ask(line, form, values)
            except self._engine.dialect.loaded_dbapi.Error as error:
                silent = self._released(line, guard)
                if self._prepares and getattr(error, "sqlstate", None) in _NO_SESSION:
                    self._prepares = False
                    line.close()
                    continue
                raise self._translated(error, form.named, line, silent) from error
            except BaseException:
                # Interrupted while the server was at it: nobody can use this connection any more.
                self._released(line, guard)
                line.close()
                raise
            if self._released(line, guard) or len(self._idle) >= _KEPT:
                line.close()
            else:
                self._idle.append(line)
            return found

    def close(self) -> None:
        """Close what is kept open."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self, now: float, deadline: float) -> _Line:
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:
                break  # another thread was faster
            if now - line.since < _AGE:
                return line
            line.close()
        with self._watchdog.until(deadline):
            try:
                line = _Line(self._engine.raw_connection())
            except self._engine.dialect.loaded_dbapi.Error as error:
                raise self._lost(error, "connect") from error
        line.prepares = line.prepares and self._prepares
        return line

    def _released(self, line: _Line, guard: int) -> bool:
        """The wait is over; True when the watchdog has ended it: then the descriptor is the watchdog's."""
        if self._watchdog.forget(guard):
            return False
        line.watched = -1
        return True

    def _translated(self, error: Exception, sql: str, line: _Line, silent: bool) -> BaseException:
        if silent or line.is_lost(error):
            line.close(error)
            lost = self._lost(error, sql)
            return exc.TimeoutError("the server did not answer") if silent else lost
        self._idle.append(line)
        return self._wrapped(error, sql, lost=False)

    def _lost(self, error: Exception, sql: str) -> BaseException:
        # The other connections have most likely met the same fate.
        self.close()
        self._engine.dispose()
        return self._wrapped(error, sql, lost=True)

    def _wrapped(self, error: Exception, sql: str, *, lost: bool) -> BaseException:
        dialect = self._engine.dialect
        return exc.DBAPIError.instance(
            sql,
            None,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=dialect,
        )


def _text(value: object, encoding: str) -> bytes:
    text = str(value)
    if "\0" in text:
        from psycopg import DataError

        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text.encode(encoding)
