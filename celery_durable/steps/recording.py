"""Records the outcome of a step, and reads it back: what the journal gets, and what the body gets."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from celery_durable.common.faults import reached
from celery_durable.errors import PayloadError, ResultLost
from celery_durable.journal.entries import Past, Recorded
from celery_durable.store.records import EntryKind, StoredPayload

from .actions import Action, Flush, Outcome, Surroundings
from .call import StepCall

__all__ = ["Steps", "failed", "finished", "succeed", "succeeded"]

#: The rules of a step: they ask for actions, and end with what the body gets.
Steps = Generator[Action, Any, Outcome]


def finished(call: StepCall, recorded: Recorded, around: Surroundings) -> Outcome | None:
    """The outcome that the journal holds, if it holds one."""
    attempt = recorded.attempts
    if recorded.past is Past.DONE or recorded.past is Past.SKIPPED:
        value = around.decode(recorded.payload, f"the journaled result of {call.where}")
        return Outcome(value, None, True, recorded.past is Past.SKIPPED, attempt)
    if recorded.past is Past.ERROR:
        error = around.decode_error(recorded.payload, f"the journaled error of {call.where}")
        return Outcome(None, error, True, False, attempt)
    if recorded.past is Past.LOST:
        return Outcome(None, _lost(call, around, recorded.payload), True, False, attempt)
    return None


def failed(call: StepCall, error: Exception, attempt: int, took: int, around: Surroundings) -> Outcome:
    """The last try of a step that was not announced has raised."""
    payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
    around.note_error(call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took))
    return Outcome(None, rebuilt, False, False, attempt)


def succeeded(call: StepCall, value: Any, attempt: int, took: int, around: Surroundings) -> Outcome:
    """Record the result of a step that was not announced; what the body gets is what every replay will give it."""
    try:
        payload, again = _stored(call, value, around)
    except PayloadError as error:
        return Outcome(None, error, False, False, attempt)
    reached("step.before_result", around.execution_id, call.descriptor.name)
    around.append(call.entry(EntryKind.RESULT, attempt=attempt, payload=payload, duration_us=took), finishes=True)
    reached("step.after_result", around.execution_id, call.descriptor.name)
    return Outcome(again, None, False, False, attempt)


def _stored(call: StepCall, value: Any, around: Surroundings) -> tuple[StoredPayload, Any]:
    try:
        return around.roundtrip(value, "the result of a step")
    except PayloadError:
        # Only errors pay for the words, which cost as much as a tenth of all else that a quick step does here.
        return around.roundtrip(value, f"the result of {call.where}")


def succeed(call: StepCall, value: Any, attempt: int, took: int, around: Surroundings) -> Steps:
    if not call.descriptor._announced:
        return succeeded(call, value, attempt, took, around)
    # The loss of what is not guarded does no harm: it is run again.
    must_last = call.guard is not None
    try:
        payload, again = _stored(call, value, around)
    except PayloadError as error:
        reason = around.encode(error.message, call.where)
        around.append(call.entry(EntryKind.LOST, attempt=attempt, payload=reason, duration_us=took), finishes=True)
        if must_last:
            yield Flush()
        lost = _lost(call, around, reason)
        lost.__cause__ = error
        return Outcome(None, lost, False, False, attempt)
    reached("step.before_result", around.execution_id, call.descriptor.name)
    around.append(call.entry(EntryKind.RESULT, attempt=attempt, payload=payload, duration_us=took), finishes=True)
    if must_last:
        yield Flush()
    reached("step.after_result", around.execution_id, call.descriptor.name)
    return Outcome(again, None, False, False, attempt)


def _lost(call: StepCall, around: Surroundings, payload: StoredPayload | None) -> ResultLost:
    reason = around.decode(payload, call.where) if payload is not None else "no reason was recorded"
    return ResultLost(
        f"{call.where} of execution {around.execution_id} was done, but its result could not be stored; it is not run "
        f"again. {reason}",
        execution_id=around.execution_id,
        step_id=call.place,
        step=call.descriptor.name,
    )
