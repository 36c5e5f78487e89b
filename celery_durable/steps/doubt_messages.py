"""The messages about a step whose effect is in doubt."""

from __future__ import annotations

from celery_durable.effects import OnAmbiguous

from .call import StepCall

__all__ = ["doubt_of", "untold"]


def doubt_of(call: StepCall, error: BaseException, said: str) -> str | None:
    """Why nobody knows whether the effect of a guarded step happened that ended by this error; None where its policy
    takes it for an ordinary error.
    """
    guard = call.guard
    if guard is None or guard.policy in (OnAmbiguous.RERUN, OnAmbiguous.SKIP):
        return None
    name = type(error).__name__
    cure = ""
    if isinstance(error, Exception):
        cure = f" If {name} always means that nothing happened, declare it: guarded(..., definite=({name},))."
    return (
        f"guarded {call.where} of execution {call.execution_id} {said}. That may hide a success, so it is not tried "
        f"again.{cure} Look at the remote side (idempotency key {call.key.hex()}), then: celery durable resolve "
        f"{call.execution_id} {call.place} --value JSON | --run | --fail"
    )


def untold(call: StepCall, error: Exception) -> str:
    """Why nobody knows whether there is something to undo: the step was run again to tell, and has raised this."""
    return (
        f"{call.where} of execution {call.execution_id} was under way when its process died, was run again to find out "
        f"whether there is something to undo, and raised {type(error).__name__}. To run it once more: celery durable "
        f"resume {call.execution_id}. Or look at the remote side (idempotency key {call.key.hex()}), then: celery "
        f"durable resolve {call.execution_id} {call.place} --value JSON (it happened: undo it) | --fail (it did not)"
    )
