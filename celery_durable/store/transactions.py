"""Transactions in which an operation of the user's and its journal entry commit together."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..errors import JournalUnavailable, TransactionMisused, TransactionTimeout
from .asynchronous import AsyncDatabase
from .database import Database, isolated
from .journal import Journal
from .records import Batch

__all__ = ["NotCommitted", "Transactions", "Unsure", "is_conflict", "is_lost", "refuse_end"]

logger = logging.getLogger(__name__)

#: Pause before an operation is run again after a conflict, in seconds; doubled up to the limit.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.5

#: The database has undone the transaction because of another one.
_SQLSTATES: Final = frozenset({"40001", "40P01"})
#: Lock wait time-out, dead-lock, and (MariaDB) a record that changed since it was read.
_MYSQL_CODES: Final = frozenset({1205, 1213, 1020})
#: SQLITE_BUSY and SQLITE_LOCKED.
_SQLITE_CODES: Final = frozenset({5, 6})
#: PostgreSQL takes no statement any more after an error that somebody has swallowed.
_IN_FAILED_TRANSACTION: Final = "25P02"
#: Statements that end a transaction, or begin another one in its place; those of savepoints are none.
_END: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*"
    r"(commit|end|abort|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b)"
    r"|begin(?!\s+not\b)|start\s+transaction|prepare\s+transaction)\b",
    re.IGNORECASE,
)


class NotCommitted(Exception):
    """Internal: one try came to nothing, and the operation may be run again."""

    def __init__(self, error: Exception, *, conflict: bool) -> None:
        super().__init__(str(error))
        self.error = error
        #: Because of another transaction; else the database was out of reach.
        self.conflict = conflict


class Unsure(Exception):
    """Internal: the commit failed, and it may have been done all the same."""

    def __init__(self, error: Exception, batch: Batch | None, *, lost: bool) -> None:
        super().__init__(str(error))
        self.error = error
        #: The connection was lost with it.
        self.lost = lost
        #: What was written with it; None where nothing tells.
        self.batch = batch


class Transactions:
    """Runs transactions that may take longer than one of the journal's own.

    :param database: the journal's.
    :param timeout: of one transaction, in seconds (``durable_transaction_timeout``).
    """

    def __init__(self, database: Database, journal: Journal, *, timeout: float) -> None:
        self._journal_database = database
        self._journal = journal
        self.timeout = timeout
        # Its statements may take longer than those of the journal, and the drivers know but one limit per connection.
        url = database.url.render_as_string(hide_password=False)
        self._database = database if database.dialect == "sqlite" else Database(url, timeout=timeout)
        self._asynchronous: AsyncDatabase | None = None

    @property
    def asynchronous(self) -> AsyncDatabase:
        """For operations that are coroutine functions; made on first use.

        :raises ConfigurationError: see there.
        """
        if self._asynchronous is None:
            url = self._database.url.render_as_string(hide_password=False)
            self._asynchronous = AsyncDatabase(url, timeout=self._database.timeout)
        return self._asynchronous

    @property
    def plain(self) -> Database:
        """For operations that are plain functions."""
        return self._database

    @property
    def database(self) -> Database:
        """The journal's, for those who only want to look."""
        return self._journal_database

    def dispose(self) -> None:
        """Close this process's connections."""
        if self._database is not self._journal_database:
            self._database.dispose()
        # Of those for coroutine functions none is kept open.

    # -- one try --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connected(self, database: Database, isolation: str | None) -> Iterator[tuple[Connection, float]]:
        """A connection for one transaction, and when that has to be over (``time.monotonic()``).

        :param database: :attr:`plain` or :attr:`asynchronous`.
        :raises NotCommitted: where the database cannot be reached.
        :raises TransactionTimeout: when it took too long.
        """
        deadline = time.monotonic() + self.timeout
        entered = False
        try:
            with database.until(deadline):
                connection = database.connect()
                wanted = None if connection.dialect.name == "sqlite" else isolation
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

        :raises JournalUnavailable: when it was not the operation: the server does not answer.
        """
        if self._database is not self._journal_database:
            self._journal_database.read(lambda c: c.execute(sa.select(1)))
        return TransactionTimeout(
            f"the transaction took longer than {self.timeout:g} s (durable_transaction_timeout) and was rolled back. "
            "Put less into one step, or raise the setting."
        )

    def write_entry(self, connection: Any, batch: Batch) -> None:
        """Write the journal entry, under the fence, into the operation's transaction.

        :raises LeaseLost: when the execution is somebody else's: then the transaction must be rolled back.
        :raises TransactionMisused: when the transaction cannot be committed any more.
        """
        try:
            self._journal.append_in(connection, batch)
        except Exception as error:
            if _sqlstate(error) == _IN_FAILED_TRANSACTION:
                raise TransactionMisused(
                    "the operation has swallowed an error of the database, which has given the whole transaction up by "
                    "then. Try what may fail inside a savepoint: with session.begin_nested(): ..."
                ) from error
            raise

    def find_out(self, unsure: Unsure) -> None:
        """Whether what was committed is in.

        :raises NotCommitted: when it is not, because the connection was lost.
        :raises JournalUnavailable: when nobody can say.
        """
        error = unsure.error
        if unsure.batch is not None and self._journal.is_in(unsure.batch):
            if not unsure.lost:
                logger.error("a transaction was committed, and something failed after that", exc_info=error)
            return
        if unsure.lost:
            raise NotCommitted(error, conflict=False) from error
        raise error

    # -- several --------------------------------------------------------------------------------------------

    def until_done(self, attempt: Callable[[], Any], tries: int) -> Any:
        """Run ``attempt`` until it commits.

        :param tries: how often at most, where another transaction was in the way.
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
                            f"the journal's database was out of reach for {limit:g} s (durable_ack_timeout): {error}"
                        ) from error
            time.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, _LONGEST_PAUSE)


def refuse_end(statement: Any) -> None:
    """Look at a statement of the operation's before it is executed.

    :raises TransactionMisused: when it would end the transaction, behind the back of whoever began it.
    """
    end = _END.match(statement) if isinstance(statement, str) else None
    if end:
        raise TransactionMisused(
            f"the operation of a transactional step must neither commit nor roll back, and {end[1].upper()} would: its "
            "rows and the step's journal entry are committed together when it returns. To undo what it did, let it "
            "raise an exception."
        )


# -- errors of three databases ------------------------------------------------------------------------------------


def is_conflict(error: BaseException) -> bool:
    """Whether the database has undone a transaction because of another one, so that it may be tried again."""
    origin = _origin(error)
    if _sqlstate(error) in _SQLSTATES:
        return True
    code = getattr(origin, "sqlite_errorcode", None)  # Python 3.11
    if code is not None:
        return (code & 0xFF) in _SQLITE_CODES
    module = type(origin).__module__
    if module.startswith("sqlite3"):
        return "locked" in str(origin)
    first = origin.args[0] if getattr(origin, "args", None) else None
    return module.startswith(("pymysql", "MySQLdb", "mysql", "asyncmy")) and first in _MYSQL_CODES


def is_lost(error: BaseException) -> bool:
    """Whether the connection was lost, so that nobody has heard how the transaction ended."""
    return isinstance(error, (exc.TimeoutError, exc.InterfaceError)) or (
        isinstance(error, exc.DBAPIError) and error.connection_invalidated
    )


def _origin(error: BaseException) -> Any:
    """The driver's error, as SQLAlchemy and Django wrap it."""
    return getattr(error, "orig", None) or error.__cause__ or error


def _sqlstate(error: BaseException) -> str | None:
    origin = _origin(error)
    for one in (origin, error):
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(state, str):
            return state
    return None
