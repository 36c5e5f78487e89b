"""Postpones a message while the journal cannot be reached: it is delivered again later, unchanged."""

from __future__ import annotations

import datetime as dt
import logging
import time
from typing import Final

from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval

from celery_durable.errors import JournalUnavailable, SchemaError
from celery_durable.messaging import envelope as envelopes
from celery_durable.messaging.delivery import Delivery

__all__ = ["postpone"]

logger = logging.getLogger(__name__)

#: The longest pause, in seconds.
_LONGEST: Final = 30


def postpone(delivery: Delivery, error: JournalUnavailable | SchemaError) -> None:
    """Send the message again after a pause that grows. It is not a retry: ``max_retries`` does not count it.

    :raises Reject: when the broker cannot be reached either; the message then goes back to its queue.
    """
    request, app = delivery.request, delivery.task.app
    waits = int(request.__dict__.get(envelopes.WAITS_HEADER) or 0)
    delay = 1 + get_exponential_backoff_interval(1, min(waits, 10), _LONGEST, full_jitter=True)
    message = envelopes.from_request(delivery.task, request)
    message["headers"][envelopes.WAITS_HEADER] = str(waits + 1)
    logger.error(
        "%s[%s] cannot continue without its journal; its message is delivered again in about %d s: %s",
        delivery.task.name,
        request.id,
        delay,
        error,
    )
    pk = request.__dict__.get(envelopes.PK_HEADER)
    eta = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=delay)
    try:
        with app.producer_or_acquire() as producer:
            envelopes.resend(app, message, None if pk is None else int(pk), producer=producer, eta=eta)
    except Exception as failure:
        logger.error("the broker did not accept the message of %s either: %s", request.id, failure)
        time.sleep(1.0)  # a requeued message comes back at once
        raise Reject(str(error), requeue=True) from failure
