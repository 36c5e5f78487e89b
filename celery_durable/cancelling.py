"""Ending an execution from outside, and letting Celery know."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import _state
from celery.app.task import Context

from . import envelope as envelopes
from .delivery import report
from .errors import JournalUnavailable, UnknownExecution, WrongState
from .runtime import Runtime
from .store import Operations
from .store.children import kept_by
from .store.records import EntryKind, Execution, PayloadKind, PromiseState, State
from .store.rows import reason_payload

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Cancelled", "after_cancel", "cancel", "cancel_all", "cancel_children", "reason_of", "tell_celery"]

logger = logging.getLogger(__name__)


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
        after_cancel(app, row, reason)
        state = operations.get(execution_id).state
        if state is not State.CANCELLED:
            return Cancelled(row, None, state)
    elif _is_told(app, execution_id):
        raise WrongState(f"execution {execution_id} is cancelled already; there is nothing to cancel.")
    request = _request(app, runtime, operations, row)
    ignored = request is not None and request.ignore_result
    return Cancelled(row, tell_celery(app, execution_id, reason, request, store=not ignored))


def reason_of(runtime: Runtime, pk: int) -> str:
    """Why an execution was cancelled, as far as that is known."""
    try:
        stored = Operations(runtime.database, namespace=runtime.settings.namespace).payload(pk, PayloadKind.REASON)
    # It is cancelled all the same.
    except JournalUnavailable as error:
        logger.warning("it cannot be told why an execution was cancelled: %s", error)
        stored = None
    return "it was cancelled" if stored is None else stored.data.decode(errors="replace")


def after_cancel(app: Celery, row: Execution, reason: str) -> None:
    """An execution is cancelled: cancel the children that it waits for, and tell whoever waits for it as a part of a
    chain, group or chord. (Whoever waits for its own end is told in the transaction that ends it.)

    :param row: as it was before.
    """
    runtime = Runtime.of(app)
    cancel_children(app, row.pk, row.base_generation, row.generation, f"its parent {row.id} was cancelled: {reason}")
    stored = Operations(runtime.database, namespace=row.namespace).payload(row.pk, PayloadKind.ENVELOPE)
    if stored is None:
        return
    promise = envelopes.unpack(stored, runtime.envelope_codec)["headers"].get(envelopes.CHILD_HEADER)
    if promise and promise != kept_by(row.id):
        why = f"{row.task}[{row.id}] was cancelled: {reason}"
        report(app, promise, PromiseState.CANCELLED, reason_payload(why))


def cancel_children(app: Celery, pk: int, first: int, last: int, reason: str) -> None:
    """Cancel the children that an execution waits for.

    :param pk: of the execution.
    :param first: of the generations that may have started some.
    :param last: likewise.
    """
    runtime = Runtime.of(app)
    waiting = {one.id for one in runtime.promises.of([pk]) if one.child is not None and one.pending}
    for entry in runtime.journal.of_kind(EntryKind.CALL, pk, first, last) if waiting else ():
        if entry.codec is None or entry.payload is None:
            continue
        for child in runtime.codec.decode(entry.codec, entry.payload, "the children of an execution"):
            if child["id"] in waiting:
                cancel_all(app, child["tasks"], reason)


def cancel_all(app: Celery, ids: Iterable[str], reason: str) -> None:
    """Cancel durable executions and revoke other tasks, as far as they have not ended. Nothing is raised."""
    plain = []
    for task_id in ids:
        try:
            cancel(app, task_id, reason)
        except UnknownExecution:
            plain.append(task_id)
        except WrongState:
            continue
        except Exception as error:
            logger.warning("child %s could not be cancelled: %s: %s", task_id, type(error).__name__, error)
    if not plain:
        return
    try:
        app.control.revoke(plain)
    # Some transports know no broadcast; what is not revoked runs to its end, and nobody takes its result.
    except Exception as error:
        logger.warning("%d child task(s) could not be revoked: %s: %s", len(plain), type(error).__name__, error)


def _is_told(app: Celery, execution_id: str) -> bool:
    try:
        return str(app.backend.get_state(execution_id)) == "REVOKED"
    # Whatever the backend raises: it is told again, which does no harm.
    except Exception:
        return False


def tell_celery(
    app: Celery, execution_id: str, reason: str, request: Any, *, store: bool, task: Any = None
) -> str | None:
    """Let callers that wait for an execution, and the chord it is part of, know that it is cancelled.

    :param request: of its task; None where it is not known.
    :param store: its result is kept.
    :param task: its task, which may have a result backend of its own; None where this process need not know it.
    :returns: what went wrong.
    """
    before = _state._tls.current_app  # type: ignore[attr-defined]
    try:
        # Older backends look up the results of a chord in whatever application is current.
        app.set_current()
        (task or app).backend.mark_as_revoked(execution_id, reason, request, store_result=store)
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
