"""The value or error with which an execution ended, as it is stored and handed on again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from kombu import serialization

from .errors import PayloadError, PayloadTooLarge, WrongState
from .store.records import Closed, State, StoredPayload

if TYPE_CHECKING:
    from celery import Task

    from .runtime import Runtime

__all__ = ["pack_error", "pack_value", "pruned", "restore", "value_of"]


def pack_value(runtime: Runtime, task: Task[Any, Any], value: Any) -> StoredPayload:
    """The body's return value, stored.

    What our codec cannot carry but the application's result serializer can (pickle, a custom one), is stored in that
    form: Celery would hand it on in no other.

    :raises PayloadError: when neither can.
    """
    where = f"the return value of task {task.name!r}"
    try:
        return StoredPayload(*runtime.codec.encode({"value": value}, where))
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
        wrapped = {"content_type": content_type, "encoding": encoding, "data": data}
        return StoredPayload(*runtime.codec.encode(wrapped, where))


def pack_error(runtime: Runtime, error: BaseException) -> StoredPayload:
    """The exception that left the body, stored."""
    return StoredPayload(*runtime.codec.encode_error(error, "the error of the task"))


def restore(runtime: Runtime, closed: Closed, name: str) -> Any:
    """Return, or raise, the stored outcome."""
    stored = closed.outcome
    if stored is None:
        raise Ignore
    if closed.state is State.FAILED:
        raise runtime.codec.decode_error(stored.codec, stored.data, f"the stored error of {name}")
    where = f"the stored outcome of {name}"
    return value_of(runtime.codec.decode(stored.codec, stored.data, where))


def value_of(outcome: dict[str, Any]) -> Any:
    """The value in what :func:`pack_value` has stored."""
    if "value" in outcome:
        return outcome["value"]
    content_type = outcome["content_type"]
    return serialization.loads(outcome["data"], content_type, outcome["encoding"], accept={content_type})


def pruned(name: str, state: State) -> WrongState:
    """The error for somebody who wants an outcome that is gone."""
    return WrongState(
        f"{name} has ended ({state}), and its result was removed since (durable_retention). To have its work done "
        "again, call the task under another id."
    )
