"""The open transaction of a transactional step: what its operation gets, and how it ends.

A plain function gets a session or connection of SQLAlchemy's, a coroutine function an asynchronous one. The rules are
the same, and so is the code: for a coroutine function all of it runs where SQLAlchemy can wait for an asyncio driver
(:func:`~.common.coroutines.in_own_loop`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, get_type_hints

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.util import await_only

from celery_durable.effects import is_asynchronous, is_giver
from celery_durable.errors import ConfigurationError, TransactionMisused
from celery_durable.store.asynchronous import asyncio_of_sqlalchemy
from celery_durable.store.records import Batch
from celery_durable.store.transaction_guard import Unended, refuse_end
from celery_durable.store.transactions import NotCommitted, Transactions, Unsure, is_conflict, is_lost

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Session


__all__ = ["AsyncOpenTransaction", "OpenTransaction", "giver_for"]


class OpenTransaction:
    """An open transaction, and what the operation gets of it.

    :param giver: ``Connection``, a ``Session`` class, or a ``sessionmaker``; for :class:`AsyncOpened` their
        asynchronous counterparts.
    """

    def __init__(self, transactions: Transactions, connection: Connection, deadline: float, giver: Any) -> None:
        self._transactions = transactions
        self._deadline = deadline
        self._connection = connection
        self._ending = False
        event.listen(connection, "commit", self._on_commit)
        #: The operation's first argument, and the session behind it, where it is one.
        self._given, self._session = self._give(giver)
        try:
            if self._session is None:
                connection.begin()
            else:
                self._session.connection()
        except DBAPIError as error:
            raise NotCommitted(error, conflict=False) from error
        self._root = connection.get_transaction()
        self._unended = Unended(connection.connection.driver_connection)
        event.listen(connection, "before_cursor_execute", self._before_execute)
        event.listen(connection, "after_cursor_execute", self._after_execute)

    def _give(self, giver: Any) -> tuple[Any, Session | None]:
        if giver is Connection:
            return self._connection, None
        session: Session = giver(bind=self._connection, **_binds(giver))
        return session, session

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """What the operation returns."""
        return op(self._given, *args, **kwargs)

    def _on_commit(self, connection: Connection) -> None:
        if not self._ending:
            # Said to the driver: SQLAlchemy takes a transaction whose commit failed for one that has ended, and would
            # hand the connection on with what the operation wrote.
            connection.connection.rollback()
            raise TransactionMisused(
                "the operation of a transactional step must not commit: its rows and the step's journal entry are "
                "committed together when it returns. For savepoints: with session.begin_nested(): ..."
            )

    def _before_execute(self, connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        refuse_end(statement, connection.dialect.name)
        self._unended.look()

    def _after_execute(self, *_: Any) -> None:
        self._unended.look()

    def finish(self, batch: Batch | None) -> None:
        """Write the rest: what the session holds, and the journal entry."""
        self._check()
        self._unended.look()
        if self._session is not None:
            try:
                self._session.flush()
            except PendingRollbackError as error:
                raise TransactionMisused(
                    "the operation swallowed an error of its session, which had already rolled the transaction back. "
                    "Try what may fail inside a savepoint: with session.begin_nested(): ..."
                ) from error
        if time.monotonic() >= self._deadline:
            # Not all drivers can be interrupted while they wait for the operation.
            raise self._transactions.too_late()
        if batch is not None:
            self._transactions.write_entry(self._connection, batch)

    def _check(self) -> None:
        connection, root = self._connection, self._root
        if connection.invalidated:
            error = OperationalError("", None, Exception("the connection was lost"), connection_invalidated=True)
            raise NotCommitted(error, conflict=False)
        if connection.closed or root is None or connection.get_transaction() is not root or not root.is_active:
            raise TransactionMisused(
                "the operation of a transactional step must neither roll back nor close: to undo what it did, let it "
                "raise an exception. For savepoints: with session.begin_nested(): ..."
            )

    def commit(self, batch: Batch | None) -> None:
        """Commit all of it.

        :raises NotCommitted: when another transaction was in the way.
        :raises Unsure: when it failed otherwise.
        """
        self._ending = True
        assert self._root is not None
        try:
            (self._session or self._root).commit()
        except Exception as error:
            if is_conflict(error):
                raise NotCommitted(error, conflict=True) from error
            raise Unsure(error, batch, lost=is_lost(error)) from error

    def close(self) -> None:
        """Roll back what was not committed."""
        self._ending = True
        if self._unended.ended and not self._connection.closed:
            # Nobody knows what else was done to it.
            self._connection.invalidate()
        if self._session is not None:
            self._session.close()
        if not self._connection.closed and self._connection.in_transaction():
            self._connection.rollback()


class AsyncOpenTransaction(OpenTransaction):
    """The same for a coroutine function.

    :param engine: of the connection.
    """

    def __init__(
        self, transactions: Transactions, connection: Connection, deadline: float, giver: Any, engine: AsyncEngine
    ) -> None:
        self._engine = engine
        super().__init__(transactions, connection, deadline, giver)

    def _give(self, giver: Any) -> tuple[Any, Session | None]:
        asynchronous = asyncio_of_sqlalchemy()
        connection = asynchronous.AsyncConnection(self._engine, self._connection)
        if giver is asynchronous.AsyncConnection:
            return connection, None
        session = giver(bind=connection, **_binds(giver))
        return session, session.sync_session

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        left = self._deadline - time.monotonic()
        try:
            return await_only(asyncio.wait_for(super().call(op, *args, **kwargs), left))
        except asyncio.TimeoutError:
            if time.monotonic() < self._deadline:
                raise  # its own
            raise self._transactions.too_late() from None


def _binds(giver: Any) -> dict[str, Any]:
    """A factory of the user's may name other databases."""
    return {"binds": {}} if not isinstance(giver, type) and giver.kw.get("binds") else {}


# -- what an operation is given -----------------------------------------------------------------------------------


def giver_for(op: Any, session: Any = None) -> Any:
    """What makes the operation's first argument.

    :param session: what the step says of it (``transactional(session=...)``); None: nothing. Then the annotation of the
        operation's first parameter says it, or its being a coroutine function.
    :raises ConfigurationError: where a plain function would be given an asynchronous session, or the reverse; and where
        that needs a package which is not there.
    """
    is_async = inspect.iscoroutinefunction(op)
    # Said first, for a session of this kind cannot even be made without what that needs.
    default = asyncio_of_sqlalchemy().AsyncSession if is_async else _session()
    giver = session or _annotated(op) or default
    if is_asynchronous(giver) is is_async:
        return giver
    ours, fitting = ("coroutine", "AsyncSession or AsyncConnection") if is_async else ("plain", "Session or Connection")
    raise ConfigurationError(
        f"{op!r} is a {ours} function and would be given {getattr(giver, '__name__', giver)}; as the operation of a "
        f"transactional step it can be given a {fitting}."
    )


def _session() -> type[Session]:
    """Imported only where a step is given one: SQLAlchemy's ORM is slow to import."""
    from sqlalchemy.orm import Session

    return Session


@functools.lru_cache(maxsize=1024)
def _annotated(op: Any) -> Any:
    """What the annotation of the first parameter asks for; None where it says nothing."""
    try:
        first = next(iter(inspect.signature(op).parameters.values()), None)
    except (TypeError, ValueError):
        return None
    if first is None:
        raise ConfigurationError(
            f"{op!r} takes no arguments; the operation of a transactional step is given a session as its first one."
        )
    wanted = first.annotation
    if isinstance(wanted, str):
        try:
            wanted = get_type_hints(op).get(first.name)
        except Exception:
            # Imported for type checkers only, perhaps; the text is all there is.
            name = wanted.rpartition(".")[2]
            if name == "AsyncConnection":
                return asyncio_of_sqlalchemy().AsyncConnection
            wanted = Connection if name == "Connection" else None
    return wanted if is_giver(wanted) else None
