"""The connection to the journal's database: one engine per process, bounded waits, one retry loop.

Everything a dialect does differently is in this module and in :mod:`.tables`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import NullPool

from celery_durable.errors import JournalUnavailable

from .connect_options import LIBPQ, how_to_connect
from .connections import autocommit
from .drivers.base import Driver
from .drivers.libpq import Libpq
from .drivers.postgresql import PostgreSQL
from .drivers.sqlite import SQLite
from .interrupted import begun, thrown_behind, unusable_if_interrupted
from .pool import ConnectionPool
from .pooler import Limits, Pooler, given_options
from .server_errors import cause, is_content, is_elsewhere, is_refusal, is_sessionless
from .urls import claim_file, parse_url, shown
from .watchdog import Watchdog

__all__ = ["Database"]

T = TypeVar("T")

#: Pause before a broken transaction is tried again, in seconds; doubled up to the limit.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
#: Shortest and longest pause between two checks for waits that last too long, in seconds.
_SHORTEST_TICK, _LONGEST_TICK = 0.05, 0.5
#: For a file: it has no server that could stop answering.
_UNWATCHED: Final = contextlib.nullcontext()

#: Held while a process makes an engine.
_making = threading.Lock()
#: Drivers of a parent process; see :meth:`Database._make_engine`.
_left_behind: list[Driver] = []


class Database:
    """Runs transactions against the journal's database, each within a bounded time.

    The engine is made on first use and again after a fork: a connection of the parent must never be used by,
    nor closed in, a child.

    :param url: see :func:`parse_url`.
    :param timeout: longest wait for one transaction, in seconds (``durable_ack_timeout``).
    :param pooled: keep connections open; False in processes that fork.
    :param pooler: the pooler in between, if it is already known; default: it is detected.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, pooled: bool = True, pooler: Pooler | None = None) -> None:
        self.url = self._parse(url)
        self.timeout = timeout
        self.pooled = pooled
        self.pooler = pooler or Pooler()
        self._limits = Limits(timeout, given_options(self.url))
        self.dialect: str = {"mariadb": "mysql"}.get(self.url.get_backend_name(), self.url.get_backend_name())
        self._engine: Engine | None = None
        #: Sends the usual transactions directly to the driver; None if all go through SQLAlchemy.
        self._driver: Driver | None = None
        self._autocommit: Engine | None = None
        self._watchdog: Watchdog | None = None
        self._pid: int | None = None
        self._checked = False

    def _parse(self, url: str) -> URL:
        return parse_url(url)

    def again(self, *, timeout: float, pooled: bool = True) -> Database:
        """The same database, with connections and limits of its own."""
        url = self.url.render_as_string(hide_password=False)
        return Database(url, timeout=timeout, pooled=pooled, pooler=self.pooler)

    @property
    def lends(self) -> bool:
        """True if a transaction here is part of somebody else's, as in a Django test."""
        return False

    def running_here(self) -> contextlib.AbstractContextManager[None]:
        """Around an execution that only this thread knows of."""
        return _UNWATCHED

    # -- engine ---------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """This process's engine."""
        if self._engine is None or self._pid != os.getpid():
            self._make_engine()
        assert self._engine is not None
        return self._engine

    def connect(self) -> Connection:
        """A connection of this process's engine."""
        return self.engine.connect()

    @property
    def in_memory(self) -> bool:
        """True for SQLite without a file: the journal then lives and dies with this process."""
        return self.dialect == "sqlite" and self.url.database in (None, "", ":memory:")

    def _make_engine(self) -> None:
        with _making:
            if self._engine is not None and self._pid == os.getpid():
                return
            if self._engine is not None:
                self._engine.dispose(close=False)
            if self._autocommit is not None:
                self._autocommit.dispose(close=False)
            tick = min(max(self.timeout / 10, _SHORTEST_TICK), _LONGEST_TICK)
            self._watchdog = None if self.dialect == "sqlite" else Watchdog(tick)
            self._engine = self._create()
            if self._driver is not None:
                # A parent's connections: they must not be closed here, because the server would be told.
                _left_behind.append(self._driver)
                self._driver = None
            if self.dialect == "postgresql":
                # Separate connections: changing one to autocommit for each statement costs as much as the statement.
                self._autocommit = self._create(isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
                if self.pooled and self._watchdog is not None and self._autocommit.dialect.driver == "psycopg":
                    self._driver = PostgreSQL(
                        Libpq(self._autocommit, self._watchdog, self.timeout, self.pooler, self._limits)
                    )
            elif self._engine.dialect.driver == "pysqlite" and self.pooled and not self.in_memory:
                self._driver = SQLite(self._create(poolclass=NullPool))
            self._checked = False
            self._pid = os.getpid()

    def _create(self, **options: Any) -> Engine:
        options = {**how_to_connect(self.url, self.timeout, self._limits), **options}
        if self.in_memory:
            # One connection for all threads, handed from one to the next.
            options.update(poolclass=ConnectionPool, most=1, patience=self.timeout)
        elif not self.pooled:
            options["poolclass"] = NullPool
        elif "poolclass" not in options:
            # Every transaction here ends in an explicit commit or rollback: no second rollback at check-in.
            options.update(poolclass=ConnectionPool, patience=self.timeout, pool_recycle=1800)
        engine = self._new_engine(options)
        if self.dialect == "mysql":
            # Many rows in one statement. The drivers do this by themselves, but not if a value is an expression.
            engine.dialect.use_insertmanyvalues_wo_returning = True
        if self.dialect == "sqlite":
            event.listen(engine, "connect", self._on_sqlite_connect)
            event.listen(engine, "begin", _begin_immediate)
        if self.dialect == "postgresql" and self.url.get_driver_name() in LIBPQ:
            self.pooler.attend(engine, self._limits, transactions=options["isolation_level"] != "AUTOCOMMIT")
        if self._watchdog is not None:
            self._watchdog.attend(engine, self._connect)
        return engine

    def _connect(self, dialect: Any, args: Any, parameters: Any) -> Any:
        if self.url.get_driver_name() in LIBPQ:
            return self.pooler.connect(self._limits, dialect, args, parameters)
        return dialect.connect(*args, **parameters)

    def _new_engine(self, options: dict[str, Any]) -> Engine:
        if self.dialect == "sqlite":
            claim_file(self.url)
        return sa.create_engine(self.url, **options)

    def _on_sqlite_connect(self, connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")
        # Durable against power loss, not only against a killed process.
        cursor.execute("PRAGMA synchronous = FULL")
        if not self.in_memory:
            deadline = time.monotonic() + self.timeout
            while True:
                # The switch to WAL takes an exclusive lock and does not honour busy_timeout.
                try:
                    cursor.execute("PRAGMA journal_mode = WAL")
                    break
                except Exception:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        cursor.close()

    def dispose(self) -> None:
        """Close this process's connections."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
            if self._driver is not None:
                self._driver.close()
            if self._autocommit is not None:
                self._autocommit.dispose()

    # -- transactions ---------------------------------------------------------------------------------------

    def write(
        self,
        work: Callable[[Connection], T],
        *,
        timeout: float | None = None,
        durable: bool = True,
        single: Callable[[Driver], T | None] | None = None,
    ) -> T:
        """Run ``work`` in a transaction and commit it.

        ``work`` may run again after a lost connection or a dead-lock, also when an earlier commit did go through
        and only its acknowledgement was lost: it has to recognise what it wrote itself.

        :param timeout: seconds; default is ``durable_ack_timeout``.
        :param durable: False: others see it at once, but it need not be on disk yet. A crash of the *database* may
            then undo it, but nothing that was committed durably after it. If a database has no such mode, it is
            durable.
        :param single: the same work, if it is one of the usual transactions: it is tried once, before ``work``, and
            gives None if ``work`` has to find out more.
        :raises JournalUnavailable: when it could not be committed in time.
        :raises SchemaError: when the tables are missing.
        """
        transaction = self._transaction if durable else self._relaxed_transaction

        def attempt() -> T:
            with transaction() as connection:
                return work(connection)

        return self._bounded(attempt, timeout, single)

    def _statements(self) -> contextlib.AbstractContextManager[Connection]:
        """A connection on which each statement is committed by itself."""
        engine = self.engine
        if self.pooler.between:
            # Here, too, each statement sees what is committed; and only a transaction can set the time limit.
            return self._transaction()
        return autocommit(engine) if self._autocommit is None else self._autocommit.connect()

    def _transaction(self) -> contextlib.AbstractContextManager[Connection]:
        return begun(self.engine)

    def _relaxed_transaction(self) -> contextlib.AbstractContextManager[Connection]:
        return self._relaxed()

    @contextlib.contextmanager
    def _relaxed(self) -> Iterator[Connection]:
        if self.dialect != "sqlite":
            with begun(self.engine) as connection:
                if self.dialect == "postgresql":
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
                yield connection
            return
        with self.engine.connect() as connection:
            # Not through SQLAlchemy, which would begin a transaction first; inside one this setting cannot be changed.
            raw = connection.connection
            raw.execute("PRAGMA synchronous = NORMAL")
            try:
                with connection.begin():
                    yield connection
            finally:
                if not connection.invalidated:
                    raw.execute("PRAGMA synchronous = FULL")

    def read(
        self,
        work: Callable[[Connection], T],
        *,
        timeout: float | None = None,
        single: Callable[[Driver], T | None] | None = None,
    ) -> T:
        """Run ``work`` without a transaction: each statement sees what is committed.

        :param single: the same, if it is one of the usual reads.
        :raises JournalUnavailable: when it could not be answered in time.
        :raises SchemaError: when the tables are missing.
        """

        def attempt() -> T:
            with self._statements() as connection, unusable_if_interrupted(connection):
                return work(connection)

        return self._bounded(attempt, timeout, single)

    def _bounded(
        self, attempt: Callable[[], T], timeout: float | None, single: Callable[[Driver], T | None] | None
    ) -> T:
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        pause = _FIRST_PAUSE
        before = sys.exc_info()[1]
        while True:
            try:
                if self._pid != os.getpid():
                    self._make_engine()
                if not self._checked:
                    with self.until(deadline):
                        self.check_schema()
                say, single = single, None
                if say is not None and self._driver is not None:
                    # The driver has its own time limit.
                    answer = say(self._driver)
                    if answer is not None:
                        return answer
                with self.until(deadline):
                    return attempt()
            except (exc.StatementError, exc.TimeoutError, OSError, self.engine.dialect.loaded_dbapi.Error) as error:
                if thrown := thrown_behind(error, before):
                    raise thrown from None
                if is_content(error):
                    raise
                # Whatever the error is, only the database can recover from it, and it may.
                failure: Exception = error
                if is_sessionless(error):
                    self.pooler.found()
                if is_sessionless(error) or is_elsewhere(error):
                    self.dispose()
            where = shown(self.url)
            if is_refusal(failure):
                raise JournalUnavailable(
                    f"the journal's database ({where}) refuses a statement: {cause(failure)}"
                ) from failure
            if deadline - time.monotonic() <= pause:
                raise JournalUnavailable(
                    f"the journal's database ({where}) did not commit within {limit:g} s (durable_ack_timeout): "
                    f"{cause(failure)}"
                ) from failure
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def until(self, deadline: float) -> contextlib.AbstractContextManager[None]:
        """If the server has not answered by ``deadline`` (``time.monotonic()``), raise an error."""
        if self._pid != os.getpid():
            self._make_engine()
        return _UNWATCHED if self._watchdog is None else self._watchdog.until(deadline)

    # -- schema ---------------------------------------------------------------------------------------------

    def check_schema(self) -> None:
        """Verify once per process that the tables are there; on SQLite create them.

        :raises SchemaError: names the command that creates or upgrades them.
        """
        engine = self.engine
        if self._checked:
            return
        from .migrations import ensure

        ensure(engine, create=self.dialect == "sqlite")
        self._checked = True


def _begin_immediate(connection: Connection) -> None:
    # Take the write lock at once: a deferred transaction that reads first and writes later can fail with
    # SQLITE_BUSY without ever waiting. Reads run in autocommit and need no BEGIN.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _after_fork() -> None:
    # A fork may have copied the lock in its locked state; at this point the child has only one thread.
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
