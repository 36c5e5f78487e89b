"""Transactions in which a user's operation and its journal entry commit together."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from celery_durable.errors import ConfigurationError, JournalUnavailable, TransactionMisused, TransactionTimeout

from .asynchronous import AsyncDatabase
from .connections import isolated
from .database import Database
from .journal import Journal
from .records import Batch
from .server_errors import cause, is_conflict, is_content, is_error, is_lost, is_outage, sqlstate

__all__ = ["NotCommitted", "Transactions", "Unsure", "is_conflict", "is_lost"]

logger = logging.getLogger(__name__)

#: Pause before an operation is run again after a conflict, in seconds; doubled up to the limit.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.5

#: PostgreSQL's error for any statement after an earlier one has failed in the same transaction.
_IN_FAILED_TRANSACTION: Final = "25P02"


class NotCommitted(Exception):
    """Internal: one try failed, and the operation may run again."""

    def __init__(self, error: Exception, *, conflict: bool) -> None:
        super().__init__(str(error))
        self.error = error
        #: True: because of another transaction. False: the database was out of reach.
        self.conflict = conflict


class Unsure(Exception):
    """Internal: the commit raised an error, but may have been done anyway."""

    def __init__(self, error: Exception, batch: Batch | None, *, lost: bool) -> None:
        super().__init__(str(error))
        self.error = error
        #: The connection was lost too.
        self.lost = lost
        #: The entries of this commit; None if they are unknown.
        self.batch = batch


class Transactions:
    """Runs transactions that may take longer than the journal's own.

    :param database: the journal's.
    :param timeout: of one transaction, in seconds (``durable_transaction_timeout``).
    """

    def __init__(self, database: Database, journal: Journal, *, timeout: float) -> None:
        self._journal_database = database
        self._journal = journal
        self.timeout = timeout
        # These statements may take longer than the journal's, and drivers have only one limit per connection.
        self._database = database if database.dialect == "sqlite" else database.again(timeout=timeout)
        self._asynchronous: AsyncDatabase | None = None

    @property
    def asynchronous(self) -> AsyncDatabase:
        """For operations that are coroutine functions; made on first use.

        :raises ConfigurationError: as :class:`AsyncDatabase`; and if only a lent connection could see the rows.
        """
        if self._database.lends:
            raise ConfigurationError(
                "a transactional step whose operation is a coroutine function has a connection of its own, which is "
                "not in the transaction of a TestCase. Test it with TransactionTestCase (pytest: "
                "django_db(transaction=True))."
            )
        if self._asynchronous is None:
            url = self._database.url.render_as_string(hide_password=False)
            self._asynchronous = AsyncDatabase(url, timeout=self._database.timeout, pooler=self._database.pooler)
        return self._asynchronous

    @property
    def plain(self) -> Database:
        """For operations that are plain functions."""
        return self._database

    @property
    def database(self) -> Database:
        """The journal's own database object, for reading."""
        return self._journal_database

    def dispose(self) -> None:
        """Close this process's connections."""
        if self._database is not self._journal_database:
            self._database.dispose()
        # Connections for coroutine functions are never kept open.

    # -- one try --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connected(self, database: Database, isolation: str | None) -> Iterator[tuple[Connection, float]]:
        """A connection for one transaction, and when that must be over (``time.monotonic()``).

        :param database: :attr:`plain` or :attr:`asynchronous`.
        :raises NotCommitted: if the database cannot be reached.
        :raises TransactionTimeout: when it took too long.
        """
        deadline = time.monotonic() + self.timeout
        entered = False
        try:
            with database.until(deadline):
                connection = database.connect()
                # The isolation level of an open transaction cannot be changed.
                wanted = None if connection.dialect.name == "sqlite" or database.lends else isolation
                with connection if wanted is None else isolated(connection, wanted):
                    entered = True
                    yield connection, deadline
        except (exc.DBAPIError, exc.TimeoutError) as error:
            if entered and time.monotonic() >= deadline:
                raise self.too_late() from error
            if not entered or is_lost(error):
                raise NotCommitted(error, conflict=False) from error
            raise

    def too_late(self) -> TransactionTimeout:
        """The error for a transaction whose time is over.

        :raises JournalUnavailable: when the cause was not the operation but a server that does not answer.
        """
        if self._database is not self._journal_database:
            self._journal_database.read(lambda c: c.execute(sa.select(1)))
        return TransactionTimeout(
            f"the transaction took longer than {self.timeout:g} s (durable_transaction_timeout) and was rolled back. "
            "Put less into one step, or raise the setting."
        )

    def write_entry(self, connection: Any, batch: Batch) -> None:
        """Write the journal entry, under the fence, into the operation's transaction.

        :raises LeaseLost: when another owner has the execution: then the transaction must be rolled back.
        :raises TransactionMisused: when the transaction cannot be committed any more.
        """
        try:
            self._journal.append_in(connection, batch)
        except Exception as error:
            if sqlstate(error) == _IN_FAILED_TRANSACTION:
                raise TransactionMisused(
                    "the operation swallowed an error of the database, which had already given up the whole "
                    "transaction. Try what may fail inside a savepoint: with session.begin_nested(): ..."
                ) from error
            if is_error(error) and not is_content(error):
                # Our statement has failed, not the operation, so it may be run again.
                raise NotCommitted(error, conflict=is_conflict(error)) from error
            raise

    def find_out(self, unsure: Unsure) -> None:
        """Find out whether a commit was done; return if it was.

        :raises NotCommitted: when it was not, because the connection was lost, or the database could not do it.
        :raises JournalUnavailable: when this cannot be found out.
        """
        error = unsure.error
        if unsure.batch is not None and self._journal.is_in(unsure.batch):
            if not unsure.lost:
                logger.error("a transaction was committed, and something failed after that", exc_info=error)
            return
        if unsure.lost or is_outage(error):
            raise NotCommitted(error, conflict=False) from error
        raise error

    # -- several --------------------------------------------------------------------------------------------

    def until_done(self, attempt: Callable[[], Any], tries: int) -> Any:
        """Run ``attempt`` until it commits.

        :param tries: how often at most, if other transactions conflict with it.
        :raises JournalUnavailable: when the database stays out of reach.
        """
        unreachable_since: float | None = None
        conflicts = 0
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except NotCommitted as failure:
                error = failure.error
                if failure.conflict:
                    conflicts += 1
                    if conflicts >= tries:
                        raise error from None
                else:
                    now = time.monotonic()
                    unreachable_since = unreachable_since or now
                    limit = self._journal_database.timeout
                    if now - unreachable_since + pause >= limit:
                        raise JournalUnavailable(
                            f"the journal's database could not commit for {limit:g} s (durable_ack_timeout): "
                            f"{cause(error)}"
                        ) from error
            time.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, _LONGEST_PAUSE)
