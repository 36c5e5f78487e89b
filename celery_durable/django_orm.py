"""Django's transactions: steps whose rows are written by the ORM, and messages that join ``transaction.atomic()``.

Django has a connection of its own for every thread. What the journal has to say in its transaction is compiled by
SQLAlchemy and said through Django's cursor. Nothing of Django is imported unless it is used.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.mysql.base import MySQLDialect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from .coroutines import without_loop
from .errors import ConfigurationError, TransactionMisused
from .store.same import IDENTITY, different, file_of, told
from .store.transactions import NotCommitted, Unsure, is_conflict, refuse_end

if TYPE_CHECKING:
    from .store import Database
    from .store.records import Batch
    from .store.transactions import Transactions

__all__ = ["Borrowed", "DjangoOpened", "alias_of", "in_atomic", "on_commit", "opened", "outside_loop", "verify_alias"]

T = TypeVar("T")

#: Vendor, as Django calls it -> how its SQL is written, with parameters as Django's cursors take them.
_DIALECTS: dict[str, Callable[..., sa.Dialect]] = {
    "sqlite": SQLiteDialect,
    "postgresql": PGDialect,
    "mysql": MySQLDialect,
}

#: Aliases that are known to lead to a journal's database.
_known: weakref.WeakKeyDictionary[Database, set[str]] = weakref.WeakKeyDictionary()


# -- finding it ---------------------------------------------------------------------------------------------------


def alias_of(where: Any) -> str | None:
    """The alias of one of Django's connections (also of ``django.db.connection``); None for anything else."""
    if "django.db" not in sys.modules:
        return None
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.utils.connection import ConnectionProxy

    return str(where.alias) if isinstance(where, (BaseDatabaseWrapper, ConnectionProxy)) else None


def in_atomic(alias: str) -> bool:
    """Whether this thread is inside ``transaction.atomic()`` on a database."""
    if "django.db" not in sys.modules:
        return False
    return bool(_connection(alias).in_atomic_block)


def on_commit(alias: str, function: Callable[[], None]) -> None:
    """Call a function after the commit of this thread's transaction."""
    from django.db import transaction

    transaction.on_commit(function, using=alias)


def _connection(alias: str) -> Any:
    from django.db import connections
    from django.utils.connection import ConnectionDoesNotExist

    try:
        return connections[alias]
    except ConnectionDoesNotExist as error:
        known = ", ".join(repr(one) for one in connections)
        raise ConfigurationError(f"{alias!r} is no alias of Django's DATABASES, which are {known}.") from error


def verify_alias(alias: str, database: Database) -> None:
    """Refuse a database of Django's that is not the journal's. Asks once.

    :raises ConfigurationError: names both.
    :raises JournalUnavailable: when the journal's database cannot be asked.
    """
    known = _known.setdefault(database, set())
    if alias in known:
        return
    borrowed = Borrowed(alias)
    vendor = borrowed.dialect.name
    if vendor == database.dialect and not database.in_memory:
        given = told(borrowed.execute(sa.text(IDENTITY[vendor])).one())
        ours: tuple[str, ...] = (file_of(database),)
        if vendor != "sqlite":
            ours = told(database.read(lambda c: c.execute(sa.text(IDENTITY[vendor])).one()))
        if given == ours:
            known.add(alias)
            return
    settings = borrowed.wrapper.settings_dict
    place = f"{vendor}://{settings.get('HOST') or ''}/{settings.get('NAME')} (DATABASES[{alias!r}])"
    raise ConfigurationError(different(place, database))


# -- saying it ----------------------------------------------------------------------------------------------------


class _Answer:
    """What a statement has answered, as much of SQLAlchemy's result as the journal needs."""

    def __init__(self, rowcount: int, rows: list[Any]) -> None:
        self.rowcount = rowcount
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def first(self) -> Any:
        return self._rows[0] if self._rows else None

    def one(self) -> Any:
        [row] = self._rows
        return row

    def scalars(self) -> list[Any]:
        return [row[0] for row in self._rows]


class Borrowed:
    """Django's connection of this thread, as far as the journal uses a connection.

    :param alias: of the database.
    """

    def __init__(self, alias: str) -> None:
        self.wrapper = _connection(alias)
        make = _DIALECTS.get(self.wrapper.vendor)
        if make is None:
            raise ConfigurationError(
                f"DATABASES[{alias!r}] is {self.wrapper.vendor}, which cannot hold a journal; use sqlite, postgresql, "
                "mysql or mariadb."
            )
        self.dialect = _dialect(self.wrapper.vendor)

    def execute(
        self,
        statement: Any,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        execution_options: Any = None,
    ) -> _Answer:
        """Run a statement, with one set of parameters or with several."""
        several = [parameters or {}] if parameters is None or isinstance(parameters, Mapping) else parameters
        keys = list(several[0]) if several else []
        compiled = statement.compile(
            dialect=self.dialect, column_keys=keys or None, compile_kwargs={"render_postcompile": True}
        )
        sql = str(compiled)
        count = 0
        rows: list[Any] = []
        with self.wrapper.cursor() as cursor:
            for values in several:
                cursor.execute(sql, compiled.construct_params(dict(values), escape_names=False) or None)
                count += cursor.rowcount
                if cursor.description:
                    names = [column[0] for column in cursor.description]
                    row = namedtuple("row", names, rename=True)  # type: ignore[misc]
                    rows = [row(*values) for values in cursor.fetchall()]
        return _Answer(count, rows)


@functools.cache
def _dialect(vendor: str) -> sa.Dialect:
    return _DIALECTS[vendor](paramstyle="pyformat")


# -- a transactional step -----------------------------------------------------------------------------------------


class DjangoOpened:
    """An open ``atomic()`` block of a transactional step."""

    def __init__(self, transactions: Transactions, alias: str, deadline: float) -> None:
        self._transactions = transactions
        self._alias = alias
        self._deadline = deadline
        self.batch: Batch | None = None
        self.committing = False

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """What the operation returns. It is given nothing: the ORM knows the connection."""
        return op(*args, **kwargs)

    def finish(self, batch: Batch | None) -> None:
        """Write the journal entry."""
        connection = _connection(self._alias)
        if not connection.in_atomic_block or connection.needs_rollback:
            raise TransactionMisused(
                "the operation of a transactional step must neither commit nor roll back, nor swallow an error of the "
                "database: to undo what it did, let it raise an exception. Try what may fail inside a block of its "
                "own: with transaction.atomic(): ..."
            )
        if time.monotonic() >= self._deadline:
            raise self._transactions.too_late()
        if batch is not None:
            self._transactions.write_entry(Borrowed(self._alias), batch)

    def commit(self, batch: Batch | None) -> None:
        """It is committed when the block ends."""
        self.batch = batch
        self.committing = True


@contextlib.contextmanager
def opened(transactions: Transactions, alias: str) -> Iterator[DjangoOpened]:
    """One transaction of Django's; it is committed at the end.

    :raises NotCommitted, Unsure: see there.
    """
    from django.db import Error, InterfaceError, OperationalError, transaction

    connection = _connection(alias)
    if connection.in_atomic_block and not connection.atomic_blocks[0]._from_testcase:
        raise ConfigurationError(
            f"a transactional step cannot begin inside transaction.atomic() on {alias!r}: it could not commit. Leave "
            "the block before."
        )
    begun = DjangoOpened(transactions, alias, time.monotonic() + transactions.timeout)
    raw: Any = None
    try:
        connection.close_if_unusable_or_obsolete()
        verify_alias(alias, transactions.database)
        with transaction.atomic(using=alias), connection.execute_wrapper(_before_execute):
            raw = connection.connection
            yield begun
    except Error as error:
        if is_conflict(error):
            raise NotCommitted(error, conflict=True) from error
        lost = isinstance(error, (OperationalError, InterfaceError)) and not _is_usable(connection, raw)
        if begun.committing:
            raise Unsure(error, begun.batch, lost=lost) from error
        if lost or raw is None:
            raise NotCommitted(error, conflict=False) from error
        raise
    except Exception as error:
        if begun.committing:
            # Of a hook, most likely: transaction.on_commit().
            raise Unsure(error, begun.batch, lost=False) from error
        raise


def _before_execute(execute: Callable[..., Any], sql: Any, *rest: Any) -> Any:
    refuse_end(sql)
    return execute(sql, *rest)


def outside_loop(alias: str, work: Callable[[], T]) -> T:
    """Work with Django's connections: they refuse themselves to a thread in which an event loop runs."""
    here = threading.get_ident()

    def work_and_close() -> T:
        try:
            return work()
        finally:
            if threading.get_ident() != here:
                _connection(alias).close()  # it is that thread's own

    return without_loop(work_and_close)


def _is_usable(connection: Any, raw: Any) -> bool:
    """Whether the driver's connection is still the one it was: Django makes a new one at the end of the block."""
    if connection.connection is None or connection.connection is not raw:
        return False
    try:
        return bool(connection.is_usable())
    except Exception:
        return False
