"""``durable_id``: the caller names the call, and it is done once.

The execution is recorded under the id before its message is published. The row's unique constraint decides between
callers that come at the same time; a hash of the task and its arguments tells the same call from another one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celery.utils.saferepr import saferepr
from kombu import serialization

from . import envelope as envelopes
from .errors import ConfigurationError, DurableIdConflict
from .faults import reached
from .identity import call_hash
from .runtime import Runtime
from .store.outbox import IdTaken, Published

if TYPE_CHECKING:
    from celery import Celery, Task
    from sqlalchemy.engine import Connection

    from .store.outbox import Existing

__all__ = ["check_id", "check_place", "difference", "hash_of", "one_id", "record", "record_eager"]

#: The journal's column.
_LONGEST_ID: Final = 255
_LONGEST_PREVIEW: Final = 300


# -- ids ----------------------------------------------------------------------------------------------------------


def check_id(durable_id: Any) -> str:
    """The id, if it can be one.

    :raises ConfigurationError: says what is wrong with it.
    """
    if not isinstance(durable_id, str):
        raise ConfigurationError(
            f"durable_id = {durable_id!r} is of type {type(durable_id).__name__}; it must be text, such as 'order-42'."
        )
    if not durable_id:
        raise ConfigurationError("durable_id is empty; it must name the call, such as 'order-42'.")
    if len(durable_id) > _LONGEST_ID:
        raise ConfigurationError(
            f"durable_id {durable_id[:40]!r}... has {len(durable_id)} characters; there is room for {_LONGEST_ID}. Use "
            "a hash of what makes it so long."
        )
    if not durable_id.isprintable():
        bad = next(c for c in durable_id if not c.isprintable())
        raise ConfigurationError(
            f"durable_id {durable_id!r} contains {bad!r}; control characters, line ends and the like are not allowed."
        )
    if durable_id != durable_id.strip():
        # Databases differ in whether "a" and "a " are one.
        raise ConfigurationError(f"durable_id {durable_id!r} begins or ends with a blank; strip it.")
    return durable_id


def one_id(durable_id: Any, task_id: str | None) -> str:
    """The id of a call that was given a ``durable_id``, and perhaps a ``task_id``.

    :raises ConfigurationError: where they differ, or the id cannot be one.
    """
    chosen = check_id(durable_id)
    if task_id is not None and task_id != chosen:
        raise ConfigurationError(
            f"durable_id is {chosen!r} and task_id is {task_id!r}: they are the same thing. Give the durable_id alone. "
            "(A signature that was made from a task's name, and send_task(), need both, and equal.)"
        )
    return chosen


def check_place(name: str, message: Any, durable_id: Any) -> None:
    """Whether a message may carry a ``durable_id``.

    :raises ConfigurationError: where starting it once could not be kept, or would leave others waiting.
    """
    one_id(durable_id, message.headers.get("id"))
    if message.body[2].get("chord"):
        raise ConfigurationError(
            f"durable_id {durable_id!r}: {name} is in the header of a chord, which counts the messages of one call; it "
            "would wait for ever for one that was not sent again. Give the id to the chord's body, or to a task that "
            "starts the chord."
        )


# -- the same call, or another one --------------------------------------------------------------------------------


def hash_of(name: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, serializer: str | None) -> bytes:
    """What a call is told by: over the arguments that the body will receive, so that what the message's serializer
    makes equal (with JSON: tuples and lists) is equal.

    :raises FingerprintError: for an argument without canonical form.
    :raises kombu.exceptions.EncodeError: for one that cannot be sent.
    """
    content_type, encoding, data = serialization.dumps((args or (), kwargs or {}), serializer=serializer)
    received, named = serialization.loads(data, content_type, encoding, accept={content_type})
    return call_hash(name, received, named)


def record(
    app: Celery,
    runtime: Runtime,
    messages: Sequence[Published],
    *,
    now: str | None = None,
    then: Callable[[Connection, Sequence[int]], None] | None = None,
) -> list[int | None]:
    """Record messages in one transaction.

    :param now: how a conflict shows the arguments of the messages; default: as these do.
    :param then: what belongs to them; see :meth:`~.store.recovery.RecoveryStore.publish`.
    :returns: the primary key of each; None for one that is not to be sent, for it is there already.
    :raises DurableIdConflict: where a chosen id belongs to another call; then nothing was recorded.
    :raises JournalUnavailable: when they could not be recorded; then none was accepted.
    """
    while True:
        try:
            return runtime.recovery.publish(messages, then)
        except IdTaken as taken:
            _settle(app, runtime, taken, now)


def record_eager(task: Task[Any, Any], durable_id: str, args: Any, kwargs: Any, serializer: str | None) -> None:
    """The same for a run that its caller does himself; where it has ended, its outcome is returned again."""
    app: Celery = task.app
    chosen = hash_of(task.name, args, kwargs, serializer or app.conf.task_serializer)
    message = Published(durable_id, task.name, 0, None, args_hash=chosen)
    reached("start.before_record", durable_id)
    record(app, Runtime.of(app), [message], now=f"{saferepr(args or ())} {saferepr(kwargs or {})}")
    reached("start.after_record", durable_id)


def _settle(app: Celery, runtime: Runtime, taken: IdTaken, now: str | None) -> None:
    """Let the execution that has the id be known by the call, if it is its own.

    :raises DurableIdConflict: when it is another call's, or nobody knows.
    """
    error = difference(app, runtime, taken, now)
    if error is not None:
        raise error
    assert taken.message.args_hash is not None
    assert not isinstance(taken.existing, Published)
    runtime.recovery.adopt(taken.existing.pk, taken.message.args_hash)


def difference(app: Celery, runtime: Runtime, taken: IdTaken, now: str | None = None) -> DurableIdConflict | None:
    """None where the execution that has the id is the same call. Where it was not started by its ``durable_id``, its
    message tells.

    :param now: how the arguments are shown of a message without an envelope.
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
    # Another version's, a serializer that is not accepted here, classes that are gone: then it is not known.
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
    """Arguments as Celery shows them in logs and events: whoever hides one there (``argsrepr=``) has hidden it here."""
    if envelope is None:
        return "(its arguments are not stored)"
    headers = envelopes.unpack(envelope, runtime.envelope_codec)["headers"]
    text = f"{headers.get('argsrepr') or '()'} {headers.get('kwargsrepr') or '{}'}"
    if envelopes.RERUN_HEADER in headers:
        text = f"{text}, as a rerun of {headers[envelopes.RERUN_HEADER]}"
    return text if len(text) <= _LONGEST_PREVIEW else f"{text[: _LONGEST_PREVIEW - 3]}..."
