"""The value or error with which an execution ended, as it is stored and passed on again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from kombu import serialization

from celery_durable.codec.outcomes import value_of
from celery_durable.errors import PayloadError, PayloadTooLarge, WrongState
from celery_durable.runtime import Runtime
from celery_durable.store.records import Closed, State, StoredPayload

from .acceptable import check_acceptable

if TYPE_CHECKING:
    from celery import Task


__all__ = ["pack_error", "pack_value", "pruned", "read_outcome", "restore"]


def pack_value(runtime: Runtime, task: Task[Any, Any], request: Any, value: Any) -> StoredPayload:
    """The body's return value, stored; it is known then that Celery can hand it on.

    What our codec cannot carry but the application's result serializer can (pickle, a custom one), is stored in that
    form: Celery would hand it on in no other.

    :raises PayloadError: when neither can, or Celery could not hand it on.
    """
    where = f"the return value of task {task.name!r}"
    try:
        payload = runtime.codec.encode({"value": value}, where)
    except PayloadTooLarge:
        raise
    except PayloadError as error:
        serializer = task.app.conf.result_serializer
        if serializer == "json":
            raise
        try:
            content_type, encoding, data = serialization.dumps(value, serializer=serializer)
        except Exception:
            raise error from None
        if content_type not in runtime.codec.outcomes:
            raise PayloadError(
                f"{error.message} Celery's result_serializer {serializer!r} can store it, but nothing could read it: "
                "result_accept_content, or accept_content, does not allow that.",
                **error.__dict__,
            ) from None
        wrapped = {"content_type": content_type, "encoding": encoding, "data": data}
        payload = runtime.codec.encode(wrapped, where)
        plain = False
    else:
        plain = runtime.codec.is_plain(payload)
    check_acceptable(task, request, value, plain=plain)
    return StoredPayload(*payload)


def pack_error(runtime: Runtime, error: BaseException) -> StoredPayload:
    """The exception that left the body, stored."""
    return StoredPayload(*runtime.codec.encode_error(error, "the error of the task"))


def restore(runtime: Runtime, closed: Closed, name: str) -> Any:
    """Return, or raise, the stored outcome.

    :raises Ignore: where there is none.
    :raises PayloadError: where it cannot be read here.
    """
    value, error = read_outcome(runtime, closed, name)
    if error is not None:
        raise error
    return value


def read_outcome(runtime: Runtime, closed: Closed, name: str) -> tuple[Any, BaseException | None]:
    """The stored outcome: a value, or an error. Errors as of :func:`restore`."""
    stored = closed.outcome
    if stored is None:
        raise Ignore
    if closed.state is State.FAILED:
        error = runtime.codec.decode_error(stored.codec, stored.data, f"the stored error of {name}")
        # Nothing else is an error of a task; a row could name what ends the worker.
        return None, error if isinstance(error, Exception) else RuntimeError(repr(error))
    where = f"the stored outcome of {name}"
    return value_of(runtime.codec, runtime.codec.decode(stored.codec, stored.data, where), where), None


def pruned(name: str, state: State) -> WrongState:
    """The error for somebody who wants an outcome that is gone."""
    return WrongState(
        f"{name} has ended ({state}), and its result has been removed since (durable_retention). To do its work again, "
        "call the task under another id."
    )
