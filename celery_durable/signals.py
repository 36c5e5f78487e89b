"""Signals that applications can connect to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

if TYPE_CHECKING:
    from .store.records import State

__all__ = ["execution_parked", "park"]

logger = logging.getLogger(__name__)

#: An execution was parked and waits for an operator. Sender: the task, or its name where the process does not have
#: the task. Arguments: ``execution_id``, ``state`` ("ambiguous" or "quarantined"), ``reason``.
execution_parked: Signal = Signal(name="execution_parked", providing_args=["execution_id", "state", "reason"])


def park(task: Any, execution_id: str, state: State, reason: str) -> None:
    """Tell people: one record at ERROR, and the signal."""
    name = getattr(task, "name", task)
    logger.error("%s[%s] is parked as %s: %s", name, execution_id, state, reason)
    execution_parked.send(sender=task, execution_id=execution_id, state=str(state), reason=reason)
