"""The state machine of a step (DESIGN §6), without I/O.

:func:`perform` is a generator: it yields what it needs done (an operation called, a commit acknowledged, a pause)
and is sent the answer. A synchronous and an asynchronous driver run the same rules.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator
from typing import Any

from .actions import Action, Ask, Call, Claim, Flush, Outcome, Pause, StepCall, Surroundings, Wait
from .effects import DID_NOT_HAPPEN, UNKNOWN, UNSET, Guard, Happened, OnAmbiguous
from .errors import AmbiguousEffect, GuardConflict, PayloadError, ResultLost
from .faults import reached
from .identity import short
from .replay import Past, Recorded, fold, only_audits
from .store.records import EntryKind, GuardHolder, Journaled, StoredPayload
from .transacting import transact

__all__ = ["failed", "perform", "succeeded"]

Steps = Generator[Action, Any, Outcome]


#: Outcomes that another step of the same key, or of an earlier generation, can hand over.
_SHARED = {Past.DONE: EntryKind.RESULT, Past.SKIPPED: EntryKind.SKIPPED, Past.LOST: EntryKind.LOST}


def perform(call: StepCall, rows: list[Journaled] | None, around: Surroundings) -> Steps:
    """Bring one step to its outcome. The fingerprint has been compared already.

    :param rows: what the journal has at this position; None for nothing.
    """
    if rows is not None:
        recorded = fold(rows)
        call.next_entry = recorded.next_entry
        if recorded.key is not None:
            call.known_key = recorded.key  # minted once, with the intent
        if not only_audits(rows):
            return (yield from _go_on(call, recorded, around, rows))
        # Nothing was called here: what stood in the way is looked at again.
    if call.descriptor._lasting:
        earlier = around.earlier(call)
        if earlier is not None:
            return (yield from _inherit(call, *earlier, around))
        conflict = around.conflicting(call)
        if conflict is not None:
            return (yield from _conflict(call, *conflict, around))
    return (yield from _try(call, 1, around))


def _go_on(call: StepCall, recorded: Recorded, around: Surroundings, rows: list[Journaled]) -> Steps:
    """The journal knows something of this step."""
    past = recorded.past
    done = _finished(call, recorded, around)
    if done is not None:
        return done
    if past is Past.TRY:
        if rows[-1].kind != EntryKind.ATTEMPT:
            return (yield from _rerun(call, recorded.attempts, around))  # an operator's word
        yield from _rest_of_pause(call, recorded)
        return (yield from _try(call, recorded.attempts + 1, around))
    if past is Past.UNDECIDED and call.guard is None:
        # Only guarded steps are ever in doubt; the body made it plain since, which the fingerprint forbids.
        return (yield from _try(call, recorded.attempts + 1, around))
    reason = "an intent without a result" if past is Past.OPEN else "still undecided"
    return (yield from _ambiguous(call, recorded.attempts, reason, around))


def _finished(call: StepCall, recorded: Recorded, around: Surroundings) -> Outcome | None:
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


def _inherit(call: StepCall, generation: int, recorded: Recorded, first: Journaled, around: Surroundings) -> Steps:
    """An earlier generation began this very step (G6): its outcome is taken over, or its doubt."""
    if recorded.key is not None:
        call.known_key = recorded.key
    if recorded.past is Past.ERROR:
        # The body handled that error then; the operation is known not to be under way.
        return (yield from _try(call, 1, around))
    outcome = _finished(call, recorded, around)
    if outcome is None:
        reason = f"an intent without a result in generation {generation}"
        return (yield from _ambiguous(call, recorded.attempts, reason, around))
    around.append(
        call.entry(_SHARED[recorded.past], attempt=recorded.attempts, payload=recorded.payload), finishes=True
    )
    return outcome


def _conflict(call: StepCall, generation: int, recorded: Recorded, first: Journaled, around: Surroundings) -> Steps:
    """The name ran already, under other arguments, and nobody claimed it: neither fire nor answer."""
    before = _intent_preview(first, around)
    doing = "may have run" if recorded.past in (Past.OPEN, Past.UNDECIDED) else "ran"
    error = GuardConflict(
        f"{call.descriptor.effect.value} {call.where} of execution {around.execution_id} {doing} already in generation "
        f"{generation} of the journal, under other arguments.\n  then  {before}\n  now   {call.preview()}\n"
        "  Nothing was called. If both mean the same operation, give the step a key= or wrap the drifting value in a "
        f"step. To settle this execution: celery durable resolve {around.execution_id} {call.place} --value JSON | "
        "--run | --fail",
        execution_id=around.execution_id,
        step_id=call.place,
        step=call.descriptor.name,
    )
    said = {"reason": "conflict", "generation": generation, "then": before, "now": call.preview()}
    if recorded.key is not None:
        said["key"] = recorded.key.hex()
    payload = around.encode(said, call.where)
    around.append(call.entry(EntryKind.AUDIT, payload=payload))
    yield Flush()
    around.must_park(error)
    return Outcome(None, error, False, False, 1)


def _try(call: StepCall, attempt: int, around: Surroundings) -> Steps:
    """Run the operation, as often as its retry policy allows."""
    if call.descriptor.transaction is not None:
        return (yield from transact(call, attempt, around))
    guard = call.guard
    retry = call.descriptor.retry
    while True:
        if guard is not None:
            taken = yield from _announce(call, attempt, around)
            if taken is not None:
                return taken
            reached("step.after_intent", around.execution_id, call.descriptor.name)
        started = time.perf_counter_ns()
        value, error = yield Call(call.handle(attempt), guard is not None)
        took = (time.perf_counter_ns() - started) // 1000
        if error is None:
            reached("step.after_effect", around.execution_id, call.descriptor.name)
            return (yield from _succeed(call, value, attempt, took, around))
        if guard is not None and not _is_definite(guard, error):
            settled = yield from _indefinite(call, error, attempt, took, around)
            if settled is not None:
                return settled
        again = retry is not None and retry.wants(error, attempt)
        if guard is None and not again:
            return failed(call, error, attempt, took, around)
        payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
        # Closes the intent: it is known that this try is over. Keeps the count of tries, too.
        around.append(call.entry(EntryKind.ATTEMPT, attempt=attempt, payload=payload, duration_us=took))
        if guard is not None:
            yield Flush()
        if not again:
            around.note_error(call, call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took))
            return Outcome(None, rebuilt, False, False, attempt)
        assert retry is not None
        yield Pause(retry.pause(attempt))
        attempt += 1


def _announce(call: StepCall, attempt: int, around: Surroundings) -> Generator[Action, Any, Outcome | None]:
    """Commit the intent of a guarded operation, with everything buffered before it, under the lease (G2)."""
    payload = around.encode_tree({"arguments": call.preview(), "named": call.named is not None})
    intent = call.entry(EntryKind.INTENT, attempt=attempt, payload=payload)
    unstarted = functools.partial(call.entry, EntryKind.RUN_AGAIN, attempt=attempt)
    reached("step.before_intent", around.execution_id, call.descriptor.name)
    if call.named is None:
        around.append(intent)
        yield Flush(unstarted)
        return None
    while True:
        holder = yield Claim(intent, call.take, unstarted)
        if holder is None:
            return None
        if not holder.live or holder.fingerprint != call.fingerprint or _is_known(holder):
            call.next_entry -= 1  # the intent was not written
            return (yield from _held_elsewhere(call, holder, attempt, around))
        yield Wait(holder)


def _is_known(holder: GuardHolder) -> bool:
    """True when the holder of a key has an outcome to share."""
    return bool(holder.entries) and fold(holder.entries).past in _SHARED


def _held_elsewhere(call: StepCall, holder: GuardHolder, attempt: int, around: Surroundings) -> Steps:
    """Another step has this ``key=``: take its outcome, or its doubt; where its try failed, ours may begin."""
    if holder.fingerprint != call.fingerprint:
        error = GuardConflict(
            f"{call.where} asks for a key= that another call has used with other arguments (fingerprint "
            f"{short(holder.fingerprint)} there, {short(call.fingerprint)} here). Nothing was called. A key names one "
            "operation: use another key for another one.",
            execution_id=around.execution_id,
            step_id=call.place,
            step=call.descriptor.name,
        )
        payload, rebuilt = around.roundtrip_error(error, call.where)
        around.note_error(call, call.entry(EntryKind.ERROR, payload=payload))
        return Outcome(None, rebuilt, False, False, attempt)
    call.take = holder
    if holder.entries:
        recorded = fold(holder.entries)
        if recorded.past in _SHARED:
            around.append(call.entry(_SHARED[recorded.past], payload=recorded.payload), finishes=True)
            yield Flush()
            done = _finished(call, recorded, around)
            assert done is not None
            return done
        if recorded.past in (Past.TRY, Past.ERROR):
            return (yield from _try(call, attempt, around))
    who = holder.execution.id if holder.execution is not None else "an execution that is gone"
    return (yield from _ambiguous(call, attempt, f"an intent under the same key= in {who}", around))


def failed(call: StepCall, error: Exception, attempt: int, took: int, around: Surroundings) -> Outcome:
    """The last try of a step that is not guarded has raised."""
    payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
    around.note_error(call, call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took))
    return Outcome(None, rebuilt, False, False, attempt)


def succeeded(call: StepCall, value: Any, attempt: int, took: int, around: Surroundings) -> Outcome:
    """Record the result of a step that is not guarded; what the body gets is what every replay will give it."""
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


def _succeed(call: StepCall, value: Any, attempt: int, took: int, around: Surroundings) -> Steps:
    if call.guard is None:
        return succeeded(call, value, attempt, took, around)
    try:
        payload, again = _stored(call, value, around)
    except PayloadError as error:
        reason = around.encode(error.message, call.where)
        around.append(call.entry(EntryKind.LOST, attempt=attempt, payload=reason, duration_us=took), finishes=True)
        yield Flush()
        lost = _lost(call, around, reason)
        lost.__cause__ = error
        return Outcome(None, lost, False, False, attempt)
    reached("step.before_result", around.execution_id, call.descriptor.name)
    around.append(call.entry(EntryKind.RESULT, attempt=attempt, payload=payload, duration_us=took), finishes=True)
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


# -- lost knowledge ---------------------------------------------------------------------------------------------


def _is_definite(guard: Guard, error: Exception) -> bool:
    """Whether an exception of a guarded operation is known to mean that it may be tried again."""
    return guard.policy in (OnAmbiguous.RERUN, OnAmbiguous.SKIP) or isinstance(error, guard.definite)


def _indefinite(
    call: StepCall, error: Exception, attempt: int, took: int, around: Surroundings
) -> Generator[Action, Any, Outcome | None]:
    """An exception that may hide a success (a read time-out). None: it is known now that nothing happened."""
    assert call.guard is not None
    policy = call.guard.policy
    if not isinstance(policy, OnAmbiguous):
        reason = f"it raised {type(error).__name__}: {error}"
        verdict = yield from _reconcile(call, attempt, reason, around)
        if isinstance(verdict, Happened):
            return (yield from _succeed(call, verdict.value, attempt, took, around))
        if verdict is DID_NOT_HAPPEN:
            return None
    payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
    name = type(error).__name__
    doubt = (
        f"guarded {call.where} of execution {around.execution_id} raised {name}: {error}. That may hide a success, so "
        f"it is not tried again. If {name} always means that nothing happened, declare it: guarded(..., "
        f"definite=({name},)). Look at the remote side (idempotency key {call.key.hex()}), then: celery durable "
        f"resolve {around.execution_id} {call.place} --value JSON | --run | --fail"
    )
    entry = call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took)
    around.note_error(call, entry, doubt)
    return Outcome(None, rebuilt, False, False, attempt)


def _ambiguous(call: StepCall, attempts: int, reason: str, around: Surroundings) -> Steps:
    """Nobody knows whether the effect happened: record that, and let the policy decide (G2)."""
    assert call.guard is not None
    policy = call.guard.policy
    if policy is OnAmbiguous.SKIP:
        value = None if call.guard.assumed is UNSET else call.guard.assumed
        payload, again = around.roundtrip(value, f"the assumed value of {call.where}")
        _audit(call, attempts, reason, "skip", around)
        around.append(call.entry(EntryKind.SKIPPED, attempt=attempts, payload=payload), finishes=True)
        yield Flush()
        return Outcome(again, None, False, True, attempts)
    if policy is OnAmbiguous.RERUN:
        _audit(call, attempts, reason, "rerun", around)
        return (yield from _rerun(call, attempts, around))
    if policy is OnAmbiguous.FAIL:
        _audit(call, attempts, reason, "fail", around)
        yield Flush()
        return _doubt(call, attempts, reason, around)
    verdict = yield from _reconcile(call, attempts, reason, around)
    if isinstance(verdict, Happened):
        return (yield from _succeed(call, verdict.value, attempts, 0, around))
    if verdict is DID_NOT_HAPPEN:
        return (yield from _rerun(call, attempts, around))
    yield Flush()
    return _doubt(call, attempts, reason, around)


def _rerun(call: StepCall, attempts: int, around: Surroundings) -> Steps:
    # Key and number of the try stay: lost knowledge is not a failure, and uses nothing up of the retry policy.
    return (yield from _try(call, max(attempts, 1), around))


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
    _audit(call, attempt, reason, f"reconcile: {_words(verdict)}", around)
    return verdict


def _words(verdict: Any) -> str:
    if isinstance(verdict, Happened):
        return "happened"
    if verdict is DID_NOT_HAPPEN:
        return "did not happen"
    return "unknown" if verdict is UNKNOWN else f"unknown, it raised {type(verdict).__name__}: {verdict}"


def _doubt(call: StepCall, attempts: int, reason: str, around: Surroundings) -> Outcome:
    error = AmbiguousEffect(
        f"guarded {call.where} of execution {around.execution_id} is in doubt: {reason}. Nobody knows whether its "
        "effect happened, and its policy does not allow to guess. Look at the remote side (idempotency key "
        f"{call.key.hex()}), then: celery durable resolve {around.execution_id} {call.place} --value JSON | --run | "
        "--fail",
        execution_id=around.execution_id,
        step_id=call.place,
        step=call.descriptor.name,
        key=call.key,
    )
    payload, rebuilt = around.roundtrip_error(error, call.where)
    around.note_error(call, call.entry(EntryKind.ERROR, attempt=attempts, payload=payload), error.message)
    return Outcome(None, rebuilt, False, False, attempts)


def _audit(call: StepCall, attempts: int, reason: str, decision: str, around: Surroundings) -> None:
    payload = around.encode({"reason": reason, "decision": decision}, call.where)
    around.append(call.entry(EntryKind.AUDIT, attempt=attempts, payload=payload))


def _intent_preview(first: Journaled, around: Surroundings) -> str:
    if first.kind != EntryKind.INTENT or first.codec is None or first.payload is None:
        return f"arguments {short(first.fingerprint)}" if first.fingerprint else "unknown arguments"
    return str(around.decode(StoredPayload(first.codec, first.payload), "the intent's preview")["arguments"])


def _rest_of_pause(call: StepCall, recorded: Recorded) -> Generator[Action, Any, None]:
    """A crash does not shorten the back-off by more than the time it took to come back."""
    retry = call.descriptor.retry
    if retry is None:
        return
    pause = retry.pause(recorded.attempts)
    # The two clocks may disagree: never wait longer than the whole pause.
    left = min(recorded.at / 1000 + pause - time.time(), pause)
    if left > 0:
        yield Pause(left)
