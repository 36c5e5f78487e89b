"""Undoing: the part of :class:`~celery_durable.DurableContext` that knows what to undo when a body fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from celery_durable.common.coroutines import run_to_end
from celery_durable.errors import ConfigurationError
from celery_durable.replay.scope import ScopeState
from celery_durable.steps.call import StepCall
from celery_durable.steps.compensation import Undo, Undos, describe_undo, result_to_undo
from celery_durable.store.records import UNDO

from .base import BodyContext

__all__ = ["UndoingContext", "check_undo"]

P = ParamSpec("P")


class UndoingContext(BodyContext):
    """Undoing, in a durable context."""

    _undos: Undos

    def on_failure(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call ``function(*args, **kwargs)`` when the body fails or is cancelled after this point.

        Functions registered later, and the compensations of later steps, run first. Each is a guarded step of its own:
        after a crash it does not run again when it is known to be done. Registering takes no position.

        :param function: a plain or a coroutine function. A ``@step`` function keeps its effect, policy and retries; any
            other function runs again, with the same idempotency key, if a crash leaves it in doubt.
        :raises ConfigurationError: when it is not a function.
        :raises ContextClosed, NestedStep, JournalUnavailable: as :meth:`DurableContext.step`.
        """
        check_undo(function)
        self._check("on_failure")
        scope = self._here()
        name = str(getattr(function, "__name__", type(function).__name__))
        if not self._run.stopping:
            self._mark(f"{name}()", scope.path, scope.next_position, before=True)
        self._run.saga.registered[name, None] += 1
        place = f"before {scope.place(scope.next_position)}"
        descriptor, op = describe_undo(function, name, place)
        self._undos.add(scope.path, scope.next_position, descriptor, op, args, kwargs, before=True)

    def _mark(self, name: str, scope: str, position: int, *, before: bool = False) -> None:
        """Let the journal know that there will be something to undo, before there is.

        That of a step is committed with its intent, or before its transaction.

        :param before: it stands before the step at this position, and is no step.
        """
        run = self._run
        if name in run.saga.named or run.saga.is_shared(scope, position, before=before):
            return
        with run.saga.marking:
            first = not run.saga.marked
            # Whoever sees the mark relies on its being on its way.
            for entry in run.saga.marks(name):
                run.append(entry)
            run.saga.mark(name)
            # The journal may have the step's result, from a body that could not undo it: it commits nothing then.
            if first and (before or run.opened.resumed):
                run.flush()

    def _done(self, call: StepCall, value: Any, error: Exception | None) -> None:
        """A step with a compensation has an outcome, now or in an earlier run."""
        descriptor = call.descriptor
        assert descriptor.compensate is not None
        happened, result = result_to_undo(value, error)
        if happened:
            self._run.saga.registered[descriptor.name, call.fingerprint] += 1
            undo, op = describe_undo(descriptor.compensate, descriptor.name, call.place)
            self._undos.add(call.scope, call.position, undo, op, (result, *call.args), call.kwargs)

    def _undo_all(self) -> None:
        scope = self._scope(UNDO, UNDO)
        for one in self._undos.backwards():
            self._undo(scope, one)

    def _undo(self, scope: ScopeState, one: Undo) -> None:
        value = self._call(scope, one.descriptor, one.op, one.args, one.kwargs, inspect.iscoroutinefunction(one.op))
        if inspect.iscoroutine(value):
            run_to_end(value)


def check_undo(function: Any) -> None:
    """
    :raises ConfigurationError: when it is not a function.
    """
    if not callable(function):
        raise ConfigurationError(
            f"on_failure() takes a function and its arguments, not {function!r}: on_failure(release, order_id)."
        )
