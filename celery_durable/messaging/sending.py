"""Sends a message to the broker once its row is committed. If that fails, recovery sends it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import envelope as envelopes
from .stash import Stash

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["broker_errors", "past_outbox", "publish_stashed", "publish_stored", "send_recorded"]

logger = logging.getLogger(__name__)


def send_recorded(app: Celery, stash: Stash, pk: int, original: Callable[..., Any], producer: Any) -> Any:
    """Send a message whose row is committed: if the broker fails now, recovery sends it later."""
    try:
        return stash.send(app, pk, original, producer)
    except Exception as error:
        if not isinstance(error, broker_errors(app)):
            raise
        _say_recorded(stash.name, stash.message.headers["id"], error)
        return None


def publish_stored(app: Celery, envelope: dict[str, Any], pk: int) -> None:
    """Send a stored message whose row is committed: if the broker fails now, recovery sends it later."""
    try:
        with app.producer_or_acquire() as producer:
            envelopes.resend(app, envelope, pk, producer=producer)
    except Exception as error:
        if not isinstance(error, broker_errors(app)):
            raise
        _say_recorded(envelope["headers"]["task"], envelope["headers"]["id"], error)


def _say_recorded(name: str, execution_id: str, error: Exception) -> None:
    logger.warning(
        "the broker did not accept %s[%s] (%s: %s); it is recorded, and recovery sends it",
        name,
        execution_id,
        type(error).__name__,
        error,
    )


def broker_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """Exceptions that sending raises when the broker is out of reach."""
    from kombu.exceptions import OperationalError

    connection = app.connection_for_write()
    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def past_outbox(app: Celery) -> Callable[..., Any]:
    """The sender of an app, without the outbox."""
    sender = app.amqp.send_task_message
    return getattr(sender, "past_outbox", sender)  # type: ignore[no-any-return]


def publish_stashed(app: Celery, stash: Stash, pk: int) -> None:
    """Send a message that was held back until its execution was committed; recovery is the safety net."""
    with app.producer_or_acquire() as producer:
        send_recorded(app, stash, pk, past_outbox(app), producer)
