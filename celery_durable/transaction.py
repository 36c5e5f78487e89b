"""Carries out transactional steps: gives the operation its session, and commits its rows with the journal entry."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from sqlalchemy.exc import DBAPIError

from . import django_orm
from .actions import StepCall, Transact
from .coroutines import in_own_loop
from .current import operation
from .errors import ConfigurationError, JournalUnavailable, LeaseLost
from .faults import reached
from .opened import AsyncOpened, Opened, giver_for
from .step import Step, StepDescriptor
from .store.asynchronous import AsyncDatabase
from .store.records import Batch
from .store.transactions import NotCommitted, Transactions, Unsure, is_conflict
from .transactional import AnyTransactional, DjangoTransactional, check_operation, is_asynchronous

if TYPE_CHECKING:
    from .run import Run
    from .scope import ScopeState

__all__ = ["TransactionMethods", "carry_out", "run_plainly", "run_plainly_async", "transact_async", "transact_in"]

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
        :param op: a function whose first argument is the session. A coroutine function is given an ``AsyncSession``, or
            an ``AsyncConnection`` where it is annotated so, and gives an awaitable.
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
        op = op.operation if isinstance(op, Step) else op
        check_operation(descriptor.name, descriptor.transaction, op)
        return self._call(self._here(), descriptor, op, given, kwargs, inspect.iscoroutinefunction(op))


def _describe(what: str | StepDescriptor | None, op: Any) -> StepDescriptor:
    if not callable(op):
        raise ConfigurationError(
            f"transaction() takes a function, perhaps after a name or a StepDescriptor, not {op!r}: "
            "transaction(function, argument, ...)."
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


@contextlib.contextmanager
def _opened(
    transactions: Transactions, options: AnyTransactional, op: Any
) -> Iterator[Opened | django_orm.DjangoOpened]:
    if isinstance(options, DjangoTransactional):
        with django_orm.opened(transactions, options.using) as atomic:
            yield atomic
        return
    giver: Any = giver_for(op, options.session)
    database = transactions.asynchronous if is_asynchronous(giver) else transactions.plain
    with transactions.connected(database, options.isolation) as (connection, deadline):
        if isinstance(database, AsyncDatabase):
            opened: Opened = AsyncOpened(transactions, connection, deadline, giver, database.asynchronous)
        else:
            opened = Opened(transactions, connection, deadline, giver)
        try:
            yield opened
        except DBAPIError as error:
            if is_conflict(error):
                raise NotCommitted(error, conflict=True) from error
            raise
        finally:
            opened.close()


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


async def transact_async(run: Run, call: StepCall, action: Transact) -> tuple[Any, Exception | None]:
    """The same for an operation that is a coroutine function."""
    return await in_own_loop(lambda: transact_in(run, call, action))


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
                    value = opened.call(call.op, *call.args, **call.kwargs)
                finally:
                    operation.reset(token)
                reached("step.after_effect", call.execution_id, name)
                entry, again = action.conclude(value, (time.perf_counter_ns() - started) // 1000)
                batch = empty._replace(entries=(entry,), steps=1)
                opened.finish(batch)
                reached("transaction.before_commit", call.execution_id, name)
                opened.commit(batch)
        except Unsure as unsure:
            transactions.find_out(unsure)
        reached("transaction.after_commit", call.execution_id, name)
        return again

    try:
        return _until_done(transactions, options, attempt), None
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
                value = opened.call(op, *args, **kw)
                opened.finish(None)
                opened.commit(None)
        except Unsure as unsure:
            transactions.find_out(unsure)
        return value

    return _until_done(transactions, options, attempt)


async def run_plainly_async(
    transactions: Transactions, options: AnyTransactional, op: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """The same for an operation that is a coroutine function."""
    return await in_own_loop(lambda: run_plainly(transactions, options, op, *args, **kw))


def _until_done(transactions: Transactions, options: AnyTransactional, attempt: Callable[[], Any]) -> Any:
    if isinstance(options, DjangoTransactional):
        return django_orm.outside_loop(options.using, lambda: transactions.until_done(attempt, options.tries))
    return transactions.until_done(attempt, options.tries)
