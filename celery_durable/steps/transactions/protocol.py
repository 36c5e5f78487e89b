"""The rules of a transactional step, without I/O; see :mod:`~.steps.protocol`.

There is no intent, and nothing is ever in doubt: its entry is in the journal if, and only if, its rows are in.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from celery_durable.common.faults import reached
from celery_durable.errors import PayloadError
from celery_durable.store.records import Entry, EntryKind

from ..actions import Action, Flush, Outcome, Pause, Surroundings, Transact
from ..call import StepCall

__all__ = ["transact"]


def transact(call: StepCall, attempt: int, around: Surroundings) -> Generator[Action, Any, Outcome]:
    """Run the operation with its entry in one transaction, as often as its retry policy allows."""
    retry = call.descriptor.retry
    while True:
        # What came before is in the journal before: entries are committed in the order of the body.
        yield Flush()
        number, again = call.next_entry, None

        def conclude(value: Any, took: int, number: int = number, attempt: int = attempt) -> tuple[Entry, Any]:
            call.next_entry = number  # the database may have undone an earlier run of the operation
            payload, again = around.roundtrip(value, f"the result of {call.where}")
            entry = call.entry(EntryKind.RESULT, attempt=attempt, payload=payload, duration_us=took)
            return entry, again

        again, error = yield Transact(call.handle(attempt), conclude)
        if error is None:
            reached("step.after_result", around.execution_id, call.descriptor.name)
            return Outcome(again, None, False, False, attempt)
        call.next_entry = number
        if isinstance(error, PayloadError):
            return Outcome(None, error, False, False, attempt)
        payload, rebuilt = around.roundtrip_error(error, f"the error of {call.where}")
        if retry is None or not retry.wants(error, attempt):
            around.note_error(call.entry(EntryKind.ERROR, attempt=attempt, payload=payload))
            return Outcome(None, rebuilt, False, False, attempt)
        around.append(call.entry(EntryKind.ATTEMPT, attempt=attempt, payload=payload))
        yield Pause(retry.pause(attempt))
        attempt += 1
