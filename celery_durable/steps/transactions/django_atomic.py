"""Transactional steps whose rows are written by Django's ORM. Nothing of Django is imported unless it is used."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from celery_durable.common.coroutines import without_loop
from celery_durable.errors import ConfigurationError, TransactionMisused
from celery_durable.store.django_connection import Borrowed, verify_alias
from celery_durable.store.django_place import borrowed_from_test, connection_of_alias, in_test_case
from celery_durable.store.records import Batch
from celery_durable.store.transaction_guard import Unended, refuse_end
from celery_durable.store.transactions import NotCommitted, Transactions, Unsure, is_conflict

__all__ = ["DjangoTransaction", "opened", "outside_loop"]

T = TypeVar("T")


class DjangoTransaction:
    """An open ``atomic()`` block of a transactional step."""

    def __init__(self, transactions: Transactions, alias: str, deadline: float) -> None:
        self._transactions = transactions
        self._alias = alias
        self._deadline = deadline
        self.batch: Batch | None = None
        self.committing = False
        self.unended = Unended(None)

    def around_execute(self, execute: Callable[..., Any], sql: Any, *rest: Any) -> Any:
        """Look at each statement before and after it is executed."""
        refuse_end(sql, connection_of_alias(self._alias).vendor)
        self.unended.look()
        answer = execute(sql, *rest)
        self.unended.look()
        return answer

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """What the operation returns. It is given nothing: the ORM knows the connection."""
        return op(*args, **kwargs)

    def finish(self, batch: Batch | None) -> None:
        """Write the journal entry."""
        connection = connection_of_alias(self._alias)
        if not connection.in_atomic_block or connection.needs_rollback:
            raise TransactionMisused(
                "the operation of a transactional step must neither commit nor roll back, nor swallow an error of the "
                "database: to undo what it did, let it raise an exception. Try what may fail inside a block of its "
                "own: with transaction.atomic(): ..."
            )
        self.unended.look()
        if time.monotonic() >= self._deadline:
            raise self._transactions.too_late()
        if batch is not None:
            self._transactions.write_entry(Borrowed(self._alias), batch)

    def commit(self, batch: Batch | None) -> None:
        """It is committed when the block ends."""
        self.batch = batch
        self.committing = True


@contextlib.contextmanager
def opened(transactions: Transactions, alias: str) -> Iterator[DjangoTransaction]:
    """One transaction of Django's; it is committed at the end.

    :raises NotCommitted, Unsure: see there.
    """
    from django.db import Error, InterfaceError, OperationalError, transaction

    connection = connection_of_alias(alias)
    if connection.in_atomic_block and not in_test_case(connection):
        raise ConfigurationError(
            f"a transactional step cannot begin inside transaction.atomic() on {alias!r}: it could not commit. Leave "
            "the block first."
        )
    begun = DjangoTransaction(transactions, alias, time.monotonic() + transactions.timeout)
    raw: Any = None
    try:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        verify_alias(alias, transactions.database)
        with transaction.atomic(using=alias):
            raw = connection.connection
            begun.unended = Unended(raw)
            with connection.execute_wrapper(begun.around_execute):
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


def outside_loop(alias: str, work: Callable[[], T]) -> T:
    """Work with Django's connections: they refuse themselves to a thread in which an event loop runs."""
    here = threading.get_ident()

    def work_and_close() -> T:
        with borrowed_from_test(alias) as borrowed:
            try:
                return work()
            finally:
                if threading.get_ident() != here and not borrowed:
                    connection_of_alias(alias).close()  # it is that thread's own

    return without_loop(work_and_close)


def _is_usable(connection: Any, raw: Any) -> bool:
    """Whether the driver's connection is still the one it was: Django makes a new one at the end of the block."""
    if connection.connection is None or connection.connection is not raw:
        return False
    try:
        return bool(connection.is_usable())
    except Exception:
        return False
