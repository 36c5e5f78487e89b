"""Sends the message of an execution that continues because its wait has ended."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_durable.runtime import Runtime
from celery_durable.store.promises.settling import Waking

from . import envelope as envelopes

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["wake"]

logger = logging.getLogger(__name__)

#: If the broker does not answer, recovery sends: the process that settles a promise should not have to wait.
_PUBLISH: dict[str, Any] = {
    "retry": True,
    "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0},
}


def wake(app: Celery, waking: Waking) -> None:
    """Send the message of an execution that continues; if this fails, recovery does it."""
    if waking.envelope is None:
        return
    runtime = Runtime.of(app)
    try:
        message = envelopes.unpack(waking.envelope, runtime.envelope_codec)
        with app.producer_or_acquire() as producer:
            envelopes.resend(app, message, waking.pk, producer=producer, **_PUBLISH)
    # Whatever the broker's client raises: the promise is settled, and recovery does the rest.
    except Exception as error:
        logger.warning(
            "%s[%s] continues when recovery sends its message, because the broker did not accept it: %s: %s",
            waking.task,
            waking.id,
            type(error).__name__,
            error,
        )
        runtime.recovery.unsent([waking.pk], 0)
