"""A body that diverged from its journal starts again in the next generation, or an operator has to look at it first."""

from __future__ import annotations

import dataclasses
import logging

from celery.exceptions import Ignore

from celery_durable.context.durable import DurableContext
from celery_durable.errors import JournalUnavailable, LeaseLost, ReplayDivergence
from celery_durable.messaging.delivery import Delivery
from celery_durable.replay.divergence import UNREACHED, endless
from celery_durable.replay.forgotten import not_reached
from celery_durable.replay.run import Run
from celery_durable.store.records import Batch, Entry, EntryKind, Opened, State

from .ending import Ending
from .postponing import postpone

__all__ = ["begin_anew"]

logger = logging.getLogger(__name__)


def begin_anew(
    delivery: Delivery, ending: Ending, context: DurableContext, run: Run, error: ReplayDivergence
) -> Opened:
    """Start the next generation, or park.

    :raises Ignore: when the message is done with.
    """
    try:
        if delivery.runtime.settings.on_divergence == "park":
            # The generation is not aborted: a resumed execution continues in it.
            raise _quarantined(ending, run, str(error))
        shared = run.saga.shared
        if shared is not None and shared.holds(error.place):
            raise _quarantined(ending, run, shared.refusal(error))
        forgotten = not_reached(run, context._left_behind()) if error.code == UNREACHED else None
        if forgotten is not None:
            raise _quarantined(ending, run, f"{forgotten}\n{error}")
        logger.warning("%s\n  The body starts again in generation %d.", error, run.generation + 1)
        batch = delivery.runtime.writer.drain(run.buffer)
        # What was buffered after the last agreed step belongs to no generation.
        delivery.runtime.writer.discard(run.buffer)
        kept = Batch(batch.fence, batch.generation, ())
        keep, steps = (0, 0) if shared is None else (shared.position, shared.steps)
        generation = delivery.runtime.ownership.restart(
            kept, _aborted(run, str(error)), run.saga.entries(), keep=keep, steps=steps
        )
        reason = endless(generation - run.opened.base_generation, error)
        if reason is not None:
            raise _quarantined(ending, run, reason)
    except LeaseLost as lost:
        logger.warning("%s[%s]: %s", delivery.task.name, delivery.request.id, lost)
        raise Ignore from lost
    except JournalUnavailable as unavailable:
        run.standing.bar(unavailable)
        ending.abandon(run)
        if delivery.eager:
            raise
        postpone(delivery, unavailable)
        raise Ignore from unavailable
    return dataclasses.replace(run.opened, generation=generation, resumed=keep > 0, steps=steps)


def _aborted(run: Run, reason: str) -> Entry:
    """The entry that closes a generation."""
    payload = run.encode(reason, "the reason of the restart")
    return Entry("#aborted", 0, 0, EntryKind.ABORTED, None, "aborted", payload=payload)


def _quarantined(ending: Ending, run: Run, reason: str) -> Ignore:
    run.standing.lift()
    ending.park(run, State.QUARANTINED, reason)
    return Ignore()
