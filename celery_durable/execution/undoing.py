"""The end of a body that failed or was cancelled, and has something to undo."""

from __future__ import annotations

import asyncio
import logging

from celery.exceptions import Reject, TaskPredicate

from celery_durable.codec.exceptions import text_of
from celery_durable.common.faults import reached
from celery_durable.context.durable import DurableContext
from celery_durable.errors import JournalUnavailable, ReplayDivergence
from celery_durable.messaging.delivery import Delivery
from celery_durable.replay.forgotten import not_told
from celery_durable.replay.leaving import Cancelled, Park, Undoing
from celery_durable.replay.run import Run
from celery_durable.steps.interruption import is_interruption

from .outcome import pack_error

__all__ = ["undo"]

logger = logging.getLogger(__name__)


def undo(delivery: Delivery, context: DurableContext, run: Run, error: BaseException) -> BaseException:
    """Undo what the body has done, if ``error`` ends it permanently.

    :returns: with what the execution ends.
    """
    saga = run.saga
    if saga.left_alone and saga.shared is not None and _is_end(run, error):
        logger.warning(
            "%s[%s] does not undo %d shared effect(s): they belong to %s",
            delivery.task.name,
            run.execution_id,
            saga.left_alone,
            saga.shared.execution_id,
        )
    if isinstance(error, ReplayDivergence) and saga.undoing:
        return Park(f"its body changed while it is being undone, so nobody knows what is left to undo.\n{error}", True)
    if not _is_end(run, error):
        return error
    try:
        forgotten = not_told(delivery.task.name, run, context._left_behind())
    except JournalUnavailable as unavailable:
        return unavailable
    if forgotten is not None:
        return Park(forgotten, True)
    if not (context._undos or saga.undoing):
        return error
    cause = error
    try:
        run.standing.lift()
        if not saga.decided:
            cancelled, run.stopping = saga.undoing, True
            # Whoever tells once more what there is to undo, after a crash, has to see what this body saw.
            run.settle_errors(None)
            entry = saga.decide(None if cancelled else pack_error(delivery.runtime, error))
            reached("saga.before_decision", run.execution_id)
            run.append(entry)
            run.flush()
            reached("saga.after_decision", run.execution_id)
        if saga.cause is None or saga.recorded:
            cause = _recorded(run)
        logger.warning(
            "%s[%s] %s; %d effect(s) are undone",
            delivery.task.name,
            run.execution_id,
            "was cancelled" if isinstance(cause, Cancelled) else f"failed ({type(cause).__name__})",
            len(context._undos.backwards()),
        )
        context._undo_all()
    except ReplayDivergence as changed:
        return Park(f"its compensations changed while it is being undone.\n{changed}", True)
    except Exception as failure:
        if run.standing.barred is not None:
            return run.standing.barred
        if isinstance(failure, JournalUnavailable) or is_interruption(failure) or run.doubts():
            return failure
        return _failed(failure)
    except BaseException as stopped:
        return run.standing.barred or stopped
    return cause


def _is_end(run: Run, error: BaseException) -> bool:
    """Whether the body has ended in a way that calls for an undo of what it did, if there is anything."""
    saga = run.saga
    if run.standing.degraded:
        return False
    if isinstance(error, JournalUnavailable) or run.doubts():
        return False
    if isinstance(error, Undoing):
        return True
    if is_interruption(error):
        return False
    if not isinstance(error, Exception):
        return saga.undoing and isinstance(error, asyncio.CancelledError)
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
        f"a compensation failed with {type(failure).__name__} (its message: celery durable show --reveal). What is "
        "left to undo waits for it. Fix the cause, then: celery durable resume",
        True,
        f"{type(failure).__name__}: {text_of(failure)}",
    )
