"""The end of a body that failed or was cancelled, and has something to undo."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

from celery.exceptions import Reject, TaskPredicate

from .control import Cancelled, Park, Undoing
from .coroutines import run_to_end
from .errors import ConfigurationError, JournalUnavailable, ReplayDivergence
from .faults import reached
from .interruption import is_interruption
from .outcome import pack_error
from .saga import UNDO, describe_undo, result_to_undo
from .store.records import EntryKind, Journaled

if TYPE_CHECKING:
    from .actions import StepCall
    from .run import Run
    from .saga import Undo
    from .scope import ScopeState
    from .session import Session

__all__ = ["UndoingContext", "check_undo", "undo"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class UndoingContext:
    """What a durable context knows of undoing."""

    _run: Run
    _check: Callable[[str], None]
    _here: Callable[[], ScopeState]
    _scope: Callable[[str, str], ScopeState]
    _call: Callable[..., Any]

    def on_failure(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call ``function(*args, **kwargs)`` when the body fails or is cancelled after this point.

        What was registered later, and the compensations of later steps, come first. Each is a guarded step of its own:
        after a crash it is not begun again when it is known to be done. Registering takes no position.

        :param function: plain or a coroutine function. A ``@step`` function keeps its effect, policy and retries;
            anything else is run again, with the same idempotency key, where a crash leaves it in doubt.
        :raises ConfigurationError: when it is no function.
        :raises ContextClosed, NestedStep, JournalUnavailable: as :meth:`DurableContext.step`.
        """
        check_undo(function)
        self._check("on_failure")
        scope = self._here()
        self._mark()
        name = str(getattr(function, "__name__", type(function).__name__))
        place = f"before {scope.place(scope.next_position)}"
        descriptor, op = describe_undo(function, name, place)
        self._run.saga.add(scope.path, scope.next_position, descriptor, op, args, kwargs, before=True)

    def _mark(self) -> None:
        """Let the journal know that there will be something to undo, before there is."""
        run = self._run
        with run.saga.marking:
            if not run.saga.marked:
                run.append(run.saga.mark())
                run.flush()

    def _done(self, call: StepCall, value: Any, error: Exception | None) -> None:
        """A step with a compensation has an outcome, now or in an earlier run."""
        descriptor = call.descriptor
        assert descriptor.compensate is not None
        happened, result = result_to_undo(value, error)
        if happened:
            undo, op = describe_undo(descriptor.compensate, descriptor.name, call.place)
            self._run.saga.add(call.scope, call.position, undo, op, (result, *call.args), call.kwargs)

    def _stop_at_the_end(self, scope: ScopeState, rows: list[Journaled] | None) -> None:
        """A body that is only replayed, to tell what there is to undo, begins nothing new.

        :raises Undoing: where its journal ends.
        """
        new = rows is None or rows[-1].kind in (EntryKind.ATTEMPT, EntryKind.RUN_AGAIN)
        if new and scope.path != UNDO:
            raise self._run.stuck(Undoing())

    def _undo_all(self) -> None:
        scope = self._scope(UNDO, UNDO)
        for one in self._run.saga.backwards():
            self._undo(scope, one)

    def _undo(self, scope: ScopeState, one: Undo) -> None:
        value = self._call(scope, one.descriptor, one.op, one.args, one.kwargs, inspect.iscoroutinefunction(one.op))
        if inspect.iscoroutine(value):
            run_to_end(value)


def check_undo(function: Any) -> None:
    """
    :raises ConfigurationError: when it is no function.
    """
    if not callable(function):
        raise ConfigurationError(
            f"on_failure() takes a function and its arguments, not {function!r}: on_failure(release, order_id)."
        )


def undo(session: Session, context: UndoingContext, run: Run, error: BaseException) -> BaseException:
    """Undo what the body has done, if ``error`` ends it for good.

    :returns: with what the execution ends.
    """
    saga = run.saga
    if isinstance(error, ReplayDivergence) and saga.undoing:
        return Park(f"its body changed while it is being undone, so that nobody knows what is left.\n{error}", True)
    if not _ends(run, error):
        return error
    cause = error
    try:
        run.sticky = None
        if not saga.decided:
            cancelled = saga.undoing
            entry = saga.decide(None if cancelled else pack_error(session.runtime, error))
            reached("saga.before_decision", run.execution_id)
            run.append(entry)
            run.flush()
            reached("saga.after_decision", run.execution_id)
        if saga.cause is None or saga.recorded:
            cause = _recorded(run)
        logger.warning(
            "%s[%s] %s; %d thing(s) are undone",
            session.task.name,
            run.execution_id,
            "was cancelled" if isinstance(cause, Cancelled) else f"failed ({type(cause).__name__})",
            len(saga.backwards()),
        )
        context._undo_all()
    except ReplayDivergence as changed:
        return Park(f"its compensations changed while it is being undone.\n{changed}", True)
    except Exception as failure:
        if run.sticky is not None:
            return run.sticky
        if isinstance(failure, JournalUnavailable) or is_interruption(failure) or run.doubts():
            return failure
        return _failed(failure)
    except BaseException as stopped:
        return run.sticky or stopped
    return cause


def _ends(run: Run, error: BaseException) -> bool:
    """Whether the body has come to an end that is to be undone."""
    saga = run.saga
    if run.buffer.degraded:
        return False
    if isinstance(error, (Cancelled, Undoing)):
        return True
    if isinstance(error, JournalUnavailable) or not isinstance(error, Exception):
        return False
    if is_interruption(error) or run.doubts() or not (saga or saga.undoing):
        return False
    if saga.undoing or isinstance(error, Reject):
        return saga.undoing or not error.requeue  # type: ignore[attr-defined]
    return not isinstance(error, TaskPredicate)


def _recorded(run: Run) -> BaseException:
    cause = run.saga.cause
    if cause is None:
        return Cancelled()
    return run.decode_error(cause, "the error for which the execution is undone")


def _failed(failure: BaseException) -> Park:
    return Park(
        f"a compensation failed: {type(failure).__name__}: {failure}. What is left to undo waits for it. Put right "
        "what is wrong, then: celery durable resume",
        True,
    )
