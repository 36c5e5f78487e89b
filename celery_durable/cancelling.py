"""Ending an execution from outside, and letting Celery know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from celery import _state
from celery.app.task import Context

from . import envelope as envelopes
from .errors import WrongState
from .runtime import Runtime
from .store import Operations
from .store.records import Execution, PayloadKind, State

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Cancelled", "cancel"]


class Cancelled(NamedTuple):
    """An execution that was cancelled."""

    #: As it was before.
    before: Execution
    #: Why the result backend could not be told.
    problem: str | None
    #: As it is now: where it has something to undo, it is cancelled as soon as that is done.
    state: State = State.CANCELLED


def cancel(app: Celery, execution_id: str, reason: str) -> Cancelled:
    """End an execution that has not ended; whoever waits for its result gets ``TaskRevokedError``.

    What it did is undone first, where it has said how.

    One that was cancelled before is cancelled again where the result backend does not know of it.

    :raises UnknownExecution: when there is none of this id.
    :raises WrongState: when it has ended already, is being undone, or a step of it is in doubt.
    :raises JournalUnavailable: when the database did not answer.
    """
    runtime = Runtime.of(app)
    operations = Operations(runtime.database, namespace=runtime.settings.namespace)
    row = operations.get(execution_id)
    if row.state is not State.CANCELLED:
        row = operations.cancel(execution_id, reason)
        state = operations.get(execution_id).state
        if state is not State.CANCELLED:
            return Cancelled(row, None, state)
    elif _is_told(app, execution_id):
        raise WrongState(f"execution {execution_id} is cancelled already; there is nothing to cancel.")
    return Cancelled(row, _tell_celery(app, runtime, operations, row, reason))


def _is_told(app: Celery, execution_id: str) -> bool:
    try:
        return str(app.backend.get_state(execution_id)) == "REVOKED"
    # Whatever the backend raises: it is told again, which does no harm.
    except Exception:
        return False


def _tell_celery(app: Celery, runtime: Runtime, operations: Operations, row: Execution, reason: str) -> str | None:
    """Let waiting callers, and the chord it is part of, know.

    :returns: what went wrong.
    """
    before = _state._tls.current_app  # type: ignore[attr-defined]
    try:
        # Older backends look up the results of a chord in whatever application is current.
        app.set_current()
        request = _request(app, runtime, operations, row)
        store = not (request is not None and request.ignore_result)
        app.backend.mark_as_revoked(row.id, reason, request, store_result=store)
    # Any backend, any client library; the execution is cancelled all the same.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _state._set_current_app(before)  # type: ignore[attr-defined]
    return None


def _request(app: Celery, runtime: Runtime, operations: Operations, row: Execution) -> Any:
    """The request that a worker would have: a chord wants to hear that a member is gone."""
    stored = operations.payload(row.pk, PayloadKind.ENVELOPE)
    if stored is None:
        return None
    message = envelopes.unpack(stored, runtime.envelope_codec)
    try:
        args, kwargs, embed = envelopes.accepted_body(app, message)
    # What cannot be read here may name a chord, which then is not told; the caller is.
    except Exception:
        args, kwargs, embed = (), {}, {}
    return Context({**message["headers"], **message["properties"], **(embed or {}), "args": args, "kwargs": kwargs})
