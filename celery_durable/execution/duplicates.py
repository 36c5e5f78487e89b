"""Messages that are answered without running a body: their execution has ended, or has another owner."""

from __future__ import annotations

import logging
from typing import Any, Final

from celery.exceptions import Ignore

from celery_durable.errors import PayloadError
from celery_durable.messaging.delivery import Delivery
from celery_durable.store.records import Closed, Refusal, Refused, State

from .dispatch import celery_knows, name_callbacks
from .ending import Ending
from .outcome import pruned, read_outcome
from .outcome_delivery import announce

__all__ = ["refused", "returned_again"]

logger = logging.getLogger(__name__)

_WHY: Final = {
    Refusal.LIVE: "another owner runs it",
    Refusal.STALE: "it belongs to an earlier attempt",
    Refusal.PARKED: "it waits for an operator",
}


def refused(delivery: Delivery, ending: Ending, answer: Refused, name: str) -> Exception:
    """What answers a message whose body is not to run here.

    :param name: how logs call it.
    """
    if answer.why is Refusal.QUARANTINED:
        ending.visible.show(answer.state.value.upper(), {"reason": answer.reason})
        ending.tell_parked(answer.state, answer.reason)
    elif answer.why is Refusal.PRUNED and delivery.eager:
        return pruned(name, answer.state)
    else:
        logger.info(
            "a message of %s is dropped: %s (state %s)", name, _WHY.get(answer.why, "it has ended"), answer.state
        )
    return Ignore()


def returned_again(delivery: Delivery, ending: Ending, answer: Closed, name: str) -> Any:
    """What answers a message whose execution has ended: its outcome, as far as Celery does not know it.

    :raises Ignore: where there is nothing to tell.
    """
    known = celery_knows(delivery.task, delivery.request, answer.state) if not delivery.eager else False
    if known:
        logger.info("a message of %s is dropped: it has ended, and Celery knows", name)
        delivery.runtime.keeper.dispatched(answer.pk)
        raise Ignore
    if answer.state is State.CANCELLED and not delivery.eager:
        ending.tell_cancelled(answer.pk)
        raise Ignore
    if known is None:
        # Its callbacks would be sent once more with every try.
        logger.warning("%s has ended; its outcome is passed on when the result backend answers", name)
        raise Ignore
    logger.info("%s had ended (%s); its outcome is returned again", name, answer.state)
    try:
        value, failure = read_outcome(delivery.runtime, answer, name)
    except PayloadError as error:
        if delivery.eager:
            raise
        # To say that it failed would be no answer. Recovery sends its message again.
        logger.error(
            "the outcome of %s cannot be read here, and is not passed on to Celery until it can: %s", name, error
        )
        raise Ignore from error
    name_callbacks(delivery.request)
    if not delivery.eager:
        announce(delivery.runtime, delivery.task, delivery.request, answer.pk)
    if failure is not None:
        raise failure
    return value
