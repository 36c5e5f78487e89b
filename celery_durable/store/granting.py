"""Decides what a message of a known execution gets: the lease, or a reason why not.

Every grant raises ``epoch`` (G2, G3). The caller has locked the row.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection, Row

from .records import (
    FINAL_STATES,
    PARKED_STATES,
    Closed,
    Fence,
    Opened,
    OpenRequest,
    PayloadKind,
    Refusal,
    Refused,
    State,
)
from .rows import get_payload, put_payload, quarantine
from .statements import bound, grant

__all__ = ["Granting"]


class Granting:
    """Grants leases of executions that have a row.

    :param lease_ms: length of a lease, in milliseconds.
    :param max_attempts: take-overs after which an execution is quarantined.
    """

    def __init__(self, lease_ms: int, max_attempts: int) -> None:
        self._lease_ms = lease_ms
        self._max_attempts = max_attempts

    def answer(self, connection: Connection, row: Row[Any], request: OpenRequest) -> Opened | Closed | Refused:
        """Judge a message by the row of its execution, as :data:`~.statements.BY_ID` gives it."""
        state = State(row.state)
        running = state is State.RUNNING
        if running and row.owner == request.owner:
            # Our own commit of a moment ago, whose acknowledgement was lost.
            return _granted(row, row.epoch, row.attempts, row.retries, request)
        if request.replacements < row.replacements:
            return Refused(Refusal.STALE, state)
        if state is State.CANCELLED and row.wake_at is None:
            return Refused(Refusal.DONE, state)
        if request.replacements > row.replacements and state not in PARKED_STATES:
            # Task.replace continues under the same id. The task that sent this message is done, even if its end is not
            # recorded: the message may have come through a chain or a chord.
            return self._begin_anew(connection, row, request)
        if row.task != request.task and (state in FINAL_STATES or state is State.PENDING):
            # Somebody chose one id for two tasks.
            return self._begin_anew(connection, row, request)
        if state in FINAL_STATES and row.pruned_at is not None:
            return Refused(Refusal.PRUNED, state)
        if state in FINAL_STATES:
            # An eager caller waits for the value itself; it was never passed on before.
            told = row.wake_at is None and request.recoverable
            if told:
                return Refused(Refusal.DONE, state)
            return Closed(row.pk, state, get_payload(connection, row.pk, PayloadKind.OUTCOME))
        if state in PARKED_STATES:
            return Refused(Refusal.PARKED, state)
        if running and (row.lease_until > row.now or request.postponed):
            return Refused(Refusal.LIVE, state)
        if request.retries < row.retries or row.task != request.task:
            return Refused(Refusal.STALE, state)
        if state is State.SUSPENDED and not row.sends and request.recoverable:
            # Its message has not been sent again since: this one is a duplicate of an earlier message.
            return Refused(Refusal.STALE, state)
        attempts = row.attempts + (1 if running else 0)
        if attempts > self._max_attempts:
            reason = quarantine(connection, row, self._max_attempts)
            return Refused(Refusal.QUARANTINED, State.QUARANTINED, reason)
        epoch = row.epoch + 1
        values = {
            "state": State.RUNNING.value,
            "epoch": epoch,
            "owner": request.owner,
            "attempts": attempts,
            "retries": request.retries,
            "sends": 0,
        }
        connection.execute(grant(*values), bound({"pk": row.pk, **values}) | self._lease(request))
        return _granted(row, epoch, attempts, request.retries, request, taken_over=running)

    def _begin_anew(self, connection: Connection, row: Row[Any], request: OpenRequest) -> Opened:
        generation = row.generation + 1
        values = {
            "state": State.RUNNING.value,
            "task": request.task,
            "epoch": row.epoch + 1,
            "owner": request.owner,
            "generation": generation,
            "base_generation": generation,
            "attempts": 0,
            "retries": request.retries,
            "replacements": request.replacements,
            "sends": 0,
            "steps": 0,
        }
        if row.pruned_at is not None:
            # The tombstone was of the earlier run under this id.
            values["pruned_at"] = None
        connection.execute(grant(*values), bound({"pk": row.pk, **values}) | self._lease(request))
        if request.recoverable:
            put_payload(connection, row.pk, PayloadKind.ENVELOPE, request.envelope())
        return Opened(
            fence=Fence(row.pk, row.epoch + 1),
            owner=request.owner,
            generation=generation,
            base_generation=generation,
            attempts=0,
            retries=request.retries,
            resumed=False,
        )

    def _lease(self, request: OpenRequest) -> dict[str, Any]:
        return {"b_lease": self._lease_ms, "b_wake": self._lease_ms if request.recoverable else None}


def _granted(
    row: Row[Any],
    epoch: int,
    attempts: int,
    retries: int,
    request: OpenRequest,
    taken_over: bool = False,
) -> Opened:
    return Opened(
        fence=Fence(row.pk, epoch),
        owner=request.owner,
        generation=row.generation,
        base_generation=row.base_generation,
        attempts=attempts,
        retries=retries,
        # Epoch 0 is a row that was written at publish and never ran.
        resumed=epoch > 1 or row.generation > 1,
        taken_over=taken_over,
        steps=row.steps,
        cancelling=row.cancel_at is not None,
    )
