"""Signals that applications can connect to."""

from __future__ import annotations

import logging
from typing import Any

from celery.utils.dispatch import Signal

from .store.records import State

__all__ = ["ambiguity_decided", "announce_parked", "execution_parked"]

logger = logging.getLogger(__name__)

#: An execution was parked and waits for an operator. Sender: the task, or its name if this process does not have it.
#: Arguments: ``execution_id``, ``state`` ("ambiguous" or "quarantined"), ``reason``.
execution_parked: Signal = Signal(name="execution_parked", providing_args=["execution_id", "state", "reason"])
#: A guarded step was in doubt, and its policy decided what to do. Sender: the task. Arguments: ``execution_id``;
#: ``step``, its name; ``step_id``, its position; ``key``, its idempotency key (bytes); ``policy`` ("skip", "rerun" or
#: "reconcile"); ``decision`` ("skip", "rerun", "happened", "did_not_happen" or "unknown").
ambiguity_decided: Signal = Signal(
    name="ambiguity_decided", providing_args=["execution_id", "step", "step_id", "key", "policy", "decision"]
)


def announce_parked(task: Any, execution_id: str, state: State, reason: str) -> None:
    """Notify people: one log record at ERROR, and the signal."""
    name = getattr(task, "name", task)
    logger.error("%s[%s] is parked as %s: %s", name, execution_id, state, reason)
    execution_parked.send(sender=task, execution_id=execution_id, state=str(state), reason=reason)
