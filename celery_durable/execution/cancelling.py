"""Cancels an execution from outside, and notifies Celery."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery import _state
from celery.app.task import Context

from celery_durable.children.reports import report
from celery_durable.codec.refusal import understood
from celery_durable.errors import JournalUnavailable, PayloadError, UnknownExecution, WrongState
from celery_durable.messaging import envelope as envelopes
from celery_durable.runtime import Runtime
from celery_durable.store import Operations
from celery_durable.store.cancel_many import MOST, cancel_unbegun
from celery_durable.store.children import kept_by
from celery_durable.store.records import EntryKind, Execution, PayloadKind, PromiseState, State, StoredPayload
from celery_durable.store.rows import reason_payload, reason_text
from celery_durable.store.wrong_state import calls_again

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Cancellation", "after_cancel", "cancel", "cancel_all", "cancel_children", "tell_celery", "why_cancelled"]

logger = logging.getLogger(__name__)

_ENVELOPE: Final = PayloadKind.ENVELOPE


class Cancellation(NamedTuple):
    """An execution that was cancelled."""

    #: As it was before.
    before: Execution
    #: Why the result backend could not be notified.
    problem: str | None
    #: As it is now: where it has something to undo, it is cancelled as soon as that is done.
    state: State = State.CANCELLED
    #: It ran eagerly: it is undone when its task is called again, and not before.
    eager: bool = False


def cancel(app: Celery, execution_id: str, reason: str, *, undo: bool = True) -> Cancellation:
    """End an execution that has not ended; whoever waits for its result gets ``TaskRevokedError``.

    What it did is undone first, where it has said how; unless ``undo`` is False.

    One that was cancelled before is cancelled again where the result backend does not know of it.

    :raises UnknownExecution: when there is none of this id.
    :raises WrongState: when it has ended already, is being undone, or a step of it is in doubt.
    :raises JournalUnavailable: when the database did not answer.
    """
    runtime = Runtime.of(app)
    operations = runtime.operations
    row = operations.get(execution_id)
    if row.state is not State.CANCELLED:
        row = operations.cancel(execution_id, reason, undo=undo)
        after_cancel(app, row, reason)
        state = operations.get(execution_id).state
        if state is not State.CANCELLED:
            eager = operations.is_eager(row.pk)
            if eager:
                logger.warning("execution %s is to be undone, and then cancelled. %s", execution_id, calls_again(row))
            return Cancellation(row, None, state, eager)
    elif _is_told(app, execution_id):
        raise WrongState(f"execution {execution_id} is cancelled already; there is nothing to cancel.")
    request = _request(app, runtime, operations.payload(row.pk, _ENVELOPE), row.id)
    ignored = request is not None and request.ignore_result
    return Cancellation(row, tell_celery(app, execution_id, reason, request, store=not ignored))


def why_cancelled(runtime: Runtime, pk: int) -> str:
    """Why an execution was cancelled, as far as that is known."""
    try:
        stored = runtime.operations.payload(pk, PayloadKind.REASON)
    # It is cancelled all the same.
    except JournalUnavailable as error:
        logger.warning("the reason for a cancellation cannot be read: %s", error)
        stored = None
    return "it was cancelled" if stored is None else reason_text(stored)


def after_cancel(app: Celery, row: Execution, reason: str) -> None:
    """An execution is cancelled: cancel the children that it waits for, and tell whoever waits for it as a part of a
    chain, group or chord. (Whoever waits for its own end is told in the transaction that ends it.)

    :param row: as it was before.
    """
    runtime = Runtime.of(app)
    cancel_children(app, row.pk, row.base_generation, row.generation, f"its parent {row.id} was cancelled: {reason}")
    _tell_others(app, row, Operations(runtime.database, namespace=row.namespace).payload(row.pk, _ENVELOPE), reason)


def _tell_others(app: Celery, row: Execution, stored: StoredPayload | None, reason: str) -> None:
    message = _message(Runtime.of(app), stored, row.id)
    promise = None if message is None else message["headers"].get(envelopes.CHILD_HEADER)
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
        where = "the children of an execution"
        with understood(where):
            kept = runtime.codec.decode(entry.codec, entry.payload, where)
            tasks = [task for child in kept if child["id"] in waiting for task in child["tasks"]]
        cancel_all(app, tasks, reason)


def cancel_all(app: Celery, ids: Iterable[str], reason: str) -> None:
    """Cancel durable executions and revoke other tasks, as far as they have not ended. Nothing is raised."""
    every = list(dict.fromkeys(ids))
    done = _cancel_unbegun(app, every, reason)
    plain = []
    for task_id in every:
        if task_id in done:
            continue
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


def _cancel_unbegun(app: Celery, ids: Sequence[str], reason: str) -> set[str]:
    """Cancel those that nobody has begun, all at once: one by one they would be begun meanwhile.

    :returns: their ids.
    """
    runtime = Runtime.of(app)
    done: set[str] = set()
    # The last ones first: a worker takes their messages in the other order.
    for end in range(len(ids), 0, -MOST):
        try:
            some = ids[max(end - MOST, 0) : end]
            found = cancel_unbegun(runtime.database, runtime.settings.namespace, some, reason)
            for task_id, (row, stored) in found.items():
                _tell_others(app, row, stored, reason)
                request = _request(app, runtime, stored, row.id)
                ignored = request is not None and request.ignore_result
                tell_celery(app, task_id, reason, request, store=not ignored)
                done.add(task_id)
        # Whatever it is, the others are tried, and these once more.
        except Exception as error:
            logger.warning("children could not be cancelled together: %s: %s", type(error).__name__, error)
    return done


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


def _message(runtime: Runtime, stored: StoredPayload | None, execution_id: str) -> dict[str, Any] | None:
    """Its message; None where there is none, or none that can be read: it can be cancelled all the same."""
    if stored is None:
        return None
    try:
        return envelopes.unpack(stored, runtime.envelope_codec)
    except PayloadError as error:
        logger.warning("others could not be notified that execution %s is cancelled: %s", execution_id, error)
        return None


def _request(app: Celery, runtime: Runtime, stored: StoredPayload | None, execution_id: str) -> Any:
    """The request that a worker would have: a chord wants to hear that a member is gone."""
    message = _message(runtime, stored, execution_id)
    if message is None:
        return None
    try:
        args, kwargs, embed = envelopes.accepted_body(app, message)
    # What cannot be read here may name a chord, which then is not told; the caller is.
    except Exception:
        args, kwargs, embed = (), {}, {}
    return Context({**message["headers"], **message["properties"], **(embed or {}), "args": args, "kwargs": kwargs})
