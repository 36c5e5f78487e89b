"""What ``AsyncResult.state`` shows for an execution that continues later, or waits for an operator.

It is shown before the state is committed: the next owner may be quick, and must have the last word. So this owner must
be sure that it is the owner, and a zombie that was paused in between restores what it overwrote.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import states

from celery_durable.common.faults import reached
from celery_durable.errors import DurableError, LeaseLost
from celery_durable.messaging.delivery import Delivery
from celery_durable.replay.run import Run
from celery_durable.store.records import PARKED_STATES, Closed, PayloadKind, State
from celery_durable.store.rows import reason_text

from .cancelling import tell_celery, why_cancelled
from .outcome import restore

__all__ = ["Visible"]

logger = logging.getLogger(__name__)


class Visible:
    """What the result backend says of a session's execution."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        #: Something was said that this owner has yet to make true.
        self._ahead = False

    def show(self, state: str, meta: dict[str, Any], run: Run | None = None) -> None:
        """Say a state that is no ready one, so that ``get()`` continues waiting.

        :param run: the owner that is about to commit it; None: it is so already.
        :raises LeaseLost: where that is no owner any more.
        :raises JournalUnavailable: when the database did not answer.
        """
        session = self._delivery
        if session.eager:
            return
        if run is not None:
            self._assure(run)
            self._ahead = True
            reached("state.before_show", run.execution_id)
        try:
            session.task.update_state(task_id=session.request.id, state=state, meta=meta)
        except Exception as error:
            logger.warning(
                "the result backend could not be notified that %s is %s: %s", session.request.id, state, error
            )

    def _assure(self, run: Run) -> None:
        """Usually a commit or the heartbeat has asked a moment ago; a process that was stopped meanwhile asks again."""
        if time.monotonic() - run.buffer.verified_at < run.limits.lease_timeout / 2:
            return
        runtime = self._delivery.runtime
        if run.buffer.born:
            lost = not runtime.journal.verify(run.fence)
        else:
            # Nobody has a lease on what has no row, and a row that is there now is another owner's.
            lost = not runtime.ownership.vanished(run.execution_id)
        if lost:
            raise LeaseLost("another owner took the execution over while this one was paused.")

    def take_back(self, run: Run) -> None:
        """The lease was lost: if the execution has ended meanwhile, the result backend is notified once more."""
        if not self._ahead:
            return
        self._ahead = False
        try:
            self._restore(run)
        except DurableError as error:
            logger.warning("the outcome of %s cannot be shown: %s", run.execution_id, error)
        except Exception as error:
            logger.warning(
                "the result backend could not be notified again of the outcome of %s: %s", run.execution_id, error
            )

    def _restore(self, run: Run) -> None:
        delivery = self._delivery
        task, request, runtime = delivery.task, delivery.request, delivery.runtime
        ask = runtime.operations
        row = ask.get(run.execution_id)
        if row.state in PARKED_STATES:
            stored = ask.payload(row.pk, PayloadKind.REASON)
            reason = "" if stored is None else reason_text(stored)
            task.update_state(task_id=request.id, state=row.state.value.upper(), meta={"reason": reason})
            return
        if row.wake_at is not None:
            return  # it continues, or its end is about to be told
        if row.state is State.CANCELLED:
            tell_celery(task.app, str(request.id), why_cancelled(runtime, row.pk), None, store=True, task=task)
            return
        outcome = ask.payload(row.pk, PayloadKind.OUTCOME)
        if outcome is None or row.state not in (State.COMPLETED, State.FAILED) or request.ignore_result:
            return
        ended = Closed(row.pk, row.state, outcome)
        what: Any
        state: str = states.SUCCESS
        try:
            what = restore(runtime, ended, run.execution_id)
        except Exception as error:
            if row.state is not State.FAILED:
                raise
            what, state = error, states.FAILURE
        task.backend.store_result(request.id, what, state, request=request)
