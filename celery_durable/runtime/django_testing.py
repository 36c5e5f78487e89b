"""The journal in a Django test: in the test database, and if the test is a transaction, inside that.

``TestCase`` rolls back what a test has done. A journal with connections of its own would see nothing of the test's
rows, wait for its locks, and leave behind what it wrote. So it borrows the test's connection, and its transactions are
savepoints there. In other tests the journal has its own connections, none of which stays open, or their database could
not be dropped. Nothing runs in the background: a test is one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from celery_durable.journal.flush_timer import FlushTimer
from celery_durable.journal.writer import JournalWriter
from celery_durable.store import Database, Journal, migrations
from celery_durable.store.django_place import connection_of_alias, in_test_case, running, turn_of
from celery_durable.store.tables import metadata

__all__ = ["SteadyWriter", "TestDatabase"]

_numbers: Final = itertools.count(1)


class SteadyWriter(JournalWriter):
    """Commits when the body's own thread asks for it: a timer would get in the way of what a test does meanwhile."""

    def __init__(self, journal: Journal, *, flush_interval: float, ack_timeout: float) -> None:
        super().__init__(journal, flush_interval=flush_interval, ack_timeout=ack_timeout)
        self.timer = FlushTimer(flush_interval, due=lambda: None, commit=bool)
        self.timer.end()


class TestDatabase(Database):
    """The journal in the test database of an alias.

    :param alias: of ``DATABASES``.
    """

    __test__ = False  # no test, whatever pytest takes it for

    def __init__(self, alias: str, url: str, *, timeout: float) -> None:
        super().__init__(url, timeout=timeout, pooled=False)
        self.alias = alias
        self._lending: Engine | None = None
        self._used = False
        from django.db.models.signals import post_migrate

        # Sent after a flush too, by which TransactionTestCase empties the tables that Django knows of.
        post_migrate.connect(self._on_flushed)

    def again(self, *, timeout: float, pooled: bool = True) -> Database:
        return TestDatabase(self.alias, self.url.render_as_string(hide_password=False), timeout=timeout)

    # -- whose connection -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running_here(self) -> Iterator[None]:
        token = running.set(connection_of_alias(self.alias))
        try:
            yield
        finally:
            running.reset(token)

    @property
    def lends(self) -> bool:
        lender = self._lender()
        return lender is not None and in_test_case(lender)

    def _lender(self) -> Any:
        """The connection of Django's that a transaction is to be part of; None where it has one of its own."""
        first = running.get()
        if first is not None and in_test_case(first):
            return first
        here = connection_of_alias(self.alias)
        if in_test_case(here):
            return here
        # SQLite has one writer, and in memory nobody waits for it: two connections of a thread would be in each
        # other's way.
        if self.dialect == "sqlite" and (first is here or here.connection is not None):
            return here
        return None

    def connect(self) -> Connection:
        lender = self._lender()
        if lender is None:
            return super().connect()
        self._used = True
        loan = _Loan(lender)
        token = _lent.set(loan)
        try:
            return self._lending_engine.connect()
        except BaseException:
            loan.close()
            raise
        finally:
            _lent.reset(token)

    @property
    def _lending_engine(self) -> Engine:
        if self._lending is None:
            options: dict[str, Any] = {"use_native_hstore": False} if self.dialect == "postgresql" else {}
            engine = sa.create_engine(self.url, creator=_lent.get, poolclass=NullPool, **options)
            if self.dialect == "mysql":
                engine.dialect.use_insertmanyvalues_wo_returning = True
            event.listen(engine, "begin", lambda connection: connection.connection.dbapi_connection.begin())
            self._lending = engine
        return self._lending

    # -- transactions ---------------------------------------------------------------------------------------

    def _transaction(self) -> contextlib.AbstractContextManager[Connection]:
        return self._lent_transaction() if self._lender() is not None else self._own(super()._transaction)

    def _relaxed_transaction(self) -> contextlib.AbstractContextManager[Connection]:
        return self._lent_transaction() if self._lender() is not None else self._own(super()._relaxed_transaction)

    def _statements(self) -> contextlib.AbstractContextManager[Connection]:
        return self._lent_transaction() if self._lender() is not None else super()._statements()

    def _own(
        self, transaction: Callable[[], contextlib.AbstractContextManager[Connection]]
    ) -> contextlib.AbstractContextManager[Connection]:
        self._used = True
        return transaction()

    @contextlib.contextmanager
    def _lent_transaction(self) -> Iterator[Connection]:
        with self.connect() as connection, connection.begin():
            yield connection

    # -- its tables -----------------------------------------------------------------------------------------

    def check_schema(self) -> None:
        """Django's runner makes a test database without them."""
        if self.dialect == "sqlite" and self._lender() is not None:
            # Whatever a test makes here may be rolled back with it.
            with self._lent_transaction() as connection:
                _make_tables(connection)
        elif not self._has_tables:
            migrations.ensure(self.engine, create=True)
            self._has_tables = True

    _has_tables = False

    @property
    def _checked(self) -> bool:
        """Never for good."""
        return False

    @_checked.setter
    def _checked(self, value: bool) -> None:
        pass

    def _on_flushed(self, using: str, **_: Any) -> None:
        if using == self.alias and self._used and (self._has_tables or self.dialect == "sqlite"):
            self._used = False
            self.write(_empty)
            self._used = False


def _make_tables(connection: Connection) -> None:
    """As the migrations do, and faster. A file that was kept may have those of another version."""
    version = sa.Table(migrations.VERSION_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32)))
    there = sa.inspect(connection).has_table(version.name)
    if there and connection.execute(sa.select(version.c.version_num)).scalar() == migrations.head():
        return
    if there:
        version.drop(connection)
        metadata.drop_all(connection)
    metadata.create_all(connection)
    version.create(connection)
    connection.execute(sa.insert(version).values(version_num=migrations.head()))


def _empty(connection: Connection) -> None:
    for table in reversed(metadata.sorted_tables):
        connection.execute(sa.delete(table))


# -- a connection that is lent --------------------------------------------------------------------------------------


class _Loan:
    """A driver's connection of Django's, as a driver's connection to SQLAlchemy: its transactions are parts of that
    which is open, and it cannot be closed.

    Django is not asked: it would refuse its connection to a branch's thread, and to one in which an event loop runs,
    while the thread that it belongs to waits for them.

    :param wrapper: Django's own.
    """

    def __init__(self, wrapper: Any) -> None:
        if wrapper.connection is None:
            wrapper.ensure_connection()
        self._turn = turn_of(wrapper)
        self._turn.acquire()
        self._wrapper = wrapper
        self._raw = wrapper.connection
        self._name: str | None = None
        self._outermost = False
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def begin(self) -> None:
        """Begin a part of the transaction that is open, or where there is none, a transaction."""
        self._name = f"celery_durable_{next(_numbers)}"
        self._outermost = not self._wrapper.in_atomic_block and self._wrapper not in _begun
        if self._outermost:
            _begun.add(self._wrapper)
            self._say("BEGIN IMMEDIATE" if self._wrapper.vendor == "sqlite" else "BEGIN")
        else:
            self._say(f"SAVEPOINT {self._name}")

    def commit(self) -> None:
        self._end("COMMIT", "RELEASE SAVEPOINT {}")

    def rollback(self) -> None:
        self._end("ROLLBACK", "ROLLBACK TO SAVEPOINT {}", "RELEASE SAVEPOINT {}")

    def close(self) -> None:
        """It stays open: it is Django's."""
        if self._closed:
            return
        self._closed = True
        try:
            with contextlib.suppress(Exception):  # it may be lost
                self.rollback()
        finally:
            self._turn.release()

    def _end(self, whole: str, *parts: str) -> None:
        name, self._name = self._name, None
        if name is None:
            return
        try:
            for statement in (whole,) if self._outermost else parts:
                self._say(statement.format(name))
        finally:
            if self._outermost:
                _begun.discard(self._wrapper)

    def _say(self, statement: str) -> None:
        cursor = self._raw.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()


_lent: ContextVar[_Loan] = ContextVar("celery_durable_loan")
#: Connections on which we have begun a transaction.
_begun: weakref.WeakSet[Any] = weakref.WeakSet()
