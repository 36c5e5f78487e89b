"""The state machine of a step, without I/O: what ``docs/guarantees.md`` promises of one (G1, G2, G6) is decided here.

:func:`perform` is a generator: it yields what it needs done (an operation called, a commit acknowledged, a pause)
and is sent the answer. A synchronous and an asynchronous driver run the same rules.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator
from typing import Any

from celery_durable.codec.refusal import understood
from celery_durable.common.faults import reached
from celery_durable.errors import GuardConflict
from celery_durable.identity import short
from celery_durable.journal.entries import Past, Recorded, fold, only_audits
from celery_durable.store.records import EntryKind, GuardHolder, Journaled, StoredPayload

from .actions import Action, Claim, Flush, HeldElsewhere, Operate, Outcome, Pause, Surroundings
from .ambiguity import Again, decide, indefinite, is_definite
from .call import StepCall
from .doubt_messages import untold
from .recording import Steps, failed, finished, succeed
from .transactions.protocol import transact

__all__ = ["perform"]


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
        earlier = around.earlier(call.key, call.descriptor.name, call.fingerprint)
        if earlier is not None:
            return (yield from _inherit(call, *earlier, around))
        conflict = around.conflicting(call.descriptor.name, named=call.named is not None)
        if conflict is not None:
            return (yield from _conflict(call, *conflict, around))
    return (yield from _try(call, 1, around))


def _go_on(call: StepCall, recorded: Recorded, around: Surroundings, rows: list[Journaled]) -> Steps:
    """The journal knows something of this step."""
    past = recorded.past
    done = finished(call, recorded, around)
    if done is not None:
        return done
    if past is Past.TRY:
        if rows[-1].kind != EntryKind.ATTEMPT:
            return (yield from _rerun(call, recorded.attempts, around))  # an operator's word
        yield from _rest_of_pause(call, recorded)
        return (yield from _try(call, recorded.attempts + 1, around))
    if call.guard is None:
        # Only guarded steps are ever in doubt. Any other was announced because it can be undone: to run it again, which
        # its effect allows, tells whether it can.
        return (yield from _rerun(call, recorded.attempts, around, doubtful=True))
    reason = "an intent without a result" if past is Past.OPEN else "still undecided"
    return (yield from _ambiguous(call, recorded.attempts, reason, around))


def _inherit(call: StepCall, generation: int, recorded: Recorded, first: Journaled, around: Surroundings) -> Steps:
    """An earlier generation began this very step (G6): its outcome is taken over, or its doubt."""
    if recorded.key is not None:
        call.known_key = recorded.key
    if recorded.past is Past.ERROR:
        # The body handled that error then; the operation is known not to be under way.
        return (yield from _try(call, 1, around))
    outcome = finished(call, recorded, around)
    if outcome is None:
        reason = f"an intent without a result in generation {generation}"
        return (yield from _ambiguous(call, recorded.attempts, reason, around))
    around.append(
        call.entry(_SHARED[recorded.past], attempt=recorded.attempts, payload=recorded.payload), finishes=True
    )
    return outcome


def _conflict(call: StepCall, generation: int, recorded: Recorded, first: Journaled, around: Surroundings) -> Steps:
    """The name ran already, under other arguments, and nobody claimed it: neither fire nor answer."""
    before, now = _intent_preview(first, around), call.preview(around.previews)
    doing = "may have run" if recorded.past in (Past.OPEN, Past.UNDECIDED) else "ran"
    error = GuardConflict(
        f"{call.descriptor.effect.value} {call.where} of execution {around.execution_id} {doing} already in generation "
        f"{generation} of the journal, under other arguments (fingerprint {short(first.fingerprint or b'')} then, "
        f"{short(call.fingerprint)} now; the arguments: celery durable show {around.execution_id} --reveal).\n"
        "  Nothing was called. If both mean the same operation, give the step a key= or wrap the drifting value in a "
        f"step. To settle this execution: celery durable resolve {around.execution_id} {call.place} --value JSON | "
        "--run | --fail",
        execution_id=around.execution_id,
        step_id=call.place,
        step=call.descriptor.name,
    )
    said = {"reason": "conflict", "generation": generation, "then": before, "now": now}
    if recorded.key is not None:
        said["key"] = recorded.key.hex()
    payload = around.encode(said, call.where)
    around.append(call.entry(EntryKind.AUDIT, payload=payload))
    yield Flush()
    around.must_park(error, f"then  {before}\nnow   {now}")
    return Outcome(None, error, False, False, 1)


def _try(call: StepCall, attempt: int, around: Surroundings, *, doubtful: bool = False) -> Steps:
    """Run the operation, as often as its retry policy allows.

    :param doubtful: it may have happened already.
    """
    if call.descriptor.transaction is not None:
        return (yield from transact(call, attempt, around))
    guard = call.guard
    retry, announces = call.descriptor.retry, call.descriptor._announced
    # What may be repeated has an open intent, which says all that there is to say.
    announced = doubtful and guard is None
    while True:
        if announces and not announced:
            taken = yield from _announce(call, attempt, around, doubtful)
            if taken is not None:
                return taken
            reached("step.after_intent", around.execution_id, call.descriptor.name)
        started = time.perf_counter_ns()
        value, error = yield Operate(call.handle(attempt), announces)
        took = (time.perf_counter_ns() - started) // 1000
        if error is None:
            reached("step.after_effect", around.execution_id, call.descriptor.name)
            return (yield from succeed(call, value, attempt, took, around))
        if guard is not None and not is_definite(guard, error):
            settled = yield from indefinite(call, error, attempt, took, around)
            if settled is not None:
                return settled
        again = retry is not None and retry.wants(error, attempt)
        if not announces and not again:
            return failed(call, error, attempt, took, around)
        payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
        if doubtful and call.descriptor.compensate is not None and around.is_undone:
            # It was run again to tell whether there is something to undo, and an error does not tell that.
            if not again:
                entry = call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took)
                around.cannot_tell(entry, untold(call, error))
                return Outcome(None, rebuilt, False, False, attempt)
        else:
            # Closes the intent: it is known that this try is over. Keeps the count of tries, too.
            around.append(call.entry(EntryKind.ATTEMPT, attempt=attempt, payload=payload, duration_us=took))
            announced = doubtful = False
            if guard is not None:
                yield Flush()
        if not again:
            around.note_error(call.entry(EntryKind.ERROR, attempt=attempt, payload=payload, duration_us=took))
            return Outcome(None, rebuilt, False, False, attempt)
        assert retry is not None
        yield Pause(retry.pause(attempt))
        attempt += 1


def _announce(
    call: StepCall, attempt: int, around: Surroundings, doubtful: bool
) -> Generator[Action, Any, Outcome | None]:
    """Commit the intent of an operation, with everything buffered before it, under the lease (G2)."""
    payload = None
    if call.guard is not None:
        payload = around.encode_tree({"arguments": call.preview(around.previews), "named": call.named is not None})
    intent = call.entry(EntryKind.INTENT, attempt=attempt, payload=payload)
    # Of what may have happened before, nobody may say that it has not; it runs to its end, as it might be undone.
    unstarted = None if doubtful else functools.partial(call.entry, EntryKind.RUN_AGAIN, attempt=attempt)
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
        yield HeldElsewhere(holder)


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
        around.note_error(call.entry(EntryKind.ERROR, payload=payload))
        return Outcome(None, rebuilt, False, False, attempt)
    call.take = holder
    if holder.entries:
        recorded = fold(holder.entries)
        if recorded.past in _SHARED:
            around.append(call.entry(_SHARED[recorded.past], payload=recorded.payload), finishes=True)
            yield Flush()
            done = finished(call, recorded, around)
            assert done is not None
            return done
        if recorded.past in (Past.TRY, Past.ERROR):
            return (yield from _try(call, attempt, around))
    who = holder.execution.id if holder.execution is not None else "an execution that is gone"
    return (yield from _ambiguous(call, attempt, f"an intent under the same key= in {who}", around))


def _ambiguous(call: StepCall, attempts: int, reason: str, around: Surroundings) -> Steps:
    """Nobody knows whether the effect happened: let the policy decide."""
    decided = yield from decide(call, attempts, reason, around)
    if isinstance(decided, Again):
        return (yield from _rerun(call, attempts, around, doubtful=decided.doubtful))
    return decided


def _rerun(call: StepCall, attempts: int, around: Surroundings, *, doubtful: bool = False) -> Steps:
    # Key and number of the try stay: lost knowledge is not a failure, and uses nothing up of the retry policy.
    return (yield from _try(call, max(attempts, 1), around, doubtful=doubtful))


def _intent_preview(first: Journaled, around: Surroundings) -> str:
    if first.kind != EntryKind.INTENT or first.codec is None or first.payload is None:
        return f"arguments {short(first.fingerprint or b'')}"
    with understood("the intent's preview"):
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
