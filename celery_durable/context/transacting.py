"""Transactional steps: the part of :class:`~celery_durable.DurableContext` that commits together with the journal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from celery_durable.errors import ConfigurationError
from celery_durable.steps.described import described_transaction
from celery_durable.steps.descriptor import StepDescriptor

from .base import BodyContext

__all__ = ["TransactingContext"]

P = ParamSpec("P")
R = TypeVar("R")


class TransactingContext(BodyContext):
    """Steps that run in one transaction with their journal entry."""

    @overload
    def transaction(self, op: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def transaction(
        self, what: str | StepDescriptor, op: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    def transaction(self, what: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run ``op(session, *args, **kwargs)`` as a step in a transaction of the journal's database. What it writes
        commits together with the step's journal entry, exactly once.

        The session is a ``Connection`` if the operation's first parameter is annotated as one, else a ``Session``. The
        operation must not commit. It may run several times; only what it wrote in one of them is kept.

        :param what: the step's name, or a descriptor (:meth:`StepDescriptor.transactional`); if it is left out, the
            step has the function's name.
        :param op: a function whose first argument is the session. A coroutine function gets an ``AsyncSession``, or an
            ``AsyncConnection`` if it is annotated so, and gives an awaitable.
        :returns: the operation's value, as read back from the journal.
        :raises TransactionMisused: when the operation ends the transaction itself.
        :raises TransactionTimeout: when one try takes longer than ``durable_transaction_timeout``.
        :raises ConfigurationError, ContextClosed, NestedStep, FingerprintError, PayloadError, StepLimitExceeded: as
            :meth:`step`. An exception of the operation rolls the transaction back, and behaves like any step's error.
        :raises JournalUnavailable: the database did not answer. The body cannot continue; its message is delivered
            again.
        """
        named = isinstance(what, (str, StepDescriptor))
        if named and not args:
            raise ConfigurationError("transaction() needs a function: transaction(function, ...).")
        op, given = (args[0], args[1:]) if named else (what, args)
        step = described_transaction(what if named else None, op, given, kwargs)
        return self._call(self._here(), *step, inspect.iscoroutinefunction(step.op))
