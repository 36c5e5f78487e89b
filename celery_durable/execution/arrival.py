"""What a message shows of its own past: whether this is the first delivery of its execution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery_durable.messaging import envelope as envelopes
from celery_durable.runtime import Runtime

__all__ = ["is_certainly_first", "is_fresh"]

#: What every header of ours begins with.
_OURS: Final = "durable_"
#: RabbitMQ's queues for messages with an ETA end them by a timeout, which it calls a death.
_DELAY_QUEUE: Final = "celery_delayed_"


def is_fresh(runtime: Runtime, request: Any) -> bool:
    """Whether the broker delivers this message for the first time, and would deliver it again if we died.

    Who acts on it asks the journal as well: the same id may have been sent by somebody else.
    """
    return runtime.trusts_broker and not request.is_eager and _says_first(request)


def is_certainly_first(runtime: Runtime, request: Any) -> bool:
    """Whether nothing can have run under this id before: what may be asked where there is no journal to ask.

    Only where the broker marks whatever it delivers again, and nothing in the message speaks of an earlier delivery,
    attempt or sender. (That somebody publishes two messages under one id, no message can tell.)
    """
    return (
        runtime.marks_redelivery
        and not request.is_eager
        and _says_first(request)
        and not any(name.startswith(_OURS) and name != envelopes.RAW_KEY for name in request.__dict__)
        and not _was_dead(request.__dict__.get("x-death"))
    )


def _says_first(request: Any) -> bool:
    known: Mapping[str, Any] = request.__dict__
    return (
        not request.retries
        and not request.replaced_task_nesting
        and not (request.delivery_info or {}).get("redelivered", True)
        # Redis says it in a header, which a copy of the message takes along.
        and not known.get("redelivered")
        and envelopes.PK_HEADER not in known
        and envelopes.WAITS_HEADER not in known
        # The body may change its arguments before they are stored, but not this.
        and envelopes.RAW_KEY in known
    )


def _was_dead(deaths: Any) -> bool:
    """Whether RabbitMQ took the message from a queue in which it might have been delivered."""
    if not isinstance(deaths, Iterable) or isinstance(deaths, (str, bytes)):
        return bool(deaths)
    return any(
        not (isinstance(death, Mapping) and str(death.get("queue", "")).startswith(_DELAY_QUEUE)) for death in deaths
    )
