"""The ambiguous window: nobody knows whether a guarded step had its effect, and its policy decides."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from celery_durable.effects import DID_NOT_HAPPEN, UNKNOWN, UNSET, Guard, Happened, OnAmbiguous
from celery_durable.errors import AmbiguousEffect
from celery_durable.store.records import EntryKind

from .actions import Action, Ask, Flush, Outcome, Surroundings
from .auditing import audit, audit_verdict
from .call import StepCall
from .doubt_messages import doubt_of
from .recording import succeed

__all__ = ["Again", "decide", "indefinite", "is_definite"]


class Again(NamedTuple):
    """The operation is to be run again."""

    #: It may have happened already.
    doubtful: bool


def is_definite(guard: Guard, error: Exception) -> bool:
    """Whether an exception of a guarded operation is known to mean that it may be tried again."""
    return guard.policy in (OnAmbiguous.RERUN, OnAmbiguous.SKIP) or isinstance(error, guard.definite)


def indefinite(
    call: StepCall, error: Exception, attempt: int, took: int, around: Surroundings
) -> Generator[Action, Any, Outcome | None]:
    """An exception that may hide a success (a read timeout). None: it is known now that nothing happened."""
    assert call.guard is not None
    policy = call.guard.policy
    if not isinstance(policy, OnAmbiguous):
        reason = f"it raised {type(error).__name__}: {error}"
        verdict = yield from _reconcile(call, attempt, reason, around)
        if isinstance(verdict, Happened):
            return (yield from succeed(call, verdict.value, attempt, took, around))
        if verdict is DID_NOT_HAPPEN:
            return None
    payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
    doubt = doubt_of(call, error, f"raised {type(error).__name__}")
    entry = call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took)
    around.note_error(entry, doubt)
    return Outcome(None, rebuilt, False, False, attempt)


def decide(call: StepCall, attempts: int, reason: str, around: Surroundings) -> Generator[Action, Any, Outcome | Again]:
    """Nobody knows whether the effect happened: record that, and let the policy decide (G2).

    :returns: what the body gets, or that the operation is to be run again.
    """
    assert call.guard is not None
    policy = call.guard.policy
    if policy is OnAmbiguous.SKIP:
        value = None if call.guard.assumed is UNSET else call.guard.assumed
        payload, again = around.roundtrip(value, f"the assumed value of {call.where}")
        audit(call, attempts, reason, "skip", around)
        around.append(call.entry(EntryKind.SKIPPED, attempt=attempts, payload=payload), finishes=True)
        yield Flush()
        return Outcome(again, None, False, True, attempts)
    if policy is OnAmbiguous.RERUN:
        audit(call, attempts, reason, "rerun", around)
        return Again(doubtful=True)
    if policy is OnAmbiguous.FAIL:
        audit(call, attempts, reason, "fail", around)
        yield Flush()
        return _doubt(call, attempts, reason, around)
    verdict = yield from _reconcile(call, attempts, reason, around)
    if isinstance(verdict, Happened):
        return (yield from succeed(call, verdict.value, attempts, 0, around))
    if verdict is DID_NOT_HAPPEN:
        return Again(doubtful=False)
    yield Flush()
    return _doubt(call, attempts, reason, around)


def _reconcile(call: StepCall, attempt: int, reason: str, around: Surroundings) -> Generator[Action, Any, Any]:
    """The audited verdict of the reconcile callable; what it raises, and any other answer, is UNKNOWN with a reason."""
    assert call.guard is not None
    value, error = yield Ask(call.handle(attempt), call.guard.policy)  # type: ignore[arg-type]
    verdict = value if error is None else error
    if error is None and not (isinstance(value, Happened) or value is DID_NOT_HAPPEN or value is UNKNOWN):
        verdict = TypeError(
            f"the reconcile callable of {call.where} returned {value!r}; it must return Happened(value), "
            "DID_NOT_HAPPEN or UNKNOWN"
        )
    audit_verdict(call, attempt, reason, verdict, around)
    return verdict


def _doubt(call: StepCall, attempts: int, reason: str, around: Surroundings) -> Outcome:
    error = AmbiguousEffect(
        f"guarded {call.where} of execution {around.execution_id} is in doubt: {reason}. Nobody knows whether its "
        "effect happened, and its policy does not allow a guess. Look at the remote side (idempotency key "
        f"{call.key.hex()}), then: celery durable resolve {around.execution_id} {call.place} --value JSON | --run | "
        "--fail",
        execution_id=around.execution_id,
        step_id=call.place,
        step=call.descriptor.name,
        key=call.key,
    )
    payload, rebuilt = around.roundtrip_error(error, call.where)
    around.note_error(call.entry(EntryKind.ERROR, attempt=attempts, payload=payload), error.message)
    return Outcome(None, rebuilt, False, False, attempts)
