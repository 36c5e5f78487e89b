"""Carries out transactional steps: gives the operation its session, and commits its rows with the journal entry."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, get_type_hints, overload

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.orm import Session, sessionmaker

from . import django_orm
from .actions import StepCall, Transact
from .current import operation
from .errors import ConfigurationError, JournalUnavailable, LeaseLost, TransactionMisused
from .faults import reached
from .step import Step, StepDescriptor
from .store.records import Batch
from .store.transactions import NotCommitted, Transactions, Unsure, is_conflict, is_lost
from .transactional import AnyTransactional, DjangoTransactional

if TYPE_CHECKING:
    from .run import Run
    from .scope import ScopeState

__all__ = ["TransactionMethods", "carry_out", "run_plainly", "transact_in"]

P = ParamSpec("P")
R = TypeVar("R")


class TransactionMethods:
    """What a body can ask for that happens in one transaction with its journal."""

    if TYPE_CHECKING:

        def _here(self) -> ScopeState: ...
        def _call(self, scope: ScopeState, descriptor: StepDescriptor, op: Any, *rest: Any) -> Any: ...

    @overload
    def transaction(self, op: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def transaction(
        self, what: str | StepDescriptor, op: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    def transaction(self, what: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Do ``op(session, *args, **kwargs)`` as a step in a transaction of the journal's database: what it writes
        commits together with the step's journal entry, exactly once.

        The session is a ``Connection`` where the operation's first parameter is annotated so, else a ``Session``. The
        operation must not commit, and may be run several times: only what it wrote in one of them is kept.

        :param what: the step's name, or a descriptor (:meth:`StepDescriptor.transactional`); may be left out: then the
            step has the function's name.
        :param op: a plain function, whose first argument is the session.
        :returns: the operation's value, as the journal gives it back.
        :raises TransactionMisused: when the operation ends the transaction itself.
        :raises TransactionTimeout: when it takes longer than ``durable_transaction_timeout``.
        :raises ConfigurationError, ContextClosed, NestedStep, FingerprintError, PayloadError, StepLimitExceeded: as
            :meth:`step`. What the operation raises rolls back, and behaves like any step's error.
        :raises JournalUnavailable: the database did not answer; the body cannot go on, its message comes back.
        """
        named = isinstance(what, (str, StepDescriptor))
        if named and not args:
            raise ConfigurationError("transaction() needs a function: transaction(function, ...).")
        op, given = (args[0], args[1:]) if named else (what, args)
        descriptor = _describe(what if named else None, op)
        return self._call(self._here(), descriptor, op.operation if isinstance(op, Step) else op, given, kwargs, False)


def _describe(what: str | StepDescriptor | None, op: Any) -> StepDescriptor:
    if not callable(op):
        raise ConfigurationError(
            f"transaction() takes a function, perhaps after a name or a StepDescriptor, not {op!r}: "
            "transaction(function, argument, ...)."
        )
    if inspect.iscoroutinefunction(op.operation if isinstance(op, Step) else op):
        raise ConfigurationError(
            f"{op!r} is a coroutine function; the operation of a transactional step is a plain one, in async bodies "
            "too."
        )
    if isinstance(what, StepDescriptor):
        if what.transaction is None:
            raise ConfigurationError(
                f"step {what.name!r} is {what.effect.value}; transaction() takes StepDescriptor.transactional(...)."
            )
        return what
    if what is None and isinstance(op, Step) and op.descriptor.transaction is not None:
        return op.descriptor
    name = str(what or getattr(op, "__name__", "<lambda>"))
    if name == "<lambda>":
        raise ConfigurationError(f"{op!r} has no name; give the step one: transaction('name', function, ...).")
    return StepDescriptor.transactional(name)


# -- one transaction ----------------------------------------------------------------------------------------------


class _Opened:
    """An open transaction, and what the operation gets of it.

    :param giver: ``Connection``, a ``Session`` class, or a ``sessionmaker``.
    """

    def __init__(self, transactions: Transactions, connection: Connection, deadline: float, giver: Any) -> None:
        self._transactions = transactions
        self._deadline = deadline
        self._connection = connection
        self._ending = False
        event.listen(connection, "commit", self._on_commit)
        self._session: Session | None = None
        try:
            if giver is Connection:
                connection.begin()
            else:
                # Its own factory may name other databases.
                several = isinstance(giver, sessionmaker) and giver.kw.get("binds")
                self._session = giver(bind=connection, binds={}) if several else giver(bind=connection)
                self._session.connection()
        except DBAPIError as error:
            raise NotCommitted(error, conflict=False) from error
        self._root = connection.get_transaction()
        #: The operation's first arguments.
        self.given: tuple[Any, ...] = (self._session or connection,)

    def _on_commit(self, connection: Connection) -> None:
        if not self._ending:
            # Said to the driver: SQLAlchemy takes a transaction whose commit failed for one that has ended, and would
            # hand the connection on with what the operation wrote.
            connection.connection.rollback()
            raise TransactionMisused(
                "the operation of a transactional step must not commit: its rows and the step's journal entry are "
                "committed together when it returns. For savepoints: with session.begin_nested(): ..."
            )

    def finish(self, batch: Batch | None) -> None:
        """Write the rest: what the session holds, and the journal entry."""
        self._check()
        if self._session is not None:
            try:
                self._session.flush()
            except PendingRollbackError as error:
                raise TransactionMisused(
                    "the operation has swallowed an error of its session, which has rolled the transaction back by "
                    "then. Try what may fail inside a savepoint: with session.begin_nested(): ..."
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
        if self._session is not None:
            self._session.close()
        if not self._connection.closed and self._connection.in_transaction():
            self._connection.rollback()


@contextlib.contextmanager
def _opened(
    transactions: Transactions, options: AnyTransactional, op: Any
) -> Iterator[_Opened | django_orm.DjangoOpened]:
    if isinstance(options, DjangoTransactional):
        with django_orm.opened(transactions, options.using) as atomic:
            yield atomic
        return
    giver = options.session or giver_of(op)
    with transactions.connected(options.isolation) as (connection, deadline):
        opened = _Opened(transactions, connection, deadline, giver)
        try:
            yield opened
        except DBAPIError as error:
            if is_conflict(error):
                raise NotCommitted(error, conflict=True) from error
            raise
        finally:
            opened.close()


@functools.lru_cache(maxsize=1024)
def giver_of(op: Any) -> Any:
    """What an operation wants to be given: by the annotation of its first parameter, a ``Session`` by default."""
    try:
        first = next(iter(inspect.signature(op).parameters.values()), None)
    except (TypeError, ValueError):
        return Session
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
            wanted = Connection if wanted.rpartition(".")[2] == "Connection" else Session
    if isinstance(wanted, type) and issubclass(wanted, (Connection, Session)):
        return wanted
    return Session


# -- with the journal ---------------------------------------------------------------------------------------------


def transact_in(run: Run, call: StepCall, action: Transact) -> tuple[Any, Exception | None]:
    """Run an operation of a run in one transaction with its journal entry. What was appended before is committed.

    :returns: as :func:`carry_out`.
    """
    if run.transactions is None or run.buffer.degraded:
        # Without the journal there is nothing that could tell later that the rows are in.
        return None, JournalUnavailable(f"{call.where} is transactional, and this run goes on without its journal.")
    try:
        answer = carry_out(run.transactions, call, action, Batch(run.fence, run.generation, ()))
    except (JournalUnavailable, LeaseLost) as error:
        raise run.stuck(error) from None
    if answer[1] is None:
        run.buffer.verified_at = time.monotonic()
    return answer


def carry_out(
    transactions: Transactions, call: StepCall, action: Transact, empty: Batch
) -> tuple[Any, Exception | None]:
    """Run the operation until it and its entry are committed.

    :param empty: a batch of the execution, without entries.
    :returns: the value and None, or None and the error of the operation, of which nothing is left in the database.
    :raises LeaseLost: when the execution is somebody else's; nothing was committed.
    :raises JournalUnavailable: when the database is out of reach.
    """
    options = call.descriptor.transaction
    assert options is not None
    name = call.descriptor.name

    def attempt() -> Any:
        again: Any = None
        started = time.perf_counter_ns()
        try:
            with _opened(transactions, options, call.op) as opened:
                token = operation.set(action.handle)
                try:
                    value = call.op(*opened.given, *call.args, **call.kwargs)
                finally:
                    operation.reset(token)
                reached("step.after_effect", call.execution_id, name)
                entry, again = action.conclude(value, (time.perf_counter_ns() - started) // 1000)
                batch = dataclasses.replace(empty, entries=(entry,), steps=1)
                opened.finish(batch)
                reached("transaction.before_commit", call.execution_id, name)
                opened.commit(batch)
        except Unsure as unsure:
            transactions.find_out(unsure)
        reached("transaction.after_commit", call.execution_id, name)
        return again

    try:
        return transactions.until_done(attempt, options.tries), None
    except JournalUnavailable:
        raise
    except Exception as error:  # LeaseLost is none
        return None, error


def run_plainly(
    transactions: Transactions, options: AnyTransactional, op: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """Run an operation in a transaction, without a journal."""

    def attempt() -> Any:
        value: Any = None
        try:
            with _opened(transactions, options, op) as opened:
                value = op(*opened.given, *args, **kw)
                opened.finish(None)
                opened.commit(None)
        except Unsure as unsure:
            transactions.find_out(unsure)
        return value

    return transactions.until_done(attempt, options.tries)
