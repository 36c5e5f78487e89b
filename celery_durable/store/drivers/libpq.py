"""Statements that are whole transactions, sent to the driver itself.

SQLAlchemy builds them once, and opens the connections; but its work each time that a statement is executed costs more
than the rest. So does psycopg's cursor: whenever possible, libpq is called directly.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.engine import Engine

from celery_durable.common.threads import Bell, close_at_once, is_patched

from ..connection_slots import Slot, Slots
from ..pooler import Limits, Pooler
from ..watchdog import Watchdog

__all__ = ["Libpq"]

#: How many unused connections are kept open, and how many there are at most.
_KEPT: Final = 8
_MOST: Final = 24
#: A thread that waits for one checks by itself after this many seconds: the one that was to wake it may be gone.
_LOOK: Final = 0.5
#: How long a connection is used, in seconds; the same as in the pool.
_AGE: Final = 1800.0


class _Form:
    """A statement in the form that the driver takes."""

    def __init__(self, statement: Any, engine: Engine) -> None:
        named = statement.compile(dialect=engine.dialect)
        self.named = str(named)
        self.constants = dict(named.params)
        # libpq wants numbered parameters, which SQLAlchemy writes for asyncpg; that driver itself is not used.
        numbered = statement.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
        self.sql = str(numbered).encode()
        self.order: list[str] = list(numbered.positiontup)
        # The same statement has the same name in all processes: if an undetected pooler hands a session on, a prepared
        # statement of this name in it is this one.
        self.name = f"durable_{hashlib.blake2b(self.sql, digest_size=12).hexdigest()}".encode()


class _Line:
    """A connection, used for one statement after the other.

    :param limits: the statement that must come first in each transaction, if there is a pooler in between.
    """

    def __init__(self, connection: Any, limits: str | None) -> None:
        import psycopg

        self.connection = connection
        #: Its right to be open.
        self.slot: Slot | None = None
        self.driver: Any = connection.dbapi_connection
        self.since = time.monotonic()
        self.prepared: set[bytes] = set()
        self.limits = limits
        #: A cursor that puts the values into the text: otherwise it could not be two statements.
        self.limited = psycopg.ClientCursor
        self.libpq: Any = None if is_patched() or limits is not None else self.driver.pgconn
        self.prepares = self.driver.prepare_threshold is not None
        self.encoding: str = self.driver.info.encoding
        self.idle = psycopg.pq.TransactionStatus.IDLE
        self.fine = (psycopg.pq.ExecStatus.TUPLES_OK, psycopg.pq.ExecStatus.COMMAND_OK)
        # A duplicate: the driver may close its own descriptor at any moment, and the system may then reuse its number.
        self.watched = os.dup(self.driver.fileno())

    def rows(self, form: _Form, values: dict[str, Any]) -> list[Any]:
        """The rows of a query. Here the driver's cursor, which converts the values, is worth its cost."""
        with self._executed(form, values, binary=True) as cursor:
            found: list[Any] = cursor.fetchall()
        return found

    def _executed(self, form: _Form, values: dict[str, Any], *, binary: bool = False) -> Any:
        """A cursor that has run the statement."""
        given = {**form.constants, **values}
        if self.limits is None:
            return self.driver.cursor(binary=binary).execute(
                form.named, given, prepare=self.prepares if binary else None
            )
        # One message is one transaction, and one round trip. Not the driver's pipeline, which may send a flush request
        # after the end of the transaction: a pooler takes that for the beginning of another one, which never ends.
        cursor = self.limited(self.driver)
        cursor.execute(f"{self.limits}; {form.named}", given)
        cursor.nextset()
        return cursor

    def ask(self, form: _Form, values: dict[str, Any]) -> bool:
        """Whether the answer has a row."""
        if self.libpq is None:
            with self._executed(form, values) as cursor:
                return cursor.fetchone() is not None
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

    @property
    def is_fit(self) -> bool:
        """True if it is open, and in no transaction."""
        return bool(self.driver.pgconn.transaction_status == self.idle)

    def close(self, error: Exception | None = None) -> None:
        if self.watched >= 0:
            close_at_once(self.watched)
            self.watched = -1
        try:
            self.connection.invalidate(error)
            self.connection.close()
        finally:
            self.slot = None


class Libpq:
    """Runs statements that SQLAlchemy has compiled, each in its own transaction.

    :param engine: in autocommit mode; its driver takes parameters by name.
    :param watchdog: ends waits for a silent server.
    :param timeout: longest wait for an answer, in seconds.
    :param limits: settings that are sent with each transaction if there is a pooler in between.
    """

    def __init__(self, engine: Engine, watchdog: Watchdog, timeout: float, pooler: Pooler, limits: Limits) -> None:
        self._engine = engine
        self._watchdog = watchdog
        self._timeout = timeout
        self._pooler = pooler
        self._limits = limits
        self._forms: dict[sa.Executable, _Form] = {}
        #: The one used last is taken first, so that superfluous ones reach their age limit.
        self._idle: deque[_Line] = deque()
        #: If an exception interrupts a connection's user, its slot is freed with it.
        self._slots = Slots(_MOST)
        #: Threads that wait for a connection, in the order of arrival.
        self._waiting: dict[Bell, None] = {}

    def says(self, statement: sa.Executable, values: dict[str, Any]) -> bool:
        """Run ``statement`` and commit it; True when it gives a row.

        :param statement: one of a fixed set; it is remembered.
        :raises sqlalchemy.exc.DBAPIError: as an engine would.
        """
        return bool(self._on_a_line(_Line.ask, statement, values))

    def rows(self, query: sa.Select[Any], values: dict[str, Any]) -> list[Any]:
        """The rows of ``query``, as tuples; the rest as for :meth:`says`."""
        found: list[Any] = self._on_a_line(_Line.rows, query, values)
        return found

    def _on_a_line(self, ask: Callable[..., Any], statement: sa.Executable, values: dict[str, Any]) -> Any:
        form = self._forms.get(statement)
        if form is None:
            form = self._forms[statement] = _Form(statement, self._engine)
        now = time.monotonic()
        deadline = now + self._timeout
        line = self._take(now, deadline)
        guard = self._watchdog.guard(line.watched, deadline)
        try:
            try:
                found = ask(line, form, values)
            finally:
                silent = self._released(line, guard)
        except self._engine.dialect.loaded_dbapi.Error as error:
            raise self._translated(error, form.named, line, silent) from error
        except BaseException:
            # Interrupted before the server's answer was read: this connection cannot be used any more.
            self._give_back(line, fit=False)
            raise
        self._give_back(line, fit=not silent)
        return found

    def close(self) -> None:
        """Close what is kept open."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self, now: float, deadline: float) -> _Line:
        while True:
            line = self._pop(now)
            if line is not None:
                return line
            opened = self._open(deadline)
            if opened is not None:
                return opened
            bell = Bell()
            self._waiting[bell] = None
            try:
                # Try again: from now on, a thread that gives one back sees that somebody waits.
                line = self._pop(now)
                if line is not None:
                    return line
                left = deadline - time.monotonic()
                if left <= 0:
                    raise exc.TimeoutError(f"none of {_MOST} connections was free")
                bell.wait(min(left, _LOOK))
            finally:
                self._waiting.pop(bell, None)

    def _pop(self, now: float) -> _Line | None:
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:
                break  # another thread was faster
            if now - line.since < _AGE:
                return line
            line.close()
        return None

    def _open(self, deadline: float) -> _Line | None:
        slot = self._slots.take()
        if slot is None:
            return None
        try:
            line = self._connected(deadline)
        except BaseException:
            # The error keeps this frame alive, perhaps for long; it must not keep the slot.
            del slot
            raise
        line.slot = slot
        return line

    def _connected(self, deadline: float) -> _Line:
        with self._watchdog.until(deadline):
            try:
                connection = self._engine.raw_connection()
            except self._engine.dialect.loaded_dbapi.Error as error:
                raise self._lost(error, "connect") from error
        try:
            return _Line(connection, self._limits.alone if self._pooler.between else None)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise

    def _give_back(self, line: _Line, *, fit: bool) -> None:
        if fit and (self._waiting or len(self._idle) < _KEPT):
            self._idle.append(line)
        else:
            line.close()
        for bell in list(self._waiting)[:1]:
            self._waiting.pop(bell, None)
            bell.ring()

    def _released(self, line: _Line, guard: int) -> bool:
        """End the guard; True if the watchdog has ended the wait: then the descriptor belongs to the watchdog."""
        if self._watchdog.forget(guard):
            return False
        line.watched = -1
        return True

    def _translated(self, error: Exception, sql: str, line: _Line, silent: bool) -> BaseException:
        """The exception to raise for an error of the driver. The line is kept if others can use it."""
        fit = False
        try:
            fit = not silent and line.is_fit
        finally:
            self._give_back(line, fit=fit)
        if fit:
            return self._wrapped(error, sql, lost=False)
        lost = self._lost(error, sql)
        return exc.TimeoutError("the server did not answer") if silent else lost

    def _lost(self, error: Exception, sql: str) -> BaseException:
        # Most likely the other connections are lost too.
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
