"""Carries out transactional steps: gives the operation its session, and commits its rows with the journal entry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from celery_durable.common.coroutines import in_own_loop
from celery_durable.common.faults import reached
from celery_durable.effects import AnyTransactional, DjangoTransactional, is_asynchronous
from celery_durable.errors import JournalUnavailable, LeaseLost
from celery_durable.replay.run import Run
from celery_durable.store.asynchronous import AsyncDatabase
from celery_durable.store.records import Batch
from celery_durable.store.transactions import NotCommitted, Transactions, Unsure, is_conflict

from ..actions import Transact
from ..call import StepCall
from ..current import operation
from . import django_atomic
from .opened import AsyncOpenTransaction, OpenTransaction, giver_for

__all__ = ["carry_out", "transact_async", "transact_in", "transact_plainly", "transact_plainly_async"]

P = ParamSpec("P")
R = TypeVar("R")


# -- one transaction ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(
    transactions: Transactions, options: AnyTransactional, op: Any
) -> Iterator[OpenTransaction | django_atomic.DjangoTransaction]:
    if isinstance(options, DjangoTransactional):
        with django_atomic.opened(transactions, options.using) as atomic:
            yield atomic
        return
    giver: Any = giver_for(op, options.session)
    database = transactions.asynchronous if is_asynchronous(giver) else transactions.plain
    with transactions.connected(database, options.isolation) as (connection, deadline):
        if isinstance(database, AsyncDatabase):
            opened: OpenTransaction = AsyncOpenTransaction(
                transactions, connection, deadline, giver, database.asynchronous
            )
        else:
            opened = OpenTransaction(transactions, connection, deadline, giver)
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
    if run.transactions is None or run.standing.degraded:
        # Without the journal there is nothing that could tell later that the rows are in.
        return None, JournalUnavailable(f"{call.where} is transactional, and this run continues without its journal.")
    try:
        answer = carry_out(run.transactions, call, action, Batch(run.fence, run.generation, ()))
    except (JournalUnavailable, LeaseLost) as error:
        raise run.standing.bar(error) from None
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


def transact_plainly(
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


async def transact_plainly_async(
    transactions: Transactions, options: AnyTransactional, op: Callable[..., Any], *args: Any, **kw: Any
) -> Any:
    """The same for an operation that is a coroutine function."""
    return await in_own_loop(lambda: transact_plainly(transactions, options, op, *args, **kw))


def _until_done(transactions: Transactions, options: AnyTransactional, attempt: Callable[[], Any]) -> Any:
    if isinstance(options, DjangoTransactional):
        return django_atomic.outside_loop(options.using, lambda: transactions.until_done(attempt, options.tries))
    return transactions.until_done(attempt, options.tries)
