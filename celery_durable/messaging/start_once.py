"""A call with a ``durable_id`` is recorded, and made once.

The execution is recorded under the id before its message is published. The row's unique constraint decides between
callers that come at the same time; a hash of the task and its arguments distinguishes the same call from another one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from celery.utils.saferepr import saferepr

from celery_durable.common.faults import reached
from celery_durable.errors import DurableIdConflict
from celery_durable.identity import call_hash
from celery_durable.runtime import Runtime
from celery_durable.store.outbox import Existing, IdTaken
from celery_durable.store.records import Published

from . import envelope as envelopes
from .durable_id import call_hash_of

if TYPE_CHECKING:
    from celery import Celery, Task
    from sqlalchemy.engine import Connection


__all__ = ["difference", "record", "record_eager"]

_LONGEST_PREVIEW: Final = 300


def record(
    app: Celery,
    runtime: Runtime,
    messages: Sequence[Published],
    *,
    now: str | None = None,
    then: Callable[[Connection, Sequence[int]], None] | None = None,
) -> list[int | None]:
    """Record messages in one transaction.

    :param now: the text for the messages' arguments in a conflict; default: as the messages show them.
    :param then: writes what belongs to them; see :meth:`~.store.recovery.RecoveryStore.publish`.
    :returns: the primary key of each; None for a message that is not to be sent, because its row already exists.
    :raises DurableIdConflict: if a chosen id belongs to another call; then nothing was recorded.
    :raises JournalUnavailable: when they could not be recorded; then none was accepted.
    """
    while True:
        try:
            return runtime.recovery.publish(messages, then)
        except IdTaken as taken:
            _settle(app, runtime, taken, now)


def record_eager(task: Task[Any, Any], durable_id: str, args: Any, kwargs: Any, serializer: str | None) -> None:
    """As :func:`record`, for a run in the caller's process; if it has ended, its outcome is returned again."""
    app: Celery = task.app
    chosen = call_hash_of(task.name, args, kwargs, serializer or app.conf.task_serializer)
    message = Published(durable_id, task.name, 0, None, args_hash=chosen)
    reached("start.before_record", durable_id)
    record(app, Runtime.of(app), [message], now=f"{saferepr(args or ())} {saferepr(kwargs or {})}")
    reached("start.after_record", durable_id)


def _settle(app: Celery, runtime: Runtime, taken: IdTaken, now: str | None) -> None:
    """Store the hash of the call with the execution that has the id, if it belongs to this call.

    :raises DurableIdConflict: if it belongs to another call, or that cannot be found out.
    """
    error = difference(app, runtime, taken, now)
    if error is not None:
        raise error
    assert taken.message.args_hash is not None
    assert not isinstance(taken.existing, Published)
    runtime.recovery.adopt(taken.existing.pk, taken.message.args_hash)


def difference(app: Celery, runtime: Runtime, taken: IdTaken, now: str | None = None) -> DurableIdConflict | None:
    """None if the execution that has the id belongs to the same call. If it was not started by its ``durable_id``, its
    message decides.

    :param now: the text for the arguments of a message without an envelope.
    """
    message, existing = taken.message, taken.existing
    asked = _shown(runtime, message.envelope) if now is None else now
    if isinstance(existing, Published):
        return _conflict(message, asked, existing.task, "in the same batch", _shown(runtime, existing.envelope))
    if existing.args_hash is None and _hash_of_stored(app, runtime, existing) == message.args_hash:
        return None
    created = dt.datetime.fromtimestamp(existing.created_at / 1000, dt.timezone.utc)
    when = f"{existing.state}, created {created:%Y-%m-%d %H:%M:%S} UTC"
    then = "(its arguments were pruned)" if existing.pruned else _shown(runtime, existing.envelope)
    return _conflict(message, asked, existing.task, when, then)


def _hash_of_stored(app: Celery, runtime: Runtime, existing: Existing) -> bytes | None:
    if existing.envelope is None:
        return None
    try:
        stored = envelopes.unpack(existing.envelope, runtime.envelope_codec)
        args, kwargs, _ = envelopes.accepted_body(app, stored)
        return call_hash(str(stored["headers"]["task"]), args, kwargs)
    # Another version wrote it, its serializer is not accepted here, a class is gone: then the hash is unknown.
    except Exception:
        return None


def _conflict(message: Published, now: str, task: str, when: str, then: str) -> DurableIdConflict:
    return DurableIdConflict(
        f"durable_id {message.id!r} belongs to another call ({when}). Nothing was sent.\n"
        f"  then  {task} {then}\n"
        f"  now   {message.task} {now}\n"
        "  An id names one call of one task: choose another id for another call. To do the work of that one again: "
        f"celery_durable.get({message.id!r}).rerun()",
        execution_id=message.id,
        task=task,
    )


def _shown(runtime: Runtime, envelope: Any) -> str:
    """Arguments as Celery shows them in logs and events: those hidden there (``argsrepr=``) are hidden here too."""
    if envelope is None:
        return "(its arguments are not stored)"
    headers = envelopes.unpack(envelope, runtime.envelope_codec)["headers"]
    text = f"{headers.get('argsrepr') or '()'} {headers.get('kwargsrepr') or '{}'}"
    if envelopes.RERUN_HEADER in headers:
        text = f"{text}, as a rerun of {headers[envelopes.RERUN_HEADER]}"
    return text if len(text) <= _LONGEST_PREVIEW else f"{text[: _LONGEST_PREVIEW - 3]}..."
