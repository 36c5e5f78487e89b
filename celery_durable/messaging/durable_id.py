"""``durable_id``: an id for a call, chosen by the caller. Which ids are allowed, and when two calls are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kombu import serialization

from celery_durable.errors import ConfigurationError
from celery_durable.identity import call_hash

__all__ = ["call_hash_of", "check_id", "check_place", "one_id"]

#: The size of the journal's column.
_LONGEST_ID: Final = 255


def check_id(chosen: Any, what: str = "durable_id") -> str:
    """The id, if the journal can hold it.

    :param what: the caller's name for it.
    :raises ConfigurationError: if the id is wrong; the message says why.
    """
    if not isinstance(chosen, str):
        raise ConfigurationError(
            f"{what} = {chosen!r} is of type {type(chosen).__name__}; it must be text, such as 'order-42'."
        )
    if not chosen:
        raise ConfigurationError(f"{what} is empty; it must name the call, such as 'order-42'.")
    if len(chosen) > _LONGEST_ID:
        raise ConfigurationError(
            f"{what} {chosen[:40]!r}... has {len(chosen)} characters; there is room for {_LONGEST_ID}. Use a hash of "
            "what makes it so long."
        )
    if not chosen.isprintable():
        bad = next(c for c in chosen if not c.isprintable())
        raise ConfigurationError(
            f"{what} {chosen!r} contains {bad!r}; control characters and line breaks are not allowed."
        )
    if chosen != chosen.strip():
        # Databases differ in whether "a" and "a " are equal.
        raise ConfigurationError(f"{what} {chosen!r} begins or ends with a blank; strip it.")
    return chosen


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

    :raises ConfigurationError: if a single start could not be guaranteed, or would leave others waiting.
    """
    one_id(durable_id, message.headers.get("id"))
    if message.body[2].get("chord"):
        raise ConfigurationError(
            f"durable_id {durable_id!r}: {name} is in the header of a chord, which counts the messages of one call; it "
            "would wait for ever for one that was not sent again. Give the id to the chord's body, or to a task that "
            "starts the chord."
        )


# -- the same call, or another one --------------------------------------------------------------------------------


def call_hash_of(
    name: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, serializer: str | None
) -> bytes:
    """The identity of a call: a hash of the arguments as the body will receive them, so that arguments which the
    message's serializer makes equal (with JSON: tuples and lists) count as equal.

    :raises FingerprintError: for an argument without a canonical form.
    :raises kombu.exceptions.EncodeError: for an argument that cannot be sent.
    """
    content_type, encoding, data = serialization.dumps((args or (), kwargs or {}), serializer=serializer)
    received, named = serialization.loads(data, content_type, encoding, accept={content_type})
    return call_hash(name, received, named)
