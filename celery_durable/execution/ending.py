"""How a run ends: what is committed together with the last entries, and what is published after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, TaskPredicate
from sqlalchemy.exc import SQLAlchemyError

from celery_durable.codec.exceptions import text_of
from celery_durable.codec.preview import one_line
from celery_durable.common.faults import reached
from celery_durable.errors import DurableError, EntryRefused, JournalUnavailable, LeaseLost
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.delivery import Delivery
from celery_durable.messaging.sending import publish_stashed
from celery_durable.messaging.waking import wake
from celery_durable.replay.leaving import Cancelled, Park, Suspend, Undoing, Waiting
from celery_durable.replay.run import Run
from celery_durable.runtime.lifeline import tell_due
from celery_durable.signals import announce_parked
from celery_durable.steps.interruption import is_hard_limit, is_interruption
from celery_durable.store.children import ChildEnd, kept_by
from celery_durable.store.records import Batch, EntryKind, PromiseState, State, StoredPayload
from celery_durable.store.rows import reason_payload

from .cancelling import cancel_children, tell_celery, why_cancelled
from .chords import warn_of_chord
from .dispatch import is_followed
from .outcome import pack_error
from .outcome_delivery import announce, withdraw
from .shown_state import Visible

__all__ = ["Ending"]

T = TypeVar("T")

#: Characters kept of the message of an error whose step is in doubt.
_MESSAGE = 500

logger = logging.getLogger(__name__)

#: How a parent hears of its child's end.
_KEPT = {
    State.COMPLETED: PromiseState.RESOLVED,
    State.FAILED: PromiseState.REJECTED,
    State.CANCELLED: PromiseState.CANCELLED,
}


class Ending:
    """Brings the execution of a session into the state that belongs to the way in which its body was left."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._runtime = delivery.runtime
        self.visible = Visible(delivery)

    def finish(self, run: Run, state: State, outcome: StoredPayload | None, *, dispatched: bool = False) -> None:
        task, request = self._delivery.task, self._delivery.request
        told = dispatched or self._delivery.eager or (state is State.COMPLETED and not is_followed(task, request))
        child = self._child_end(run, state, outcome)
        reached("task.before_outcome", run.execution_id)
        if child is not None:
            reached("child.before_settle", run.execution_id)
        waking = self._commit(
            run,
            lambda batch: self._runtime.ownership.finish(
                batch, self._delivery.owner, state, outcome, dispatched=told, child=child
            ),
        )
        if not told:
            announce(self._runtime, task, request, run.fence.pk)
        reached("task.after_outcome", run.execution_id)
        if child is not None:
            reached("child.after_settle", run.execution_id)
        if waking is not None:
            wake(self._delivery.task.app, waking)

    def _child_end(self, run: Run, state: State, outcome: StoredPayload | None) -> ChildEnd | None:
        """What the parent is notified of, if this is the task whose end it waits for."""
        request = self._delivery.request
        promise = request.__dict__.get(envelopes.CHILD_HEADER)
        if promise is None or promise != kept_by(str(request.id)):
            return None
        kept = _KEPT[state]
        if outcome is None:
            # A body that left by Ignore has no value.
            if kept is PromiseState.RESOLVED:
                outcome = StoredPayload(*self._runtime.codec.encode({"value": None}, "no value"))
            else:
                outcome = reason_payload(why_cancelled(self._runtime, run.fence.pk))
        return ChildEnd(promise, kept, outcome, self._runtime.settings.namespace)

    def _commit(self, run: Run, settle: Callable[[Batch], T]) -> T:
        """Commit what is left of the journal together with a new state."""
        writer = self._runtime.writer
        batch: Batch | None = None
        while True:
            try:
                batch = batch or writer.drain(run.buffer)
                return settle(batch)
            except SoftTimeLimitExceeded:
                # The body is over: its limit has come too late to be of use to anybody.
                if batch is None:
                    writer.reopen(run.buffer)
                else:
                    batch = batch._replace(again=True)
            except BaseException:
                writer.reopen(run.buffer)
                raise

    def settle(self, run: Run, error: BaseException) -> None:
        ownership = self._runtime.ownership
        owner = self._delivery.owner
        if isinstance(error, LeaseLost):
            raise error
        if isinstance(error, JournalUnavailable):
            raise error
        if isinstance(error, Suspend):
            self._suspend(run, error)
        elif isinstance(error, (Exception, Park, Undoing)) and run.doubts():
            self._park_doubts(run, error)
        elif isinstance(error, Park):
            self.park(run, State.QUARANTINED if error.quarantined else State.AMBIGUOUS, error.reason, error.details)
        elif isinstance(error, Cancelled):
            self._cancelled(run)
        elif isinstance(error, EntryRefused):
            self._refused(run, error)
        elif run.saga.told and isinstance(error, Exception) and not is_interruption(error):
            self.finish(run, State.FAILED, run.saga.cause, dispatched=True)
        elif isinstance(error, Retry):
            self._retry(run, error)
        elif isinstance(error, Ignore):
            self._replace(run)
        elif isinstance(error, Reject):
            if error.requeue:  # type: ignore[attr-defined]
                self._commit(run, lambda b: ownership.release(b, owner))
            else:
                self.finish(run, State.FAILED, pack_error(self._runtime, error), dispatched=True)
        elif is_interruption(error) or (self._delivery.eager and not isinstance(error, Exception)):
            self._give_back(run)
        elif isinstance(error, Exception):
            self.finish(run, State.FAILED, pack_error(self._runtime, error))
        elif is_hard_limit(error):
            run.flush()  # the pool's main thread ends the execution, or lets it continue when the lease has run out
        else:
            self._died(run, error)

    def _suspend(self, run: Run, error: Suspend) -> None:
        """The body waits: it continues when the time has come, or somebody has settled what it waits for."""
        awaiting, names = None, []
        if isinstance(error, Waiting):
            # What else went wrong, the body has seen, and has gone on to wait.
            run.settle_errors(None)
            awaiting, names = error.awaiting, error.names
        self.visible.show("SUSPENDED", {"waits_for": names}, run)
        reached("wait.before_suspend", run.execution_id)
        delay = error.delay
        at_once = self._commit(
            run,
            lambda batch: self._runtime.ownership.suspend(
                batch,
                self._delivery.owner,
                delay_ms=None if delay is None else int(delay * 1000),
                retries=run.opened.retries,
                awaiting=awaiting,
            ),
        )
        reached("wait.after_suspend", run.execution_id)
        if at_once:
            delay = 0.0
        if delay is not None and delay < self._runtime.settings.recovery_interval:
            # Sooner than recovery would look by itself.
            self._runtime.keeper.tell_due(delay)
            tell_due(self._delivery.task.app, delay)
        warn_of_chord(self._delivery.task, self._delivery.request, delay)

    def _cancelled(self, run: Run) -> None:
        """What it did is undone; whoever waits for the result, and the chord it is part of, are notified."""
        reason = why_cancelled(self._runtime, run.fence.pk)
        self.finish(run, State.CANCELLED, None)
        # What it has started after its cancellation was asked for.
        cancel_children(
            self._delivery.task.app,
            run.fence.pk,
            run.opened.base_generation,
            run.generation,
            f"its parent {run.execution_id} was cancelled: {reason}",
        )
        if not self._delivery.eager:
            self.tell_cancelled(run.fence.pk, reason)

    def tell_cancelled(self, pk: int, reason: str | None = None) -> None:
        """Let Celery know.

        :param reason: why; None: look it up.
        """
        task, request = self._delivery.task, self._delivery.request
        withdraw(self._runtime, request.id)
        store = not (request.ignore_result or task.ignore_result)
        why = why_cancelled(self._runtime, pk) if reason is None else reason
        problem = tell_celery(task.app, str(request.id), why, request, store=store, task=task)
        if problem is not None:
            logger.warning("the result backend could not be notified that %s is cancelled: %s", request.id, problem)
        else:
            self._runtime.keeper.dispatched(pk)

    def _give_back(self, run: Run) -> None:
        """The body was interrupted, because its process is being ended: let another worker continue at once."""
        task, request = self._delivery.task, self._delivery.request
        logger.warning("%s[%s] was interrupted; it is given back", task.name, request.id)
        self._commit(
            run,
            lambda b: self._runtime.ownership.release(b, self._delivery.owner, recoverable=not self._delivery.eager),
        )

    def _died(self, run: Run, error: BaseException) -> None:
        """The body raised what ends programs (SystemExit, CancelledError, ...): as if it had killed its process."""
        logger.error(
            "%s[%s] raised %r, which is not an Exception; it is run again as after the death of its process, at most "
            "durable_max_attempts=%d times",
            self._delivery.task.name,
            self._delivery.request.id,
            error,
            self._runtime.settings.max_attempts,
            exc_info=error,
        )
        attempts = run.opened.attempts + 1
        self._commit(run, lambda b: self._runtime.ownership.release(b, self._delivery.owner, attempts=attempts))

    def _retry(self, run: Run, error: Retry) -> None:
        ownership, owner, runtime = self._runtime.ownership, self._delivery.owner, self._runtime
        stash = self._delivery.stash
        if stash is None:
            # Eager (Celery runs the retry itself), or a Retry that the user raised and nobody has sent.
            retries = run.opened.retries + (1 if self._delivery.eager else 0)
            delay = None if self._delivery.eager else int(_seconds(error.when) * 1000)
            self._commit(run, lambda b: ownership.suspend(b, owner, delay_ms=delay, retries=retries))
            return
        packed = envelopes.pack(stash.envelope(self._delivery.task.app), runtime.envelope_codec)
        # Recovery sends it again if it has not started a lease after it was due.
        delay = stash.delay_ms() + runtime.settings.lease_ms
        self._commit(
            run,
            lambda b: ownership.suspend(b, owner, delay_ms=delay, retries=stash.retries, envelope=packed, sent=True),
        )
        reached("task.after_retry_commit", run.execution_id)
        publish_stashed(self._delivery.task.app, stash, run.fence.pk)

    def _replace(self, run: Run) -> None:
        """``Task.replace`` continues as another task under the same id; any other ``Ignore`` ends the execution."""
        stash = self._delivery.stash
        if stash is None:
            self.finish(run, State.COMPLETED, None, dispatched=True)
            return
        promise = self._delivery.request.__dict__.get(envelopes.CHILD_HEADER)
        if promise is not None:
            # It is the other task now whose end the parent waits for.
            stash.message.headers.setdefault(envelopes.CHILD_HEADER, promise)
        packed = envelopes.pack(stash.envelope(self._delivery.task.app), self._runtime.envelope_codec)
        delay = stash.delay_ms() + self._runtime.settings.lease_ms
        self._commit(
            run,
            lambda b: self._runtime.ownership.suspend(
                b,
                self._delivery.owner,
                delay_ms=delay,
                retries=stash.retries,
                envelope=packed,
                task=stash.name,
                replacements=stash.replacements,
                sent=True,
            ),
        )
        publish_stashed(self._delivery.task.app, stash, run.fence.pk)

    # -- parking --------------------------------------------------------------------------------------------

    def _park_doubts(self, run: Run, error: BaseException) -> None:
        doubts = run.doubts()
        details = []
        for item in doubts:
            raised = run.decode_error(item.entry.payload, "the error of a step in doubt")
            name, message = type(raised).__name__, one_line(text_of(raised), _MESSAGE)
            if not isinstance(raised, DurableError):  # ours say nothing that is not said already
                details.append(f"{name}: {message}")
            what = {"reason": item.doubt, "decision": "parked", "error": name, "message": message}
            payload = run.encode(what, "the reason of the doubt")
            run.append(item.entry._replace(kind=EntryKind.AUDIT, payload=payload))
        reason = "\n".join(item.doubt or "" for item in doubts)
        if isinstance(error, Park) and error.reason != reason:
            reason = f"{error.reason}\n{reason}"
        self.park(run, State.AMBIGUOUS, reason, "\n".join(details))

    def park(self, run: Run, state: State, reason: str, details: str = "") -> None:
        self.visible.show(state.value.upper(), {"reason": reason}, run)
        reached("task.before_park", run.execution_id)
        self._commit(
            run,
            lambda b: self._runtime.ownership.park(b, self._delivery.owner, state, reason_payload(reason, details)),
        )
        reached("task.after_park", run.execution_id)
        self.tell_parked(state, reason)

    def _refused(self, run: Run, error: EntryRefused) -> None:
        """The database does not take what it writes: everything else is kept, and somebody has a look.

        :raises EntryRefused: where it does not take the execution at all.
        """
        run.standing.pardon()
        try:
            self.park(run, State.QUARANTINED, error.message)
        except SQLAlchemyError as refused:
            run.buffer.closed = True
            run.standing.lift()
            raise error from refused

    def tell_parked(self, state: State, reason: str) -> None:
        announce_parked(self._delivery.task, str(self._delivery.request.id), state, reason)

    # -- without a database ---------------------------------------------------------------------------------

    def abandon(self, run: Run) -> None:
        """Write what is left, and give the lease back, as soon as the database answers."""
        recoverable = not self._delivery.eager
        self._when_back(
            run, lambda b: self._runtime.ownership.release(b, self._delivery.owner, recoverable=recoverable)
        )

    def catch_up(self, run: Run, state: State, outcome: StoredPayload) -> None:
        """The run continued without its journal, and its outcome is passed on to Celery: record it as soon as the
        database answers, or recovery would have the body run again.
        """
        owner, child = self._delivery.owner, self._child_end(run, state, outcome)
        if child is not None:
            child = child._replace(namespace=None)
        self._when_back(
            run, lambda b: self._runtime.ownership.finish(b, owner, state, outcome, dispatched=True, child=child)
        )

    def left_degraded(self, run: Run, error: BaseException) -> None:
        """The body was left by ``error`` after it had gone on without its journal."""
        if isinstance(error, Exception) and not isinstance(error, TaskPredicate) and not is_interruption(error):
            self.catch_up(run, State.FAILED, pack_error(self._runtime, error))
        else:
            self.abandon(run)  # a retry too: recovery sends the message again

    def _when_back(self, run: Run, settle: Callable[[Batch], Any]) -> None:
        nothing = Batch(run.fence, run.generation, ())
        run.buffer.closed = False
        self._runtime.keeper.abandon(run.buffer, self._runtime.writer, lambda: settle(nothing))


def _seconds(when: Any) -> float:
    return max(float(when), 0.0) if isinstance(when, (int, float)) else 0.0
