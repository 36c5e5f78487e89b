"""A logger that is silent while a body replays: a line before the first unfinished step appears once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .current import active, operation

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from .context import DurableContext

__all__ = ["DurableLogger", "get_logger"]


class DurableLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """An adapter that is disabled while the body (or this branch of it) replays.

    Records carry the extras ``execution_id`` and, inside an operation, ``step`` and ``step_attempt``.
    """

    def __init__(self, name: str, context: DurableContext | None = None) -> None:
        super().__init__(logging.getLogger(name), {})
        self._context = context

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 (the name is logging's)
        """As the logger, but False while replaying."""
        if not self.logger.isEnabledFor(level):
            return False
        context = self._running()
        # An operation that runs is never a replay.
        return context is None or operation.get() is not None or not context.replaying

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what tells this execution's records from others."""
        context = self._running()
        extra = dict(kwargs.get("extra") or {})
        if context is not None:
            extra.setdefault("execution_id", context.execution_id)
        handle = operation.get()
        if handle is not None:
            extra.setdefault("step", handle.name)
            extra.setdefault("step_attempt", handle.attempt)
        kwargs["extra"] = extra
        return msg, kwargs

    def _running(self) -> DurableContext | None:
        if self._context is not None:
            return self._context
        here = active.get()
        return None if here is None else here.context


def get_logger(name: str) -> DurableLogger:
    """A replay-silent logger for a module; outside a durable body it is an ordinary one.

    :param name: of the logger of :mod:`logging` that gets the records.
    """
    return DurableLogger(name)
