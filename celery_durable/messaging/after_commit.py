"""Sends what was recorded in a caller's transaction, after its commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.common.faults import reached
from celery_durable.runtime import Runtime

from .capture import expect_result
from .sending import past_outbox
from .stash import Stash

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["AwaitingCommit", "send_committed"]

logger = logging.getLogger(__name__)


class AwaitingCommit(NamedTuple):
    """A recorded message that waits for the commit."""

    app: Celery
    stash: Stash
    pk: int
    durable: bool
    #: time.monotonic() when it was recorded.
    since: float


def send_committed(messages: Iterable[AwaitingCommit]) -> bool:
    """Send recorded messages that are committed. Those that cannot be sent now are left to recovery; nothing is raised.

    :returns: False if the broker did not accept them.
    """
    taken = True
    by_app: dict[int, list[AwaitingCommit]] = {}
    for message in messages:
        by_app.setdefault(id(message.app), []).append(message)
    for group in by_app.values():
        app, runtime = group[0].app, Runtime.of(group[0].app)
        # A journal in memory has one connection, which the caller may be using. And if the commit took so long that
        # recovery may be sending the message by now, that is left to recovery.
        late = time.monotonic() - runtime.settings.lease_timeout / 2
        if runtime.database.in_memory or any(message.since < late for message in group):
            continue
        sent: list[int] = []
        try:
            original = past_outbox(app)
            with app.producer_or_acquire() as producer:
                for message in group:
                    _expect(app, producer, message.stash)
                    message.stash.send(app, message.pk if message.durable else None, original, producer)
                    if not message.durable:
                        sent.append(message.pk)
            reached("enqueue.after_send")
        except Exception as error:
            taken = False
            logger.warning(
                "%d message(s) are recorded and could not be sent at once (%s: %s); recovery sends them",
                len(group),
                type(error).__name__,
                error,
            )
        try:
            runtime.outbox.sent(sent)
        except Exception as error:
            logger.warning("%d message(s) were sent and may be sent once more: %s", len(sent), error)
    return taken


def _expect(app: Celery, producer: Any, stash: Stash) -> None:
    try:
        expect_result(app, producer, stash.message)
    except Exception as error:
        logger.warning("the result backend does not listen for %s[%s]: %s", stash.name, stash.id, error)
